/* ops.c - what is particular to each operation: its pivots, its statistics, the parameters of its second pass. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "job.h"

/* Of pivots or parameters. */
static char *element(const struct fbn_job *job, void *array, int64_t f) { return (char *)array + f * job->lane_size; }

/* The parameter arrays from feature `first` on. */
static void params_from(const struct fbn_job *job, int64_t first, void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(job); i++)
        par[i] = element(job, job->par[i], first);
}

/* ---- moments and training ---- */

/* A sample that does not count may be NaN. Any pivot is right: where 0 is a bad one, the sums are taken again. */
static void mend_pivots(struct fbn_job *job, int64_t first, int64_t end)
{
    for (int64_t f = first; f < end; f++) {
        float *narrow = (float *)job->pivot + f;
        double *wide = (double *)job->pivot + f;
        if (job->lane_size == (int64_t)sizeof *narrow)
            *narrow = *narrow == *narrow ? *narrow : 0;
        else
            *wide = *wide == *wide ? *wide : 0;
    }
}

static void pivots_from_samples(struct fbn_job *job, int64_t first, int64_t end)
{
    job->typed->pivots(fbn_at(job->x, job->size, 0, first, 0), job->x.stride_c, job->offset, job->samples, end - first,
                       element(job, job->pivot, first));
    if (job->omits)
        mend_pivots(job, first, end);
}

/* The weight of all entries of a feature that count. */
static double total_of(const struct fbn_job *job, int64_t f) { return job->counts ? job->counts[f] : job->total; }

static int nothing_counts(const struct fbn_job *job, int64_t f) { return !(total_of(job, f) > 0); }

/* The share of an entry of weight 1; NaN where none counts. */
static double share_of(const struct fbn_job *job, int64_t f)
{
    double total = total_of(job, f);
    return total > 0 ? 1.0 / total : NAN;
}

static int64_t finish_feature(struct fbn_job *job, int64_t f, unsigned char *bad)
{
    double total = total_of(job, f);
    if (total > 0)
        return job->lanes->finish_moments(1, total, element(job, job->pivot, f), job->sum_u + f, job->sum_v + f,
                                          job->mean + f, job->m2 + f, bad);
    job->mean[f] = job->m2[f] = 0.0;
    *bad = 0;
    return 0;
}

static int64_t finish_moments_of(struct fbn_job *job, int64_t first, int64_t count, unsigned char *bad)
{
    int64_t wrong = 0;
    if (!job->weights)
        return job->lanes->finish_moments(count, job->total, element(job, job->pivot, first), job->sum_u + first,
                                          job->sum_v + first, job->mean + first, job->m2 + first, bad);
    for (int64_t f = 0; f < count; f++)
        wrong += finish_feature(job, first + f, bad + f);
    return wrong;
}

/* Squares of finite entries that overflow double give Inf - Inf, which is NaN, where M2 is too large. */
static void make_large_infinite(struct fbn_job *job, int64_t first, int64_t end)
{
    for (int64_t f = first; job->size == (int64_t)sizeof(double) && f < end; f++)
        if (isnan(job->m2[f]) && isfinite(job->mean[f]))
            job->m2[f] = INFINITY;
}

static int64_t finish_moments(struct fbn_job *job, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    int64_t wrong = 0;
    if (!again)
        wrong = finish_moments_of(job, first, end - first, job->bad + first);
    for (int64_t f = first; again && f < end; f++)
        if (job->bad[f])
            finish_moments_of(job, f, 1, &ignored);
    make_large_infinite(job, first, end);
    return wrong;
}

/* ---- the affine map to z, or to y ---- */

/* A feature of which nothing counts has no variance and no scale: z is beta, as for one value. */
static void flatten_affine(const struct fbn_job *job, int64_t first, int64_t end, void *const arrays[3])
{
    const double scale = 0.0;
    for (int64_t f = first; job->weights && !job->given.mean && f < end; f++) {
        void *par[3] = {element(job, arrays[0], f), element(job, arrays[1], f), element(job, arrays[2], f)};
        if (nothing_counts(job, f))
            job->lanes->affine_params(1, job->mean + f, &scale, job->gamma + f, job->beta + f, par);
    }
}

/* A scale that float32 cannot hold, of an eps next to nothing, becomes the largest: x - mean is 0 there, or as small, and
 * 0 * Inf would be NaN. Backward does not know eps. */
static void clamp_scales(const struct fbn_job *job, int64_t first, int64_t end, void *const arrays[3])
{
    if (job->lane_size != (int64_t)sizeof(float) || job->eps > 1e-60)
        return;
    for (int64_t f = first; f < end; f++) {
        double a = job->gamma[f] * job->rstd[f], most = copysign((double)FLT_MAX, a);
        if (fabs(a) > (double)FLT_MAX && isfinite(a))
            job->lanes->round(1, &most, element(job, arrays[1], f));
    }
}

static void affine_params(const struct fbn_job *job, int64_t first, int64_t end, void *const arrays[3])
{
    void *par[3];
    for (int i = 0; i < 3; i++)
        par[i] = element(job, arrays[i], first);
    job->lanes->affine_params(end - first, job->mean + first, job->rstd + first, job->gamma + first, job->beta + first,
                              par);
    clamp_scales(job, first, end, arrays);
    flatten_affine(job, first, end, arrays);
}

/* ---- the parameters of y, from var ---- */

/* Below which y = act(bn(x) + residual) is 0, see fbn_residual. */
static void least_params(struct fbn_job *job, int64_t first, int64_t end)
{
    const double least = job->activation == FASTBN_RELU ? 0.0 : -INFINITY;
    for (int64_t f = first; f < end; f++)
        job->lanes->round(1, &least, element(job, job->par[3], f));
}

static void params_of_y(struct fbn_job *job, int64_t first, int64_t end)
{
    affine_params(job, first, end, job->par);
    if (fbn_params_of(job) == 4)
        least_params(job, first, end);
}

static void inference_params(struct fbn_job *job, int64_t first, int64_t end)
{
    job->kernels->rstd(end - first, job->var + first, job->eps, job->rstd + first);
    params_of_y(job, first, end);
}

/* Where squares of finite entries overflow double, the variance is Inf, but not its root, which this is from entries divided
 * by 2^600. */
static double rstd_of_huge(const struct fbn_job *job, int64_t f)
{
    const double unit = 0x1p-600, *weights = (const double *)job->weights;
    const int64_t s = job->sums_plan.s;
    double squares = 0.0;
    for (int64_t entry = 0; entry < job->entries; entry++) {
        double x = *(const double *)fbn_at(job->x, job->size, entry / s, f, entry % s), d = (x - job->mean[f]) * unit;
        if (!weights || (weights[entry] != 0 && !(job->omits && x != x)))
            squares += (weights ? weights[entry] : 1.0) * (d * d);
    }
    return unit / sqrt(squares * share_of(job, f));
}

static void training_params(struct fbn_job *job, int64_t first, int64_t end)
{
    const double share = share_of(job, 0);
    for (int64_t f = first; f < end; f++)
        job->var[f] = job->m2[f] * (job->counts ? share_of(job, f) : share);
    job->kernels->rstd(end - first, job->var + first, job->eps, job->rstd + first);
    for (int64_t f = first; job->size == (int64_t)sizeof(double) && f < end; f++)
        if (isinf(job->var[f]) && isfinite(job->mean[f]) && !nothing_counts(job, f))
            job->rstd[f] = rstd_of_huge(job, f);
    params_of_y(job, first, end);
}

/* ---- gradients ---- */

/* Of the affine map to z, whose activation's derivative is taken. */
static void z_params(struct fbn_job *job, int64_t first, int64_t end)
{
    if (fbn_needs_z(job))
        affine_params(job, first, end, job->z);
}

static void pivots_from_means(struct fbn_job *job, int64_t first, int64_t end)
{
    job->lanes->round(end - first, job->mean + first, element(job, job->pivot, first));
    z_params(job, first, end);
}

static int64_t finish_gradient_of(struct fbn_job *job, int64_t first, int64_t count, unsigned char *bad)
{
    return job->lanes->finish_gradient(count, element(job, job->pivot, first), job->mean + first, job->rstd + first,
                                       job->sum_u + first, job->sum_v + first, job->dgamma + first,
                                       job->dbeta + first, bad);
}

/* The sum over nothing is 0, whatever rstd is. */
static void flatten_gradient(struct fbn_job *job, int64_t first, int64_t end)
{
    for (int64_t f = first; job->weights && f < end; f++)
        if (nothing_counts(job, f))
            job->dgamma[f] = 0.0;
}

static int64_t finish_gradient(struct fbn_job *job, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    int64_t wrong = 0;
    if (!again)
        wrong = finish_gradient_of(job, first, end - first, job->bad + first);
    for (int64_t f = first; again && f < end; f++)
        if (job->bad[f])
            finish_gradient_of(job, f, 1, &ignored);
    flatten_gradient(job, first, end);
    return wrong;
}

static void gradient_params(struct fbn_job *job, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    const double all = share_of(job, 0);
    params_from(job, first, par);
    for (int64_t f = first; f < end; f++) {
        const double share = job->counts ? share_of(job, f) : all;
        job->mean_dy[f] = job->dbeta[f] * share;
        job->slope[f] = job->rstd[f] * (job->dgamma[f] * share);
    }
    job->lanes->gradient_params(end - first, job->mean + first, job->rstd + first, job->gamma + first,
                                job->mean_dy + first, job->slope + first, par);
    for (int64_t f = first; job->weights && f < end; f++)
        if (nothing_counts(job, f)) /* dx = 0 * (dy - 0 - (x - 0) * 0) */
            for (int i = 0; i < 4; i++)
                memset(element(job, job->par[i], f), 0, (size_t)job->lane_size);
    if (job->relu_gradient)
        memcpy(par[4], element(job, job->z[2], first), (size_t)((end - first) * job->lane_size));
}

/* Constant statistics: dx = (dy - 0) * gamma * rstd + (-0), where -0 is the zero that changes no sign. */
static void frozen_params(struct fbn_job *job, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    params_from(job, first, par);
    for (int64_t f = first; f < end; f++) {
        job->mean_dy[f] = 0.0;
        job->slope[f] = -0.0;
    }
    job->lanes->affine_params(end - first, job->mean_dy + first, job->rstd + first, job->gamma + first,
                              job->slope + first, par);
}

/* Without sums. */
static void frozen_dx_params(struct fbn_job *job, int64_t first, int64_t end)
{
    z_params(job, first, end);
    frozen_params(job, first, end);
}

const struct fbn_op fbn_op_moments = {pivots_from_samples, finish_moments, NULL};
const struct fbn_op fbn_op_training = {pivots_from_samples, finish_moments, training_params};
const struct fbn_op fbn_op_inference = {NULL, NULL, inference_params};
const struct fbn_op fbn_op_gradient = {pivots_from_means, finish_gradient, gradient_params};
const struct fbn_op fbn_op_gradient_sums = {pivots_from_means, finish_gradient, NULL};
const struct fbn_op fbn_op_frozen = {pivots_from_means, finish_gradient, frozen_params};
const struct fbn_op fbn_op_frozen_dx = {NULL, NULL, frozen_dx_params};
