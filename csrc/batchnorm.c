/* batchnorm.c - the entry points: check, plan, run. */
#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "job.h"

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

static int may_sum_in_double(const struct fbn_job *job)
{
    return (job->op == &fbn_op_moments || job->op == &fbn_op_training) && job->lane_size == (int64_t)sizeof(float);
}

static fastbn_status open_job(struct fbn_job *job, const fastbn_shape *shape, const struct fbn_op *op)
{
    memset(job, 0, sizeof *job);
    RETURN_IF_ERROR(fbn_kernels_active(&job->kernels));
    job->op = op;
    job->typed = &job->kernels->typed[shape->dtype];
    job->lanes = &job->kernels->typed[shape->dtype == FASTBN_FLOAT64 ? FASTBN_FLOAT64 : FASTBN_FLOAT32];
    job->lane_size = shape->dtype == FASTBN_FLOAT64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float);
    job->size = is_half(shape->dtype) ? (int64_t)sizeof(uint16_t) : job->lane_size;
    job->entries = shape->n * shape->s;
    job->total = (double)job->entries;
    job->few = may_sum_in_double(job) && job->entries < FEW;
    return FASTBN_OK;
}

static void take_weights(struct fbn_job *job, const fastbn_weights *weights)
{
    job->weights = weights->data;
    job->total = weights->total;
    job->counts = weights->counts;
    job->omits = weights->counts != NULL;
    if (weights->squares > 0 && weights->total * weights->total < FEW * weights->squares)
        job->few = may_sum_in_double(job);
}

/* What is fused, from y's side: relu and a residual are in the kernels of apply.c; another activation goes over y once
 * more, block by block. Half data cannot, since y rounds z. */
static void fuse_forward(struct fbn_job *job, int acts)
{
    int simple = job->activation == FASTBN_IDENTITY || job->activation == FASTBN_RELU;
    job->tiles_sums = job->weights != NULL;
    job->activates_y = !simple && job->typed == job->lanes;
    job->tiles_out = acts && !simple && !job->activates_y;
}

/* From dy's side: relu alone is in the kernels of both passes. Otherwise dz, which is the residual's gradient, is stored
 * there or where dx will be, if that does not round it nor overwrite x, and the rest is a plain backward of dz. */
static void fuse_backward(struct fbn_job *job, int acts)
{
    int relu = job->activation == FASTBN_RELU;
    int exact = job->typed == job->lanes || relu || job->activation == FASTBN_IDENTITY;
    int plain_sums = job->op->prepare && !job->weights && !job->inverts;
    int alone = !job->residual.data && !job->dresidual.data && !job->written.data;
    const struct fbn_array place = job->dresidual.data ? job->dresidual : job->y;
    job->relu_gradient = relu && alone && plain_sums && (job->gradient || !job->y.data);
    job->stores_dz = acts && !job->relu_gradient && plain_sums && exact && place.data && place.data != job->x.data;
    job->dz = job->in = job->stores_dz ? place : job->dy;
    job->tiles_sums = job->tiles_out = job->weights || (acts && !job->relu_gradient && !job->stores_dz);
}

/* leaky_relu of a slope that is 0 in the arithmetic's type is relu: where z overflowed, 0 * -Inf would be NaN, of which
 * backward could not tell the sign. */
static fastbn_activation activation_of(const struct fbn_job *job, const fastbn_params *params)
{
    const double slope = job->lane_size == (int64_t)sizeof(float) ? (double)(float)params->slope : params->slope;
    return params->activation == FASTBN_LEAKY_RELU && slope == 0.0 ? FASTBN_RELU : params->activation;
}

/* Once the other arrays are known. */
static void take_extra(struct fbn_job *job, const fastbn_params *params)
{
    const fastbn_extra *extra = params->extra;
    job->activation = activation_of(job, params);
    job->act_slope = params->slope;
    if (extra) {
        job->residual = fbn_input_array(extra->residual);
        job->dresidual = fbn_output_array(extra->dresidual);
        job->written = fbn_input_array(extra->written);
        job->inverts = extra->inverts && job->activation != FASTBN_IDENTITY;
        if (extra->weights)
            take_weights(job, extra->weights);
    }
    int acts = job->activation != FASTBN_IDENTITY || job->residual.data || job->dresidual.data;
    if (job->dy.data)
        fuse_backward(job, acts);
    else
        fuse_forward(job, acts);
}

static int counts_at(const struct fbn_job *job, int64_t entry)
{
    if (!job->weights)
        return 1;
    return job->lane_size == (int64_t)sizeof(float) ? ((const float *)job->weights)[entry] != 0
                                                    : ((const double *)job->weights)[entry] != 0;
}

/* For the pivots: of entries that count, if any does. */
static void take_samples(struct fbn_job *job)
{
    int64_t entry[FBN_PIVOT_SAMPLES];
    job->samples = fbn_plan_samples(&job->sums_plan, entry);
    for (int i = 0; i < job->samples; i++) {
        for (int64_t k = 1; k < job->entries && !counts_at(job, entry[i]); k++)
            entry[i] = (entry[i] + 1) % job->entries;
        job->offset[i] = entry[i] / job->sums_plan.s * job->x.stride_n + entry[i] % job->sums_plan.s;
    }
}

/* Once the arrays are known. */
static void plan_job(struct fbn_job *job, const fastbn_shape *shape)
{
    int sums = is_packed(shape, job->x) && is_packed(shape, job->dy) && is_packed(shape, job->dz);
    int out = is_packed(shape, job->in) && is_packed(shape, job->y) && (!job->gradient || sums);
    int more = is_packed(shape, job->residual) && is_packed(shape, job->dresidual) && is_packed(shape, job->written);
    if (job->stores_dz) /* of all arrays, in the first pass */
        sums = sums && more;
    if (job->dy.data && job->tiles_out) { /* z is computed in both passes, with the same columns */
        job->sums_plan = job->out_plan = fbn_plan_make(shape->n, shape->c, shape->s, sums && out && more);
    } else {
        job->sums_plan = fbn_plan_make(shape->n, shape->c, shape->s, sums);
        job->out_plan = fbn_plan_second(shape->n, shape->c, shape->s, out && more);
    }
    fbn_find_head(job);
    if (job->op->prepare && job->x.data)
        take_samples(job);
}

static void fill(double *to, double value, int64_t c)
{
    for (int64_t f = 0; to && f < c; f++)
        to[f] = value;
}

/* ---- moments ---- */

struct call {
    void *dgamma, *dbeta;
    int threads;
};

static void run(struct fbn_job *job, void *call_) { fbn_schedule(job, ((struct call *)call_)->threads); }

fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2, int num_threads)
{
    return fastbn_weighted_moments(shape, x, NULL, mean, m2, num_threads);
}

fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                      double *mean, double *m2, int num_threads)
{
    struct fbn_job job;
    struct call call = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    if ((shape->c > 0 && (!mean || !m2)) || (weights && !weights->data))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(open_job(&job, shape, &fbn_op_moments));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(m2, 0.0, shape->c);
        return FASTBN_OK;
    }
    job.x = fbn_input_array(x);
    job.mean = mean;
    job.m2 = m2;
    if (weights)
        take_weights(&job, weights);
    job.tiles_sums = job.weights != NULL;
    plan_job(&job, shape);
    return fbn_with_scratch(&job, run, &call);
}

/* ---- inference ---- */

fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                               const fastbn_params *params, double eps, fastbn_output y, int num_threads)
{
    struct fbn_job job;
    struct call call = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    RETURN_IF_ERROR(check_params(params));
    RETURN_IF_ERROR(check_extra(shape, params->extra));
    if (shape->c > 0 && (!mean || !var))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_job(&job, shape, &fbn_op_inference));
    if (fbn_is_empty(shape))
        return FASTBN_OK;
    job.x = job.in = fbn_input_array(x);
    job.y = fbn_output_array(y);
    job.eps = eps;
    fbn_take_params(&job, mean, var, params);
    take_extra(&job, params);
    plan_job(&job, shape);
    return fbn_with_scratch(&job, run, &call);
}

/* ---- training ---- */

fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                              fastbn_output y, double *mean, double *var, double *rstd, int num_threads)
{
    struct fbn_job job;
    struct call call = {.threads = num_threads};
    RETURN_IF_ERROR(check_shape(shape));
    RETURN_IF_ERROR(check_params(params));
    RETURN_IF_ERROR(check_extra(shape, params->extra));
    if (shape->c > 0 && (!mean || !var || !rstd))
        return FASTBN_ERROR_NULL;
    RETURN_IF_ERROR(check_array(shape, fbn_input_array(x)));
    RETURN_IF_ERROR(check_array(shape, fbn_output_array(y)));
    RETURN_IF_ERROR(open_job(&job, shape, &fbn_op_training));
    if (fbn_is_empty(shape)) {
        fill(mean, 0.0, shape->c);
        fill(var, NAN, shape->c);
        fill(rstd, NAN, shape->c);
        return FASTBN_OK;
    }
    job.x = job.in = fbn_input_array(x);
    job.y = fbn_output_array(y);
    job.eps = eps;
    job.mean = mean;
    job.var = var;
    job.rstd = rstd;
    fbn_take_params(&job, NULL, NULL, params);
    take_extra(&job, params);
    plan_job(&job, shape);
    return fbn_with_scratch(&job, run, &call);
}

/* ---- backward ---- */

static void run_backward(struct fbn_job *job, void *call_)
{
    const struct call *call = call_;
    run(job, call_);
    fbn_store_param(job, call->dgamma, job->dgamma);
    fbn_store_param(job, call->dbeta, job->dbeta);
}

static const struct fbn_op *backward_op(int frozen, int wants_dx, int wants_sums)
{
    if (!wants_dx)
        return &fbn_op_gradient_sums;
    if (!frozen)
        return &fbn_op_gradient;
    return wants_sums ? &fbn_op_frozen : &fbn_op_frozen_dx;
}

/* The sums of an empty batch are 0. */
static void backward_of_nothing(const fastbn_shape *shape, fastbn_dtype dtype, const struct call *call)
{
    const size_t bytes = (size_t)shape->c * (dtype == FASTBN_FLOAT32 ? sizeof(float) : sizeof(double));
    if (call->dgamma)
        memset(call->dgamma, 0, bytes);
    if (call->dbeta)
        memset(call->dbeta, 0, bytes);
}

fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, const fastbn_params *params,
                              const double *mean, const double *rstd, int frozen, fastbn_output dx, void *dgamma,
                              void *dbeta, int num_threads)
{
    struct fbn_job job;
    struct call call = {.dgamma = dgamma, .dbeta = dbeta, .threads = num_threads};
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
    RETURN_IF_ERROR(open_job(&job, shape, backward_op(frozen, wants_dx || wants_dz, wants_sums)));
    if (fbn_is_empty(shape)) {
        backward_of_nothing(shape, params->dtype, &call);
        return FASTBN_OK;
    }
    if (!wants_dx && !wants_dz && !wants_sums)
        return FASTBN_OK;
    job.x = fbn_input_array(x.data ? x : dy); /* frozen without x: sum(dy) alone is used */
    job.dy = fbn_input_array(dy);
    job.y = fbn_output_array(dx);
    job.gradient = (wants_dx || wants_dz) && !frozen;
    job.mean = (double *)mean; /* only read */
    job.rstd = (double *)rstd;
    fbn_take_params(&job, NULL, NULL, params);
    take_extra(&job, params);
    plan_job(&job, shape);
    return fbn_with_scratch(&job, run_backward, &call);
}
