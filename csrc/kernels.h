/* kernels.h - the table of kernels, one per instruction set.
 *
 * A kernel works on one piece of an array and knows nothing of threads, cutting or dtypes other than its own; pointers
 * are void here so that the code above the table is written once for all types. Strides count elements. "planes"
 * kernels see a run of `len` adjacent entries of each of `features` features, stride apart; "rows" kernels see `rows`
 * rows of `width` adjacent columns, each column with parameters of its own.
 */
#ifndef FBN_KERNELS_H
#define FBN_KERNELS_H

#include <stdint.h>

#include "fastbn.h"

/* The most entries of a feature that are sampled for its pivot. */
#define FBN_PIVOT_SAMPLES 16

/* Of a feature in planes, see fbn_sum_planes. */
#define FBN_ACCUMULATORS 8

/* sum over entries of (u, v): u = x - p, v = (x - p)^2 without dy; u = dy, v = dy * (x - p) with it. par[0]: the pivots
 * p. The sums through relu read par[1] and par[2] too: dy counts where (x - p) * par[1] + par[2] > 0, else as 0.
 * Planes: added to FBN_ACCUMULATORS of each feature, the first half of which are together u, the others v. */
typedef void fbn_sum_planes(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, int64_t features,
                             int64_t len, const void *const par[3], double *accumulators);
/* Rows: added to sum_u and sum_v, in bands of so many rows: 8 or 16, with dy 4, 8 or 16. ahead: ask for what comes later,
 * since the second-level cache does not have it. */
typedef void fbn_sum_rows(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, int64_t rows,
                           int64_t width, const void *const par[3], double *sum_u, double *sum_v, int band, int ahead);

/* How the second pass walks and stores. */
enum fbn_store_policy {
    FBN_STORE_CACHED, /* the second level: several rows at once, which saves loads of parameters */
    FBN_STORE_IN_ORDER, /* strictly in the order of memory, which large data want */
    FBN_STORE_NON_TEMPORAL    /* the same, with stores past the caches where y is aligned to vectors */
};

/* y = (x - par[0]) * par[1] + par[2]. Planes: of `count` features; rows: of `count` rows. period: planes ignore it; the
 * columns j and j + period of a row have equal parameters, and if it is less than the width, rows follow each other
 * without a gap, y is aligned to vectors, and par goes on for a vector more. */
typedef void fbn_affine(const void *x, int64_t x_stride, void *y, int64_t y_stride, int64_t count, int64_t len,
                        const void *const par[3], int64_t period, enum fbn_store_policy policy);

/* dx = ((dy - par[1]) - (x - par[0]) * par[2]) * par[3]. Through relu, dy is first 0 where
 * (x - par[0]) * par[3] + par[4] <= 0. */
typedef void fbn_gradient(const void *x, int64_t x_stride, const void *dy, int64_t dy_stride, void *dx,
                          int64_t dx_stride, int64_t count, int64_t len, const void *const *par,
                          int64_t period, enum fbn_store_policy policy);

/* The same arguments, the residual in the place of dy: z = (x - par[0]) * par[1] + par[2] + residual, y = 0 where
 * z < par[3], else z: with par[3] = 0 relu, with -Inf nothing. */
typedef fbn_gradient fbn_residual;

/* The maps of the second pass. */
enum fbn_map { FBN_AFFINE, FBN_RELU /* after the affine map */, FBN_RESIDUAL, FBN_GRADIENT, FBN_RELU_GRADIENT };

enum { FBN_COMBINED = 3, FBN_WEIGHTS = 1 + 2 * FBN_COMBINED };

/* out = sum over i < arrays of (in[i] - par[1 + 2 * i]) * par[2 + 2 * i], + par[0]; arrays <= FBN_COMBINED. Planes: of
 * `count` features; rows: of `count` rows. out is none of the inputs. */
typedef void fbn_combine(int arrays, const void *const *in, const int64_t *in_stride, void *out, int64_t out_stride,
                         int64_t count, int64_t len, const void *const *par);

/* The kernels of one data type. Pivots and the parameters of the second pass have the type that is computed in: float,
 * of float64 data double. */
struct fbn_typed {
    fbn_sum_planes *sum_planes, *sum_planes_wide; /* wide: double arithmetic whatever the type */
    fbn_sum_rows *sum_rows, *sum_rows_wide;
    fbn_sum_planes *sum_planes_relu; /* with dy, through relu */
    fbn_sum_rows *sum_rows_relu;
    fbn_affine *map_planes_affine, *map_rows_affine;
    fbn_gradient *map_planes_gradient, *map_rows_gradient;
    fbn_affine *map_planes_relu, *map_rows_relu;
    fbn_residual *map_planes_residual, *map_rows_residual;
    fbn_gradient *map_planes_relu_gradient, *map_rows_relu_gradient;
    fbn_combine *combine_planes, *combine_rows;
    /* pivot[f] = mean of the entries at x[offset[i] + f * stride_c], i < count. */
    void (*pivots)(const void *x, int64_t stride_c, const int64_t *offset, int count, int64_t c, void *pivot);
    /* mean and m2 from the sums about the pivots; bad[f] = 1 where they must be computed again in double. Returns how
     * many. */
    int64_t (*finish_moments)(int64_t c, double entries, const void *pivot, const double *sum_u, const double *sum_v,
                              double *mean, double *m2, unsigned char *bad);
    /* dbeta = sum(dy) and dgamma = rstd * sum(dy * (x - mean)) from the sums about the pivots; bad and the result as
     * above. */
    int64_t (*finish_gradient)(int64_t c, const void *pivot, const double *mean, const double *rstd,
                               const double *sum_u, const double *sum_v, double *dgamma, double *dbeta,
                               unsigned char *bad);
    void (*round)(int64_t c, const double *value, void *rounded);
    void (*widen)(int64_t c, const void *value, double *widened);
    /* par[0..2] of fbn_affine. gamma, beta: doubles. */
    void (*affine_params)(int64_t c, const double *mean, const double *rstd, const double *gamma, const double *beta,
                          void *const par[3]);
    /* par[0..3] of fbn_gradient, from mean(dy) and rstd^2 * mean(dy * (x - mean)); par[4] is par[2] of fbn_affine. */
    void (*gradient_params)(int64_t c, const double *mean, const double *rstd, const double *gamma,
                            const double *mean_dy, const double *slope, void *const par[4]);
    /* y = act(z), entry by entry; y may be z. slope: of leaky_relu, alpha of elu; ignored by the others. */
    void (*activate)(const void *z, void *y, int64_t n, fastbn_activation activation, double slope);
    /* dz = dy * act'(z); dz may be dy or z. */
    void (*activate_gradient)(const void *z, const void *dy, void *dz, int64_t n, fastbn_activation activation,
                              double slope);
    /* See tiles.inc; arrays do not overlap. */
    void (*add)(void *z, const void *r, int64_t n);
    void (*weigh)(void *d, const void *w, const void *x, void *t, int64_t n, int omit);
    void (*omit)(void *a, const void *x, int64_t n);
    void (*hide)(void *d, const void *dy, const void *w, const void *x, int64_t n, int omit);
    void (*subtract_weighted)(void *c, const void *dy, const void *w, int64_t n);
    /* n entries as the type that is computed in, and back; exact, and rounded to nearest even. stream: stores past the
     * caches, but for what lies before and after aligned vectors. */
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

/* dispatch.c: the active table, chosen at the first call. */
fastbn_status fbn_kernels_active(const struct fbn_kernels **kernels);

extern const struct fbn_kernels fbn_kernels_generic, fbn_kernels_avx2, fbn_kernels_avx512, fbn_kernels_neon;

#endif
