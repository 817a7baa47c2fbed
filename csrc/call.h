/* call.h - one call in progress: what the caller gave, how it is computed, its scratch memory, and the steps that a
 * schedule puts in order. */
#ifndef FBN_CALL_H
#define FBN_CALL_H

#include <stddef.h>
#include <stdint.h>

#include "fastbn.h"
#include "kernels.h"
#include "plan.h"

/* An array whose data is NULL is not there. */
struct fbn_array {
    char *data;
    int64_t stride_n, stride_c;
};

static inline struct fbn_array fbn_input_array(fastbn_input a)
{
    return (struct fbn_array){(char *)a.data, a.stride_n, a.stride_c};
}

static inline struct fbn_array fbn_output_array(fastbn_output a)
{
    return (struct fbn_array){a.data, a.stride_n, a.stride_c};
}

/* The address of entry i of feature c of outer entry n. */
static inline char *fbn_at(struct fbn_array a, int64_t size, int64_t n, int64_t c, int64_t i)
{
    return a.data ? a.data + (n * a.stride_n + c * a.stride_c + i) * size : NULL;
}

static inline int fbn_is_empty(const fastbn_shape *shape) { return shape->n == 0 || shape->c == 0 || shape->s == 0; }

/* Whether the array has no gaps; one that is not there has none. */
static inline int fbn_is_packed(const fastbn_shape *shape, struct fbn_array a)
{
    return !a.data || ((shape->c == 1 || a.stride_c == shape->s) && (shape->n == 1 || a.stride_n == shape->c * shape->s));
}

/* From one run to the next, in elements. */
static inline int64_t fbn_run_distance(const struct fbn_runs *runs, struct fbn_array a)
{
    return runs->next_n * a.stride_n + runs->next_c * a.stride_c;
}

struct fbn_call;

/* What differs between the operations. Each step works on the features [first, end). */
struct fbn_operation {
    /* Sets the pivot of each feature. NULL: this operation takes no sums. */
    void (*prepare)(struct fbn_call *call, int64_t first, int64_t end);
    /* Turns sums into statistics, sets bad[] and returns how many features must be computed again in double. After that
     * it is called with again = 1 and looks at the bad features only. */
    int64_t (*finish)(struct fbn_call *call, int64_t first, int64_t end, int again);
    /* Makes the parameters of the map. NULL: this operation has no map. */
    void (*params)(struct fbn_call *call, int64_t first, int64_t end);
};

/* What the caller gave. */
struct fbn_given {
    struct fbn_array x, dy, y;            /* y is dx in a backward */
    struct fbn_array residual, dresidual;
    struct fbn_array written;             /* the y of the forward call, from which act' takes the sign of z */
    int64_t entries;                      /* of a feature */
    const void *mean, *var, *gamma, *beta; /* in their own type: the statistics of an inference, and parameters */
    fastbn_dtype dtype;                   /* of those four, and of dgamma and dbeta */
    void *dgamma, *dbeta;                 /* NULL: not wanted */
    double eps;
    fastbn_activation activation;
    double slope;                         /* of leaky_relu; alpha of elu */
    int inverts;                          /* x holds y, and the activation is inverted */
    const char *weights;                  /* (n, s), in the type of the arithmetic */
    double total;                         /* the weight of a feature; without weights the number of its entries */
    const double *counts;                 /* by feature, in place of the total */
    int omits;                            /* NaN entries of x do not count */
    int threads;
};

/* How the call is computed. The first pass takes sums, the second one maps. */
struct fbn_passes {
    struct fbn_plan sums, map;
    struct fbn_array in;                  /* what the map reads: x or dy, or dz in the place of dy */
    struct fbn_array dz;                  /* dy, or where dz = dy * act'(z) is stored before sums are taken of it */
    int gradient;                         /* the map reads x too */
    int relu_gradient;                    /* the kernels of both passes take dy through relu */
    int stores_dz, activates_y;           /* dz is stored in the first pass; y is activated after the map wrote it */
    int tiles_sums, tiles_map;            /* a pass goes tile by tile, see tiles.c */
    int sums_in_double;                   /* see FEW in batchnorm.c */
    int prefetches;                       /* the first pass does, of a table that the second-level caches do not hold */
    enum fbn_store_policy policy;
    int64_t head;                         /* of a flat table, see map.c; else -1 */
    int64_t offset[FBN_PIVOT_SAMPLES];
    int samples;
};

enum { FBN_MOST_PARAMS = 5 };
enum { FBN_ZERO, FBN_MINUS_ZERO, FBN_ONE, FBN_CONSTANTS };

/* Memory of the call. Where the caller has an array of doubles, that one stands here. */
struct fbn_scratch {
    /* By feature. */
    double *sum_u, *sum_v;                    /* totals of the chunks */
    double *mean, *m2, *var, *rstd;           /* statistics, or those of the forward call */
    double *gamma, *beta;
    double *dgamma, *dbeta, *mean_dy, *slope; /* of the gradient */
    unsigned char *bad;
    void *pivot, *par[FBN_MOST_PARAMS];
    void *z[3];                               /* the affine map to z, for backward */
    /* By column, where a plan has more columns than features; else the arrays above. */
    void *pivot_columns, *par_columns[FBN_MOST_PARAMS], *z_columns[3];
    void *constant[FBN_CONSTANTS];            /* for weights */
    /* By chunk. */
    double *partial;
};

struct fbn_call {
    const struct fbn_operation *operation;
    const struct fbn_kernels *kernels;
    const struct fbn_typed *typed, *lanes; /* kernels of the type of the data, and of the type that is computed in */
    int64_t size, lane_size;               /* bytes of an element of the data; of a pivot and of a parameter of the map */
    struct fbn_given given;
    struct fbn_passes plan;
    struct fbn_scratch scratch;
};

/* Whether there is a map that writes something. */
static inline int fbn_writes(const struct fbn_call *call)
{
    return call->given.y.data || (call->given.dresidual.data && !call->plan.stores_dz);
}

/* Whether backward computes z. */
static inline int fbn_needs_z(const struct fbn_call *call)
{
    return call->given.dy.data && (call->plan.tiles_map || call->plan.stores_dz || call->plan.relu_gradient);
}

/* The parameters of the map: one of two inputs has one more than an affine one, relu's gradient has another one. */
static inline int fbn_params_of(const struct fbn_call *call)
{
    if (call->plan.relu_gradient)
        return 5;
    return call->plan.gradient || (call->given.residual.data && !call->given.dy.data && !call->plan.tiles_map) ? 4 : 3;
}

/* operations.c */
extern const struct fbn_operation fbn_operation_moments, fbn_operation_training, fbn_operation_inference;
extern const struct fbn_operation fbn_operation_gradient, fbn_operation_gradient_sums;
extern const struct fbn_operation fbn_operation_frozen, fbn_operation_frozen_dx;

/* features.c: values of features, between the caller's type and double, and repeated for columns. */

/* Reads the features [first, end) as doubles. Where from is NULL they are `missing`. */
void fbn_load_values(const struct fbn_kernels *kernels, fastbn_dtype dtype, const void *from, double missing,
                     int64_t first, int64_t end, double *to);
/* mean and var: of an inference, else NULL. */
void fbn_take_params(struct fbn_call *call, const void *mean, const void *var, const fastbn_params *params);
void fbn_load_params(struct fbn_call *call, int64_t first, int64_t end);
/* Writes in the type of the parameters; to NULL nothing. */
void fbn_store_param(const struct fbn_call *call, void *to, const double *from);
/* Writes c zeros, the sums over nothing; to NULL nothing. */
void fbn_store_nothing(fastbn_dtype dtype, int64_t c, void *to);
/* Whether a plan has columns that are not the features. */
int fbn_more_columns(const struct fbn_plan *plan);
/* Writes those of the first `count` columns that belong to the features [first, end). */
void fbn_broadcast(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t count,
                   int64_t first, int64_t end);

/* sums.c: the first pass. */
void fbn_sum_chunks(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again);
void fbn_total_sums(struct fbn_call *call, int64_t first, int64_t end);
void fbn_broadcast_pivots(struct fbn_call *call, int64_t first, int64_t end);
void fbn_broadcast_z(struct fbn_call *call, int64_t first, int64_t end);
/* Where each column is a feature, the totals are the sums of the first chunk, to which the others are added. */
void fbn_place_totals(struct fbn_call *call);

/* map.c: the second pass. Its runs are counted in the order of memory, see fbn_plan. */
void fbn_find_head(struct fbn_call *call);
int64_t fbn_param_columns(const struct fbn_call *call);
void fbn_broadcast_params(struct fbn_call *call, int64_t first, int64_t end);
/* Adjacent entries of y that are written one after the other. */
int64_t fbn_output_run(const struct fbn_call *call);
int64_t fbn_count_runs(const struct fbn_call *call);
void fbn_map_features(struct fbn_call *call, int64_t first, int64_t end);
void fbn_map_runs(struct fbn_call *call, int64_t begin, int64_t end);

/* tiles.c: passes that do more than take sums, or than map. */

/* Adds the sums of these runs: see fbn_sum_planes and fbn_sum_rows. Planes have no v. */
void fbn_sum_tiles(struct fbn_call *call, const struct fbn_runs *runs, double *u, double *v, int again);
/* Writes dz of these runs. */
void fbn_store_dz_tiles(struct fbn_call *call, const struct fbn_runs *runs);
/* Maps these runs. */
void fbn_map_tiles(struct fbn_call *call, const struct fbn_runs *runs);

/* schedule.c: takes all steps in a good order on a team of threads. */
void fbn_schedule(struct fbn_call *call);

/* store_policy.c: how y is stored, and whether the sums prefetch. bytes: of all arrays of the call. */
enum fbn_store_policy fbn_store_policy(const struct fbn_call *call, int64_t bytes, int threads);
int fbn_prefetches(const struct fbn_call *call, int threads);

/* scratch.c: gives every array of the scratch memory that is NULL a place, and calls `run`. */
fastbn_status fbn_with_scratch(struct fbn_call *call, void (*run)(struct fbn_call *call));
/* The copy of a call without sums in which a thread makes the parameters of the map for itself, in so many bytes. What is
 * only read is shared. */
size_t fbn_own_bytes(const struct fbn_call *call);
struct fbn_call fbn_own_call(const struct fbn_call *call, char *base);

#endif
