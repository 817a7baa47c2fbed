/* running.c - the exponential moving averages of mean and variance. */
#include <stddef.h>

#include "fastbn.h"

static void average_f32(int64_t c, const double *batch, double momentum, double scale, float *running)
{
    for (int64_t f = 0; f < c; f++)
        running[f] = (float)(momentum * (double)running[f] + (1.0 - momentum) * (batch[f] * scale));
}

static void average_f64(int64_t c, const double *batch, double momentum, double scale, double *running)
{
    for (int64_t f = 0; f < c; f++)
        running[f] = momentum * running[f] + (1.0 - momentum) * (batch[f] * scale);
}

fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum, double var_scale,
                                    void *running_mean, void *running_var, fastbn_dtype dtype)
{
    if (c < 0)
        return FASTBN_ERROR_SHAPE;
    if (c > 0 && (!mean || !var || !running_mean || !running_var))
        return FASTBN_ERROR_NULL;
    if (dtype != FASTBN_FLOAT32 && dtype != FASTBN_FLOAT64)
        return FASTBN_ERROR_DTYPE;
    if (dtype == FASTBN_FLOAT32) {
        average_f32(c, mean, momentum, 1.0, running_mean);
        average_f32(c, var, momentum, var_scale, running_var);
    } else {
        average_f64(c, mean, momentum, 1.0, running_mean);
        average_f64(c, var, momentum, var_scale, running_var);
    }
    return FASTBN_OK;
}
