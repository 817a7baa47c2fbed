/* batchnorm.c - the entry points: they check the arguments, plan the call and run it. */
#include <math.h>
#include <string.h>

#include "call.h"

#define RETURN_IF_ERROR(expression)            \
    do {                                       \
        fastbn_status status_ = (expression);  \
        if (status_ != FASTBN_OK)              \
            return status_;                    \
    } while (0)

/* ---- checks ---- */

static int shape_is_wrong(const fastbn_shape *shape)
{
    const int64_t most = INT64_C(1) << 62;
    if (shape->n < 0 || shape->c < 0 || shape->s < 0)
        return 1;
    if (fbn_is_empty(shape))
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

static fastbn_status check_array(const fastbn_shape *shape, struct fbn_array a)
{
    if (fbn_is_empty(shape))
        return FASTBN_OK;
    if (!a.data)
        return FASTBN_ERROR_NULL;
    return shape->s == 1 && shape->c > 1 && a.stride_c != 1 ? FASTBN_ERROR_STRIDE : FASTBN_OK;
}

/* These arrays may be missing. */
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

/* The slope in the type of the arithmetic, in which 1e-50 may be 0. */
static double slope_of(fastbn_dtype dtype, const fastbn_params *params)
{
    return dtype == FASTBN_FLOAT64 ? params->slope : (double)(float)params->slope;
}

static int is_invertible(fastbn_dtype dtype, const fastbn_params *params)
{
    return params->activation == FASTBN_IDENTITY
           || (params->activation == FASTBN_LEAKY_RELU && slope_of(dtype, params) > 0.0);
}

static fastbn_status check_shape_and_params(const fastbn_shape *shape, const fastbn_params *params)
{
    RETURN_IF_ERROR(check_shape(shape));
    if (!params)
        return FASTBN_ERROR_NULL;
    if (!is_param_dtype(params->dtype))
        return FASTBN_ERROR_DTYPE;
    if ((unsigned)params->activation >= FBN_ACTIVATIONS)
        return FASTBN_ERROR_ACTIVATION;
    if (params->extra && params->extra->inverts && !is_invertible(shape->dtype, params))
        return FASTBN_ERROR_ACTIVATION;
    return check_extra(shape, params->extra);
}

/* ---- opening a call ---- */

/* The roundings of float32 sums even out over FEW entries, so that the mean is within 1 ulp. Sums of fewer entries are
 * taken in double, for which the caches are fast enough: (8, 100000) takes 1.03 times as long, (32, 1024) 1.13 times. */
enum { FEW = 64 };

static int may_sum_in_double(const struct fbn_call *call)
{
    return (call->operation == &fbn_operation_moments || call->operation == &fbn_operation_training) &&
           call->lane_size == (int64_t)sizeof(float);
}

static fastbn_status open_call(struct fbn_call *call, const fastbn_shape *shape, const struct fbn_operation *operation,
                               int threads)
{
    memset(call, 0, sizeof *call);
    RETURN_IF_ERROR(fbn_kernels_active(&call->kernels));
    call->operation = operation;
    call->typed = &call->kernels->typed[shape->dtype];
    call->lanes = &call->kernels->typed[shape->dtype == FASTBN_FLOAT64 ? FASTBN_FLOAT64 : FASTBN_FLOAT32];
    call->lane_size = shape->dtype == FASTBN_FLOAT64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
    call->size = is_half(shape->dtype) ? (int64_t)sizeof(uint16_t) : call->lane_size;
    call->given.threads = threads;
    call->given.entries = shape->n * shape->s;
    call->given.total = (double)call->given.entries;
    call->plan.sums_in_double = may_sum_in_double(call) && call->given.entries < FEW;
    return FASTBN_OK;
}

/* Unequal weights tell as much as total^2 / squares equal ones. */
static void take_weights(struct fbn_call *call, const fastbn_weights *weights)
{
    call->given.weights = weights->data;
    call->given.total = weights->total;
    call->given.counts = weights->counts;
    call->given.omits = weights->counts != NULL;
    if (weights->squares > 0 && weights->total * weights->total < FEW * weights->squares)
        call->plan.sums_in_double = may_sum_in_double(call);
}

/* The kernels of the map know relu and a residual. Another activation takes a second look at what the map has just
 * written, which is in the caches. Half types do not allow that, because y rounds z: they go tile by tile. */
static void fuse_forward(struct fbn_call *call, int acts)
{
    struct fbn_passes *plan = &call->plan;
    int simple = call->given.activation == FASTBN_IDENTITY || call->given.activation == FASTBN_RELU;
    plan->tiles_sums = call->given.weights != NULL;
    plan->activates_y = !simple && call->typed == call->lanes;
    plan->tiles_map = acts && !simple && !plan->activates_y;
}

/* The kernels of both passes know the gradient of relu, where nothing else is fused. Otherwise dz, which is also the
 * gradient of the residual, is stored before its sums are taken, and the rest is a plain backward of dz. Its place is
 * dresidual or dx, unless that rounds dz or overwrites x. */
static void fuse_backward(struct fbn_call *call, int acts)
{
    const struct fbn_given *given = &call->given;
    struct fbn_passes *plan = &call->plan;
    const struct fbn_array place = given->dresidual.data ? given->dresidual : given->y;
    int relu = given->activation == FASTBN_RELU;
    int exact = call->typed == call->lanes || relu || given->activation == FASTBN_IDENTITY;
    int plain_sums = call->operation->prepare && !given->weights && !given->inverts;
    int alone = !given->residual.data && !given->dresidual.data && !given->written.data;
    plan->relu_gradient = relu && alone && plain_sums && (plan->gradient || !given->y.data);
    plan->stores_dz = acts && !plan->relu_gradient && plain_sums && exact && place.data && place.data != given->x.data;
    plan->dz = plan->in = plan->stores_dz ? place : given->dy;
    plan->tiles_sums = plan->tiles_map = given->weights || (acts && !plan->relu_gradient && !plan->stores_dz);
}

/* leaky_relu of a slope that is 0 in the arithmetic's type is relu: where z overflowed, 0 * -Inf would be NaN, and backward
 * could not tell its sign. */
static fastbn_activation activation_of(const struct fbn_call *call, const fastbn_params *params)
{
    const fastbn_dtype dtype = call->lane_size == (int64_t)sizeof(float) ? FASTBN_FLOAT32 : FASTBN_FLOAT64;
    const int is_relu = params->activation == FASTBN_LEAKY_RELU && slope_of(dtype, params) == 0.0;
    return is_relu ? FASTBN_RELU : params->activation;
}

/* The other arrays have to be known before. */
static void take_activation(struct fbn_call *call, const fastbn_params *params)
{
    const fastbn_extra *extra = params->extra;
    struct fbn_given *given = &call->given;
    given->activation = activation_of(call, params);
    given->slope = params->slope;
    if (extra) {
        given->residual = fbn_input_array(extra->residual);
        given->dresidual = fbn_output_array(extra->dresidual);
        given->written = fbn_input_array(extra->written);
        given->inverts = extra->inverts && given->activation != FASTBN_IDENTITY;
        if (extra->weights)
            take_weights(call, extra->weights);
    }
    int acts = given->activation != FASTBN_IDENTITY || given->residual.data || given->dresidual.data;
    if (given->dy.data)
        fuse_backward(call, acts);
    else
        fuse_forward(call, acts);
}

static int counts_at(const struct fbn_call *call, int64_t entry)
{
    const char *weights = call->given.weights;
    if (!weights)
        return 1;
    return call->lane_size == (int64_t)sizeof(float) ? ((const float *)weights)[entry] != 0
                                                     : ((const double *)weights)[entry] != 0;
}

/* The samples for the pivots are entries that count, if any does. */
static void take_samples(struct fbn_call *call)
{
    const int64_t s = call->plan.sums.s;
    int64_t entry[FBN_PIVOT_SAMPLES];
    call->plan.samples = fbn_plan_samples(&call->plan.sums, entry);
    for (int i = 0; i < call->plan.samples; i++) {
        for (int64_t k = 1; k < call->given.entries && !counts_at(call, entry[i]); k++)
            entry[i] = (entry[i] + 1) % call->given.entries;
        call->plan.offset[i] = entry[i] / s * call->given.x.stride_n + entry[i] % s;
    }
}

/* The first pass that stores dz touches all arrays. Where z is computed in both passes, they have the same columns. */
static void plan_call(struct fbn_call *call, const fastbn_shape *shape)
{
    const struct fbn_given *given = &call->given;
    struct fbn_passes *plan = &call->plan;
    int sums = fbn_is_packed(shape, given->x) && fbn_is_packed(shape, given->dy) && fbn_is_packed(shape, plan->dz);
    int map = fbn_is_packed(shape, plan->in) && fbn_is_packed(shape, given->y) && (!plan->gradient || sums);
    int more = fbn_is_packed(shape, given->residual) && fbn_is_packed(shape, given->dresidual) &&
               fbn_is_packed(shape, given->written);
    if (plan->stores_dz)
        sums = sums && more;
    if (given->dy.data && plan->tiles_map) {
        plan->sums = plan->map = fbn_plan_sums(shape->n, shape->c, shape->s, sums && map && more);
    } else {
        plan->sums = fbn_plan_sums(shape->n, shape->c, shape->s, sums);
        plan->map = fbn_plan_map(shape->n, shape->c, shape->s, map && more);
    }
    fbn_find_head(call);
    if (call->operation->prepare && given->x.data)
        take_samples(call);
}

/* The arrays and parameters are known: plans and runs the call. */
static fastbn_status run_call(struct fbn_call *call, const fastbn_shape *shape)
{
    plan_call(call, shape);
    return fbn_with_scratch(call, fbn_schedule);
}

static void fill(double *to, double value, int64_t c)
{
    for (int64_t f = 0; to && f < c; f++)
        to[f] = value;
}

/* ---- moments ---- */

fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2, int num_threads)
{
    return fastbn_weighted_moments(shape, x, NULL, mean, m2, num_threads);
}

fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                      double *mean, double *m2, int num_threads)
{
    struct fbn_call call;
    RETURN_IF_ERROR(check_shape(shape));
    if ((shape->c > 0 && (!mean || !m2)) || (weights && !weights->data))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_moments, num_threads));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(m2, 0.0, shape->c);
        return FASTBN_OK;
    }
    call.given.x = fbn_input_array(x);
    call.scratch.mean = mean;
    call.scratch.m2 = m2;
    if (weights)
        take_weights(&call, weights);
    call.plan.tiles_sums = call.given.weights != NULL;
    return run_call(&call, shape);
}

/* ---- inference ---- */

fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                               const fastbn_params *params, double eps, fastbn_output y, int num_threads)
{
    struct fbn_call call;
    RETURN_IF_ERROR(check_shape_and_params(shape, params));
    if (shape->c > 0 && (!mean || !var))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_inference, num_threads));
    if (fbn_is_empty(shape))
        return FASTBN_OK;
    call.given.x = call.plan.in = fbn_input_array(x);
    call.given.y = fbn_output_array(y);
    call.given.eps = eps;
    fbn_take_params(&call, mean, var, params);
    take_activation(&call, params);
    return run_call(&call, shape);
}

/* ---- training ---- */

fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                              fastbn_output y, double *mean, double *var, double *rstd, int num_threads)
{
    struct fbn_call call;
    RETURN_IF_ERROR(check_shape_and_params(shape, params));
    if (shape->c > 0 && (!mean || !var || !rstd))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_call(&call, shape, &fbn_operation_training, num_threads));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(var, NAN, shape->c);
        fill(rstd, NAN, shape->c);
        return FASTBN_OK;
    }
    call.given.x = call.plan.in = fbn_input_array(x);
    call.given.y = fbn_output_array(y);
    call.given.eps = eps;
    call.scratch.mean = mean;
    call.scratch.var = var;
    call.scratch.rstd = rstd;
    fbn_take_params(&call, NULL, NULL, params);
    take_activation(&call, params);
    return run_call(&call, shape);
}

/* ---- backward ---- */

static void run_backward(struct fbn_call *call)
{
    fbn_schedule(call);
    fbn_store_param(call, call->given.dgamma, call->scratch.dgamma);
    fbn_store_param(call, call->given.dbeta, call->scratch.dbeta);
}

static const struct fbn_operation *backward_operation(int frozen, int maps, int wants_sums)
{
    if (!maps)
        return &fbn_operation_gradient_sums;
    if (!frozen)
        return &fbn_operation_gradient;
    return wants_sums ? &fbn_operation_frozen : &fbn_operation_frozen_dx;
}

fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, const fastbn_params *params,
                              const double *mean, const double *rstd, int frozen, fastbn_output dx, void *dgamma,
                              void *dbeta, int num_threads)
{
    struct fbn_call call;
    RETURN_IF_ERROR(check_shape_and_params(shape, params));
    int maps = dx.data || (params->extra && params->extra->dresidual.data), wants_sums = dgamma || dbeta;
    int has_written = params->extra && params->extra->written.data;
    if (shape->c > 0 && (!mean || !rstd))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(dy)));
    if (dx.data)
        RETURN_IF_ERROR(check_array(shape, fbn_output_array(dx)));
    if (!frozen || dgamma || (params->activation != FASTBN_IDENTITY && !has_written))
        RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(open_call(&call, shape, backward_operation(frozen, maps, wants_sums), num_threads));
    if (fbn_is_empty(shape)) {
        fbn_store_nothing(params->dtype, shape->c, dgamma);
        fbn_store_nothing(params->dtype, shape->c, dbeta);
        return FASTBN_OK;
    }
    if (!maps && !wants_sums)
        return FASTBN_OK;
    call.given.x = fbn_input_array(x.data ? x : dy); /* without x only sum(dy) is used */
    call.given.dy = fbn_input_array(dy);
    call.given.y = fbn_output_array(dx);
    call.given.dgamma = dgamma;
    call.given.dbeta = dbeta;
    call.plan.gradient = maps && !frozen;
    call.scratch.mean = (double *)mean; /* these two are only read */
    call.scratch.rstd = (double *)rstd;
    fbn_take_params(&call, NULL, NULL, params);
    take_activation(&call, params);
    plan_call(&call, shape);
    return fbn_with_scratch(&call, run_backward);
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

const char *fbn_activation_name(fastbn_activation activation)
{
#define NAMED(constant, name) #name,
    static const char *const names[] = {FBN_ACTIVATION_LIST(NAMED)};
#undef NAMED
    return names[activation];
}
