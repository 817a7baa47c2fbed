/* double_backward.c - the gradient of the backward, in two passes.
 *
 * The first takes sums over pairs of arrays, each a backward of which only dgamma and dbeta are wanted: over (x, dy),
 * over (x, ddx), and over (dy, ddx) with the mean of dy in the place of the mean of x. The second writes ddy and dx,
 * which are sums of the shifted and scaled arrays x, dy and ddx (the formulas are in fastbn.h). It walks backwards, so
 * that it starts on what the caches still hold, and takes both outputs of a few runs before the next, so that the inputs
 * which they share come from a cache.
 */
#include <stdlib.h>

#include "call.h"
#include "parallel.h"

enum { AT_ONCE = 64 * 1024 /* bytes of an array */ };

/* What the caller gave. */
struct given {
    const fastbn_shape *shape;
    fastbn_input x, dy, ddx;
    const void *ddgamma, *ddbeta;
    const fastbn_params *params;
    const double *mean, *rstd;
    int frozen;
    fastbn_output ddy, dx;
    void *dgamma;
    int threads;
};

/* Sums of each feature. mean_dy and the others are 0 where the statistics are constants. */
struct sums {
    double *mean_dy, *mean_ddx;
    double *dy_h, *ddx_h, *ddx_dy; /* sum(dy * h), sum(ddx * h), sum(ddx * (dy - mean_dy)) */
};

/* One output of the second pass. */
struct combination {
    int arrays;
    struct fbn_array out, in[FBN_COMBINED];
    void *par[FBN_WEIGHTS], *columns[FBN_WEIGHTS];
};

struct pass {
    const struct fbn_typed *typed;
    struct fbn_plan plan;
    int64_t size;
    double *rounded; /* room for one value of each feature */
    struct combination outputs[2];
    int count;
};

/* ---- checks ---- */

/* Uses a backward of which nothing is wanted: it only checks its arguments. With constant statistics it does not check x. */
static fastbn_status check(const struct given *given, fastbn_input x, fastbn_input dy, int without_x)
{
    const fastbn_output nothing = {NULL, 0, 0};
    return fastbn_backward(given->shape, x, dy, given->params, given->mean, given->rstd, without_x, nothing, NULL, NULL,
                           1);
}

static int reads_x(const struct given *given) { return given->ddgamma || (!given->frozen && given->ddx.data); }

static fastbn_status check_all(const struct given *given)
{
    fastbn_input others[] = {given->ddx,
                             {given->ddy.data, given->ddy.stride_n, given->ddy.stride_c},
                             {given->dx.data, given->dx.stride_n, given->dx.stride_c}};
    fastbn_status status = check(given, given->x, given->dy, !reads_x(given));
    for (int i = 0; i < 3 && status == FASTBN_OK; i++)
        if (others[i].data)
            status = check(given, others[i], others[i], 1);
    if (status == FASTBN_OK && given->shape->dtype != FASTBN_FLOAT32 && given->shape->dtype != FASTBN_FLOAT64)
        status = FASTBN_ERROR_DTYPE;
    if (status == FASTBN_OK && (given->params->activation != FASTBN_IDENTITY || given->params->extra))
        status = FASTBN_ERROR_ACTIVATION;
    return status;
}

/* ---- the first pass ---- */

/* Takes sum(b) and rstd * sum(b * (a - mean)). */
static fastbn_status take_sums(const struct given *given, fastbn_input a, fastbn_input b, const double *mean,
                               const double *rstd, double *sum, double *projected)
{
    const fastbn_params doubles = {.dtype = FASTBN_FLOAT64};
    const fastbn_output nothing = {NULL, 0, 0};
    return fastbn_backward(given->shape, a, b, &doubles, mean, rstd, 1, nothing, projected, sum, given->threads);
}

static void divide(double *sum, const fastbn_shape *shape)
{
    const double weight = 1.0 / (double)(shape->n * shape->s);
    for (int64_t f = 0; f < shape->c; f++)
        sum[f] *= weight;
}

/* Fills `ones`, which stand in the place of rstd. */
static fastbn_status first_pass(const struct given *given, struct sums *sums, double *ones)
{
    const int wants_product = given->ddx.data && (given->dx.data || given->dgamma);
    fastbn_status status = FASTBN_OK;
    if (!given->frozen && (wants_product || (given->ddgamma && given->dx.data))) {
        status = take_sums(given, given->x, given->dy, given->mean, given->rstd, sums->mean_dy, sums->dy_h);
        divide(sums->mean_dy, given->shape);
    }
    if (status == FASTBN_OK && !given->frozen && given->ddx.data) {
        status = take_sums(given, given->x, given->ddx, given->mean, given->rstd, sums->mean_ddx, sums->ddx_h);
        divide(sums->mean_ddx, given->shape);
    }
    for (int64_t f = 0; f < given->shape->c; f++)
        ones[f] = 1.0;
    if (status == FASTBN_OK && wants_product && (!given->frozen || given->dgamma))
        status = take_sums(given, given->dy, given->ddx, sums->mean_dy, ones, NULL, sums->ddx_dy);
    return status;
}

/* ---- the weights of the second pass ---- */

/* The parameters by feature, as doubles. */
struct params {
    double *gamma, *ddgamma, *ddbeta;
};

static void load_params(const struct given *given, const struct fbn_kernels *kernels, const struct params *params)
{
    const fastbn_dtype dtype = given->params->dtype;
    const int64_t c = given->shape->c;
    fbn_load_values(kernels, dtype, given->params->gamma, 1.0, 0, c, params->gamma);
    fbn_load_values(kernels, dtype, given->ddgamma, 0.0, 0, c, params->ddgamma);
    fbn_load_values(kernels, dtype, given->ddbeta, 0.0, 0, c, params->ddbeta);
}

static void set_weight(double *const weights[FBN_WEIGHTS], int array, int64_t f, double mean, double scale)
{
    weights[1 + 2 * array][f] = mean;
    weights[2 + 2 * array][f] = scale;
}

static void ddy_weights(const struct given *given, const struct params *params, const struct sums *sums,
                        double *const weights[FBN_WEIGHTS])
{
    const double weight = 1.0 / (double)(given->shape->n * given->shape->s);
    for (int64_t f = 0; f < given->shape->c; f++) {
        double rstd = given->rstd[f], scale = params->gamma[f] * rstd;
        double slope = params->ddgamma[f] - scale * (sums->ddx_h[f] * weight);
        weights[0][f] = params->ddbeta[f];
        set_weight(weights, 0, f, sums->mean_ddx[f], scale);
        set_weight(weights, 1, f, given->mean[f], slope * rstd);
    }
}

static void dx_weights(const struct given *given, const struct params *params, const struct sums *sums,
                       double *const weights[FBN_WEIGHTS])
{
    const double weight = 1.0 / (double)(given->shape->n * given->shape->s);
    for (int64_t f = 0; f < given->shape->c; f++) {
        double rstd = given->rstd[f], scale = params->gamma[f] * rstd;
        double dy_h = sums->dy_h[f] * weight, ddx_h = sums->ddx_h[f] * weight;
        double k = sums->ddx_dy[f] * weight - dy_h * ddx_h;
        double b = rstd * (params->ddgamma[f] - scale * ddx_h), c = -scale * rstd * dy_h;
        weights[0][f] = 0.0;
        set_weight(weights, 0, f, sums->mean_dy[f], b);
        set_weight(weights, 1, f, given->mean[f], -rstd * (b * dy_h + c * ddx_h + scale * rstd * k));
        set_weight(weights, 2, f, sums->mean_ddx[f], c);
    }
}

/* Adds the next array of an output. Its mean is subtracted in two parts: the one that the data's type holds from the array,
 * what is left of it from the constant. */
static void add_array(const struct pass *pass, struct combination *one, struct fbn_array in, double *constant,
                      const double *mean, const double *scale)
{
    const int64_t c = pass->plan.c;
    void *shift = one->par[1 + 2 * one->arrays];
    pass->typed->round(c, mean, shift);
    pass->typed->round(c, scale, one->par[2 + 2 * one->arrays]);
    pass->typed->widen(c, shift, pass->rounded);
    for (int64_t f = 0; f < c; f++)
        constant[f] -= (mean[f] - pass->rounded[f]) * scale[f];
    one->in[one->arrays++] = in;
}

/* Adds an output that is made of those arrays `in` that are there. */
static void add_output(struct pass *pass, struct fbn_array out, const struct fbn_array in[FBN_COMBINED],
                       double *const weights[FBN_WEIGHTS])
{
    struct combination *one = &pass->outputs[pass->count++];
    one->out = out;
    one->arrays = 0;
    for (int i = 0; i < FBN_COMBINED; i++)
        if (in[i].data)
            add_array(pass, one, in[i], weights[0], weights[1 + 2 * i], weights[2 + 2 * i]);
    pass->typed->round(pass->plan.c, weights[0], one->par[0]);
    for (int i = 0; i < 1 + 2 * one->arrays; i++)
        if (one->columns[i] != one->par[i])
            fbn_broadcast(&pass->plan, pass->size, one->par[i], one->columns[i], pass->plan.width, 0, pass->plan.c);
}

static void add_outputs(struct pass *pass, const struct given *given, const struct params *params,
                        const struct sums *sums, double *const weights[FBN_WEIGHTS])
{
    const struct fbn_array none = {NULL, 0, 0}, dy = fbn_input_array(given->dy), ddx = fbn_input_array(given->ddx);
    const struct fbn_array x = reads_x(given) ? fbn_input_array(given->x) : none;
    const int slopes = !given->frozen && x.data, scales = given->ddgamma || slopes;
    if (given->ddy.data) {
        ddy_weights(given, params, sums, weights);
        add_output(pass, fbn_output_array(given->ddy), (struct fbn_array[]){ddx, x, none}, weights);
    }
    if (given->dx.data) {
        dx_weights(given, params, sums, weights);
        add_output(pass, fbn_output_array(given->dx),
                   (struct fbn_array[]){scales ? dy : none, slopes ? x : none, slopes ? ddx : none}, weights);
    }
}

/* ---- the second pass ---- */

static void call_kernel(const struct pass *pass, fbn_combine *kernel, const struct combination *one,
                        struct fbn_runs runs)
{
    const int rows = runs.next_n > 0;
    const void *in[FBN_COMBINED] = {NULL, NULL, NULL}, *par[FBN_WEIGHTS];
    int64_t stride[FBN_COMBINED] = {0, 0, 0};
    for (int k = 0; k < one->arrays; k++) {
        in[k] = fbn_at(one->in[k], pass->size, runs.n, runs.f, runs.i);
        stride[k] = fbn_run_distance(&runs, one->in[k]);
    }
    for (int k = 0; k < 1 + 2 * one->arrays; k++)
        par[k] = (const char *)(rows ? one->columns[k] : one->par[k]) + runs.f * pass->size;
    kernel(one->arrays, in, stride, fbn_at(one->out, pass->size, runs.n, runs.f, runs.i),
           fbn_run_distance(&runs, one->out), runs.count, runs.len, par);
}

static void combine_planes(const struct pass *pass, const struct combination *one, int64_t begin, int64_t end)
{
    for (struct fbn_runs runs; begin < end; begin += runs.count) {
        runs = fbn_plan_group(&pass->plan, begin, end);
        call_kernel(pass, pass->typed->combine_planes, one, runs);
    }
}

static void combine_rows(const struct pass *pass, const struct combination *one, int64_t begin, int64_t end)
{
    const struct fbn_plan *plan = &pass->plan;
    struct fbn_runs runs = {.n = begin * plan->fold, .count = fbn_min(end, plan->rows) - begin, .len = plan->width,
                            .next_n = plan->fold};
    if (runs.count > 0)
        call_kernel(pass, pass->typed->combine_rows, one, runs);
    if (end > plan->rows) {
        runs = (struct fbn_runs){.n = plan->rows * plan->fold, .count = 1, .len = plan->tail, .next_n = plan->fold};
        call_kernel(pass, pass->typed->combine_rows, one, runs);
    }
}

static void work(void *pass_, int thread, int threads)
{
    const struct pass *pass = pass_;
    const int planes = pass->plan.layout == FBN_PLANES;
    const int64_t all = fbn_plan_runs(&pass->plan), step = AT_ONCE / ((planes ? pass->plan.run : pass->plan.width)
                                                                      * pass->size) + 1;
    int64_t begin = fbn_share(all, thread, threads), end = fbn_share(all, thread + 1, threads);
    for (int64_t from; begin < end; end = from) {
        from = fbn_max(begin, end - step);
        for (int i = 0; i < pass->count; i++)
            (planes ? combine_planes : combine_rows)(pass, &pass->outputs[i], from, end);
    }
}

static void second_pass(struct pass *pass, int threads)
{
    int64_t arrays = 0;
    for (int i = 0; i < pass->count; i++)
        arrays += pass->outputs[i].arrays + 1;
    int64_t bytes = arrays * pass->plan.n * pass->plan.c * pass->plan.s * pass->size;
    if (pass->count > 0)
        fbn_run(fbn_team_for(threads, bytes, 0, fbn_plan_runs(&pass->plan)), work, pass);
}

/* ---- the plan, and memory ---- */

static struct pass make_pass(const struct given *given, const struct fbn_kernels *kernels)
{
    const fastbn_shape *shape = given->shape;
    const struct fbn_array arrays[] = {fbn_input_array(given->x), fbn_input_array(given->dy),
                                       fbn_input_array(given->ddx), fbn_output_array(given->ddy),
                                       fbn_output_array(given->dx)};
    int packed = 1;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        packed &= fbn_is_packed(shape, arrays[i]);
    struct pass pass = {.typed = &kernels->typed[shape->dtype], .count = 0};
    pass.plan = fbn_plan_map(shape->n, shape->c, shape->s, packed);
    pass.size = shape->dtype == FASTBN_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
    return pass;
}

/* Doubles of each feature: the sums, the parameters, room for one more value, and the weights. */
enum { SUMS = 5, PARAMS = 3, ROOM = SUMS + PARAMS, WEIGHTS = ROOM + 1, DOUBLES = WEIGHTS + FBN_WEIGHTS };

static void lay_out(struct pass *pass, struct sums *sums, struct params *params, double *doubles[DOUBLES],
                    double *memory)
{
    const int64_t c = pass->plan.c, columns = fbn_more_columns(&pass->plan) ? pass->plan.width : 0;
    for (int i = 0; i < DOUBLES; i++)
        doubles[i] = memory + i * c;
    *sums = (struct sums){doubles[0], doubles[1], doubles[2], doubles[3], doubles[4]};
    *params = (struct params){doubles[SUMS], doubles[SUMS + 1], doubles[SUMS + 2]};
    pass->rounded = doubles[ROOM];
    char *rest = (char *)(memory + DOUBLES * c);
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < FBN_WEIGHTS; k++) {
            pass->outputs[i].par[k] = rest;
            rest += c * pass->size;
            pass->outputs[i].columns[k] = columns > 0 ? rest : pass->outputs[i].par[k];
            rest += columns * pass->size;
        }
}

static size_t bytes_of(const struct pass *pass)
{
    int64_t columns = fbn_more_columns(&pass->plan) ? pass->plan.width : 0;
    return (size_t)(DOUBLES * pass->plan.c * (int64_t)sizeof(double)
                    + 2 * FBN_WEIGHTS * (pass->plan.c + columns) * pass->size);
}

/* ---- the entry point ---- */

/* dgamma = N * rstd * k, in the type of the parameters. */
static void store_dgamma(const struct given *given, const struct fbn_kernels *kernels, const struct sums *sums,
                         double *dgamma)
{
    const double weight = 1.0 / (double)(given->shape->n * given->shape->s);
    for (int64_t f = 0; f < given->shape->c; f++)
        dgamma[f] = given->rstd[f] * (sums->ddx_dy[f] - sums->dy_h[f] * (sums->ddx_h[f] * weight));
    kernels->typed[given->params->dtype].round(given->shape->c, dgamma, given->dgamma);
}

static fastbn_status run(const struct given *given, const struct fbn_kernels *kernels)
{
    struct pass pass = make_pass(given, kernels);
    struct sums sums;
    struct params params;
    double *doubles[DOUBLES], *memory = calloc(1, bytes_of(&pass));
    if (!memory)
        return FASTBN_ERROR_MEMORY;
    lay_out(&pass, &sums, &params, doubles, memory);
    load_params(given, kernels, &params);
    fastbn_status status = first_pass(given, &sums, doubles[ROOM]);
    if (status == FASTBN_OK) {
        add_outputs(&pass, given, &params, &sums, doubles + WEIGHTS);
        second_pass(&pass, given->threads);
        if (given->dgamma)
            store_dgamma(given, kernels, &sums, doubles[ROOM]);
    }
    free(memory);
    return status;
}

fastbn_status fastbn_double_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, fastbn_input ddx,
                                     const void *ddgamma, const void *ddbeta, const fastbn_params *params,
                                     const double *mean, const double *rstd, int frozen, fastbn_output ddy,
                                     fastbn_output dx, void *dgamma, int num_threads)
{
    const struct given given = {shape, x, dy, ddx, ddgamma, ddbeta, params, mean, rstd, frozen, ddy, dx, dgamma,
                                num_threads};
    const struct fbn_kernels *kernels;
    fastbn_status status = check_all(&given);
    if (status == FASTBN_OK)
        status = fbn_kernels_active(&kernels);
    if (status != FASTBN_OK)
        return status;
    if (!fbn_is_empty(shape))
        return run(&given, kernels);
    fbn_store_nothing(params->dtype, shape->c, dgamma);
    return FASTBN_OK;
}
