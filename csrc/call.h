/* call.h - one call in progress: its arrays, its plans, its scratch memory, and the steps that a schedule puts in
 * order. */
#ifndef FBN_CALL_H
#define FBN_CALL_H

#include <stddef.h>
#include <stdint.h>

#include "fastbn.h"
#include "kernels.h"
#include "plan.h"

struct fbn_array {
    char *data; /* NULL: absent */
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

static inline int fbn_is_empty(const fastbn_shape *shape) { return shape->n == 0 || shape->c == 0 || shape->s == 0; }

struct fbn_call;

/* What differs between the operations. Each step works on the features [first, end). */
struct fbn_operation {
    /* The pivots, by feature. NULL: this operation takes no sums. */
    void (*prepare)(struct fbn_call *call, int64_t first, int64_t end);
    /* From the sums to statistics. Sets bad[] and returns how many features must be computed again in double; after
     * that it is called with again = 1 and looks at the bad ones only. */
    int64_t (*finish)(struct fbn_call *call, int64_t first, int64_t end, int again);
    /* The parameters of the second pass. NULL: there is none. */
    void (*params)(struct fbn_call *call, int64_t first, int64_t end);
};

enum { FBN_MOST_PARAMS = 5 };
enum { FBN_ZERO, FBN_MINUS_ZERO, FBN_ONE, FBN_CONSTANTS };

/* Parameters as the caller has them. NULL: of gamma ones, of beta zeros, of the statistics none to load. */
struct fbn_given {
    const void *mean, *var, *gamma, *beta;
    fastbn_dtype dtype;
};

struct fbn_call {
    const struct fbn_operation *operation;
    const struct fbn_kernels *kernels;
    const struct fbn_typed *typed, *lanes; /* of the type of the data, of the type that is computed in */
    int64_t size;                        /* bytes of an element of the data */
    int64_t lane_size;                   /* of a pivot, and of a parameter of the second pass */
    struct fbn_array x, dy;              /* what the sums are taken of */
    struct fbn_array in, y;              /* of the second pass: x or dy, and y or dx */
    struct fbn_plan sums_plan, out_plan; /* of the first and of the second pass */
    int64_t entries;                     /* of a feature */
    double total;                        /* their weight: as many, where they have none */
    double eps;
    struct fbn_given given;
    int gradient;                        /* the second pass reads x and dy, not just `in` */
    enum fbn_store_policy policy;                    /* how it stores */
    int few;                             /* sums of x are taken in double, see FEW in batchnorm.c */
    int prefetches;                    /* the first pass, of a table that the second-level caches do not hold */
    int64_t head;                        /* of a flat table, see apply.c; else -1 */
    int64_t offset[FBN_PIVOT_SAMPLES];
    int samples;

    /* What kernels do with an activation or a residual, or tiles around them; see take_extra in batchnorm.c. */
    int relu_gradient;                    /* both passes take dy through relu */
    int stores_dz;                        /* before its sums are taken, dz is stored, and takes dy's place */
    struct fbn_array dz;                  /* that, or dy */
    int activates_y;                      /* what the second pass has written is activated where it is */

    /* What goes in tiles, see tiles.c. */
    int tiles_sums, tiles_out;            /* whether a pass does */
    fastbn_activation activation;
    double act_slope;                     /* of leaky_relu, alpha of elu */
    struct fbn_array residual, dresidual;
    struct fbn_array written;             /* y of the forward call, from which act' takes the sign of z */
    int inverts;                          /* x holds that y, and act is inverted */
    const char *weights;                  /* (n, s), in the type of the arithmetic */
    const double *counts;                 /* by feature, in place of the total */
    int omits;                            /* NaN entries of x do not count */

    /* By feature. */
    double *sum_u, *sum_v;                  /* totals of the chunks */
    double *mean, *m2, *var, *rstd;         /* statistics, or those of the forward call */
    double *gamma, *beta;                   /* parameters */
    double *dgamma, *dbeta, *mean_dy, *slope; /* of the gradient */
    unsigned char *bad;
    void *pivot, *par[FBN_MOST_PARAMS];
    void *z[3];                               /* the affine map to z, for backward */
    /* By column, where a plan has more columns than features; else the arrays above. */
    void *pivot_columns, *par_columns[FBN_MOST_PARAMS], *z_columns[3];
    void *constant[FBN_CONSTANTS];            /* in every column, for weights */
    double *partial; /* by chunk */
};

/* sums.c: the first pass. */
void fbn_sum_chunks(struct fbn_call *call, int64_t first, int64_t end, int64_t chunk, int64_t chunk_end, int again);
void fbn_total_sums(struct fbn_call *call, int64_t first, int64_t end);
void fbn_broadcast_pivots(struct fbn_call *call, int64_t first, int64_t end);
/* The totals are the sums of the first chunk, to which the others are added, where each column is a feature. */
void fbn_place_totals(struct fbn_call *call);
void fbn_broadcast_z(struct fbn_call *call, int64_t first, int64_t end);

/* Whether there is a second pass that writes something. */
static inline int fbn_writes(const struct fbn_call *call)
{
    return call->y.data || (call->dresidual.data && !call->stores_dz);
}

/* Whether backward computes z. */
static inline int fbn_needs_z(const struct fbn_call *call)
{
    return call->dy.data && (call->tiles_out || call->stores_dz || call->relu_gradient);
}

/* Of the second pass: a map of two inputs has one more, relu's gradient another one. */
static inline int fbn_params_of(const struct fbn_call *call)
{
    if (call->relu_gradient)
        return 5;
    return call->gradient || (call->residual.data && !call->dy.data && !call->tiles_out) ? 4 : 3;
}

/* map.c: the second pass. A stretch is a row of the table, or a piece of a plane, counted in memory order. */
int64_t fbn_param_columns(const struct fbn_call *call);
void fbn_find_head(struct fbn_call *call);
int64_t fbn_output_run(const struct fbn_call *call);
int64_t fbn_count_runs(const struct fbn_call *call);
void fbn_broadcast_params(struct fbn_call *call, int64_t first, int64_t end);
void fbn_map_features(struct fbn_call *call, int64_t first, int64_t end);
void fbn_map_runs(struct fbn_call *call, int64_t begin, int64_t end);

/* features.c. mean and var: of an inference, in the type of the parameters, else NULL. */
void fbn_take_params(struct fbn_call *call, const void *mean, const void *var, const fastbn_params *params);
void fbn_load_params(struct fbn_call *call, int64_t first, int64_t end);
/* In the type of the parameters; to NULL nothing. */
void fbn_store_param(const struct fbn_call *call, void *to, const double *from);

/* schedule.c: all steps in a good order on a team of threads. */
void fbn_schedule(struct fbn_call *call, int num_threads);

/* scratch.c: gives every array of the job that is NULL a place, and calls `run`. */
fastbn_status fbn_with_scratch(struct fbn_call *call, void (*run)(struct fbn_call *call, void *context), void *context);
/* Of a job without sums, that of a thread which makes the parameters of the second pass for itself, in so many bytes; it
 * shares what is read. */
size_t fbn_own_bytes(const struct fbn_call *call);
struct fbn_call fbn_own_call(const struct fbn_call *call, char *base);

/* operations.c */
extern const struct fbn_operation fbn_operation_moments, fbn_operation_training, fbn_operation_inference;
extern const struct fbn_operation fbn_operation_gradient, fbn_operation_gradient_sums, fbn_operation_frozen, fbn_operation_frozen_dx;

/* features.c: values of features repeated for the columns of a plan. */
int fbn_more_columns(const struct fbn_plan *plan);
/* Writes those of the first `count` columns that belong to the features [first, end). */
void fbn_broadcast(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t count, int64_t first,
                int64_t end);

/* ---- tiles.c: passes with more to them than sums and one map ---- */

/* Runs of adjacent entries, at equal distances: rows of a table, or planes of features side by side. */
struct fbn_runs {
    int64_t n, f, i;        /* of its first entry, from which an array's strides make an address */
    int64_t count, len;
    int64_t next_n, next_c; /* from one run to the next; one of them is 0 */
    int64_t column;         /* of pivots and parameters: the first column, or of planes the first feature */
};

/* The weighted sums of a block: see fbn_sum_planes, fbn_sum_rows. Of planes v is not used. */
void fbn_sum_tiles(struct fbn_call *call, const struct fbn_runs *block, double *u, double *v, int again);

/* dz of a block, into call->dz. */
void fbn_store_dz_tiles(struct fbn_call *call, const struct fbn_runs *block);

/* The second pass over a block. */
void fbn_map_tiles(struct fbn_call *call, const struct fbn_runs *block);

static inline char *fbn_at(struct fbn_array a, int64_t size, int64_t n, int64_t c, int64_t i)
{
    return a.data ? a.data + (n * a.stride_n + c * a.stride_c + i) * size : NULL;
}

#endif
