/* map.c - the second pass: y or dx. It is elementwise, so its order is free.
 *
 * A schedule maps features, each while the caches still hold it, or runs in the order of memory.
 *
 * A packed table whose rows are whole cache lines is flat: since NumPy's arrays start 16, 32 or 48 bytes off a line, its
 * rows are counted from the first line boundary of y, `head` elements in, and the columns are rotated by as much. (For
 * half types, whose vectors are half a line, read "half a line".) So every store of every row is aligned, which a
 * non-temporal store must be. The parameters of the columns go on for two lines beyond their period, which makes the
 * rotation a pointer and lets vectors be loaded from any column. A folded table keeps them for a few rows of the array
 * only: each thread writes those of its features, and a cache line in which the features of two threads alternate costs
 * both of them.
 */
#include "call.h"

enum {
    LINE = 64,
    LANES = 16,
    PERIOD = 64,     /* columns, at least */
    ACTIVATED = 4096 /* entries of y that are written before they are activated in the first-level cache */
};

/* Stores of a flat table are aligned to so many bytes. */
static int64_t line_of(const struct fbn_call *call) { return fbn_min(LINE, LANES * call->size); }

static int is_flat(const struct fbn_call *call)
{
    const struct fbn_given *given = &call->given;
    const struct fbn_plan *plan = &call->plan.map;
    int64_t row = plan->c * plan->s;
    int packed = given->y.stride_n == row && call->plan.in.stride_n == row &&
                 (!call->plan.gradient || given->x.stride_n == row) &&
                 (!given->residual.data || given->residual.stride_n == row);
    return plan->layout == FBN_ROWS && given->y.data && !call->plan.tiles_map && packed &&
           plan->width * call->size % line_of(call) == 0;
}

int64_t fbn_output_run(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.map;
    const struct fbn_array y = call->given.y;
    if (plan->layout == FBN_ROWS) {
        int gapless = call->plan.head >= 0 || (call->plan.tiles_map && y.stride_n == plan->c * plan->s);
        return gapless ? plan->width * plan->rows : plan->width;
    }
    return y.stride_c == plan->s && call->plan.in.stride_c == plan->s ? plan->c * plan->s : plan->s;
}

void fbn_find_head(struct fbn_call *call)
{
    int64_t off = (int64_t)(-(uintptr_t)call->given.y.data % (uintptr_t)line_of(call));
    call->plan.head = is_flat(call) ? off / call->size : -1;
}

/* After so many columns the parameters are the same again. Tiles want them for the whole width. */
static int64_t period(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.map;
    const int64_t row = plan->c * plan->s;
    return call->plan.tiles_map ? plan->width : fbn_min(plan->width, fbn_divide_up(PERIOD, row) * row);
}

/* 0 where the features' own arrays serve as the columns. */
int64_t fbn_param_columns(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.map;
    if (call->plan.head > 0 || plan->fold > 1)
        return period(call) + 2 * line_of(call) / call->size;
    return fbn_more_columns(plan) ? plan->width : 0;
}

void fbn_broadcast_params(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_scratch *scratch = &call->scratch;
    int64_t columns = fbn_param_columns(call);
    for (int i = 0; columns > 0 && i < fbn_params_of(call); i++)
        fbn_broadcast(&call->plan.map, call->lane_size, scratch->par[i], scratch->par_columns[i], columns, first, end);
    if (!call->operation->prepare)
        fbn_broadcast_z(call, first, end);
}

/* ---- one call of a kernel ---- */

/* The parameters from feature or column `at` on. */
static void params_at(const struct fbn_call *call, void *const base[], int64_t at, const void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(call); i++)
        par[i] = (const char *)base[i] + at * call->lane_size;
}

static struct fbn_array first_input(const struct fbn_call *call)
{
    return call->plan.gradient ? call->given.x : call->plan.in;
}

/* An affine map has no second input. */
static struct fbn_array second_input(const struct fbn_call *call)
{
    if (call->plan.gradient)
        return call->plan.dz;
    return call->given.dy.data ? (struct fbn_array){NULL, 0, 0} : call->given.residual;
}

/* relu is the one activation that maps have. */
static int is_relu(const struct fbn_call *call)
{
    return call->given.activation == FASTBN_RELU && !call->given.dy.data;
}

/* Activates y, in runs that lie `stride` apart. */
static void activate(const struct fbn_call *call, char *y, int64_t stride, int64_t runs, int64_t len)
{
    if (stride == len) {
        len *= runs;
        runs = 1;
    }
    for (int64_t k = 0; k < runs; k++, y += stride * call->size)
        call->lanes->activate(y, y, len, call->given.activation, call->given.slope);
}

/* Maps some runs. Those of rows begin `i` elements after the start of the array's row n. period: see fbn_map. */
static void run_kernel(struct fbn_call *call, const struct fbn_runs *runs, int64_t period)
{
    const struct fbn_passes *plan = &call->plan;
    const struct fbn_array x = first_input(call), second = second_input(call), y = call->given.y;
    const struct fbn_maps *maps = runs->next_c ? &call->typed->map_planes : &call->typed->map_rows;
    const void *par[FBN_MOST_PARAMS], *x_at = fbn_at(x, call->size, runs->n, runs->f, runs->i);
    const void *second_at = fbn_at(second, call->size, runs->n, runs->f, runs->i);
    char *y_at = fbn_at(y, call->size, runs->n, runs->f, runs->i);
    const int64_t xs = fbn_run_distance(runs, x), ys = fbn_run_distance(runs, y);
    params_at(call, runs->next_c ? call->scratch.par : call->scratch.par_columns, runs->column, par);
    if (second_at) {
        fbn_map_two *map = plan->relu_gradient ? maps->relu_gradient : plan->gradient ? maps->gradient : maps->residual;
        map(x_at, xs, second_at, fbn_run_distance(runs, second), y_at, ys, runs->count, runs->len, par, period,
            plan->policy);
    } else {
        (is_relu(call) ? maps->relu : maps->affine)(x_at, xs, y_at, ys, runs->count, runs->len, par, period, plan->policy);
    }
    if (plan->activates_y)
        activate(call, y_at, ys, runs->count, runs->len);
}

/* ---- runs ---- */

/* Maps some runs. What is activated after it was written goes part by part, which the first-level cache holds. */
static void map_some(struct fbn_call *call, struct fbn_runs runs)
{
    const int64_t fold = call->plan.map.fold, period_of_row = fold > 1 ? period(call) : runs.len;
    if (call->plan.tiles_map) {
        fbn_map_tiles(call, &runs);
        return;
    }
    if (!call->plan.activates_y) {
        run_kernel(call, &runs, period_of_row);
        return;
    }
    const int64_t longest = runs.next_c ? fbn_min(runs.len, ACTIVATED) : runs.len;
    const int64_t most = fbn_max(1, ACTIVATED / longest);
    for (int64_t r = 0; r < runs.count; r += most)
        for (int64_t j = 0; j < runs.len; j += longest) {
            struct fbn_runs part = fbn_part_of_runs(&runs, r, fbn_min(most, runs.count - r), j,
                                                    fbn_min(longest, runs.len - j));
            run_kernel(call, &part, period_of_row);
        }
}

static void map_rows(struct fbn_call *call, int64_t at_row, int64_t at, int64_t count, int64_t column, int64_t width)
{
    map_some(call, (struct fbn_runs){.n = at_row, .i = at, .count = count, .len = width,
                                     .next_n = call->plan.map.fold, .column = column});
}

void fbn_map_features(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.map;
    if (plan->layout == FBN_PLANES) {
        struct fbn_runs runs = {.f = first, .count = end - first, .len = plan->s, .next_c = 1, .column = first};
        for (runs.n = plan->n - 1; runs.n >= 0; runs.n--)
            map_some(call, runs);
    } else if (plan->fold == 1) {
        map_rows(call, 0, first * plan->s, plan->rows, first * plan->s, (end - first) * plan->s);
    } else {
        fbn_map_runs(call, 0, fbn_count_runs(call));
    }
}

/* Run 0 of a flat table is what lies before its first line boundary. */
int64_t fbn_count_runs(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.map;
    if (call->plan.head < 0)
        return fbn_plan_runs(plan);
    int64_t beyond = plan->n * plan->c * plan->s - call->plan.head;
    return 1 + (beyond > 0 ? fbn_divide_up(beyond, plan->width) : 0);
}

/* Maps whole rows, then what is left of a row. */
static void map_elements(struct fbn_call *call, int64_t begin, int64_t end, int64_t column)
{
    int64_t width = call->plan.map.width, rows = (end - begin) / width, rest = (end - begin) % width;
    if (rows > 0)
        map_rows(call, 0, begin, rows, column, width);
    for (int64_t most = period(call), at = end - rest; at < end; at += most)
        map_rows(call, 0, at, 1, column, fbn_min(most, end - at));
}

static void map_flat(struct fbn_call *call, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.map;
    int64_t all = plan->n * plan->c * plan->s, head = fbn_min(call->plan.head, all);
    if (begin == 0) {
        map_elements(call, 0, head, 0);
        begin = 1;
    }
    if (begin < end)
        map_elements(call, head + (begin - 1) * plan->width, fbn_min(head + (end - 1) * plan->width, all), head);
}

void fbn_map_runs(struct fbn_call *call, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &call->plan.map;
    if (plan->layout == FBN_PLANES) {
        for (struct fbn_runs runs; begin < end; begin += runs.count) {
            runs = fbn_plan_group(plan, begin, end);
            map_some(call, runs);
        }
        return;
    }
    if (call->plan.head >= 0) {
        map_flat(call, begin, end);
        return;
    }
    int64_t full = fbn_min(end, plan->rows);
    if (begin < full)
        map_rows(call, begin * plan->fold, 0, full - begin, 0, plan->width);
    if (end > plan->rows)
        map_rows(call, plan->rows * plan->fold, 0, 1, 0, plan->tail);
}
