/* xla.h - the operations as handlers of XLA's foreign function interface, for JAX, and what of it they use.
 *
 * XLA calls a handler with one struct, which points to buffers, results and named attributes, and takes an error or
 * NULL. The structs are those of xla/ffi/api/c_api.h, version 0.1 (later minor versions only append to them), under
 * names of our own: so no build needs XLA's headers, which come with jaxlib. tests/test_interop_jax.py compares them.
 *
 * Every array is packed, row-major. Attributes: rank, the dimensions of x without batch dimensions (those of vmap);
 * axis, the feature axis among these; eps. Where x has more dimensions than rank, every argument and result has the
 * same leading ones, and each of their entries is a batch of its own. Parameters and statistics have the type of gamma,
 * but for saved, (3, C, 2) words of 32 bits: mean, var and rstd as doubles, whole where JAX has no 64-bit types.
 *   fastbn_training         x, gamma, beta                               -> y, mean, var, saved
 *   fastbn_backward         x, dy, gamma, saved                          -> dx, dgamma, dbeta
 *   fastbn_double_backward  x, dy, ddx, ddgamma, ddbeta, gamma, saved    -> ddy, dx, dgamma
 *   fastbn_inference        x, gamma, beta, mean, var                    -> y
 *   fastbn_update_running    running_mean, running_var, saved             -> running_mean, running_var
 * The last takes its first argument, a vector of features, for x, and has the attributes momentum and var_scale.
 */
#ifndef FASTBN_XLA_H
#define FASTBN_XLA_H

#include <stddef.h>
#include <stdint.h>

enum { FBN_XLA_MAJOR = 0, FBN_XLA_MINOR = 1 };
enum { FBN_XLA_EXTENSION_METADATA = 1, FBN_XLA_SCALAR = 3, FBN_XLA_INVALID_ARGUMENT = 3, FBN_XLA_INTERNAL = 13 };
enum { FBN_XLA_S64 = 5, FBN_XLA_U32 = 8, FBN_XLA_F16 = 10, FBN_XLA_F32 = 11, FBN_XLA_F64 = 12, FBN_XLA_BF16 = 16 };

/* Enumerations of that header are ints. */
typedef struct fbn_xla_extension {
    size_t struct_size;
    int type;
    struct fbn_xla_extension *next;
} fbn_xla_extension;

typedef struct fbn_xla_version {
    size_t struct_size;
    fbn_xla_extension *extensions;
    int major, minor;
} fbn_xla_version;

typedef struct fbn_xla_metadata {
    size_t struct_size;
    fbn_xla_version version;
    uint32_t traits;
} fbn_xla_metadata;

typedef struct fbn_xla_metadata_extension {
    fbn_xla_extension base;
    fbn_xla_metadata *metadata;
} fbn_xla_metadata_extension;

typedef struct fbn_xla_error fbn_xla_error; /* opaque */

typedef struct fbn_xla_error_arguments {
    size_t struct_size;
    fbn_xla_extension *extensions;
    const char *message;
    int code;
} fbn_xla_error_arguments;

typedef struct fbn_xla_api {
    size_t struct_size;
    fbn_xla_extension *extensions;
    fbn_xla_version version;
    const void *internal;
    fbn_xla_error *(*create_error)(fbn_xla_error_arguments *arguments);
} fbn_xla_api;

typedef struct fbn_xla_buffer {
    size_t struct_size;
    fbn_xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} fbn_xla_buffer;

typedef struct fbn_xla_buffers {
    size_t struct_size;
    fbn_xla_extension *extensions;
    int64_t size;
    int *types;
    fbn_xla_buffer **items;
} fbn_xla_buffers;

typedef struct fbn_xla_name {
    const char *data;
    size_t size;
} fbn_xla_name;

typedef struct fbn_xla_scalar {
    int dtype;
    void *value;
} fbn_xla_scalar;

typedef struct fbn_xla_attributes {
    size_t struct_size;
    fbn_xla_extension *extensions;
    int64_t size;
    int *types;
    fbn_xla_name **names;
    void **items;
} fbn_xla_attributes;

typedef struct fbn_xla_frame {
    size_t struct_size;
    fbn_xla_extension *extensions;
    const fbn_xla_api *api;
    void *context;
    int stage;
    fbn_xla_buffers arguments, results;
    fbn_xla_attributes attributes;
} fbn_xla_frame;

fbn_xla_error *fbn_xla_training(fbn_xla_frame *frame);
fbn_xla_error *fbn_xla_backward(fbn_xla_frame *frame);
fbn_xla_error *fbn_xla_double_backward(fbn_xla_frame *frame);
fbn_xla_error *fbn_xla_inference(fbn_xla_frame *frame);
fbn_xla_error *fbn_xla_update_running(fbn_xla_frame *frame);

#endif
