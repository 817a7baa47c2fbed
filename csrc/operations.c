/* ops.c - what is particular to each operation: its pivots, its statistics, the parameters of its second pass. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "call.h"

/* Of pivots or parameters. */
static char *element(const struct fbn_call *call, void *array, int64_t f) { return (char *)array + f * call->lane_size; }

/* The parameter arrays from feature `first` on. */
static void params_from(const struct fbn_call *call, int64_t first, void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(call); i++)
        par[i] = element(call, call->par[i], first);
}

/* ---- moments and training ---- */

/* A sample that does not count may be NaN. Any pivot is right: where 0 is a bad one, the sums are taken again. */
static void mend_pivots(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; f < end; f++) {
        float *narrow = (float *)call->pivot + f;
        double *wide = (double *)call->pivot + f;
        if (call->lane_size == (int64_t)sizeof *narrow)
            *narrow = *narrow == *narrow ? *narrow : 0;
        else
            *wide = *wide == *wide ? *wide : 0;
    }
}

static void pivots_from_samples(struct fbn_call *call, int64_t first, int64_t end)
{
    call->typed->pivots(fbn_at(call->x, call->size, 0, first, 0), call->x.stride_c, call->offset, call->samples, end - first,
                       element(call, call->pivot, first));
    if (call->omits)
        mend_pivots(call, first, end);
}

/* The weight of all entries of a feature that count. */
static double total_of(const struct fbn_call *call, int64_t f) { return call->counts ? call->counts[f] : call->total; }

static int nothing_counts(const struct fbn_call *call, int64_t f) { return !(total_of(call, f) > 0); }

/* The share of an entry of weight 1; NaN where none counts. */
static double share_of(const struct fbn_call *call, int64_t f)
{
    double total = total_of(call, f);
    return total > 0 ? 1.0 / total : NAN;
}

static int64_t finish_feature(struct fbn_call *call, int64_t f, unsigned char *bad)
{
    double total = total_of(call, f);
    if (total > 0)
        return call->lanes->finish_moments(1, total, element(call, call->pivot, f), call->sum_u + f, call->sum_v + f,
                                          call->mean + f, call->m2 + f, bad);
    call->mean[f] = call->m2[f] = 0.0;
    *bad = 0;
    return 0;
}

static int64_t finish_moments_of(struct fbn_call *call, int64_t first, int64_t count, unsigned char *bad)
{
    int64_t wrong = 0;
    if (!call->weights)
        return call->lanes->finish_moments(count, call->total, element(call, call->pivot, first), call->sum_u + first,
                                          call->sum_v + first, call->mean + first, call->m2 + first, bad);
    for (int64_t f = 0; f < count; f++)
        wrong += finish_feature(call, first + f, bad + f);
    return wrong;
}

/* Squares of finite entries that overflow double give Inf - Inf, which is NaN, where M2 is too large. */
static void make_large_infinite(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; call->size == (int64_t)sizeof(double) && f < end; f++)
        if (isnan(call->m2[f]) && isfinite(call->mean[f]))
            call->m2[f] = INFINITY;
}

static int64_t finish_moments(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    int64_t wrong = 0;
    if (!again)
        wrong = finish_moments_of(call, first, end - first, call->bad + first);
    for (int64_t f = first; again && f < end; f++)
        if (call->bad[f])
            finish_moments_of(call, f, 1, &ignored);
    make_large_infinite(call, first, end);
    return wrong;
}

/* ---- the affine map to z, or to y ---- */

/* A feature of which nothing counts has no variance and no scale: z is beta, as for one value. */
static void flatten_affine(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    const double scale = 0.0;
    for (int64_t f = first; call->weights && !call->given.mean && f < end; f++) {
        void *par[3] = {element(call, arrays[0], f), element(call, arrays[1], f), element(call, arrays[2], f)};
        if (nothing_counts(call, f))
            call->lanes->affine_params(1, call->mean + f, &scale, call->gamma + f, call->beta + f, par);
    }
}

/* A scale that float32 cannot hold, of an eps next to nothing, becomes the largest: x - mean is 0 there, or as small, and
 * 0 * Inf would be NaN. Backward does not know eps. */
static void clamp_scales(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    if (call->lane_size != (int64_t)sizeof(float) || call->eps > 1e-60)
        return;
    for (int64_t f = first; f < end; f++) {
        double a = call->gamma[f] * call->rstd[f], most = copysign((double)FLT_MAX, a);
        if (fabs(a) > (double)FLT_MAX && isfinite(a))
            call->lanes->round(1, &most, element(call, arrays[1], f));
    }
}

static void affine_params(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    void *par[3];
    for (int i = 0; i < 3; i++)
        par[i] = element(call, arrays[i], first);
    call->lanes->affine_params(end - first, call->mean + first, call->rstd + first, call->gamma + first, call->beta + first,
                              par);
    clamp_scales(call, first, end, arrays);
    flatten_affine(call, first, end, arrays);
}

/* ---- the parameters of y, from var ---- */

/* Below which y = act(bn(x) + residual) is 0, see fbn_residual. */
static void least_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const double least = call->activation == FASTBN_RELU ? 0.0 : -INFINITY;
    for (int64_t f = first; f < end; f++)
        call->lanes->round(1, &least, element(call, call->par[3], f));
}

static void params_of_y(struct fbn_call *call, int64_t first, int64_t end)
{
    affine_params(call, first, end, call->par);
    if (fbn_params_of(call) == 4)
        least_params(call, first, end);
}

static void inference_params(struct fbn_call *call, int64_t first, int64_t end)
{
    call->kernels->rstd(end - first, call->var + first, call->eps, call->rstd + first);
    params_of_y(call, first, end);
}

/* Where squares of finite entries overflow double, the variance is Inf, but not its root, which this is from entries divided
 * by 2^600. */
static double rstd_of_huge(const struct fbn_call *call, int64_t f)
{
    const double unit = 0x1p-600, *weights = (const double *)call->weights;
    const int64_t s = call->sums_plan.s;
    double squares = 0.0;
    for (int64_t entry = 0; entry < call->entries; entry++) {
        double x = *(const double *)fbn_at(call->x, call->size, entry / s, f, entry % s), d = (x - call->mean[f]) * unit;
        if (!weights || (weights[entry] != 0 && !(call->omits && x != x)))
            squares += (weights ? weights[entry] : 1.0) * (d * d);
    }
    return unit / sqrt(squares * share_of(call, f));
}

static void training_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const double share = share_of(call, 0);
    for (int64_t f = first; f < end; f++)
        call->var[f] = call->m2[f] * (call->counts ? share_of(call, f) : share);
    call->kernels->rstd(end - first, call->var + first, call->eps, call->rstd + first);
    for (int64_t f = first; call->size == (int64_t)sizeof(double) && f < end; f++)
        if (isinf(call->var[f]) && isfinite(call->mean[f]) && !nothing_counts(call, f))
            call->rstd[f] = rstd_of_huge(call, f);
    params_of_y(call, first, end);
}

/* ---- gradients ---- */

/* Of the affine map to z, whose activation's derivative is taken. */
static void z_params(struct fbn_call *call, int64_t first, int64_t end)
{
    if (fbn_needs_z(call))
        affine_params(call, first, end, call->z);
}

static void pivots_from_means(struct fbn_call *call, int64_t first, int64_t end)
{
    call->lanes->round(end - first, call->mean + first, element(call, call->pivot, first));
    z_params(call, first, end);
}

static int64_t finish_gradient_of(struct fbn_call *call, int64_t first, int64_t count, unsigned char *bad)
{
    return call->lanes->finish_gradient(count, element(call, call->pivot, first), call->mean + first, call->rstd + first,
                                       call->sum_u + first, call->sum_v + first, call->dgamma + first,
                                       call->dbeta + first, bad);
}

/* The sum over nothing is 0, whatever rstd is. */
static void flatten_gradient(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; call->weights && f < end; f++)
        if (nothing_counts(call, f))
            call->dgamma[f] = 0.0;
}

static int64_t finish_gradient(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    int64_t wrong = 0;
    if (!again)
        wrong = finish_gradient_of(call, first, end - first, call->bad + first);
    for (int64_t f = first; again && f < end; f++)
        if (call->bad[f])
            finish_gradient_of(call, f, 1, &ignored);
    flatten_gradient(call, first, end);
    return wrong;
}

static void gradient_params(struct fbn_call *call, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    const double all = share_of(call, 0);
    params_from(call, first, par);
    for (int64_t f = first; f < end; f++) {
        const double share = call->counts ? share_of(call, f) : all;
        call->mean_dy[f] = call->dbeta[f] * share;
        call->slope[f] = call->rstd[f] * (call->dgamma[f] * share);
    }
    call->lanes->gradient_params(end - first, call->mean + first, call->rstd + first, call->gamma + first,
                                call->mean_dy + first, call->slope + first, par);
    for (int64_t f = first; call->weights && f < end; f++)
        if (nothing_counts(call, f)) /* dx = 0 * (dy - 0 - (x - 0) * 0) */
            for (int i = 0; i < 4; i++)
                memset(element(call, call->par[i], f), 0, (size_t)call->lane_size);
    if (call->relu_gradient)
        memcpy(par[4], element(call, call->z[2], first), (size_t)((end - first) * call->lane_size));
}

/* Constant statistics: dx = (dy - 0) * gamma * rstd + (-0), where -0 is the zero that changes no sign. */
static void frozen_params(struct fbn_call *call, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    params_from(call, first, par);
    for (int64_t f = first; f < end; f++) {
        call->mean_dy[f] = 0.0;
        call->slope[f] = -0.0;
    }
    call->lanes->affine_params(end - first, call->mean_dy + first, call->rstd + first, call->gamma + first,
                              call->slope + first, par);
}

/* Without sums. */
static void frozen_dx_params(struct fbn_call *call, int64_t first, int64_t end)
{
    z_params(call, first, end);
    frozen_params(call, first, end);
}

const struct fbn_operation fbn_operation_moments = {pivots_from_samples, finish_moments, NULL};
const struct fbn_operation fbn_operation_training = {pivots_from_samples, finish_moments, training_params};
const struct fbn_operation fbn_operation_inference = {NULL, NULL, inference_params};
const struct fbn_operation fbn_operation_gradient = {pivots_from_means, finish_gradient, gradient_params};
const struct fbn_operation fbn_operation_gradient_sums = {pivots_from_means, finish_gradient, NULL};
const struct fbn_operation fbn_operation_frozen = {pivots_from_means, finish_gradient, frozen_params};
const struct fbn_operation fbn_operation_frozen_dx = {NULL, NULL, frozen_dx_params};
