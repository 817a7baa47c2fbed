/* apply.c - the second pass: y or dx. Elementwise: its order is free.
 *
 * A schedule takes it by features, each while the caches still hold it, or by stretches of memory.
 *
 * A packed table whose rows are whole cache lines is flat: since NumPy's arrays start 16, 32 or 48 bytes off a line,
 * its rows are counted from the first line boundary of y, `head` elements in, with the columns rotated by as much (for
 * half types, whose vectors are half a line, read "half a line"). So every store of every row is aligned, which a store
 * past the caches must be. The columns' parameters go on for two lines beyond their period, which makes the rotation a
 * pointer and lets vectors be loaded from any column. Of a table that is folded they are kept for a few rows of the
 * array only: each thread writes those of its features, and a cache line in which the features of two threads alternate
 * costs both of them.
 */
#include "call.h"

enum {
    LINE = 64,
    LANES = 16,
    PERIOD = 64,     /* columns, at least */
    ACTIVATED = 4096 /* entries of y, before they are activated in the first-level cache */
};

/* To so many bytes are the stores of a flat table aligned. */
static int64_t line_of(const struct fbn_call *call) { return fbn_min(LINE, LANES * call->size); }

static int is_flat(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    int64_t row = plan->c * plan->s;
    int packed = call->y.stride_n == row && call->in.stride_n == row && (!call->gradient || call->x.stride_n == row) &&
                 (!call->residual.data || call->residual.stride_n == row);
    return plan->layout == FBN_ROWS && call->y.data && !call->tiles_out && packed &&
           plan->width * call->size % line_of(call) == 0;
}

/* Adjacent entries of y that are written one after the other. */
int64_t fbn_output_run(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (plan->layout == FBN_ROWS) {
        int gapless = call->head >= 0 || (call->tiles_out && call->y.stride_n == plan->c * plan->s);
        return gapless ? plan->width * plan->rows : plan->width;
    }
    return call->y.stride_c == plan->s && call->in.stride_c == plan->s ? plan->c * plan->s : plan->s;
}

void fbn_find_head(struct fbn_call *call)
{
    call->head = is_flat(call) ? (int64_t)(-(uintptr_t)call->y.data % (uintptr_t)line_of(call)) / call->size : -1;
}

/* After how many columns the parameters are the same again, or the width, which tiles want. */
static int64_t period(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (call->tiles_out)
        return plan->width;
    const int64_t row = plan->c * plan->s;
    return fbn_min(plan->width, (PERIOD + row - 1) / row * row);
}

/* 0 where the features' own arrays serve as the columns. */
int64_t fbn_param_columns(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (call->head > 0 || plan->fold > 1)
        return period(call) + 2 * line_of(call) / call->size;
    return fbn_more_columns(plan) ? plan->width : 0;
}

void fbn_broadcast_params(struct fbn_call *call, int64_t first, int64_t end)
{
    int64_t columns = fbn_param_columns(call);
    for (int i = 0; columns > 0 && i < fbn_params_of(call); i++)
        fbn_broadcast(&call->out_plan, call->lane_size, call->par[i], call->par_columns[i], columns, first, end);
    if (!call->operation->prepare)
        fbn_broadcast_z(call, first, end);
}

/* The parameters from feature or column `at` on. */
static void params_at(const struct fbn_call *call, void *const base[], int64_t at, const void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(call); i++)
        par[i] = (const char *)base[i] + at * call->lane_size;
}

/* The inputs of the map: of one alone the second is not there. Relu is the one activation that maps have. */
static struct fbn_array first_input(const struct fbn_call *call) { return call->gradient ? call->x : call->in; }

static struct fbn_array second_input(const struct fbn_call *call)
{
    return call->dy.data && !call->gradient ? (struct fbn_array){NULL, 0, 0} : call->gradient ? call->dz : call->residual;
}

static int is_relu(const struct fbn_call *call) { return call->activation == FASTBN_RELU && !call->dy.data; }

/* act(y), of runs `stride` apart. */
static void activate(const struct fbn_call *call, char *y, int64_t stride, int64_t runs, int64_t len)
{
    if (stride == len) {
        len *= runs;
        runs = 1;
    }
    for (int64_t k = 0; k < runs; k++, y += stride * call->size)
        call->lanes->activate(y, y, len, call->activation, call->act_slope);
}

/* The planes n of `features` features, from entry i on. */
static void run_planes_kernel(struct fbn_call *call, int64_t f, int64_t features, int64_t n, int64_t i, int64_t len)
{
    const void *par[FBN_MOST_PARAMS];
    params_at(call, call->par, f, par);
    const struct fbn_array x = first_input(call), second = second_input(call);
    const void *x_at = fbn_at(x, call->size, n, f, i), *second_at = fbn_at(second, call->size, n, f, i);
    char *y = fbn_at(call->y, call->size, n, f, i);
    if (second_at) {
        fbn_gradient *map = call->relu_gradient ? call->typed->map_planes_relu_gradient
                            : call->gradient    ? call->typed->map_planes_gradient
                                               : call->typed->map_planes_residual;
        map(x_at, x.stride_c, second_at, second.stride_c, y, call->y.stride_c, features, len, par, 0, call->policy);
    } else {
        fbn_affine *map = is_relu(call) ? call->typed->map_planes_relu : call->typed->map_planes_affine;
        map(x_at, x.stride_c, y, call->y.stride_c, features, len, par, 0, call->policy);
    }
    if (call->activates_y)
        activate(call, y, call->y.stride_c, features, len);
}

static void map_planes(struct fbn_call *call, int64_t f, int64_t features, int64_t n, int64_t i, int64_t len)
{
    if (call->tiles_out) {
        fbn_map_tiles(call, &(struct fbn_runs){
                                 .n = n, .f = f, .i = i, .count = features, .len = len, .next_c = 1, .column = f});
        return;
    }
    const int64_t longest = call->activates_y ? fbn_min(len, ACTIVATED) : len;
    const int64_t most = call->activates_y ? fbn_max(1, ACTIVATED / longest) : features;
    for (int64_t g = 0; g < features; g += most)
        for (int64_t j = 0; j < len; j += longest)
            run_planes_kernel(call, f + g, fbn_min(most, features - g), n, i + j, fbn_min(longest, len - j));
}

/* `count` rows of `width` columns, from `at` elements after the start of the array's row `at_row` on; the first column
 * is `column`. */
static void run_rows_kernel(struct fbn_call *call, int64_t at_row, int64_t at, int64_t count, int64_t column, int64_t width)
{
    const int64_t fold = call->out_plan.fold, size = call->size, repeat = fold > 1 ? period(call) : width;
    const void *par[FBN_MOST_PARAMS];
    params_at(call, call->par_columns, column, par);
    const struct fbn_array x = first_input(call), second = second_input(call);
    const void *x_at = fbn_at(x, size, at_row, 0, at), *second_at = fbn_at(second, size, at_row, 0, at);
    char *y = fbn_at(call->y, size, at_row, 0, at);
    const int64_t ys = call->y.stride_n * fold;
    if (second_at) {
        fbn_gradient *map = call->relu_gradient ? call->typed->map_rows_relu_gradient
                            : call->gradient    ? call->typed->map_rows_gradient
                                               : call->typed->map_rows_residual;
        map(x_at, x.stride_n * fold, second_at, second.stride_n * fold, y, ys, count, width, par, repeat, call->policy);
    } else {
        fbn_affine *map = is_relu(call) ? call->typed->map_rows_relu : call->typed->map_rows_affine;
        map(x_at, x.stride_n * fold, y, ys, count, width, par, repeat, call->policy);
    }
    if (call->activates_y)
        activate(call, y, ys, count, width);
}

static void map_rows(struct fbn_call *call, int64_t at_row, int64_t at, int64_t count, int64_t column, int64_t width)
{
    const int64_t fold = call->out_plan.fold;
    if (call->tiles_out) {
        fbn_map_tiles(call, &(struct fbn_runs){
                                 .n = at_row, .i = at, .count = count, .len = width, .next_n = fold, .column = column});
        return;
    }
    const int64_t most = call->activates_y ? fbn_max(1, ACTIVATED / width) : count;
    for (int64_t r = 0; r < count; r += most)
        run_rows_kernel(call, at_row + r * fold, at, fbn_min(most, count - r), column, width);
}

void fbn_map_features(struct fbn_call *call, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (plan->layout == FBN_PLANES) {
        for (int64_t n = plan->n - 1; n >= 0; n--)
            map_planes(call, first, end - first, n, 0, plan->s);
    } else if (plan->fold == 1) {
        map_rows(call, 0, first * plan->s, plan->rows, first * plan->s, (end - first) * plan->s);
    } else {
        fbn_map_runs(call, 0, fbn_count_runs(call));
    }
}

/* A flat table's stretch 0 is what lies before its first line boundary. */
int64_t fbn_count_runs(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (plan->layout == FBN_PLANES)
        return plan->n * plan->c * plan->runs;
    if (call->head < 0)
        return plan->rows + (plan->tail > 0);
    int64_t beyond = plan->n * plan->c * plan->s - call->head;
    return 1 + (beyond > 0 ? (beyond + plan->width - 1) / plan->width : 0);
}

static void map_runs_of_planes(struct fbn_call *call, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &call->out_plan;
    for (int64_t q = begin, features; q < end; q += features) {
        int64_t plane = q / plan->runs, i = q % plan->runs * plan->run, f = plane % plan->c;
        int64_t len = plan->s - i < plan->run ? plan->s - i : plan->run;
        features = plan->runs > 1 ? 1 : plan->c - f < end - q ? plan->c - f : end - q;
        map_planes(call, f, features, plane / plan->c, i, len);
    }
}

/* Whole rows, then what is left of a row. */
static void map_elements(struct fbn_call *call, int64_t begin, int64_t end, int64_t column)
{
    int64_t width = call->out_plan.width, rows = (end - begin) / width, rest = (end - begin) % width;
    if (rows > 0)
        map_rows(call, 0, begin, rows, column, width);
    for (int64_t most = period(call), at = end - rest; at < end; at += most)
        map_rows(call, 0, at, 1, column, fbn_min(most, end - at));
}

static void map_flat(struct fbn_call *call, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &call->out_plan;
    int64_t all = plan->n * plan->c * plan->s, head = call->head < all ? call->head : all;
    if (begin == 0) {
        map_elements(call, 0, head, 0);
        begin = 1;
    }
    int64_t from = head + (begin - 1) * plan->width, to = head + (end - 1) * plan->width;
    if (begin < end)
        map_elements(call, from, to < all ? to : all, head);
}

void fbn_map_runs(struct fbn_call *call, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &call->out_plan;
    if (plan->layout == FBN_PLANES) {
        map_runs_of_planes(call, begin, end);
        return;
    }
    if (call->head >= 0) {
        map_flat(call, begin, end);
        return;
    }
    int64_t full = end < plan->rows ? end : plan->rows;
    if (begin < full)
        map_rows(call, begin * plan->fold, 0, full - begin, 0, plan->width);
    if (end > plan->rows)
        map_rows(call, plan->rows * plan->fold, 0, 1, 0, plan->tail);
}
