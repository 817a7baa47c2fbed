/* params.c - gamma and beta, and the statistics of an inference, between the caller's type and double, which all steps
 * by feature compute in. Doubles are read where the caller has them.
 */
#include "job.h"

void fbn_take_params(struct fbn_job *job, const void *mean, const void *var, const fastbn_params *params)
{
    job->given = (struct fbn_given){mean, var, params->gamma, params->beta, params->dtype};
    if (params->dtype != FASTBN_FLOAT64)
        return;
    if (mean) {
        job->mean = (double *)mean; /* only read, as the others */
        job->var = (double *)var;
    }
    job->gamma = (double *)params->gamma;
    job->beta = (double *)params->beta;
}

static void load(const struct fbn_job *job, double *to, const void *from, double missing, int64_t first, int64_t end)
{
    const int64_t size = job->given.dtype == FASTBN_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
    if (from && from != to)
        job->kernels->typed[job->given.dtype].widen(end - first, (const char *)from + first * size, to + first);
    for (int64_t f = first; !from && f < end; f++)
        to[f] = missing;
}

void fbn_load_params(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_given *given = &job->given;
    if (given->mean) {
        load(job, job->mean, given->mean, 0.0, first, end);
        load(job, job->var, given->var, 1.0, first, end);
    }
    if (job->op->params || fbn_needs_z(job))
        load(job, job->gamma, given->gamma, 1.0, first, end);
    if (fbn_needs_z(job) || (job->op->params && !job->dy.data))
        load(job, job->beta, given->beta, 0.0, first, end);
}

void fbn_store_param(const struct fbn_job *job, void *to, const double *from)
{
    if (to)
        job->kernels->typed[job->given.dtype].round(job->sums_plan.c, from, to);
}
