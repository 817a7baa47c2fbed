/* features.c - gamma and beta, and the statistics of an inference, between the caller's type and double, which all steps
 * by feature compute in. Doubles are read where the caller has them.
 */
#include <string.h>

#include "call.h"

void fbn_take_params(struct fbn_call *call, const void *mean, const void *var, const fastbn_params *params)
{
    call->given = (struct fbn_given){mean, var, params->gamma, params->beta, params->dtype};
    if (params->dtype != FASTBN_FLOAT64)
        return;
    if (mean) {
        call->mean = (double *)mean; /* only read, as the others */
        call->var = (double *)var;
    }
    call->gamma = (double *)params->gamma;
    call->beta = (double *)params->beta;
}

static void load(const struct fbn_call *call, double *to, const void *from, double missing, int64_t first, int64_t end)
{
    const int64_t size = call->given.dtype == FASTBN_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
    if (from && from != to)
        call->kernels->typed[call->given.dtype].widen(end - first, (const char *)from + first * size, to + first);
    for (int64_t f = first; !from && f < end; f++)
        to[f] = missing;
}

void fbn_load_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_given *given = &call->given;
    if (given->mean) {
        load(call, call->mean, given->mean, 0.0, first, end);
        load(call, call->var, given->var, 1.0, first, end);
    }
    if (call->operation->params || fbn_needs_z(call))
        load(call, call->gamma, given->gamma, 1.0, first, end);
    if (fbn_needs_z(call) || (call->operation->params && !call->dy.data))
        load(call, call->beta, given->beta, 0.0, first, end);
}

void fbn_store_param(const struct fbn_call *call, void *to, const double *from)
{
    if (to)
        call->kernels->typed[call->given.dtype].round(call->sums_plan.c, from, to);
}

/* ---- values of features repeated for the columns of a table ---- */

int fbn_more_columns(const struct fbn_plan *plan) { return plan->layout == FBN_ROWS && plan->width != plan->c; }

#define REPEAT(type)                                                             \
    for (int64_t f = first; f < end; f++) {                                      \
        int64_t last = (f + 1) * s < limit ? (f + 1) * s : limit;                \
        for (int64_t j = f * s; j < last; j++)                                   \
            ((type *)to)[j] = ((const type *)from)[f];                           \
    }

/* The columns below `limit` of the features [first, end), once. */
static void broadcast_once(char *to, const char *from, int64_t size, int64_t s, int64_t first, int64_t end, int64_t limit)
{
    if (s == 1) {
        int64_t last = end < limit ? end : limit;
        if (first < last)
            memcpy(to + first * size, from + first * size, (size_t)((last - first) * size));
    } else if (size == (int64_t)sizeof(float)) {
        REPEAT(float)
    } else {
        REPEAT(double)
    }
}

void fbn_broadcast(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t count, int64_t first,
                int64_t end)
{
    int64_t period = plan->c * plan->s;
    for (int64_t j = 0; j < count; j += period)
        broadcast_once((char *)columns + j * size, value, size, plan->s, first, end, count - j < period ? count - j : period);
}
