/* Bad arguments: the right status, and nothing written. */
#include <string.h>

#include "harness.h"
#include "kernels.h"

enum { N = 6, C = 4, S = 3, SIZE = N * C * S };

/* A sound call in every respect; each check spoils one of its arguments. */
typedef struct call_arguments {
    fastbn_shape shape, *shape_at;
    fastbn_params params;
    fastbn_input x, dy, ddx;
    fastbn_output y, ddy;
    const double *mean, *rstd;
    double *out_mean, *out_var, *out_rstd;
    float *dgamma, *dbeta;
} call_arguments;

static float x_data[SIZE], dy_data[SIZE], y_data[SIZE], ddy_data[SIZE], gamma_data[C], dgamma_data[C], dbeta_data[C];
static double mean_data[C], rstd_data[C], out_data[3][C];

static call_arguments sound(void)
{
    call_arguments a;
    memset(&a, 0, sizeof a);
    a.shape = (fastbn_shape){N, C, S, FASTBN_FLOAT32};
    a.params = (fastbn_params){.gamma = gamma_data, .dtype = FASTBN_FLOAT32};
    a.x = (fastbn_input){x_data, C * S, S};
    a.dy = a.ddx = (fastbn_input){dy_data, C * S, S};
    a.y = (fastbn_output){y_data, C * S, S};
    a.ddy = (fastbn_output){ddy_data, C * S, S};
    a.mean = mean_data;
    a.rstd = rstd_data;
    a.out_mean = out_data[0];
    a.out_var = out_data[1];
    a.out_rstd = out_data[2];
    a.dgamma = dgamma_data;
    a.dbeta = dbeta_data;
    return a;
}

static void reset_data(void)
{
    for (int i = 0; i < SIZE; i++)
        x_data[i] = (float)(i % 7), dy_data[i] = (float)(i % 5), y_data[i] = ddy_data[i] = -5;
    for (int i = 0; i < C; i++) {
        gamma_data[i] = (float)(i + 1), dgamma_data[i] = dbeta_data[i] = -5;
        mean_data[i] = 3, rstd_data[i] = 0.5;
        for (int k = 0; k < 3; k++)
            out_data[k][i] = -5;
    }
}

static int outputs_untouched(void)
{
    for (int i = 0; i < SIZE; i++)
        if (y_data[i] != -5 || ddy_data[i] != -5)
            return 0;
    for (int i = 0; i < C; i++)
        if (dgamma_data[i] != -5 || dbeta_data[i] != -5 || out_data[0][i] != -5 || out_data[1][i] != -5
            || out_data[2][i] != -5)
            return 0;
    return 1;
}

static fastbn_status call(const call_arguments *a, enum entry_point entry)
{
    const fastbn_shape *shape = a->shape_at ? a->shape_at : &a->shape;
    switch (entry) {
    case MOMENTS: return fastbn_moments(shape, a->x, a->out_mean, a->out_var, 1);
    case INFERENCE: return fastbn_inference(shape, a->x, a->mean, a->rstd, &a->params, harness_eps, a->y, 1);
    case TRAINING:
        return fastbn_training(shape, a->x, &a->params, harness_eps, a->y, a->out_mean, a->out_var, a->out_rstd, 1);
    case BACKWARD:
        return fastbn_backward(shape, a->x, a->dy, &a->params, a->mean, a->rstd, 0, a->y, a->dgamma, a->dbeta, 1);
    default:
        return fastbn_double_backward(shape, a->x, a->dy, a->ddx, gamma_data, gamma_data, &a->params, a->mean, a->rstd,
                                      0, a->ddy, a->y, a->dgamma, 1);
    }
}

static const char *const entry_names[] = {"moments", "inference", "training", "backward", "double backward"};

static int expect(const call_arguments *a, enum entry_point entry, fastbn_status wanted, const char *what)
{
    fastbn_status got = call(a, entry);
    if (got != wanted)
        return failure("%s with %s: status %d (%s), expected %d (%s)", entry_names[entry], what, (int)got,
                       fastbn_status_text(got), (int)wanted, fastbn_status_text(wanted));
    if (wanted != FASTBN_OK && !outputs_untouched())
        return failure("%s with %s: rejected, but an output has changed", entry_names[entry], what);
    reset_data();
    return 0;
}

static int expect_everywhere(const call_arguments *a, fastbn_status wanted, const char *what)
{
    int failures = 0;
    for (int entry = MOMENTS; entry <= DOUBLE_BACKWARD; entry++)
        failures += expect(a, (enum entry_point)entry, wanted, what);
    return failures;
}

static int bad_shapes(void)
{
    int failures = 0;
    call_arguments a = sound();
    failures += expect_everywhere(&a, FASTBN_OK, "sound arguments");
    a.shape.n = -1, failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "n = -1"), a = sound();
    a.shape.c = -1, failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "c = -1"), a = sound();
    a.shape.s = -2, failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "s = -2"), a = sound();
    a.shape.n = INT64_MAX, failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "n = 2^63 - 1"), a = sound();
    a.shape = (fastbn_shape){INT64_C(1) << 32, INT64_C(1) << 31, 1, FASTBN_FLOAT32};
    a.x.stride_c = a.dy.stride_c = a.ddx.stride_c = a.y.stride_c = a.ddy.stride_c = 1;
    failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "2^63 elements"), a = sound();
    a.shape = (fastbn_shape){INT64_C(1) << 32, INT64_C(1) << 32, INT64_C(1) << 32, FASTBN_FLOAT32};
    failures += expect_everywhere(&a, FASTBN_ERROR_SHAPE, "2^96 elements"), a = sound();
    a.shape.dtype = (fastbn_dtype)7;
    failures += expect_everywhere(&a, FASTBN_ERROR_DTYPE, "data of type 7"), a = sound();
    a.params.dtype = (fastbn_dtype)9;
    for (int entry = INFERENCE; entry <= DOUBLE_BACKWARD; entry++)
        failures += expect(&a, (enum entry_point)entry, FASTBN_ERROR_DTYPE, "parameters of type 9");
    a.params.dtype = FASTBN_FLOAT16;
    for (int entry = INFERENCE; entry <= BACKWARD; entry++)
        failures += expect(&a, (enum entry_point)entry, FASTBN_ERROR_DTYPE, "float16 parameters");
    a.params.dtype = FASTBN_BFLOAT16;
    for (int entry = INFERENCE; entry <= BACKWARD; entry++)
        failures += expect(&a, (enum entry_point)entry, FASTBN_ERROR_DTYPE, "bfloat16 parameters");
    a = sound(), a.params.activation = (fastbn_activation)FBN_ACTIVATIONS;
    for (int entry = INFERENCE; entry <= BACKWARD; entry++)
        failures += expect(&a, (enum entry_point)entry, FASTBN_ERROR_ACTIVATION, "an activation beyond the last one");
    return failures;
}

static int bad_strides(void)
{
    int failures = 0;
    call_arguments a = sound();
    a.shape.s = 1;
    a.x.stride_c = 2, a.dy.stride_c = a.ddx.stride_c = a.y.stride_c = a.ddy.stride_c = 1;
    failures += expect_everywhere(&a, FASTBN_ERROR_STRIDE, "features of x not adjacent");
    a.x.stride_c = 1, a.y.stride_c = 3;
    failures += expect(&a, INFERENCE, FASTBN_ERROR_STRIDE, "features of y not adjacent");
    failures += expect(&a, TRAINING, FASTBN_ERROR_STRIDE, "features of y not adjacent");
    failures += expect(&a, BACKWARD, FASTBN_ERROR_STRIDE, "features of dx not adjacent");
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_STRIDE, "features of dx not adjacent");
    a.y.stride_c = 1, a.dy.stride_c = 3;
    failures += expect(&a, BACKWARD, FASTBN_ERROR_STRIDE, "features of dy not adjacent");
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_STRIDE, "features of dy not adjacent");
    a.dy.stride_c = 1, a.ddx.stride_c = 3;
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_STRIDE, "features of ddx not adjacent");
    a.ddx.stride_c = 1, a.ddy.stride_c = 3;
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_STRIDE, "features of ddy not adjacent");
    return failures;
}

static int expect_of_layer(const call_arguments *a, fastbn_status wanted, const char *what)
{
    int failures = 0;
    for (int entry = INFERENCE; entry <= BACKWARD; entry++)
        failures += expect(a, (enum entry_point)entry, wanted, what);
    return failures;
}

static int bad_extras(void)
{
    int failures = 0;
    const fastbn_weights none = {NULL, 0.0, NULL};
    fastbn_extra extra = {.weights = &none};
    call_arguments a = sound();
    a.params.extra = &extra;
    failures += expect_of_layer(&a, FASTBN_ERROR_NULL, "weights without data");
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_NULL, "weights without data");
    if (fastbn_weighted_moments(&a.shape, a.x, &none, a.out_mean, a.out_var, 1) != FASTBN_ERROR_NULL)
        failures += failure("moments with weights without data are not refused");
    extra = (fastbn_extra){.inverts = 1};
    a.params.activation = FASTBN_RELU;
    failures += expect_of_layer(&a, FASTBN_ERROR_ACTIVATION, "relu inverted");
    a.params.activation = FASTBN_LEAKY_RELU;
    failures += expect_of_layer(&a, FASTBN_ERROR_ACTIVATION, "leaky relu of slope 0 inverted");
    extra = (fastbn_extra){.residual = a.x};
    a.params.activation = FASTBN_IDENTITY;
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_ACTIVATION, "a residual");
    a.shape.s = 1;
    a.x.stride_c = a.dy.stride_c = a.y.stride_c = 1, extra.residual.stride_c = 2;
    failures += expect_of_layer(&a, FASTBN_ERROR_STRIDE, "features of the residual not adjacent");
    return failures;
}

static int missing_pointers(void)
{
    int failures = 0;
    call_arguments a = sound();
    a.x.data = NULL, failures += expect_everywhere(&a, FASTBN_ERROR_NULL, "x NULL"), a = sound();
    a.y.data = NULL;
    failures += expect(&a, INFERENCE, FASTBN_ERROR_NULL, "y NULL");
    failures += expect(&a, TRAINING, FASTBN_ERROR_NULL, "y NULL"), a = sound();
    a.dy.data = NULL, failures += expect(&a, BACKWARD, FASTBN_ERROR_NULL, "dy NULL");
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_NULL, "dy NULL"), a = sound();
    a.mean = NULL;
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_NULL, "mean NULL");
    failures += expect(&a, INFERENCE, FASTBN_ERROR_NULL, "mean NULL");
    failures += expect(&a, BACKWARD, FASTBN_ERROR_NULL, "mean NULL"), a = sound();
    a.rstd = NULL;
    failures += expect(&a, DOUBLE_BACKWARD, FASTBN_ERROR_NULL, "rstd NULL");
    failures += expect(&a, INFERENCE, FASTBN_ERROR_NULL, "var NULL");
    failures += expect(&a, BACKWARD, FASTBN_ERROR_NULL, "rstd NULL"), a = sound();
    a.out_mean = NULL;
    failures += expect(&a, MOMENTS, FASTBN_ERROR_NULL, "mean NULL");
    failures += expect(&a, TRAINING, FASTBN_ERROR_NULL, "mean NULL"), a = sound();
    a.out_var = NULL;
    failures += expect(&a, MOMENTS, FASTBN_ERROR_NULL, "m2 NULL");
    failures += expect(&a, TRAINING, FASTBN_ERROR_NULL, "var NULL"), a = sound();
    a.out_rstd = NULL, failures += expect(&a, TRAINING, FASTBN_ERROR_NULL, "rstd NULL");
    if (fastbn_moments(NULL, a.x, mean_data, rstd_data, 1) != FASTBN_ERROR_NULL)
        failures += failure("moments with shape NULL is not refused");
    if (fastbn_isa_active(NULL) != FASTBN_ERROR_NULL || fastbn_wants_packed(NULL) != 0 || fastbn_isa_built(NULL) != 0)
        failures += failure("a NULL that is no array is not refused");
    return failures;
}

static int instruction_set_names(void)
{
    int failures = 0;
    const char *active = NULL, *name;
    if (fastbn_set_isa("sse9") != FASTBN_ERROR_ISA_UNKNOWN)
        failures += failure("set_isa of an unknown name is not refused");
    if (fastbn_isa_active(&active) != FASTBN_OK || active == NULL)
        failures += failure("a refused name has left no instruction set");
    for (int i = 0; (name = fastbn_isa_name(i)) != NULL; i++) {
        int usable = fastbn_isa_built(name) && fastbn_isa_supported(name);
        fastbn_status status = fastbn_set_isa(name);
        if (status != (usable ? FASTBN_OK : FASTBN_ERROR_ISA_UNSUPPORTED))
            failures += failure("set_isa(%s): %s", name, fastbn_status_text(status));
        if (usable && (fastbn_isa_active(&active) != FASTBN_OK || strcmp(active, name) != 0))
            failures += failure("set_isa(%s) is not the active one", name);
    }
    if (fastbn_isa_built("sse9") || fastbn_isa_supported("sse9") || !fastbn_isa_supported("generic"))
        failures += failure("built or supported is wrong about sse9 or generic");
    if (fastbn_set_isa(NULL) != FASTBN_OK)
        failures += failure("set_isa(NULL) fails");
    return failures;
}

static int texts(void)
{
    int failures = 0;
    for (int status = FASTBN_OK; status <= FASTBN_ERROR_ACTIVATION + 1; status++)
        if (fastbn_status_text((fastbn_status)status) == NULL)
            failures += failure("status %d has no text", status);
    if (fastbn_abi_version() != FASTBN_ABI_VERSION || strcmp(fastbn_version(), "test") != 0)
        failures += failure("version %s, ABI %d", fastbn_version(), fastbn_abi_version());
    return failures;
}

static int running_average(void)
{
    int failures = 0;
    double mean[2] = {1, -2}, var[2] = {4, 0.5}, wide[2] = {10, 20}, wide_var[2] = {8, 16};
    float kept[2] = {10, 20}, kept_var[2] = {8, 16};
    fastbn_status status = fastbn_update_running(2, mean, var, 0.75, 2, wide, wide_var, FASTBN_FLOAT64);
    if (status != FASTBN_OK || wide[0] != 7.75 || wide[1] != 14.5 || wide_var[0] != 8 || wide_var[1] != 12.25)
        failures += failure("running average in double: %g %g %g %g", wide[0], wide[1], wide_var[0], wide_var[1]);
    status = fastbn_update_running(2, mean, var, 0.75, 2, kept, kept_var, FASTBN_FLOAT32);
    if (status != FASTBN_OK || kept[0] != 7.75f || kept[1] != 14.5f || kept_var[0] != 8 || kept_var[1] != 12.25f)
        failures += failure("running average in float: %g %g %g %g", kept[0], kept[1], kept_var[0], kept_var[1]);
    if (fastbn_update_running(-1, mean, var, 0.75, 2, kept, kept_var, FASTBN_FLOAT32) != FASTBN_ERROR_SHAPE
        || fastbn_update_running(2, NULL, var, 0.75, 2, kept, kept_var, FASTBN_FLOAT32) != FASTBN_ERROR_NULL
        || fastbn_update_running(2, mean, var, 0.75, 2, kept, kept_var, (fastbn_dtype)5) != FASTBN_ERROR_DTYPE
        || fastbn_update_running(2, mean, var, 0.75, 2, kept, kept_var, FASTBN_FLOAT16) != FASTBN_ERROR_DTYPE)
        failures += failure("running average with bad arguments is not refused");
    return failures;
}

int check_arguments(void)
{
    reset_data();
    return bad_shapes() + bad_strides() + bad_extras() + missing_pointers() + instruction_set_names() + texts() + running_average();
}
