/* xla.c - fastbn.h's operations as XLA calls them, see xla.h. A handler checks its frame, then computes one batch after
 * the other; where the Python side has done its part, no check fails. */
#include "xla.h"

#include <string.h>

#include "../fastbn.h"

/* A call, and which of its batches is computed. */
struct call {
    const fbn_xla_frame *frame;
    fastbn_shape shape;
    fastbn_dtype dtype; /* of the parameters */
    double eps;
    int64_t batches, batch;
};

typedef fastbn_status (*operation)(const struct call *call);

static fbn_xla_error *error_of(const fbn_xla_frame *frame, int code, const char *message)
{
    fbn_xla_error_arguments arguments = {sizeof arguments, NULL, message, code};
    return frame->api->create_error(&arguments);
}

/* XLA asks for the version in place of a call. */
static int answers_metadata(const fbn_xla_frame *frame)
{
    const fbn_xla_extension *extension = frame->extensions;
    if (extension == NULL || extension->type != FBN_XLA_EXTENSION_METADATA)
        return 0;
    fbn_xla_metadata *metadata = ((const fbn_xla_metadata_extension *)extension)->metadata;
    metadata->version.major = FBN_XLA_MAJOR;
    metadata->version.minor = FBN_XLA_MINOR;
    metadata->traits = 0;
    return 1;
}

/* The value of a scalar attribute; NULL where there is none of that name and type. */
static const void *attribute(const fbn_xla_frame *frame, const char *name, int dtype)
{
    const fbn_xla_attributes *all = &frame->attributes;
    for (int64_t i = 0; i < all->size; i++) {
        const fbn_xla_scalar *scalar = all->items[i];
        if (all->types[i] == FBN_XLA_SCALAR && all->names[i]->size == strlen(name)
            && memcmp(all->names[i]->data, name, strlen(name)) == 0)
            return scalar->dtype == dtype ? scalar->value : NULL;
    }
    return NULL;
}

/* 0 where the type is none of ours. */
static int is_data(int xla_dtype, fastbn_dtype *dtype)
{
    switch (xla_dtype) {
    case FBN_XLA_F32: *dtype = FASTBN_FLOAT32; return 1;
    case FBN_XLA_F64: *dtype = FASTBN_FLOAT64; return 1;
    case FBN_XLA_F16: *dtype = FASTBN_FLOAT16; return 1;
    case FBN_XLA_BF16: *dtype = FASTBN_BFLOAT16; return 1;
    default: return 0;
    }
}

static int64_t product(const int64_t *dims, int64_t begin, int64_t end)
{
    int64_t result = 1;
    for (int64_t i = begin; i < end; i++)
        result *= dims[i];
    return result;
}

/* Shape, types and eps, from the first argument, which is x, and the attributes. 0 where they do not fit. */
static int read_call(struct call *call, const fbn_xla_frame *frame, int gamma)
{
    const fbn_xla_buffer *x = frame->arguments.items[0];
    const int64_t *rank = attribute(frame, "rank", FBN_XLA_S64), *axis = attribute(frame, "axis", FBN_XLA_S64);
    const double *eps = attribute(frame, "eps", FBN_XLA_F64);
    if (rank == NULL || axis == NULL || eps == NULL || *axis < 0 || *axis >= *rank || *rank > x->rank)
        return 0;
    int64_t first = x->rank - *rank, feature = first + *axis;
    call->frame = frame;
    call->batches = product(x->dims, 0, first);
    call->shape.n = product(x->dims, first, feature);
    call->shape.c = x->dims[feature];
    call->shape.s = product(x->dims, feature + 1, x->rank);
    call->eps = *eps;
    return is_data(x->dtype, &call->shape.dtype) && is_data(frame->arguments.items[gamma]->dtype, &call->dtype);
}

static int64_t elements(const fbn_xla_buffer *buffer) { return product(buffer->dims, 0, buffer->rank); }

/* Whether every buffer has as many entries, and the type, that is written for it: d data, p parameters, s saved. */
static int buffers_fit(const struct call *call, const fbn_xla_buffers *buffers, const char *kinds)
{
    const fbn_xla_buffer *x = call->frame->arguments.items[0];
    int parameter = call->dtype == FASTBN_FLOAT64 ? FBN_XLA_F64 : FBN_XLA_F32;
    int64_t vector = call->batches * call->shape.c;
    for (int64_t i = 0; i < buffers->size; i++) {
        const fbn_xla_buffer *buffer = buffers->items[i];
        int dtype = kinds[i] == 'd' ? x->dtype : kinds[i] == 'p' ? parameter : FBN_XLA_U32;
        int64_t size = kinds[i] == 'd' ? elements(x) : kinds[i] == 'p' ? vector : 6 * vector;
        if (buffer->dtype != dtype || elements(buffer) != size)
            return 0;
    }
    return 1;
}

/* arguments, results: a letter for each, see buffers_fit; gamma: which argument has the parameters' type. */
static fbn_xla_error *handle(const fbn_xla_frame *frame, const char *arguments, const char *results, int gamma,
                             operation compute)
{
    struct call call;
    if (answers_metadata(frame))
        return NULL;
    if (frame->arguments.size != (int64_t)strlen(arguments) || frame->results.size != (int64_t)strlen(results)
        || !read_call(&call, frame, gamma) || !buffers_fit(&call, &frame->arguments, arguments)
        || !buffers_fit(&call, &frame->results, results))
        return error_of(frame, FBN_XLA_INVALID_ARGUMENT, "fastbn: buffers or attributes are not those of csrc/adapters/xla.h");
    for (call.batch = 0; call.batch < call.batches; call.batch++) {
        fastbn_status status = compute(&call);
        if (status != FASTBN_OK)
            return error_of(frame, FBN_XLA_INTERNAL, fastbn_status_text(status));
    }
    return NULL;
}

/* ---- buffers of the batch that is computed ---- */

static void *part_of(const struct call *call, const fbn_xla_buffer *buffer)
{
    int half = buffer->dtype == FBN_XLA_F16 || buffer->dtype == FBN_XLA_BF16;
    int64_t width = buffer->dtype == FBN_XLA_F64 ? 8 : half ? 2 : 4;
    return (char *)buffer->data + elements(buffer) / call->batches * call->batch * width;
}

static void *argument(const struct call *call, int i) { return part_of(call, call->frame->arguments.items[i]); }

static void *result(const struct call *call, int i) { return part_of(call, call->frame->results.items[i]); }

static fastbn_input data_argument(const struct call *call, int i)
{
    return (fastbn_input){argument(call, i), call->shape.c * call->shape.s, call->shape.s};
}

static fastbn_output data_result(const struct call *call, int i)
{
    return (fastbn_output){result(call, i), call->shape.c * call->shape.s, call->shape.s};
}

static fastbn_params params_of(const struct call *call, const void *gamma, const void *beta)
{
    return (fastbn_params){.gamma = gamma, .beta = beta, .dtype = call->dtype, .activation = FASTBN_IDENTITY};
}

/* mean, var, rstd are saved one after the other. */
static double *row_of(const struct call *call, void *saved, int row) { return (double *)saved + row * call->shape.c; }

static void copy_parameters(const struct call *call, const double *from, void *to)
{
    for (int64_t i = 0; i < call->shape.c; i++) {
        if (call->dtype == FASTBN_FLOAT64)
            ((double *)to)[i] = from[i];
        else
            ((float *)to)[i] = (float)from[i];
    }
}

/* ---- the operations ---- */

static fastbn_status training(const struct call *call)
{
    fastbn_params params = params_of(call, argument(call, 1), argument(call, 2));
    void *saved = result(call, 3);
    double *mean = row_of(call, saved, 0), *var = row_of(call, saved, 1), *rstd = row_of(call, saved, 2);
    fastbn_status status = fastbn_training(&call->shape, data_argument(call, 0), &params, call->eps,
                                           data_result(call, 0), mean, var, rstd, 0);
    if (status == FASTBN_OK) {
        copy_parameters(call, mean, result(call, 1));
        copy_parameters(call, var, result(call, 2));
    }
    return status;
}

static fastbn_status backward(const struct call *call)
{
    fastbn_params params = params_of(call, argument(call, 2), NULL);
    void *saved = argument(call, 3);
    return fastbn_backward(&call->shape, data_argument(call, 0), data_argument(call, 1), &params,
                           row_of(call, saved, 0), row_of(call, saved, 2), 0, data_result(call, 0), result(call, 1),
                           result(call, 2), 0);
}

static fastbn_status double_backward(const struct call *call)
{
    fastbn_params params = params_of(call, argument(call, 5), NULL);
    void *saved = argument(call, 6);
    return fastbn_double_backward(&call->shape, data_argument(call, 0), data_argument(call, 1), data_argument(call, 2),
                                  argument(call, 3), argument(call, 4), &params, row_of(call, saved, 0),
                                  row_of(call, saved, 2), 0, data_result(call, 0), data_result(call, 1),
                                  result(call, 2), 0);
}

static fastbn_status inference(const struct call *call)
{
    fastbn_params params = params_of(call, argument(call, 1), argument(call, 2));
    return fastbn_inference(&call->shape, data_argument(call, 0), argument(call, 3), argument(call, 4), &params,
                            call->eps, data_result(call, 0), 0);
}

/* From the old averages in the arguments, which XLA may not see changed, to new ones in the results. */
static fastbn_status update_running(const struct call *call)
{
    const double *momentum = attribute(call->frame, "momentum", FBN_XLA_F64);
    const double *scale = attribute(call->frame, "var_scale", FBN_XLA_F64);
    const size_t bytes = (size_t)call->shape.c * (call->dtype == FASTBN_FLOAT64 ? sizeof(double) : sizeof(float));
    void *saved = argument(call, 2);
    if (momentum == NULL || scale == NULL)
        return FASTBN_ERROR_NULL;
    for (int i = 0; i < 2; i++)
        memcpy(result(call, i), argument(call, i), bytes);
    return fastbn_update_running(call->shape.c, row_of(call, saved, 0), row_of(call, saved, 1), *momentum, *scale,
                                 result(call, 0), result(call, 1), call->dtype);
}

fbn_xla_error *fbn_xla_training(fbn_xla_frame *frame) { return handle(frame, "dpp", "dpps", 1, training); }

fbn_xla_error *fbn_xla_backward(fbn_xla_frame *frame) { return handle(frame, "ddps", "dpp", 2, backward); }

fbn_xla_error *fbn_xla_double_backward(fbn_xla_frame *frame)
{
    return handle(frame, "dddppps", "ddp", 5, double_backward);
}

fbn_xla_error *fbn_xla_inference(fbn_xla_frame *frame) { return handle(frame, "dpppp", "d", 1, inference); }

fbn_xla_error *fbn_xla_update_running(fbn_xla_frame *frame) { return handle(frame, "pps", "pp", 0, update_running); }
