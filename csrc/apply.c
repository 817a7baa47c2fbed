/* apply.c - the second pass: y or dx. Elementwise: its order is free.
 *
 * A schedule takes it by features, each while the caches still hold it, or by stretches of memory.
 */
#include "job.h"

void fbn_spread_params(struct fbn_job *job, int64_t first, int64_t end)
{
    if (!fbn_more_columns(&job->out_plan))
        return;
    for (int i = 0; i < (job->gradient ? 4 : 3); i++)
        fbn_spread(&job->out_plan, job->size, job->par[i], job->par_columns[i], first, end);
}

/* The parameters from feature or column `at` on. */
static void params_at(const struct fbn_job *job, void *const base[], int64_t at, const void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < (job->gradient ? 4 : 3); i++)
        par[i] = (const char *)base[i] + at * job->size;
}

/* `count` planes of one feature, from entry i of plane n on. */
static void apply_planes(struct fbn_job *job, int64_t f, int64_t n, int64_t count, int64_t i, int64_t len)
{
    const void *par[FBN_MOST_PARAMS];
    params_at(job, job->par, f, par);
    char *y = fbn_at(job->y, job->size, n, f, i);
    if (job->gradient)
        job->typed->planes_gradient(fbn_at(job->x, job->size, n, f, i), job->x.stride_n, fbn_at(job->dy, job->size, n, f, i), job->dy.stride_n, y,
                                    job->y.stride_n, count, len, par, job->stream);
    else
        job->typed->planes_affine(fbn_at(job->in, job->size, n, f, i), job->in.stride_n, y, job->y.stride_n, count, len, par, job->stream);
}

/* `count` rows of the table from `row` on, columns [column, column + width). */
static void apply_rows(struct fbn_job *job, int64_t row, int64_t count, int64_t column, int64_t width)
{
    const struct fbn_plan *plan = &job->out_plan;
    const void *par[FBN_MOST_PARAMS];
    params_at(job, job->par_columns, column, par);
    int64_t n = row * plan->fold;
    char *y = fbn_at(job->y, job->size, n, 0, column);
    if (job->gradient)
        job->typed->rows_gradient(fbn_at(job->x, job->size, n, 0, column), job->x.stride_n * plan->fold, fbn_at(job->dy, job->size, n, 0, column),
                                  job->dy.stride_n * plan->fold, y, job->y.stride_n * plan->fold, count, width, par,
                                  job->stream);
    else
        job->typed->rows_affine(fbn_at(job->in, job->size, n, 0, column), job->in.stride_n * plan->fold, y, job->y.stride_n * plan->fold, count, width, par,
                                job->stream);
}

void fbn_apply_features(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_PLANES) {
        for (int64_t f = first; f < end; f++)
            apply_planes(job, f, 0, plan->n, 0, plan->s);
    } else if (plan->fold == 1) {
        apply_rows(job, 0, plan->rows, first * plan->s, (end - first) * plan->s);
    } else {
        fbn_apply_stretch(job, 0, fbn_stretches(job));
    }
}

int64_t fbn_stretches(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    return plan->layout == FBN_ROWS ? plan->rows + (plan->rest > 0) : plan->n * plan->c * plan->pieces;
}

static void apply_pieces(struct fbn_job *job, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    for (int64_t q = begin; q < end; q++) {
        int64_t plane = q / plan->pieces, i = q % plan->pieces * plan->piece;
        int64_t len = plan->s - i < plan->piece ? plan->s - i : plan->piece;
        apply_planes(job, plane % plan->c, plane / plan->c, 1, i, len);
    }
}

void fbn_apply_stretch(struct fbn_job *job, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_PLANES) {
        apply_pieces(job, begin, end);
        return;
    }
    int64_t full = end < plan->rows ? end : plan->rows;
    if (begin < full)
        apply_rows(job, begin, full - begin, 0, plan->width);
    if (end > plan->rows)
        apply_rows(job, plan->rows, 1, 0, plan->rest);
}
