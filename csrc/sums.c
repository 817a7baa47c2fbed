/* sums.c - the first pass: two sums of every feature, chunk by chunk.
 *
 * The sums of chunk k are stored at a place that k decides, and added in the order of k, so that it does not matter
 * which thread computed what.
 */
#include <string.h>

#include "call.h"

enum {
    NEAR = 32768, /* entries of dz that are stored before their sums are taken, while the second-level cache has them */
    SUM_ROWS = 16 /* the highest bands have so many rows: cut at multiples of it, rows give the same sums */
};

void fbn_broadcast_pivots(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.sums;
    if (fbn_more_columns(plan))
        fbn_broadcast(plan, call->lane_size, call->scratch.pivot, call->scratch.pivot_columns, plan->width, first, end);
    fbn_broadcast_z(call, first, end);
}

void fbn_broadcast_z(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.sums;
    const struct fbn_scratch *scratch = &call->scratch;
    for (int i = 0; fbn_needs_z(call) && fbn_more_columns(plan) && i < 3; i++)
        fbn_broadcast(plan, call->lane_size, scratch->z[i], scratch->z_columns[i], plan->width, first, end);
}

/* ---- one call of a kernel ---- */

/* What the kernels subtract, and relu's map to z, from column or feature `at` on. */
static void params_at(const struct fbn_call *call, int64_t at, const void *par[3])
{
    const struct fbn_scratch *scratch = &call->scratch;
    par[0] = (const char *)scratch->pivot_columns + at * call->lane_size;
    for (int i = 1; i < 3; i++)
        par[i] = call->plan.relu_gradient ? (const char *)scratch->z_columns[i] + at * call->lane_size : NULL;
}

/* Sums in double know no activation. */
static int in_tiles(const struct fbn_call *call, int again)
{
    return call->plan.tiles_sums || (again && call->plan.relu_gradient);
}

/* Takes the sums of rows of the table, or of its short last row. */
static void sum_rows(struct fbn_call *call, const struct fbn_runs *runs, double *u, double *v, int again)
{
    const struct fbn_passes *plan = &call->plan;
    const struct fbn_array x = call->given.x, dz = plan->dz;
    const struct fbn_typed *typed = call->typed;
    const void *par[3];
    if (in_tiles(call, again)) {
        fbn_sum_tiles(call, runs, u, v, again);
        return;
    }
    fbn_sum_rows *sum = again || plan->sums_in_double ? typed->sum_rows_wide
                        : plan->relu_gradient         ? typed->sum_rows_relu
                                                      : typed->sum_rows;
    params_at(call, runs->column, par);
    if (plan->stores_dz && !again)
        fbn_store_dz_tiles(call, runs);
    sum(fbn_at(x, call->size, runs->n, 0, runs->i), fbn_run_distance(runs, x),
        fbn_at(dz, call->size, runs->n, 0, runs->i), fbn_run_distance(runs, dz), runs->count, runs->len, par, u, v,
        dz.data ? plan->sums.band_dy : plan->sums.band, plan->prefetches);
}

/* Takes the sums of a run of the planes n of adjacent features. */
static void sum_planes(struct fbn_call *call, const struct fbn_runs *runs, double *accumulators, int again)
{
    const struct fbn_passes *plan = &call->plan;
    const struct fbn_array x = call->given.x, dz = plan->dz;
    const struct fbn_typed *typed = call->typed;
    const void *par[3];
    if (in_tiles(call, again)) {
        fbn_sum_tiles(call, runs, accumulators, NULL, again);
        return;
    }
    fbn_sum_planes *sum = again || plan->sums_in_double ? typed->sum_planes_wide
                          : plan->relu_gradient         ? typed->sum_planes_relu
                                                        : typed->sum_planes;
    params_at(call, runs->f, par);
    if (plan->stores_dz && !again)
        fbn_store_dz_tiles(call, runs);
    sum(fbn_at(x, call->size, runs->n, runs->f, runs->i), x.stride_c,
        fbn_at(dz, call->size, runs->n, runs->f, runs->i), dz.stride_c, runs->count, runs->len, par, accumulators);
}

/* ---- chunks ---- */

/* The place of the sums u of a table's chunk. They are aligned to cache lines where the columns of x are. The sums v
 * follow half a chunk's storage after them. */
static double *table_sums(const struct fbn_call *call, int64_t chunk)
{
    const uintptr_t at = (uintptr_t)call->given.x.data / (uintptr_t)call->size;
    return call->scratch.partial + chunk * fbn_plan_chunk_sums(&call->plan.sums) + at % 8;
}

static int columns_are_features(const struct fbn_plan *plan)
{
    return plan->layout == FBN_ROWS && plan->width == plan->c;
}

void fbn_place_totals(struct fbn_call *call)
{
    if (!columns_are_features(&call->plan.sums) || !call->scratch.partial)
        return;
    call->scratch.sum_u = table_sums(call, 0);
    call->scratch.sum_v = call->scratch.sum_u + fbn_plan_chunk_sums(&call->plan.sums) / 2;
}

static void sum_table_chunk(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &call->plan.sums;
    int64_t row = chunk * plan->chunk, last = chunk == plan->chunks - 1 ? plan->rows : row + plan->chunk;
    int64_t column = plan->fold > 1 ? 0 : first * plan->s;
    int64_t width = plan->fold > 1 ? plan->width : (end - first) * plan->s;
    int64_t most = call->plan.stores_dz ? fbn_max(1, NEAR / width / SUM_ROWS) * SUM_ROWS : fbn_max(1, last - row);
    double *u = table_sums(call, chunk) + column, *v = u + fbn_plan_chunk_sums(plan) / 2;
    struct fbn_runs runs = {.i = column, .len = width, .next_n = plan->fold, .column = column};

    memset(u, 0, (size_t)width * sizeof *u);
    memset(v, 0, (size_t)width * sizeof *v);
    for (; row < last; row += most) {
        runs.n = row * plan->fold;
        runs.count = fbn_min(most, last - row);
        sum_rows(call, &runs, u, v, again);
    }
    if (plan->tail && chunk == plan->chunks - 1) {
        runs = (struct fbn_runs){.n = plan->rows * plan->fold, .count = 1, .len = plan->tail, .next_n = plan->fold};
        sum_rows(call, &runs, u, v, again);
    }
}

/* The storage of planes has, for each chunk and feature, its accumulators. The planes of adjacent features are summed in
 * the order of memory. */
static void sum_planes_chunk(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int again)
{
    const struct fbn_plan *plan = &call->plan.sums;
    double *accumulators = call->scratch.partial + FBN_ACCUMULATORS * (chunk * plan->c + first);
    int64_t q = chunk * plan->chunk, last = fbn_min(q + plan->chunk, plan->n * plan->runs);

    memset(accumulators, 0, (size_t)((end - first) * FBN_ACCUMULATORS) * sizeof *accumulators);
    for (; q < last; q++) {
        int64_t i = q % plan->runs * plan->run;
        struct fbn_runs runs = {.n = q / plan->runs, .i = i, .len = fbn_min(plan->run, plan->s - i), .next_c = 1};
        int64_t most = call->plan.stores_dz ? fbn_max(1, NEAR / runs.len) : end - first;
        for (int64_t f = first; f < end; f += most) {
            runs.f = runs.column = f;
            runs.count = fbn_min(most, end - f);
            sum_planes(call, &runs, accumulators + FBN_ACCUMULATORS * (f - first), again);
        }
    }
}

static void sum_bad_planes(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk)
{
    for (int64_t f = first; f < end; f++)
        if (call->scratch.bad[f])
            sum_planes_chunk(call, f, f + 1, chunk, 1);
}

void fbn_sum_chunks(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again)
{
    for (; chunk < chunk_end; chunk++)
        if (call->plan.sums.layout == FBN_ROWS)
            sum_table_chunk(call, first, end, chunk, again);
        else if (again)
            sum_bad_planes(call, first, end, chunk);
        else
            sum_planes_chunk(call, first, end, chunk, 0);
}

/* ---- totals ---- */

static double tree_of_4(const double *a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* The sum of `count` adjacent columns. */
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
    int64_t half = fbn_plan_chunk_sums(&call->plan.sums) / 2;
    double *restrict sum = table_sums(call, 0);
    for (int64_t k = 1; k < call->plan.sums.chunks; k++) {
        const double *restrict more = table_sums(call, k);
        for (int64_t j = column; j < column_end; j++) {
            sum[j] += more[j];
            sum[j + half] += more[j + half];
        }
    }
}

static void total_table(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.sums;
    int64_t period = plan->c * plan->s;
    const double *u = table_sums(call, 0), *v = u + fbn_plan_chunk_sums(plan) / 2;
    const int whole = first == 0 && end == plan->c;
    if (whole)
        add_chunks(call, 0, plan->width);
    for (int64_t j = 0; j < plan->width; j += period) {
        if (!whole)
            add_chunks(call, j + first * plan->s, j + end * plan->s);
        add_columns(call->scratch.sum_u, u + j, first, end, plan->s);
        add_columns(call->scratch.sum_v, v + j, first, end, plan->s);
    }
}

void fbn_total_sums(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.sums;
    double *sum_u = call->scratch.sum_u, *sum_v = call->scratch.sum_v;
    if (columns_are_features(plan)) {
        add_chunks(call, first, end);
        return;
    }
    for (int64_t f = first; f < end; f++)
        sum_u[f] = sum_v[f] = 0;
    if (plan->layout == FBN_ROWS) {
        total_table(call, first, end);
        return;
    }
    for (int64_t k = 0; k < plan->chunks; k++)
        for (int64_t f = first; f < end; f++) {
            const double *accumulators = call->scratch.partial + FBN_ACCUMULATORS * (k * plan->c + f);
            sum_u[f] += tree_of_4(accumulators);
            sum_v[f] += tree_of_4(accumulators + FBN_ACCUMULATORS / 2);
        }
}
