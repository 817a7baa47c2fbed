/* sums.c - the first pass: two sums of every feature, chunk by chunk.
 *
 * The sums of chunk k are stored at a place that k decides, and added in the order of k, so that it does not matter
 * which thread computed what.
 */
#include <string.h>

#include "job.h"
#include "tiles.h"

enum {
    NEAR = 32768, /* entries of dz that are stored before their sums are taken, while the second-level cache has them */
    SUM_ROWS = 16 /* of which the highest bands are made: so it matters not how rows are cut */
};

void fbn_spread_pivots(struct fbn_job *job, int64_t first, int64_t end)
{
    if (fbn_more_columns(&job->sums_plan))
        fbn_spread(&job->sums_plan, job->lane_size, job->pivot, job->pivot_columns, job->sums_plan.width, first, end);
    fbn_spread_z(job, first, end);
}

void fbn_spread_z(struct fbn_job *job, int64_t first, int64_t end)
{
    for (int i = 0; fbn_needs_z(job) && fbn_more_columns(&job->sums_plan) && i < 3; i++)
        fbn_spread(&job->sums_plan, job->lane_size, job->z[i], job->z_columns[i], job->sums_plan.width, first, end);
}

/* What the kernels take the sums about, from column or feature `at` on. */
static void about(const struct fbn_job *job, int64_t at, const void *par[3])
{
    par[0] = (const char *)job->pivot_columns + at * job->lane_size;
    for (int i = 1; i < 3; i++)
        par[i] = job->relu_gradient ? (const char *)job->z_columns[i] + at * job->lane_size : NULL;
}

/* Sums in double know no activation. */
static int in_tiles(const struct fbn_job *job, int again) { return job->tiles_sums || (again && job->relu_gradient); }

/* Where the sums u of a table's chunk are. They are aligned to cache lines where the columns of x are; sums v follow
 * half a chunk's storage after. */
static double *table_sums(const struct fbn_job *job, int64_t chunk)
{
    const uintptr_t at = (uintptr_t)job->x.data / (uintptr_t)job->size;
    return job->partial + chunk * fbn_plan_chunk_sums(&job->sums_plan) + at % 8;
}

/* Whether the columns of a table are the features. */
static int columns_are_features(const struct fbn_plan *plan)
{
    return plan->layout == FBN_ROWS && plan->width == plan->c;
}

void fbn_place_totals(struct fbn_job *job)
{
    if (!columns_are_features(&job->sums_plan) || !job->partial)
        return;
    job->sum_u = table_sums(job, 0);
    job->sum_v = job->sum_u + fbn_plan_chunk_sums(&job->sums_plan) / 2;
}

/* A block of rows: of the table, or its short last one. */
static void sum_rows(struct fbn_job *job, const struct fbn_block *block, double *u, double *v, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    if (in_tiles(job, again)) {
        fbn_tiles_sums(job, block, u, v, again);
        return;
    }
    fbn_rows_sums *sums = again || job->few   ? job->typed->rows_sums_wide
                          : job->relu_gradient ? job->typed->rows_relu_sums
                                               : job->typed->rows_sums;
    const void *par[3];
    about(job, block->column, par);
    if (job->stores_dz && !again)
        fbn_tiles_dz(job, block);
    sums(fbn_at(job->x, job->size, block->n, 0, block->i), job->x.stride_n * plan->fold,
         fbn_at(job->dz, job->size, block->n, 0, block->i), job->dz.stride_n * plan->fold, block->runs, block->len, par, u,
         v, job->dz.data ? plan->band_dy : plan->band, job->reads_ahead);
}

static void sum_table_chunk(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    int64_t row = chunk * plan->chunk, last = chunk == plan->chunks - 1 ? plan->rows : row + plan->chunk;
    int64_t column = plan->fold > 1 ? 0 : first * plan->s;
    int64_t width = plan->fold > 1 ? plan->width : (end - first) * plan->s;
    int64_t most = job->stores_dz ? fbn_most(1, NEAR / width / SUM_ROWS) * SUM_ROWS : fbn_most(1, last - row);
    double *u = table_sums(job, chunk) + column, *v = u + fbn_plan_chunk_sums(plan) / 2;
    struct fbn_block block = {.i = column, .len = width, .next_n = plan->fold, .column = column};

    memset(u, 0, (size_t)width * sizeof *u);
    memset(v, 0, (size_t)width * sizeof *v);
    for (; row < last; row += most) {
        block.n = row * plan->fold;
        block.runs = fbn_least(most, last - row);
        sum_rows(job, &block, u, v, again);
    }
    if (plan->rest && chunk == plan->chunks - 1) {
        block = (struct fbn_block){.n = plan->rows * plan->fold, .runs = 1, .len = plan->rest, .next_n = plan->fold};
        sum_rows(job, &block, u, v, again);
    }
}

/* A piece of the planes n of adjacent features. */
static void sum_piece(struct fbn_job *job, const struct fbn_block *block, double *accumulators, int again)
{
    if (in_tiles(job, again)) {
        fbn_tiles_sums(job, block, accumulators, NULL, again);
        return;
    }
    fbn_planes_sums *sums = again || job->few   ? job->typed->planes_sums_wide
                            : job->relu_gradient ? job->typed->planes_relu_sums
                                                 : job->typed->planes_sums;
    const void *par[3];
    about(job, block->f, par);
    if (job->stores_dz && !again)
        fbn_tiles_dz(job, block);
    sums(fbn_at(job->x, job->size, block->n, block->f, block->i), job->x.stride_c,
         fbn_at(job->dz, job->size, block->n, block->f, block->i), job->dz.stride_c, block->runs, block->len, par,
         accumulators);
}

/* The planes' storage: for each chunk and feature its accumulators. The planes of adjacent features are summed in the
 * order of memory. */
static void sum_planes_chunk(struct fbn_job *job, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &job->sums_plan;
    double *accumulators = job->partial + FBN_ACCUMULATORS * (chunk * plan->c + first);
    int64_t q = chunk * plan->chunk, last = fbn_least(q + plan->chunk, plan->n * plan->pieces);

    memset(accumulators, 0, (size_t)((end - first) * FBN_ACCUMULATORS) * sizeof *accumulators);
    for (; q < last; q++) {
        int64_t i = q % plan->pieces * plan->piece, len = fbn_least(plan->piece, plan->s - i);
        int64_t most = job->stores_dz ? fbn_most(1, NEAR / len) : end - first;
        for (int64_t f = first; f < end; f += most)
            sum_piece(job,
                      &(struct fbn_block){.n = q / plan->pieces, .f = f, .i = i, .runs = fbn_least(most, end - f),
                                          .len = len, .next_c = 1, .column = f},
                      accumulators + FBN_ACCUMULATORS * (f - first), again);
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
    if (columns_are_features(plan)) {
        add_chunks(job, first, end);
        return;
    }
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
