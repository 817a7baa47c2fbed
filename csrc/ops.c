/* ops.c - what is particular to each operation: its pivots, its statistics, the parameters of its second pass. */
#include <string.h>

#include "job.h"

static char *element(const struct fbn_job *job, void *array, int64_t f) { return (char *)array + f * job->size; }

/* The parameter arrays from feature `first` on. */
static void params_from(const struct fbn_job *job, int64_t first, void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < FBN_MOST_PARAMS; i++)
        par[i] = element(job, job->par[i], first);
}

/* ---- moments and training ---- */

static void pivots_from_samples(struct fbn_job *job, int64_t first, int64_t end)
{
    job->typed->pivots(fbn_at(job->x, job->size, 0, first, 0), job->x.stride_c, job->offset, job->samples, end - first,
                       element(job, job->pivot, first));
}

static int64_t finish_moments_of(struct fbn_job *job, int64_t first, int64_t count, unsigned char *bad)
{
    return job->typed->finish_moments(count, (double)job->entries, element(job, job->pivot, first),
                                      job->sum_u + first, job->sum_v + first, job->mean + first, job->m2 + first, bad);
}

static int64_t finish_moments(struct fbn_job *job, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    if (!again)
        return finish_moments_of(job, first, end - first, job->bad + first);
    for (int64_t f = first; f < end; f++)
        if (job->bad[f])
            finish_moments_of(job, f, 1, &ignored);
    return 0;
}

/* ---- the parameters of y, from var ---- */

static void inference_params(struct fbn_job *job, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    params_from(job, first, par);
    job->kernels->rstd(end - first, job->var + first, job->eps, job->rstd + first);
    job->typed->affine_params(end - first, job->mean + first, job->rstd + first, job->gamma + first, job->beta + first,
                              par);
}

static void training_params(struct fbn_job *job, int64_t first, int64_t end)
{
    const double weight = 1.0 / (double)job->entries;
    for (int64_t f = first; f < end; f++)
        job->var[f] = job->m2[f] * weight;
    inference_params(job, first, end);
}

/* ---- gradients ---- */

static void pivots_from_means(struct fbn_job *job, int64_t first, int64_t end)
{
    job->typed->round(end - first, job->mean + first, element(job, job->pivot, first));
}

static int64_t finish_gradient_of(struct fbn_job *job, int64_t first, int64_t count, unsigned char *bad)
{
    return job->typed->finish_gradient(count, element(job, job->pivot, first), job->mean + first, job->rstd + first,
                                       job->sum_u + first, job->sum_v + first, job->dgamma + first,
                                       job->dbeta + first, bad);
}

static int64_t finish_gradient(struct fbn_job *job, int64_t first, int64_t end, int again)
{
    unsigned char ignored;
    if (!again)
        return finish_gradient_of(job, first, end - first, job->bad + first);
    for (int64_t f = first; f < end; f++)
        if (job->bad[f])
            finish_gradient_of(job, f, 1, &ignored);
    return 0;
}

static void gradient_params(struct fbn_job *job, int64_t first, int64_t end)
{
    void *par[FBN_MOST_PARAMS];
    const double weight = 1.0 / (double)job->entries;
    params_from(job, first, par);
    for (int64_t f = first; f < end; f++) {
        job->mean_dy[f] = job->dbeta[f] * weight;
        job->slope[f] = job->rstd[f] * (job->dgamma[f] * weight);
    }
    job->typed->gradient_params(end - first, job->mean + first, job->rstd + first, job->gamma + first,
                                job->mean_dy + first, job->slope + first, par);
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
    job->typed->affine_params(end - first, job->mean_dy + first, job->rstd + first, job->gamma + first,
                              job->slope + first, par);
}

const struct fbn_op fbn_op_moments = {pivots_from_samples, finish_moments, NULL};
const struct fbn_op fbn_op_training = {pivots_from_samples, finish_moments, training_params};
const struct fbn_op fbn_op_inference = {NULL, NULL, inference_params};
const struct fbn_op fbn_op_gradient = {pivots_from_means, finish_gradient, gradient_params};
const struct fbn_op fbn_op_gradient_sums = {pivots_from_means, finish_gradient, NULL};
const struct fbn_op fbn_op_frozen = {pivots_from_means, finish_gradient, frozen_params};
const struct fbn_op fbn_op_frozen_dx = {NULL, NULL, frozen_params};
