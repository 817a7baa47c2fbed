/* sums.c - the first pass: two sums of every feature, chunk by chunk.
 *
 * The sums of chunk k are stored at a place that k decides, and added in the order of k, so that it does not matter
 * which thread computed what.
 */
#include <string.h>

#include "call.h"

enum {
    NEAR = 32768, /* entries of dz that are stored before their sums are taken, while the second-level cache has them */
    SUM_ROWS = 16 /* of which the highest bands are made: so it matters not how rows are cut */
};

void fbn_broadcast_pivots(struct fbn_call *call, int64_t first, int64_t end)
{
    if (fbn_more_columns(&call->sums_plan))
        fbn_broadcast(&call->sums_plan, call->lane_size, call->pivot, call->pivot_columns, call->sums_plan.width, first, end);
    fbn_broadcast_z(call, first, end);
}

void fbn_broadcast_z(struct fbn_call *call, int64_t first, int64_t end)
{
    for (int i = 0; fbn_needs_z(call) && fbn_more_columns(&call->sums_plan) && i < 3; i++)
        fbn_broadcast(&call->sums_plan, call->lane_size, call->z[i], call->z_columns[i], call->sums_plan.width, first, end);
}

/* What the kernels take the sums about, from column or feature `at` on. */
static void about(const struct fbn_call *call, int64_t at, const void *par[3])
{
    par[0] = (const char *)call->pivot_columns + at * call->lane_size;
    for (int i = 1; i < 3; i++)
        par[i] = call->relu_gradient ? (const char *)call->z_columns[i] + at * call->lane_size : NULL;
}

/* Sums in double know no activation. */
static int in_tiles(const struct fbn_call *call, int again) { return call->tiles_sums || (again && call->relu_gradient); }

/* Where the sums u of a table's chunk are. They are aligned to cache lines where the columns of x are; sums v follow
 * half a chunk's storage after. */
static double *table_sums(const struct fbn_call *call, int64_t chunk)
{
    const uintptr_t at = (uintptr_t)call->x.data / (uintptr_t)call->size;
    return call->partial + chunk * fbn_plan_chunk_sums(&call->sums_plan) + at % 8;
}

/* Whether the columns of a table are the features. */
static int columns_are_features(const struct fbn_plan *plan)
{
    return plan->layout == FBN_ROWS && plan->width == plan->c;
}

void fbn_place_totals(struct fbn_call *call)
{
    if (!columns_are_features(&call->sums_plan) || !call->partial)
        return;
    call->sum_u = table_sums(call, 0);
    call->sum_v = call->sum_u + fbn_plan_chunk_sums(&call->sums_plan) / 2;
}

/* A block of rows: of the table, or its short last one. */
static void sum_rows(struct fbn_call *call, const struct fbn_runs *block, double *u, double *v, int again)
{
    const struct fbn_plan *plan = &call->sums_plan;
    if (in_tiles(call, again)) {
        fbn_sum_tiles(call, block, u, v, again);
        return;
    }
    fbn_sum_rows *sums = again || call->few   ? call->typed->sum_rows_wide
                          : call->relu_gradient ? call->typed->sum_rows_relu
                                               : call->typed->sum_rows;
    const void *par[3];
    about(call, block->column, par);
    if (call->stores_dz && !again)
        fbn_store_dz_tiles(call, block);
    sums(fbn_at(call->x, call->size, block->n, 0, block->i), call->x.stride_n * plan->fold,
         fbn_at(call->dz, call->size, block->n, 0, block->i), call->dz.stride_n * plan->fold, block->count, block->len, par, u,
         v, call->dz.data ? plan->band_dy : plan->band, call->prefetches);
}

static void sum_table_chunk(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &call->sums_plan;
    int64_t row = chunk * plan->chunk, last = chunk == plan->chunks - 1 ? plan->rows : row + plan->chunk;
    int64_t column = plan->fold > 1 ? 0 : first * plan->s;
    int64_t width = plan->fold > 1 ? plan->width : (end - first) * plan->s;
    int64_t most = call->stores_dz ? fbn_max(1, NEAR / width / SUM_ROWS) * SUM_ROWS : fbn_max(1, last - row);
    double *u = table_sums(call, chunk) + column, *v = u + fbn_plan_chunk_sums(plan) / 2;
    struct fbn_runs block = {.i = column, .len = width, .next_n = plan->fold, .column = column};

    memset(u, 0, (size_t)width * sizeof *u);
    memset(v, 0, (size_t)width * sizeof *v);
    for (; row < last; row += most) {
        block.n = row * plan->fold;
        block.count = fbn_min(most, last - row);
        sum_rows(call, &block, u, v, again);
    }
    if (plan->tail && chunk == plan->chunks - 1) {
        block = (struct fbn_runs){.n = plan->rows * plan->fold, .count = 1, .len = plan->tail, .next_n = plan->fold};
        sum_rows(call, &block, u, v, again);
    }
}

/* A piece of the planes n of adjacent features. */
static void sum_piece(struct fbn_call *call, const struct fbn_runs *block, double *accumulators, int again)
{
    if (in_tiles(call, again)) {
        fbn_sum_tiles(call, block, accumulators, NULL, again);
        return;
    }
    fbn_sum_planes *sums = again || call->few   ? call->typed->sum_planes_wide
                            : call->relu_gradient ? call->typed->sum_planes_relu
                                                 : call->typed->sum_planes;
    const void *par[3];
    about(call, block->f, par);
    if (call->stores_dz && !again)
        fbn_store_dz_tiles(call, block);
    sums(fbn_at(call->x, call->size, block->n, block->f, block->i), call->x.stride_c,
         fbn_at(call->dz, call->size, block->n, block->f, block->i), call->dz.stride_c, block->count, block->len, par,
         accumulators);
}

/* The planes' storage: for each chunk and feature its accumulators. The planes of adjacent features are summed in the
 * order of memory. */
static void sum_planes_chunk(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &call->sums_plan;
    double *accumulators = call->partial + FBN_ACCUMULATORS * (chunk * plan->c + first);
    int64_t q = chunk * plan->chunk, last = fbn_min(q + plan->chunk, plan->n * plan->runs);

    memset(accumulators, 0, (size_t)((end - first) * FBN_ACCUMULATORS) * sizeof *accumulators);
    for (; q < last; q++) {
        int64_t i = q % plan->runs * plan->run, len = fbn_min(plan->run, plan->s - i);
        int64_t most = call->stores_dz ? fbn_max(1, NEAR / len) : end - first;
        for (int64_t f = first; f < end; f += most)
            sum_piece(call,
                      &(struct fbn_runs){.n = q / plan->runs, .f = f, .i = i, .count = fbn_min(most, end - f),
                                          .len = len, .next_c = 1, .column = f},
                      accumulators + FBN_ACCUMULATORS * (f - first), again);
    }
}

static void sum_bad_planes(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk)
{
    for (int64_t f = first; f < end; f++)
        if (call->bad[f])
            sum_planes_chunk(call, f, f + 1, chunk, 1);
}

void fbn_sum_chunks(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again)
{
    for (; chunk < chunk_end; chunk++)
        if (call->sums_plan.layout == FBN_ROWS)
            sum_table_chunk(call, first, end, chunk, again);
        else if (again)
            sum_bad_planes(call, first, end, chunk);
        else
            sum_planes_chunk(call, first, end, chunk, 0);
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
static void add_chunks(struct fbn_call *call, int64_t column, int64_t column_end)
{
    int64_t half = fbn_plan_chunk_sums(&call->sums_plan) / 2;
    double *restrict sum = table_sums(call, 0);
    for (int64_t k = 1; k < call->sums_plan.chunks; k++) {
        const double *restrict more = table_sums(call, k);
        for (int64_t j = column; j < column_end; j++) {
            sum[j] += more[j];
            sum[j + half] += more[j + half];
        }
    }
}

static void total_table(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->sums_plan;
    int64_t period = plan->c * plan->s;
    const double *u = table_sums(call, 0), *v = u + fbn_plan_chunk_sums(plan) / 2;
    const int whole = first == 0 && end == plan->c;
    if (whole)
        add_chunks(call, 0, plan->width);
    for (int64_t j = 0; j < plan->width; j += period) {
        if (!whole)
            add_chunks(call, j + first * plan->s, j + end * plan->s);
        add_columns(call->sum_u, u + j, first, end, plan->s);
        add_columns(call->sum_v, v + j, first, end, plan->s);
    }
}

void fbn_total_sums(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->sums_plan;
    if (columns_are_features(plan)) {
        add_chunks(call, first, end);
        return;
    }
    for (int64_t f = first; f < end; f++)
        call->sum_u[f] = call->sum_v[f] = 0;
    if (plan->layout == FBN_ROWS) {
        total_table(call, first, end);
        return;
    }
    for (int64_t k = 0; k < plan->chunks; k++)
        for (int64_t f = first; f < end; f++) {
            const double *accumulators = call->partial + FBN_ACCUMULATORS * (k * plan->c + f);
            call->sum_u[f] += tree_of_4(accumulators);
            call->sum_v[f] += tree_of_4(accumulators + FBN_ACCUMULATORS / 2);
        }
}
