/* sums.c - the first pass: two sums of every feature, chunk by chunk.
 *
 * The sums of chunk k are stored at a place that k decides, and added in the order of k, so that it does not matter
 * which thread computed what.
 */
#include <string.h>

#include "job.h"

void fbn_spread_pivots(struct fbn_job *job, int64_t first, int64_t end)
{
    if (fbn_more_columns(&job->sums_plan))
        fbn_spread(&job->sums_plan, job->size, job->pivot, job->pivot_columns, job->sums_plan.width, first,
                   end);
}

/* A table's storage: for each chunk, width sums u, then width sums v. */
static void sum_table_chunk(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    fbn_rows_sums *sums = again ? job->typed->rows_sums_wide : job->typed->rows_sums;
    int64_t begin = chunk * plan->chunk, rows = plan->rows - begin < plan->chunk ? plan->rows - begin : plan->chunk;
    int64_t column = plan->fold > 1 ? 0 : first * plan->s;
    int64_t width = plan->fold > 1 ? plan->width : (end - first) * plan->s;
    double *u = job->partial + 2 * chunk * plan->width + column, *v = u + plan->width;
    const char *pivot = (const char *)job->pivot_columns + column * job->size;
    int64_t xs = job->x.stride_n * plan->fold, ds = job->dy.stride_n * plan->fold;

    memset(u, 0, (size_t)width * sizeof *u);
    memset(v, 0, (size_t)width * sizeof *v);
    sums(fbn_at(job->x, job->size, begin * plan->fold, 0, column), xs,
         fbn_at(job->dy, job->size, begin * plan->fold, 0, column), ds, rows, width, pivot, u, v);
    if (plan->rest && chunk == plan->chunks - 1)
        sums(fbn_at(job->x, job->size, plan->rows * plan->fold, 0, 0), xs,
             fbn_at(job->dy, job->size, plan->rows * plan->fold, 0, 0), ds, 1, plan->rest, pivot, u, v);
}

/* The planes' storage: for each feature and chunk, a pair. */
static void sum_planes_chunk(struct fbn_job *job, int64_t f, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    fbn_planes_sums *sums = again ? job->typed->planes_sums_wide : job->typed->planes_sums;
    double *out = job->partial + 2 * (f * plan->chunks + chunk);
    int64_t begin = chunk * plan->chunk, all = plan->n * plan->pieces;
    int64_t end = begin + plan->chunk < all ? begin + plan->chunk : all;
    const char *pivot = (const char *)job->pivot + f * job->size;
    if (plan->pieces == 1) {
        sums(fbn_at(job->x, job->size, begin, f, 0), job->x.stride_n, fbn_at(job->dy, job->size, begin, f, 0),
             job->dy.stride_n, end - begin, plan->s, pivot, out);
        return;
    }
    out[0] = out[1] = 0;
    for (int64_t q = begin; q < end; q++) {
        int64_t n = q / plan->pieces, i = q % plan->pieces * plan->piece;
        int64_t len = plan->s - i < plan->piece ? plan->s - i : plan->piece;
        double pair[2];
        sums(fbn_at(job->x, job->size, n, f, i), 0, fbn_at(job->dy, job->size, n, f, i), 0, 1, len, pivot, pair);
        out[0] += pair[0];
        out[1] += pair[1];
    }
}

void fbn_sum_chunks(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again)
{
    if (job->sums_plan.layout == FBN_ROWS) {
        for (; chunk < chunk_end; chunk++)
            sum_table_chunk(job, first, end, chunk, again);
        return;
    }
    for (int64_t f = first; f < end; f++)
        if (!again || job->bad[f])
            for (int64_t k = chunk; k < chunk_end; k++)
                sum_planes_chunk(job, f, k, again);
}

/* Adds the columns of each feature to its total. */
static void add_columns(double *total, const double *columns, int64_t first, int64_t end, int64_t s)
{
    if (s == 1) {
        for (int64_t f = first; f < end; f++)
            total[f] += columns[f];
        return;
    }
    for (int64_t f = first; f < end; f++)
        for (int64_t i = 0; i < s; i++)
            total[f] += columns[f * s + i];
}

static void total_table(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &job->sums_plan;
    int64_t period = plan->c * plan->s;
    for (int64_t k = 0; k < plan->chunks; k++)
        for (int64_t j = 0; j < plan->fold; j++) {
            const double *u = job->partial + 2 * k * plan->width + j * period;
            add_columns(job->sum_u, u, first, end, plan->s);
            add_columns(job->sum_v, u + plan->width, first, end, plan->s);
        }
}

void fbn_total_sums(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &job->sums_plan;
    for (int64_t f = first; f < end; f++)
        job->sum_u[f] = job->sum_v[f] = 0;
    if (plan->layout == FBN_ROWS) {
        total_table(job, first, end);
        return;
    }
    for (int64_t f = first; f < end; f++)
        for (int64_t k = 0; k < plan->chunks; k++) {
            const double *pair = job->partial + 2 * (f * plan->chunks + k);
            job->sum_u[f] += pair[0];
            job->sum_v[f] += pair[1];
        }
}
