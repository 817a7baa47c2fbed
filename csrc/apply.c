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
#include "job.h"
#include "tiles.h"

enum {
    LINE = 64,
    LANES = 16,
    PERIOD = 64,     /* columns, at least */
    ACTIVATED = 4096 /* entries of y, before they are activated in the first-level cache */
};

/* To so many bytes are the stores of a flat table aligned. */
static int64_t line_of(const struct fbn_job *job) { return fbn_least(LINE, LANES * job->size); }

static int is_flat(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    int64_t row = plan->c * plan->s;
    int packed = job->y.stride_n == row && job->in.stride_n == row && (!job->gradient || job->x.stride_n == row) &&
                 (!job->residual.data || job->residual.stride_n == row);
    return plan->layout == FBN_ROWS && job->y.data && !job->tiles_out && packed &&
           plan->width * job->size % line_of(job) == 0;
}

/* Adjacent entries of y that are written one after the other. */
int64_t fbn_run_of_output(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_ROWS) {
        int gapless = job->head >= 0 || (job->tiles_out && job->y.stride_n == plan->c * plan->s);
        return gapless ? plan->width * plan->rows : plan->width;
    }
    return job->y.stride_c == plan->s && job->in.stride_c == plan->s ? plan->c * plan->s : plan->s;
}

void fbn_find_head(struct fbn_job *job)
{
    job->head = is_flat(job) ? (int64_t)(-(uintptr_t)job->y.data % (uintptr_t)line_of(job)) / job->size : -1;
}

/* After how many columns the parameters are the same again, or the width, which tiles want. */
static int64_t period(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (job->tiles_out)
        return plan->width;
    const int64_t row = plan->c * plan->s;
    return fbn_least(plan->width, (PERIOD + row - 1) / row * row);
}

/* 0 where the features' own arrays serve as the columns. */
int64_t fbn_param_columns(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (job->head > 0 || plan->fold > 1)
        return period(job) + 2 * line_of(job) / job->size;
    return fbn_more_columns(plan) ? plan->width : 0;
}

void fbn_spread_params(struct fbn_job *job, int64_t first, int64_t end)
{
    int64_t columns = fbn_param_columns(job);
    for (int i = 0; columns > 0 && i < fbn_params_of(job); i++)
        fbn_spread(&job->out_plan, job->lane_size, job->par[i], job->par_columns[i], columns, first, end);
    if (!job->op->prepare)
        fbn_spread_z(job, first, end);
}

/* The parameters from feature or column `at` on. */
static void params_at(const struct fbn_job *job, void *const base[], int64_t at, const void *par[FBN_MOST_PARAMS])
{
    for (int i = 0; i < fbn_params_of(job); i++)
        par[i] = (const char *)base[i] + at * job->lane_size;
}

/* The inputs of the map: of one alone the second is not there. Relu is the one activation that maps have. */
static struct fbn_array first_input(const struct fbn_job *job) { return job->gradient ? job->x : job->in; }

static struct fbn_array second_input(const struct fbn_job *job)
{
    return job->dy.data && !job->gradient ? (struct fbn_array){NULL, 0, 0} : job->gradient ? job->dz : job->residual;
}

static int is_relu(const struct fbn_job *job) { return job->activation == FASTBN_RELU && !job->dy.data; }

/* act(y), of runs `stride` apart. */
static void activate(const struct fbn_job *job, char *y, int64_t stride, int64_t runs, int64_t len)
{
    if (stride == len) {
        len *= runs;
        runs = 1;
    }
    for (int64_t k = 0; k < runs; k++, y += stride * job->size)
        job->lanes->activate(y, y, len, job->activation, job->act_slope);
}

/* The planes n of `features` features, from entry i on. */
static void map_planes(struct fbn_job *job, int64_t f, int64_t features, int64_t n, int64_t i, int64_t len)
{
    const void *par[FBN_MOST_PARAMS];
    params_at(job, job->par, f, par);
    const struct fbn_array x = first_input(job), second = second_input(job);
    const void *x_at = fbn_at(x, job->size, n, f, i), *second_at = fbn_at(second, job->size, n, f, i);
    char *y = fbn_at(job->y, job->size, n, f, i);
    if (second_at) {
        fbn_gradient *map = job->relu_gradient ? job->typed->planes_relu_gradient
                            : job->gradient    ? job->typed->planes_gradient
                                               : job->typed->planes_residual;
        map(x_at, x.stride_c, second_at, second.stride_c, y, job->y.stride_c, features, len, par, 0, job->way);
    } else {
        fbn_affine *map = is_relu(job) ? job->typed->planes_relu : job->typed->planes_affine;
        map(x_at, x.stride_c, y, job->y.stride_c, features, len, par, 0, job->way);
    }
    if (job->activates_y)
        activate(job, y, job->y.stride_c, features, len);
}

static void apply_planes(struct fbn_job *job, int64_t f, int64_t features, int64_t n, int64_t i, int64_t len)
{
    if (job->tiles_out) {
        fbn_tiles_apply(job, &(struct fbn_block){
                                 .n = n, .f = f, .i = i, .runs = features, .len = len, .next_c = 1, .column = f});
        return;
    }
    const int64_t longest = job->activates_y ? fbn_least(len, ACTIVATED) : len;
    const int64_t most = job->activates_y ? fbn_most(1, ACTIVATED / longest) : features;
    for (int64_t g = 0; g < features; g += most)
        for (int64_t j = 0; j < len; j += longest)
            map_planes(job, f + g, fbn_least(most, features - g), n, i + j, fbn_least(longest, len - j));
}

/* `count` rows of `width` columns, from `at` elements after the start of the array's row `at_row` on; the first column
 * is `column`. */
static void map_rows(struct fbn_job *job, int64_t at_row, int64_t at, int64_t count, int64_t column, int64_t width)
{
    const int64_t fold = job->out_plan.fold, size = job->size, repeat = fold > 1 ? period(job) : width;
    const void *par[FBN_MOST_PARAMS];
    params_at(job, job->par_columns, column, par);
    const struct fbn_array x = first_input(job), second = second_input(job);
    const void *x_at = fbn_at(x, size, at_row, 0, at), *second_at = fbn_at(second, size, at_row, 0, at);
    char *y = fbn_at(job->y, size, at_row, 0, at);
    const int64_t ys = job->y.stride_n * fold;
    if (second_at) {
        fbn_gradient *map = job->relu_gradient ? job->typed->rows_relu_gradient
                            : job->gradient    ? job->typed->rows_gradient
                                               : job->typed->rows_residual;
        map(x_at, x.stride_n * fold, second_at, second.stride_n * fold, y, ys, count, width, par, repeat, job->way);
    } else {
        fbn_affine *map = is_relu(job) ? job->typed->rows_relu : job->typed->rows_affine;
        map(x_at, x.stride_n * fold, y, ys, count, width, par, repeat, job->way);
    }
    if (job->activates_y)
        activate(job, y, ys, count, width);
}

static void apply_rows(struct fbn_job *job, int64_t at_row, int64_t at, int64_t count, int64_t column, int64_t width)
{
    const int64_t fold = job->out_plan.fold;
    if (job->tiles_out) {
        fbn_tiles_apply(job, &(struct fbn_block){
                                 .n = at_row, .i = at, .runs = count, .len = width, .next_n = fold, .column = column});
        return;
    }
    const int64_t most = job->activates_y ? fbn_most(1, ACTIVATED / width) : count;
    for (int64_t r = 0; r < count; r += most)
        map_rows(job, at_row + r * fold, at, fbn_least(most, count - r), column, width);
}

void fbn_apply_features(struct fbn_job *job, int64_t first, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_PLANES) {
        for (int64_t n = plan->n - 1; n >= 0; n--)
            apply_planes(job, first, end - first, n, 0, plan->s);
    } else if (plan->fold == 1) {
        apply_rows(job, 0, first * plan->s, plan->rows, first * plan->s, (end - first) * plan->s);
    } else {
        fbn_apply_stretch(job, 0, fbn_stretches(job));
    }
}

/* A flat table's stretch 0 is what lies before its first line boundary. */
int64_t fbn_stretches(const struct fbn_job *job)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_PLANES)
        return plan->n * plan->c * plan->pieces;
    if (job->head < 0)
        return plan->rows + (plan->rest > 0);
    int64_t beyond = plan->n * plan->c * plan->s - job->head;
    return 1 + (beyond > 0 ? (beyond + plan->width - 1) / plan->width : 0);
}

static void apply_pieces(struct fbn_job *job, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    for (int64_t q = begin, features; q < end; q += features) {
        int64_t plane = q / plan->pieces, i = q % plan->pieces * plan->piece, f = plane % plan->c;
        int64_t len = plan->s - i < plan->piece ? plan->s - i : plan->piece;
        features = plan->pieces > 1 ? 1 : plan->c - f < end - q ? plan->c - f : end - q;
        apply_planes(job, f, features, plane / plan->c, i, len);
    }
}

/* Whole rows, then what is left of a row. */
static void apply_elements(struct fbn_job *job, int64_t begin, int64_t end, int64_t column)
{
    int64_t width = job->out_plan.width, rows = (end - begin) / width, rest = (end - begin) % width;
    if (rows > 0)
        apply_rows(job, 0, begin, rows, column, width);
    for (int64_t most = period(job), at = end - rest; at < end; at += most)
        apply_rows(job, 0, at, 1, column, fbn_least(most, end - at));
}

static void apply_flat(struct fbn_job *job, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    int64_t all = plan->n * plan->c * plan->s, head = job->head < all ? job->head : all;
    if (begin == 0) {
        apply_elements(job, 0, head, 0);
        begin = 1;
    }
    int64_t from = head + (begin - 1) * plan->width, to = head + (end - 1) * plan->width;
    if (begin < end)
        apply_elements(job, from, to < all ? to : all, head);
}

void fbn_apply_stretch(struct fbn_job *job, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &job->out_plan;
    if (plan->layout == FBN_PLANES) {
        apply_pieces(job, begin, end);
        return;
    }
    if (job->head >= 0) {
        apply_flat(job, begin, end);
        return;
    }
    int64_t full = end < plan->rows ? end : plan->rows;
    if (begin < full)
        apply_rows(job, begin * plan->fold, 0, full - begin, 0, plan->width);
    if (end > plan->rows)
        apply_rows(job, plan->rows * plan->fold, 0, 1, 0, plan->rest);
}
