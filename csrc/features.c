/* features.c - values of features: between the caller's type and double, in which all steps by feature compute, and
 * repeated for the columns of a table. Doubles of the caller are read where they are.
 */
#include <string.h>

#include "call.h"

/* ---- the caller's values ---- */

void fbn_take_params(struct fbn_call *call, const void *mean, const void *var, const fastbn_params *params)
{
    call->given.mean = mean;
    call->given.var = var;
    call->given.gamma = params->gamma;
    call->given.beta = params->beta;
    call->given.dtype = params->dtype;
    if (params->dtype != FASTBN_FLOAT64)
        return;
    if (mean) {
        call->scratch.mean = (double *)mean; /* these four are only read */
        call->scratch.var = (double *)var;
    }
    call->scratch.gamma = (double *)params->gamma;
    call->scratch.beta = (double *)params->beta;
}

static int64_t size_of(fastbn_dtype dtype)
{
    return dtype == FASTBN_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
}

void fbn_load_values(const struct fbn_kernels *kernels, fastbn_dtype dtype, const void *from, double missing,
                     int64_t first, int64_t end, double *to)
{
    if (from && from != to)
        kernels->typed[dtype].widen(end - first, (const char *)from + first * size_of(dtype), to + first);
    for (int64_t f = first; !from && f < end; f++)
        to[f] = missing;
}

void fbn_load_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_given *given = &call->given;
    const struct fbn_scratch *scratch = &call->scratch;
    if (given->mean) {
        fbn_load_values(call->kernels, given->dtype, given->mean, 0.0, first, end, scratch->mean);
        fbn_load_values(call->kernels, given->dtype, given->var, 1.0, first, end, scratch->var);
    }
    if (call->operation->params || fbn_needs_z(call))
        fbn_load_values(call->kernels, given->dtype, given->gamma, 1.0, first, end, scratch->gamma);
    if (fbn_needs_z(call) || (call->operation->params && !given->dy.data))
        fbn_load_values(call->kernels, given->dtype, given->beta, 0.0, first, end, scratch->beta);
}

void fbn_store_param(const struct fbn_call *call, void *to, const double *from)
{
    if (to)
        call->kernels->typed[call->given.dtype].round(call->plan.sums.c, from, to);
}

void fbn_store_nothing(fastbn_dtype dtype, int64_t c, void *to)
{
    if (to)
        memset(to, 0, (size_t)(c * size_of(dtype)));
}

/* ---- columns ---- */

int fbn_more_columns(const struct fbn_plan *plan) { return plan->layout == FBN_ROWS && plan->width != plan->c; }

#define REPEAT(type)                                                             \
    for (int64_t f = first; f < end; f++) {                                      \
        int64_t last = fbn_min((f + 1) * s, limit);                              \
        for (int64_t j = f * s; j < last; j++)                                   \
            ((type *)to)[j] = ((const type *)from)[f];                           \
    }

/* Writes the columns below `limit` of the features [first, end), once. */
static void broadcast_once(char *to, const char *from, int64_t size, int64_t s, int64_t first, int64_t end,
                           int64_t limit)
{
    if (s == 1) {
        int64_t last = fbn_min(end, limit);
        if (first < last)
            memcpy(to + first * size, from + first * size, (size_t)((last - first) * size));
    } else if (size == (int64_t)sizeof(float)) {
        REPEAT(float)
    } else {
        REPEAT(double)
    }
}

void fbn_broadcast(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t count,
                   int64_t first, int64_t end)
{
    int64_t period = plan->c * plan->s;
    for (int64_t j = 0; j < count; j += period)
        broadcast_once((char *)columns + j * size, value, size, plan->s, first, end, fbn_min(count - j, period));
}
