/* kernels.h - the table of kernels, one for each instruction set.
 *
 * A kernel works on one part of an array and knows nothing of threads, cutting or dtypes other than its own. Pointers are
 * void here, so that the code above the table is written once for all types. Strides count elements. Kernels of planes
 * see a run of `len` adjacent entries of each of `features` features, stride apart. Kernels of rows see `rows` rows of
 * `width` adjacent columns, and each column has parameters of its own.
 */
#ifndef FBN_KERNELS_H
#define FBN_KERNELS_H

#include <stdint.h>

#include "fastbn.h"
#include "kernels/activations.inc" /* FBN_ACTIVATION_LIST */

/* The most entries of a feature that are sampled for its pivot. */
#define FBN_PIVOT_SAMPLES 16

/* Each feature of planes has so many, see fbn_sum_planes. */
#define FBN_ACCUMULATORS 8

/* Takes sums over entries of (u, v). Without dy u = x - p and v = (x - p)^2; with it u = dy and v = dy * (x - p). par[0]
 * holds the pivots p. The sums through relu read par[1] and par[2] too: dy counts where (x - p) * par[1] + par[2] > 0,
 * else as 0. The sums are added to the FBN_ACCUMULATORS of each feature, half of which are together u, the others v. */
typedef void fbn_sum_planes(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, int64_t features,
                            int64_t len, const void *const par[3], double *accumulators);
/* Adds the same sums of rows to sum_u and sum_v, in bands of so many rows: 8 or 16, with dy 4, 8 or 16. prefetches: the
 * second-level cache does not hold the rows that come later. */
typedef void fbn_sum_rows(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, int64_t rows,
                          int64_t width, const void *const par[3], double *sum_u, double *sum_v, int band,
                          int prefetches);

/* The list of activations has the constants of fastbn.h in their order. */
#define FBN_PLACE(constant, name) FBN_PLACE_OF_##name,
enum fbn_place_in_list { FBN_ACTIVATION_LIST(FBN_PLACE) FBN_ACTIVATIONS };
#undef FBN_PLACE
#define FBN_CHECK_PLACE(constant, name) \
    _Static_assert((int)constant == (int)FBN_PLACE_OF_##name, #constant " has another place in the list");
FBN_ACTIVATION_LIST(FBN_CHECK_PLACE)
#undef FBN_CHECK_PLACE

/* batchnorm.c: the name of an activation, as Python knows it. */
const char *fbn_activation_name(fastbn_activation activation);

/* How a map walks and stores. */
enum fbn_store_policy {
    FBN_STORE_CACHED,      /* for the second-level cache: several rows at once, which saves loads of parameters */
    FBN_STORE_IN_ORDER,    /* strictly in the order of memory, which large data want */
    FBN_STORE_NON_TEMPORAL /* in the same order, with stores past the caches where y is aligned to vectors */
};

/* The maps of the second pass, with parameters a = par[0], b = par[1], ...
 * One input:   affine         y = (x - a) * b + c
 *              relu           y = max((x - a) * b + c, 0)
 * Two inputs:  residual       z = (x - a) * b + c + residual, y = 0 where z < d, else z: d = 0 is relu, d = -Inf nothing
 *              gradient       dx = ((dy - b) - (x - a) * c) * d
 *              relu_gradient  the same, where dy is first 0 where (x - a) * d + e <= 0
 * count: features of planes, or rows. Columns j and j + period of a row have equal parameters. Where the period is less
 * than the width, rows follow each other without a gap, y is aligned to vectors, and par goes on for a vector more.
 * Planes ignore it. */
enum fbn_map { FBN_AFFINE, FBN_RELU, FBN_RESIDUAL, FBN_GRADIENT, FBN_RELU_GRADIENT };

typedef void fbn_map_one(const void *x, int64_t x_stride, void *y, int64_t y_stride, int64_t count, int64_t len,
                         const void *const *par, int64_t period, enum fbn_store_policy policy);
typedef void fbn_map_two(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, void *y, int64_t y_stride,
                         int64_t count, int64_t len, const void *const *par, int64_t period,
                         enum fbn_store_policy policy);

struct fbn_maps {
    fbn_map_one *affine, *relu;
    fbn_map_two *residual, *gradient, *relu_gradient;
};

enum { FBN_COMBINED = 3, FBN_WEIGHTS = 1 + 2 * FBN_COMBINED };

/* out = par[0] + sum over i < arrays of (in[i] - par[1 + 2 * i]) * par[2 + 2 * i]; arrays <= FBN_COMBINED. count: features
 * of planes, or rows. out is none of the inputs. */
typedef void fbn_combine(int arrays, const void *const *in, const int64_t *in_stride, void *out, int64_t out_stride,
                         int64_t count, int64_t len, const void *const *par);

/* The kernels of one data type. Pivots and the parameters of maps have the type that is computed in: double for float64
 * data, else float. "wide" kernels compute in double whatever the type. */
struct fbn_typed {
    fbn_sum_planes *sum_planes, *sum_planes_wide, *sum_planes_relu;
    fbn_sum_rows *sum_rows, *sum_rows_wide, *sum_rows_relu;
    struct fbn_maps map_planes, map_rows;
    fbn_combine *combine_planes, *combine_rows;
    /* pivot[f] = mean of the entries at x[offset[i] + f * stride_c], i < count. */
    void (*pivots)(const void *x, int64_t stride_c, const int64_t *offset, int count, int64_t c, void *pivot);
    /* Computes mean and m2 from the sums about the pivots. bad[f] = 1 where they must be computed again in double. Returns
     * how many these are. */
    int64_t (*finish_moments)(int64_t c, double entries, const void *pivot, const double *sum_u, const double *sum_v,
                              double *mean, double *m2, unsigned char *bad);
    /* Computes dbeta = sum(dy) and dgamma = rstd * sum(dy * (x - mean)) from the sums about the pivots; bad and the
     * result as above. */
    int64_t (*finish_gradient)(int64_t c, const void *pivot, const double *mean, const double *rstd,
                               const double *sum_u, const double *sum_v, double *dgamma, double *dbeta,
                               unsigned char *bad);
    void (*round)(int64_t c, const double *value, void *rounded);
    void (*widen)(int64_t c, const void *value, double *widened);
    /* Makes par[0..2] of the affine map. gamma and beta are doubles. */
    void (*affine_params)(int64_t c, const double *mean, const double *rstd, const double *gamma, const double *beta,
                          void *const par[3]);
    /* Makes par[0..3] of the gradient, from mean(dy) and rstd^2 * mean(dy * (x - mean)). par[4] is the affine map's
     * par[2]. */
    void (*gradient_params)(int64_t c, const double *mean, const double *rstd, const double *gamma,
                            const double *mean_dy, const double *slope, void *const par[4]);
    /* y = act(z), entry by entry; y may be z. slope: of leaky_relu, alpha of elu; the others ignore it. */
    void (*activate)(const void *z, void *y, int64_t n, fastbn_activation activation, double slope);
    /* dz = dy * act'(z); dz may be dy or z. */
    void (*activate_gradient)(const void *z, const void *dy, void *dz, int64_t n, fastbn_activation activation,
                              double slope);
    /* See elementwise.inc. Arrays do not overlap. */
    void (*add)(void *z, const void *r, int64_t n);
    void (*weigh)(void *d, const void *w, const void *x, void *t, int64_t n, int omit);
    void (*omit)(void *a, const void *x, int64_t n);
    void (*hide)(void *d, const void *dy, const void *w, const void *x, int64_t n, int omit);
    void (*subtract_weighted)(void *c, const void *dy, const void *w, int64_t n);
    /* Turns n entries into the type that is computed in, exactly, and back, rounded to nearest even. stream: stores past
     * the caches, except what lies before and after aligned vectors. */
    void (*to_lanes)(const void *data, void *lanes, int64_t n);
    void (*from_lanes)(const void *lanes, void *data, int64_t n, int stream);
};

struct fbn_kernels {
    const char *isa;
    struct fbn_typed typed[4]; /* by fastbn_dtype */
    /* rstd = 1 / sqrt(var + eps) */
    void (*rstd)(int64_t c, const double *var, double eps, double *rstd);
    void (*stream_fence)(void);
};

/* dispatch.c: the table in use, chosen at the first call. */
fastbn_status fbn_kernels_active(const struct fbn_kernels **kernels);

#endif
