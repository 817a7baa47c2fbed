/* batchnorm.c - the entry points: check, plan, run. */
#include <math.h>
#include <string.h>

#include "call.h"

/* ---- checks ---- */

static int shape_is_wrong(const fastbn_shape *shape)
{
    const int64_t most = INT64_C(1) << 62;
    if (shape->n < 0 || shape->c < 0 || shape->s < 0)
        return 1;
    if (shape->n == 0 || shape->c == 0 || shape->s == 0)
        return 0;
    return shape->n > most / shape->c || shape->n * shape->c > most / shape->s;
}

static int is_param_dtype(fastbn_dtype dtype) { return dtype == FASTBN_FLOAT32 || dtype == FASTBN_FLOAT64; }

static int is_half(fastbn_dtype dtype) { return dtype == FASTBN_FLOAT16 || dtype == FASTBN_BFLOAT16; }

static fastbn_status check_shape(const fastbn_shape *shape)
{
    if (!shape)
        return FASTBN_ERROR_NULL;
    if (!is_param_dtype(shape->dtype) && !is_half(shape->dtype))
        return FASTBN_ERROR_DTYPE;
    return shape_is_wrong(shape) ? FASTBN_ERROR_SHAPE : FASTBN_OK;
}

static fastbn_status check_params(const fastbn_params *params)
{
    if (!params)
        return FASTBN_ERROR_NULL;
    if (!is_param_dtype(params->dtype))
        return FASTBN_ERROR_DTYPE;
    if (params->activation < FASTBN_IDENTITY || params->activation > FASTBN_ELU)
        return FASTBN_ERROR_ACTIVATION;
    int invertible = params->activation == FASTBN_IDENTITY ||
                     (params->activation == FASTBN_LEAKY_RELU && params->slope > 0.0);
    return params->extra && params->extra->inverts && !invertible ? FASTBN_ERROR_ACTIVATION : FASTBN_OK;
}

static fastbn_status check_array(const fastbn_shape *shape, struct fbn_array a)
{
    if (fbn_is_empty(shape))
        return FASTBN_OK;
    if (!a.data)
        return FASTBN_ERROR_NULL;
    return shape->s == 1 && shape->c > 1 && a.stride_c != 1 ? FASTBN_ERROR_STRIDE : FASTBN_OK;
}

/* Arrays that may be missing. */
static fastbn_status check_extra(const fastbn_shape *shape, const fastbn_extra *extra)
{
    if (!extra)
        return FASTBN_OK;
    const struct fbn_array arrays[] = {fbn_input_array(extra->residual), fbn_output_array(extra->dresidual),
                                       fbn_input_array(extra->written)};
    for (int i = 0; i < 3; i++)
        if (arrays[i].data && check_array(shape, arrays[i]) != FASTBN_OK)
            return FASTBN_ERROR_STRIDE;
    return extra->weights && !extra->weights->data ? FASTBN_ERROR_NULL : FASTBN_OK;
}

#define RETURN_IF_ERROR(expression)            \
    do {                                       \
        fastbn_status status_ = (expression);  \
        if (status_ != FASTBN_OK)              \
            return status_;                    \
    } while (0)

/* ---- a job ---- */

static int is_packed(const fastbn_shape *shape, struct fbn_array a)
{
    return !a.data || ((shape->c == 1 || a.stride_c == shape->s) && (shape->n == 1 || a.stride_n == shape->c * shape->s));
}

/* A mean of FEW entries or more is within 1 ulp since the roundings of float32 sums even out; of fewer the sums are taken
 * in double, which the caches are fast enough for: (8, 100000) takes 1.03 of the time, (32, 1024) 1.13. */
enum { FEW = 64 };

static int may_sum_in_double(const struct fbn_call *call)
{
    return (call->operation == &fbn_operation_moments || call->operation == &fbn_operation_training) && call->lane_size == (int64_t)sizeof(float);
}

static fastbn_status open_call(struct fbn_call *call, const fastbn_shape *shape, const struct fbn_operation *operation)
{
    memset(call, 0, sizeof *call);
    RETURN_IF_ERROR(fbn_kernels_active(&call->kernels));
    call->operation = operation;
    call->typed = &call->kernels->typed[shape->dtype];
    call->lanes = &call->kernels->typed[shape->dtype == FASTBN_FLOAT64 ? FASTBN_FLOAT64 : FASTBN_FLOAT32];
    call->lane_size = shape->dtype == FASTBN_FLOAT64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
    call->size = is_half(shape->dtype) ? (int64_t)sizeof(uint16_t) : call->lane_size;
    call->entries = shape->n * shape->s;
    call->total = (double)call->entries;
    call->few = may_sum_in_double(call) && call->entries < FEW;
    return FASTBN_OK;
}

static void take_weights(struct fbn_call *call, const fastbn_weights *weights)
{
    call->weights = weights->data;
    call->total = weights->total;
    call->counts = weights->counts;
    call->omits = weights->counts != NULL;
    if (weights->squares > 0 && weights->total * weights->total < FEW * weights->squares)
        call->few = may_sum_in_double(call);
}

/* What is fused, from y's side: relu and a residual are in the kernels of apply.c; another activation goes over y once
 * more, block by block. Half data cannot, since y rounds z. */
static void fuse_forward(struct fbn_call *call, int acts)
{
    int simple = call->activation == FASTBN_IDENTITY || call->activation == FASTBN_RELU;
    call->tiles_sums = call->weights != NULL;
    call->activates_y = !simple && call->typed == call->lanes;
    call->tiles_out = acts && !simple && !call->activates_y;
}

/* From dy's side: relu alone is in the kernels of both passes. Otherwise dz, which is the residual's gradient, is stored
 * there or where dx will be, if that does not round it nor overwrite x, and the rest is a plain backward of dz. */
static void fuse_backward(struct fbn_call *call, int acts)
{
    int relu = call->activation == FASTBN_RELU;
    int exact = call->typed == call->lanes || relu || call->activation == FASTBN_IDENTITY;
    int plain_sums = call->operation->prepare && !call->weights && !call->inverts;
    int alone = !call->residual.data && !call->dresidual.data && !call->written.data;
    const struct fbn_array place = call->dresidual.data ? call->dresidual : call->y;
    call->relu_gradient = relu && alone && plain_sums && (call->gradient || !call->y.data);
    call->stores_dz = acts && !call->relu_gradient && plain_sums && exact && place.data && place.data != call->x.data;
    call->dz = call->in = call->stores_dz ? place : call->dy;
    call->tiles_sums = call->tiles_out = call->weights || (acts && !call->relu_gradient && !call->stores_dz);
}

/* leaky_relu of a slope that is 0 in the arithmetic's type is relu: where z overflowed, 0 * -Inf would be NaN, of which
 * backward could not tell the sign. */
static fastbn_activation activation_of(const struct fbn_call *call, const fastbn_params *params)
{
    const double slope = call->lane_size == (int64_t)sizeof(float) ? (double)(float)params->slope : params->slope;
    return params->activation == FASTBN_LEAKY_RELU && slope == 0.0 ? FASTBN_RELU : params->activation;
}

/* Once the other arrays are known. */
static void take_extra(struct fbn_call *call, const fastbn_params *params)
{
    const fastbn_extra *extra = params->extra;
    call->activation = activation_of(call, params);
    call->act_slope = params->slope;
    if (extra) {
        call->residual = fbn_input_array(extra->residual);
        call->dresidual = fbn_output_array(extra->dresidual);
        call->written = fbn_input_array(extra->written);
        call->inverts = extra->inverts && call->activation != FASTBN_IDENTITY;
        if (extra->weights)
            take_weights(call, extra->weights);
    }
    int acts = call->activation != FASTBN_IDENTITY || call->residual.data || call->dresidual.data;
    if (call->dy.data)
        fuse_backward(call, acts);
    else
        fuse_forward(call, acts);
}

static int counts_at(const struct fbn_call *call, int64_t entry)
{
    if (!call->weights)
        return 1;
    return call->lane_size == (int64_t)sizeof(float) ? ((const float *)call->weights)[entry] != 0
                                                    : ((const double *)call->weights)[entry] != 0;
}

/* For the pivots: of entries that count, if any does. */
static void take_samples(struct fbn_call *call)
{
    int64_t entry[FBN_PIVOT_SAMPLES];
    call->samples = fbn_plan_samples(&call->sums_plan, entry);
    for (int i = 0; i < call->samples; i++) {
        for (int64_t k = 1; k < call->entries && !counts_at(call, entry[i]); k++)
            entry[i] = (entry[i] + 1) % call->entries;
        call->offset[i] = entry[i] / call->sums_plan.s * call->x.stride_n + entry[i] % call->sums_plan.s;
    }
}

/* Once the arrays are known. */
static void plan_call(struct fbn_call *call, const fastbn_shape *shape)
{
    int sums = is_packed(shape, call->x) && is_packed(shape, call->dy) && is_packed(shape, call->dz);
    int out = is_packed(shape, call->in) && is_packed(shape, call->y) && (!call->gradient || sums);
    int more = is_packed(shape, call->residual) && is_packed(shape, call->dresidual) && is_packed(shape, call->written);
    if (call->stores_dz) /* of all arrays, in the first pass */
        sums = sums && more;
    if (call->dy.data && call->tiles_out) { /* z is computed in both passes, with the same columns */
        call->sums_plan = call->out_plan = fbn_plan_sums(shape->n, shape->c, shape->s, sums && out && more);
    } else {
        call->sums_plan = fbn_plan_sums(shape->n, shape->c, shape->s, sums);
        call->out_plan = fbn_plan_map(shape->n, shape->c, shape->s, out && more);
    }
    fbn_find_head(call);
    if (call->operation->prepare && call->x.data)
        take_samples(call);
}

static void fill(double *to, double value, int64_t c)
{
    for (int64_t f = 0; to && f < c; f++)
        to[f] = value;
}

/* ---- moments ---- */

struct results {
    void *dgamma, *dbeta;
    int threads;
};

static void run(struct fbn_call *call, void *results_) { fbn_schedule(call, ((struct results *)results_)->threads); }

fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2, int num_threads)
{
    return fastbn_weighted_moments(shape, x, NULL, mean, m2, num_threads);
}

fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                      double *mean, double *m2, int num_threads)
{
    struct fbn_call call;
    struct results results = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    if ((shape->c > 0 && (!mean || !m2)) || (weights && !weights->data))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_moments));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(m2, 0.0, shape->c);
        return FASTBN_OK;
    }
    call.x = fbn_input_array(x);
    call.mean = mean;
    call.m2 = m2;
    if (weights)
        take_weights(&call, weights);
    call.tiles_sums = call.weights != NULL;
    plan_call(&call, shape);
    return fbn_with_scratch(&call, run, &results);
}

/* ---- inference ---- */

fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                               const fastbn_params *params, double eps, fastbn_output y, int num_threads)
{
    struct fbn_call call;
    struct results results = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    RETURN_IF_ERROR(check_params(params));
    RETURN_IF_ERROR(check_extra(shape, params->extra));
    if (shape->c > 0 && (!mean || !var))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_inference));
    if (fbn_is_empty(shape))
        return FASTBN_OK;
    call.x = call.in = fbn_input_array(x);
    call.y = fbn_output_array(y);
    call.eps = eps;
    fbn_take_params(&call, mean, var, params);
    take_extra(&call, params);
    plan_call(&call, shape);
    return fbn_with_scratch(&call, run, &results);
}

/* ---- training ---- */

fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                              fastbn_output y, double *mean, double *var, double *rstd, int num_threads)
{
    struct fbn_call call;
    struct results results = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    RETURN_IF_ERROR(check_params(params));
    RETURN_IF_ERROR(check_extra(shape, params->extra));
    if (shape->c > 0 && (!mean || !var || !rstd))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_training));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(var, NAN, shape->c);
        fill(rstd, NAN, shape->c);
        return FASTBN_OK;
    }
    call.x = call.in = fbn_input_array(x);
    call.y = fbn_output_array(y);
    call.eps = eps;
    call.mean = mean;
    call.var = var;
    call.rstd = rstd;
    fbn_take_params(&call, NULL, NULL, params);
    take_extra(&call, params);
    plan_call(&call, shape);
    return fbn_with_scratch(&call, run, &results);
}

/* ---- backward ---- */

static void run_backward(struct fbn_call *call, void *results_)
{
    const struct results *results = results_;
    run(call, results_);
    fbn_store_param(call, results->dgamma, call->dgamma);
    fbn_store_param(call, results->dbeta, call->dbeta);
}

static const struct fbn_operation *backward_operation(int frozen, int wants_dx, int wants_sums)
{
    if (!wants_dx)
        return &fbn_operation_gradient_sums;
    if (!frozen)
        return &fbn_operation_gradient;
    return wants_sums ? &fbn_operation_frozen : &fbn_operation_frozen_dx;
}

/* The sums of an empty batch are 0. */
static void backward_of_nothing(const fastbn_shape *shape, fastbn_dtype dtype, const struct results *results)
{
    const size_t bytes = (size_t)shape->c * (dtype == FASTBN_FLOAT32 ? sizeof(float) : sizeof(double));
    if (results->dgamma)
        memset(results->dgamma, 0, bytes);
    if (results->dbeta)
        memset(results->dbeta, 0, bytes);
}

fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, const fastbn_params *params,
                              const double *mean, const double *rstd, int frozen, fastbn_output dx, void *dgamma,
                              void *dbeta, int num_threads)
{
    struct fbn_call call;
    struct results results = {.dgamma = dgamma, .dbeta = dbeta, .threads = num_threads};
    int wants_dx = dx.data != NULL, wants_sums = dgamma || dbeta;
    int wants_dz = params && params->extra && params->extra->dresidual.data;
    int has_written = params && params->extra && params->extra->written.data;
    RETURN_IF_ERROR(check_shape(shape));
    RETURN_IF_ERROR(check_params(params));
    RETURN_IF_ERROR(check_extra(shape, params->extra));
    if (shape->c > 0 && (!mean || !rstd))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(dy)));
    if (wants_dx)
        RETURN_IF_ERROR(check_array(shape, fbn_output_array(dx)));
    if (!frozen || dgamma || (params->activation != FASTBN_IDENTITY && !has_written))
        RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(open_call(&call, shape, backward_operation(frozen, wants_dx || wants_dz, wants_sums)));
    if (fbn_is_empty(shape)) {
        backward_of_nothing(shape, params->dtype, &results);
        return FASTBN_OK;
    }
    if (!wants_dx && !wants_dz && !wants_sums)
        return FASTBN_OK;
    call.x = fbn_input_array(x.data ? x : dy); /* frozen without x: sum(dy) alone is used */
    call.dy = fbn_input_array(dy);
    call.y = fbn_output_array(dx);
    call.gradient = (wants_dx || wants_dz) && !frozen;
    call.mean = (double *)mean; /* only read */
    call.rstd = (double *)rstd;
    fbn_take_params(&call, NULL, NULL, params);
    take_extra(&call, params);
    plan_call(&call, shape);
    return fbn_with_scratch(&call, run_backward, &results);
}

/* ---- moving averages ---- */

static void average_f32(int64_t c, const double *batch, double momentum, double scale, float *running)
{
    for (int64_t f = 0; f < c; f++)
        running[f] = (float)(momentum * (double)running[f] + (1.0 - momentum) * (batch[f] * scale));
}

static void average_f64(int64_t c, const double *batch, double momentum, double scale, double *running)
{
    for (int64_t f = 0; f < c; f++)
        running[f] = momentum * running[f] + (1.0 - momentum) * (batch[f] * scale);
}

fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum, double var_scale,
                                    void *running_mean, void *running_var, fastbn_dtype dtype)
{
    if (c < 0)
        return FASTBN_ERROR_SHAPE;
    if (c > 0 && (!mean || !var || !running_mean || !running_var))
        return FASTBN_ERROR_NULL;
    if (dtype != FASTBN_FLOAT32 && dtype != FASTBN_FLOAT64)
        return FASTBN_ERROR_DTYPE;
    if (dtype == FASTBN_FLOAT32) {
        average_f32(c, mean, momentum, 1.0, running_mean);
        average_f32(c, var, momentum, var_scale, running_var);
    } else {
        average_f64(c, mean, momentum, 1.0, running_mean);
        average_f64(c, var, momentum, var_scale, running_var);
    }
    return FASTBN_OK;
}

/* ---- this build ---- */

#ifndef FASTBN_VERSION
#define FASTBN_VERSION "unversioned"
#endif

const char *fastbn_version(void) { return FASTBN_VERSION; }

int fastbn_abi_version(void) { return FASTBN_ABI_VERSION; }

const char *fastbn_status_text(fastbn_status status)
{
    switch (status) {
    case FASTBN_OK: return "ok";
    case FASTBN_ERROR_NULL: return "a required pointer is NULL";
    case FASTBN_ERROR_SHAPE: return "a size is negative, or the sizes multiply to more than 2^62 elements";
    case FASTBN_ERROR_STRIDE: return "the features of a row must be adjacent (s == 1 needs stride_c == 1)";
    case FASTBN_ERROR_DTYPE: return "the dtype is unknown";
    case FASTBN_ERROR_MEMORY: return "scratch memory could not be allocated";
    case FASTBN_ERROR_ISA_UNKNOWN: return "the instruction set is unknown";
    case FASTBN_ERROR_ACTIVATION: return "the activation is unknown, or cannot be inverted where x was overwritten";
    case FASTBN_ERROR_FORKED: return "threads were used before the fork, and the forked process does not have them";
    case FASTBN_ERROR_ISA_UNSUPPORTED: return "the instruction set is not built in, or this processor lacks it";
    }
    return "unknown status";
}
