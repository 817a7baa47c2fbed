/* operations.c - what is particular to each operation: its pivots, its statistics, the parameters of its map. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "call.h"

/* The place of feature f in an array of pivots or parameters. */
static char *element(const struct fbn_call *call, void *array, int64_t f) { return (char *)array + f * call->lane_size; }

/* The parameter arrays from feature `first` on. */
static void params_from(const struct fbn_call *call, int64_t first, void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(call); i++)
        par[i] = element(call, call->scratch.par[i], first);
}

/* ---- moments and training ---- */

/* A sample that does not count may be NaN. Any pivot is right: where 0 is a bad one, the sums are taken again. */
static void mend_pivots(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; f < end; f++) {
        float *narrow = (float *)call->scratch.pivot + f;
        double *wide = (double *)call->scratch.pivot + f;
        if (call->lane_size == (int64_t)sizeof *narrow)
            *narrow = *narrow == *narrow ? *narrow : 0;
        else
            *wide = *wide == *wide ? *wide : 0;
    }
}

static void pivots_from_samples(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_array x = call->given.x;
    call->typed->pivots(fbn_at(x, call->size, 0, first, 0), x.stride_c, call->plan.offset, call->plan.samples,
                        end - first, element(call, call->scratch.pivot, first));
    if (call->given.omits)
        mend_pivots(call, first, end);
}

/* The weight of all entries of a feature that count. */
static double total_of(const struct fbn_call *call, int64_t f)
{
    return call->given.counts ? call->given.counts[f] : call->given.total;
}

static int nothing_counts(const struct fbn_call *call, int64_t f) { return !(total_of(call, f) > 0); }

/* The share of an entry of weight 1; NaN where none counts. */
static double share_of(const struct fbn_call *call, int64_t f)
{
    double total = total_of(call, f);
    return total > 0 ? 1.0 / total : NAN;
}

static int64_t finish_moments_of(struct fbn_call *call, int64_t first, int64_t count, double total, unsigned char *bad)
{
    struct fbn_scratch *scratch = &call->scratch;
    return call->lanes->finish_moments(count, total, element(call, scratch->pivot, first), scratch->sum_u + first,
                                       scratch->sum_v + first, scratch->mean + first, scratch->m2 + first, bad);
}

static int64_t finish_feature(struct fbn_call *call, int64_t f, unsigned char *bad)
{
    if (!nothing_counts(call, f))
        return finish_moments_of(call, f, 1, total_of(call, f), bad);
    call->scratch.mean[f] = call->scratch.m2[f] = 0.0;
    *bad = 0;
    return 0;
}

/* Squares of finite entries that overflow double give Inf - Inf, which is NaN, where M2 is too large. */
static void make_large_infinite(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    for (int64_t f = first; call->size == (int64_t)sizeof(double) && f < end; f++)
        if (isnan(scratch->m2[f]) && isfinite(scratch->mean[f]))
            scratch->m2[f] = INFINITY;
}

static int64_t finish_moments(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    unsigned char ignored, *bad = call->scratch.bad;
    const int all_alike = !again && !call->given.weights;
    int64_t wrong = 0;
    if (all_alike)
        wrong = finish_moments_of(call, first, end - first, call->given.total, bad + first);
    for (int64_t f = first; !all_alike && f < end; f++)
        if (!again || bad[f])
            wrong += finish_feature(call, f, again ? &ignored : bad + f);
    make_large_infinite(call, first, end);
    return again ? 0 : wrong;
}

/* ---- the affine map to z, or to y ---- */

/* A feature of which nothing counts has no variance and no scale: z is beta, as for one value. */
static void flatten_affine(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    const struct fbn_scratch *scratch = &call->scratch;
    const double scale = 0.0;
    for (int64_t f = first; call->given.weights && !call->given.mean && f < end; f++) {
        void *par[3] = {element(call, arrays[0], f), element(call, arrays[1], f), element(call, arrays[2], f)};
        if (nothing_counts(call, f))
            call->lanes->affine_params(1, scratch->mean + f, &scale, scratch->gamma + f, scratch->beta + f, par);
    }
}

/* An eps next to nothing may give a scale that float32 cannot hold. It becomes the largest float32: x - mean is 0 there, or
 * as small, and 0 * Inf would be NaN. Backward does not know eps. */
static void clamp_scales(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    if (call->lane_size != (int64_t)sizeof(float) || call->given.eps > 1e-60)
        return;
    for (int64_t f = first; f < end; f++) {
        double a = call->scratch.gamma[f] * call->scratch.rstd[f], most = copysign((double)FLT_MAX, a);
        if (fabs(a) > (double)FLT_MAX && isfinite(a))
            call->lanes->round(1, &most, element(call, arrays[1], f));
    }
}

static void affine_params(const struct fbn_call *call, int64_t first, int64_t end, void *const arrays[3])
{
    const struct fbn_scratch *scratch = &call->scratch;
    void *par[3];
    for (int i = 0; i < 3; i++)
        par[i] = element(call, arrays[i], first);
    call->lanes->affine_params(end - first, scratch->mean + first, scratch->rstd + first, scratch->gamma + first,
                               scratch->beta + first, par);
    clamp_scales(call, first, end, arrays);
    flatten_affine(call, first, end, arrays);
}

/* ---- the parameters of y, from var ---- */

/* Below this z, y = act(bn(x) + residual) is 0: see fbn_map. */
static void least_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const double least = call->given.activation == FASTBN_RELU ? 0.0 : -INFINITY;
    for (int64_t f = first; f < end; f++)
        call->lanes->round(1, &least, element(call, call->scratch.par[3], f));
}

static void params_of_y(struct fbn_call *call, int64_t first, int64_t end)
{
    affine_params(call, first, end, call->scratch.par);
    if (fbn_params_of(call) == 4)
        least_params(call, first, end);
}

static void inference_params(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    call->kernels->rstd(end - first, scratch->var + first, call->given.eps, scratch->rstd + first);
    params_of_y(call, first, end);
}

/* Where squares of finite entries overflow double, the variance is Inf, but its root is not. This takes the root from
 * entries divided by 2^600. */
static double rstd_of_huge(const struct fbn_call *call, int64_t f)
{
    const double unit = 0x1p-600, *weights = (const double *)call->given.weights;
    const int64_t s = call->plan.sums.s;
    double squares = 0.0;
    for (int64_t entry = 0; entry < call->given.entries; entry++) {
        double x = *(const double *)fbn_at(call->given.x, call->size, entry / s, f, entry % s);
        double d = (x - call->scratch.mean[f]) * unit;
        if (!weights || (weights[entry] != 0 && !(call->given.omits && x != x)))
            squares += (weights ? weights[entry] : 1.0) * (d * d);
    }
    return unit / sqrt(squares * share_of(call, f));
}

static void training_params(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    const double share = share_of(call, 0);
    for (int64_t f = first; f < end; f++)
        scratch->var[f] = scratch->m2[f] * (call->given.counts ? share_of(call, f) : share);
    call->kernels->rstd(end - first, scratch->var + first, call->given.eps, scratch->rstd + first);
    for (int64_t f = first; call->size == (int64_t)sizeof(double) && f < end; f++)
        if (isinf(scratch->var[f]) && isfinite(scratch->mean[f]) && !nothing_counts(call, f))
            scratch->rstd[f] = rstd_of_huge(call, f);
    params_of_y(call, first, end);
}

/* ---- gradients ---- */

/* Makes the parameters of the affine map to z, whose activation's derivative is taken. */
static void z_params(struct fbn_call *call, int64_t first, int64_t end)
{
    if (fbn_needs_z(call))
        affine_params(call, first, end, call->scratch.z);
}

static void pivots_from_means(struct fbn_call *call, int64_t first, int64_t end)
{
    call->lanes->round(end - first, call->scratch.mean + first, element(call, call->scratch.pivot, first));
    z_params(call, first, end);
}

static int64_t finish_gradient_of(struct fbn_call *call, int64_t first, int64_t count, unsigned char *bad)
{
    struct fbn_scratch *scratch = &call->scratch;
    return call->lanes->finish_gradient(count, element(call, scratch->pivot, first), scratch->mean + first,
                                        scratch->rstd + first, scratch->sum_u + first, scratch->sum_v + first,
                                        scratch->dgamma + first, scratch->dbeta + first, bad);
}

/* The sum over nothing is 0, whatever rstd is. */
static void flatten_gradient(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; call->given.weights && f < end; f++)
        if (nothing_counts(call, f))
            call->scratch.dgamma[f] = 0.0;
}

static int64_t finish_gradient(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    int64_t wrong = 0;
    if (!again)
        wrong = finish_gradient_of(call, first, end - first, call->scratch.bad + first);
    for (int64_t f = first; again && f < end; f++)
        if (call->scratch.bad[f])
            finish_gradient_of(call, f, 1, &ignored);
    flatten_gradient(call, first, end);
    return wrong;
}

/* Where nothing counts, dx = 0 * (dy - 0 - (x - 0) * 0). */
static void flatten_dx(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int64_t f = first; call->given.weights && f < end; f++)
        for (int i = 0; nothing_counts(call, f) && i < 4; i++)
            memset(element(call, call->scratch.par[i], f), 0, (size_t)call->lane_size);
}

static void gradient_params(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    void *par[FBN_MOST_PARAMS];
    const double all = share_of(call, 0);
    params_from(call, first, par);
    for (int64_t f = first; f < end; f++) {
        const double share = call->given.counts ? share_of(call, f) : all;
        scratch->mean_dy[f] = scratch->dbeta[f] * share;
        scratch->slope[f] = scratch->rstd[f] * (scratch->dgamma[f] * share);
    }
    call->lanes->gradient_params(end - first, scratch->mean + first, scratch->rstd + first, scratch->gamma + first,
                                 scratch->mean_dy + first, scratch->slope + first, par);
    flatten_dx(call, first, end);
    if (call->plan.relu_gradient)
        memcpy(par[4], element(call, scratch->z[2], first), (size_t)((end - first) * call->lane_size));
}

/* With constant statistics dx = (dy - 0) * gamma * rstd + (-0), where -0 is the zero that changes no sign. */
static void frozen_params(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    void *par[FBN_MOST_PARAMS];
    params_from(call, first, par);
    for (int64_t f = first; f < end; f++) {
        scratch->mean_dy[f] = 0.0;
        scratch->slope[f] = -0.0;
    }
    call->lanes->affine_params(end - first, scratch->mean_dy + first, scratch->rstd + first, scratch->gamma + first,
                               scratch->slope + first, par);
}

/* Without sums, nobody has made the parameters of z before. */
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
