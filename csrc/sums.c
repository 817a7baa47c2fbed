/* sums.c - the first pass: two sums of every feature, chunk by chunk.
 *
 * The sums of chunk k are stored at a place that k decides, and added in the order of k, so that it does not matter
 * which thread computed what.
 */
#include <string.h>

#include "job.h"
#include "tiles.h"

void fbn_spread_pivots(struct fbn_job *job, int64_t first, int64_t end)
{
    if (fbn_more_columns(&job->sums_plan))
        fbn_spread(&job->sums_plan, job->lane_size, job->pivot, job->pivot_columns, job->sums_plan.width, first, end);
    fbn_spread_z(job, first, end);
}

/* Where the sums u of a table's chunk are. They are aligned to cache lines where the columns of x are; sums v follow
 * half a chunk's storage after. */
static double *table_sums(const struct fbn_job *job, int64_t chunk)
{
    const uintptr_t at = (uintptr_t)job->x.data / (uintptr_t)job->size;
    return job->partial + chunk * fbn_plan_chunk_sums(&job->sums_plan) + at % 8;
}

/* The same in tiles. */
static void sum_table_tiles(struct fbn_job *job, int64_t row, int64_t rows, int64_t column, int64_t width, int64_t chunk,
                            int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    double *u = table_sums(job, chunk), *v = u + fbn_plan_chunk_sums(plan) / 2;
    struct fbn_block block = {
        .n = row * plan->fold, .i = column, .runs = rows, .len = width, .next_n = plan->fold, .column = column};
    fbn_tiles_sums(job, &block, u + column, v + column, again);
    if (plan->rest && chunk == plan->chunks - 1) {
        block = (struct fbn_block){.n = plan->rows * plan->fold, .runs = 1, .len = plan->rest, .next_n = plan->fold};
        fbn_tiles_sums(job, &block, u, v, again);
    }
}

static void sum_table_chunk(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    fbn_rows_sums *sums = again ? job->typed->rows_sums_wide : job->typed->rows_sums;
    int64_t begin = chunk * plan->chunk, rows = plan->rows - begin < plan->chunk ? plan->rows - begin : plan->chunk;
    int64_t column = plan->fold > 1 ? 0 : first * plan->s;
    int64_t width = plan->fold > 1 ? plan->width : (end - first) * plan->s;
    double *u = table_sums(job, chunk) + column, *v = u + fbn_plan_chunk_sums(plan) / 2;
    const char *pivot = (const char *)job->pivot_columns + column * job->lane_size;
    int64_t xs = job->x.stride_n * plan->fold, ds = job->dy.stride_n * plan->fold;

    memset(u, 0, (size_t)width * sizeof *u);
    memset(v, 0, (size_t)width * sizeof *v);
    if (job->tiles_sums) {
        sum_table_tiles(job, begin, rows, column, width, chunk, again);
        return;
    }
    sums(fbn_at(job->x, job->size, begin * plan->fold, 0, column), xs,
         fbn_at(job->dy, job->size, begin * plan->fold, 0, column), ds, rows, width, pivot, u, v, plan->narrow);
    if (plan->rest && chunk == plan->chunks - 1)
        sums(fbn_at(job->x, job->size, plan->rows * plan->fold, 0, 0), xs,
             fbn_at(job->dy, job->size, plan->rows * plan->fold, 0, 0), ds, 1, plan->rest, pivot, u, v, plan->narrow);
}

/* The planes' storage: for each chunk and feature its accumulators. The planes of adjacent features are summed in the
 * order of memory. */
static void sum_planes_chunk(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    fbn_planes_sums *sums = again ? job->typed->planes_sums_wide : job->typed->planes_sums;
    double *accumulators = job->partial + FBN_ACCUMULATORS * (chunk * plan->c + first);
    int64_t q = chunk * plan->chunk, all = plan->n * plan->pieces;
    int64_t last = q + plan->chunk < all ? q + plan->chunk : all;
    const char *pivots = (const char *)job->pivot + first * job->lane_size;

    memset(accumulators, 0, (size_t)((end - first) * FBN_ACCUMULATORS) * sizeof *accumulators);
    for (; q < last; q++) {
        int64_t n = q / plan->pieces, i = q % plan->pieces * plan->piece;
        int64_t len = plan->s - i < plan->piece ? plan->s - i : plan->piece;
        if (job->tiles_sums) {
            const struct fbn_block block = {
                .n = n, .f = first, .i = i, .runs = end - first, .len = len, .next_c = 1, .column = first};
            fbn_tiles_sums(job, &block, accumulators, NULL, again);
            continue;
        }
        sums(fbn_at(job->x, job->size, n, first, i), job->x.stride_c, fbn_at(job->dy, job->size, n, first, i),
             job->dy.stride_c, end - first, len, pivots, accumulators);
    }
}

static void sum_bad_planes(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk)
{
    for (int64_t f = first; f < end; f++)
        if (job->bad[f])
            sum_planes_chunk(job, f, f + 1, chunk, 1);
}

void fbn_sum_chunks(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again)
{
    for (; chunk < chunk_end; chunk++)
        if (job->sums_plan.layout == FBN_ROWS)
            sum_table_chunk(job, first, end, chunk, again);
        else if (again)
            sum_bad_planes(job, first, end, chunk);
        else
            sum_planes_chunk(job, first, end, chunk, 0);
}

static double tree_of_4(const double *a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* Of `count` adjacent columns. */
static double sum_of_columns(const double *columns, int64_t count)
{
    double lane[4] = {0, 0, 0, 0};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++)
            lane[k] += columns[i + k];
    for (int k = 0; i < count; i++, k++)
        lane[k] += columns[i];
    return tree_of_4(lane);
}

/* Adds the columns of each feature to its total. */
static void add_columns(double *total, const double *columns, int64_t first, int64_t end, int64_t s)
{
    if (s == 1)
        for (int64_t f = first; f < end; f++)
            total[f] += columns[f];
    else
        for (int64_t f = first; f < end; f++)
            total[f] += sum_of_columns(columns + f * s, s);
}

/* Adds the other chunks to the first one, column by column. */
static void add_chunks(struct fbn_job *job, int64_t column, int64_t column_end)
{
    int64_t half = fbn_plan_chunk_sums(&job->sums_plan) / 2;
    double *restrict sum = table_sums(job, 0);
    for (int64_t k = 1; k < job->sums_plan.chunks; k++) {
        const double *restrict more = table_sums(job, k);
        for (int64_t j = column; j < column_end; j++) {
            sum[j] += more[j];
            sum[j + half] += more[j + half];
        }
    }
}

static void total_table(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &job->sums_plan;
    int64_t period = plan->c * plan->s;
    const double *u = table_sums(job, 0), *v = u + fbn_plan_chunk_sums(plan) / 2;
    const int whole = first == 0 && end == plan->c;
    if (whole)
        add_chunks(job, 0, plan->width);
    for (int64_t j = 0; j < plan->width; j += period) {
        if (!whole)
            add_chunks(job, j + first * plan->s, j + end * plan->s);
        add_columns(job->sum_u, u + j, first, end, plan->s);
        add_columns(job->sum_v, v + j, first, end, plan->s);
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
    for (int64_t k = 0; k < plan->chunks; k++)
        for (int64_t f = first; f < end; f++) {
            const double *accumulators = job->partial + FBN_ACCUMULATORS * (k * plan->c + f);
            job->sum_u[f] += tree_of_4(accumulators);
            job->sum_v[f] += tree_of_4(accumulators + FBN_ACCUMULATORS / 2);
        }
}
