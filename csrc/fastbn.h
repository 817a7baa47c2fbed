/* fastbn.h - batch normalization on the CPU: the public C interface.
 *
 * Every array is seen as (n, c, s): n outer entries, c features, s inner entries. The s inner entries of one
 * (outer, feature) pair are adjacent in memory; the strides of n and c are free and count elements.
 *   s == 1    "rows": a table (N, C) or a channels-last tensor. The features of a row are adjacent: stride_c == 1.
 *   s  > 1    "planes": a channels-first tensor, (N, C, H*W).
 * The statistics of a feature run over its n * s entries.
 *
 * With mean, var (biased: divided by n * s) and rstd = 1 / sqrt(var + eps):
 *   forward    y  = (x - mean) * rstd * gamma + beta
 *   backward   dbeta = sum(dy),  dgamma = rstd * sum(dy * (x - mean)),
 *              dx = gamma * rstd * (dy - dbeta / N - (x - mean) * rstd * dgamma / N),  N = n * s
 *   frozen     (constant statistics)  dx = gamma * rstd * dy
 * Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
 * Shift", 2015 (arXiv:1502.03167).
 *
 * The numeric contract
 * 1. Same bits for any number of threads, any instruction set, any run: equal bytes for every value that is not
 *    NaN, equal places for NaN. The work is cut by shape alone; partial sums are stored by their place and added in
 *    that order; sums across lanes use 16 float or 8 double lanes and a halving tree on every machine; the
 *    kernels use + - * / sqrt, compare, select and conversions (to half types rounded to nearest even; a NaN stays
 *    one); a fused multiply-add only as a * 1 - b, which is a - b.
 *    Bits may depend on (n, c, s), and on whether a table is packed where that matters (fastbn_wants_packed).
 * 2. Accuracy does not depend on the mean. Sums are taken of x - p and (x - p)^2, where the pivot p is the mean of up
 *    to 16 entries of the feature, spread over it: up to 16 at a time as a float32 tree, these in double. All
 *    partial sums of a feature are about one pivot, so they simply add. A feature for which p turns out to be far from
 *    the mean (more than 1.4 standard deviations), or whose squares overflow or vanish, is computed again in double
 *    about its mean.
 *    Fewer than 64 entries of a feature are summed in double throughout.
 *    Mean: within 1 float32 ulp of max(|mean|, std) for fewer than 64 entries. For more the error is mostly below 1 ulp (among
 *    the features of a million random calls, two had 1.1 and 1.2), and 2.4 at most where the roundings of x - p are all
 *    alike, as in a pattern of a few values that repeats. Variance: relative error <= 1e-6. For mean / std up to 1e6.
 *    Where squares of float64 entries overflow, var is Inf, but y and rstd are what they should be.
 * 3. The mean is applied in two parts, hi = float(mean) and lo = mean - hi: y = (x - hi) * a + (beta - lo * a). A
 *    constant feature gives exactly beta.
 * 4. NaN and Inf stay in their feature. Subnormals are kept. The floating-point environment is never written.
 *
 * Memory beyond the caller's arrays, gone when a call returns: some 130 bytes a feature, without sums (inference) some 75
 * and as many for each thread; for planes 64 bytes for each chunk of a feature (a chunk has at least 16384 of its
 * entries, a feature at most 64 chunks, or one); for tables up to five elements a column and 16 bytes for each column and
 * chunk, at most 2 MiB or those of one chunk; with activations, residuals or weights six elements a column more, and
 * 32 KiB of each thread's stack. A table has as many columns as features, or folded up to some 500, or n outer entries
 * of c * s columns where s < 64.
 *
 * Every function checks its arguments first, returns a status, never prints, keeps no memory, and may be called from
 * several threads at once, also inside a parallel region of the caller (then it runs on the calling thread).
 * num_threads <= 0 means "as many as the settings allow"; a positive number only lowers that.
 * These are not checked: the sizes of arrays, eps > 0, and overlap. An output shares memory with an input only where its function
 * says that it may be that array, and then it is that array, in the same layout.
 *
 * Versions: FASTBN_ABI_VERSION is that of this header, fastbn_abi_version() that of the library; they have to be equal.
 * The number changes with the members of a struct, a constant or the arguments of a function, not with new functions.
 * Zero a struct before you fill it in: 0 in a member that you do not name, now or in a later version, means nothing.
 * fastbn_version() is the release, "0.2.0"; "unversioned" where the build did not tell. Names begin with fastbn_ or
 * FASTBN_; fbn_ is the library's own.
 */
#ifndef FASTBN_H
#define FASTBN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTBN_ABI_VERSION 3

typedef enum fastbn_status {
    FASTBN_OK = 0,
    FASTBN_ERROR_NULL = 1,            /* a required pointer is NULL */
    FASTBN_ERROR_SHAPE = 2,           /* a negative size, or more than 2^62 elements */
    FASTBN_ERROR_STRIDE = 3,          /* s == 1 and the features of a row are not adjacent */
    FASTBN_ERROR_DTYPE = 4,           /* not a member of fastbn_dtype, or parameters of a half type */
    FASTBN_ERROR_MEMORY = 5,          /* scratch memory could not be allocated */
    FASTBN_ERROR_ISA_UNKNOWN = 6,     /* the name (or FASTBN_ISA) is no instruction set of this library */
    FASTBN_ERROR_ISA_UNSUPPORTED = 7, /* known, but not built or not offered by this processor */
    FASTBN_ERROR_ACTIVATION = 8,      /* not a member of fastbn_activation, or not invertible where it must be */
    FASTBN_ERROR_FORKED = 9           /* threads were used before the fork: those of the pool are not in this process */
} fastbn_status;

/* float16 is IEEE binary16, bfloat16 the upper half of a float32. Both are for data only: they are computed as float32, and
 * results are rounded to nearest even. Parameters and statistics are float32 or float64. */
typedef enum fastbn_dtype {
    FASTBN_FLOAT32 = 0,
    FASTBN_FLOAT64 = 1,
    FASTBN_FLOAT16 = 2,
    FASTBN_BFLOAT16 = 3
} fastbn_dtype;

/* Ramachandran, Zoph and Le 2017 (silu), Hendrycks and Gimpel 2016 (gelu), Howard et al. 2019 (hardswish), Clevert et
 * al. 2015 (elu). Phi: the normal distribution function; slope, alpha: a parameter, rounded to the type of the data.
 * NaN gives NaN.
 * Errors in ulp of the exact value, subnormals included: values at most 2 in float32 and 4 in float64; derivatives times
 * dy at most 4, or in absolute terms 2^-22 * |dy| (float64: 2^-51 * |dy|). */
typedef enum fastbn_activation {
    FASTBN_IDENTITY = 0,
    FASTBN_RELU,       /* max(z, 0) */
    FASTBN_LEAKY_RELU, /* z where z > 0, else slope * z; of slope 0 relu, at -Inf too */
    FASTBN_RELU6,      /* min(max(z, 0), 6) */
    FASTBN_SIGMOID,    /* 1 / (1 + exp(-z)) */
    FASTBN_TANH,
    FASTBN_SILU,       /* z * sigmoid(z) */
    FASTBN_GELU,       /* z * Phi(z) */
    FASTBN_GELU_TANH,  /* z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z^3))) */
    FASTBN_HARDSWISH,  /* z * relu6(z + 3) / 6 */
    FASTBN_ELU         /* z where z > 0, else alpha * (exp(z) - 1) */
} fastbn_activation;

/* The shape and type of the data. */
typedef struct fastbn_shape {
    int64_t n, c, s;
    fastbn_dtype dtype;
} fastbn_shape;

/* An array of that shape. Strides count elements; data is aligned to the element, not more. */
typedef struct fastbn_input {
    const void *data;
    int64_t stride_n, stride_c;
} fastbn_input;

typedef struct fastbn_output {
    void *data;
    int64_t stride_n, stride_c;
} fastbn_output;

/* How much the entries count in the statistics. An entry of weight 0 leaves no trace in them, whatever it is. Where nothing
 * counts (a sum of 0), mean is 0, var and rstd are NaN, bn(x) is beta where x is finite, and dgamma and dx are 0.
 * The unbiased variance of W = sum(w) and S = sum(w * w) is var * W^2 / (W^2 - S), a var_scale of fastbn_update_running. */
typedef struct fastbn_weights {
    const void *data; /* n * s entries in the order (n, s), at least 0, of the type of the arithmetic */
    double total;     /* their sum */
    /* Not NULL: NaN entries of x are missing, and these are, by feature, the total weights of those that count. In the
     * backward pass dy is not looked at where one is missing, and dx and dresidual are 0 there. */
    const double *counts;
    double squares;   /* the sum of their squares; 0: unknown. Where few entries tell as much, total^2 / squares, the sums
                       * are taken in double, as of few entries without weights */
} fastbn_weights;

/* Few calls have any of these. An array whose data is NULL is not there. */
typedef struct fastbn_extra {
    fastbn_input residual;        /* y = act(bn(x) + residual) */
    fastbn_output dresidual;      /* backward: its gradient, dy * act'(z) */
    /* backward: y as the forward call wrote it, in place of x's share in act', for relu and leaky_relu */
    fastbn_input written;
    int inverts;                  /* backward: x holds y, written in place; leaky_relu of a slope above 0, or identity */
    const fastbn_weights *weights; /* NULL: every entry counts as one */
} fastbn_extra;

/* gamma and beta, c entries each of type dtype, float32 or float64; NULL stands for ones and for zeros. y = act(bn(x)). */
typedef struct fastbn_params {
    const void *gamma, *beta;
    fastbn_dtype dtype;
    fastbn_activation activation;
    double slope;              /* of leaky_relu for z < 0; alpha of elu */
    const fastbn_extra *extra; /* NULL: nothing */
} fastbn_params;

/* Count is n * s. mean: c doubles; m2: c doubles, the sum of squared deviations from the mean (var = m2 / count). An
 * empty feature has mean 0 and m2 0. */
fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2, int num_threads);

/* The same with weights (NULL: every entry counts as one): mean = sum(w * x) / total, m2 = sum(w * (x - mean)^2), var = m2 / total. */
fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                      double *mean, double *m2, int num_threads);

/* y = (x - mean) / sqrt(var + eps) * gamma + beta; mean and var have the type of the parameters. y may be x. */
fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                               const fastbn_params *params, double eps, fastbn_output y, int num_threads);

/* Normalizes with the statistics of x itself and returns them: mean, var (biased), rstd, c doubles each. y may be x.
 * With n * s == 0 nothing is written to y; mean is 0, var and rstd are NaN. */
fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                              fastbn_output y, double *mean, double *var, double *rstd, int num_threads);

/* Gradients, from the mean and rstd of the forward call. frozen != 0: those were constants (running statistics).
 * dx.data, dgamma, dbeta: NULL where not wanted, and then not computed; x.data may be NULL when frozen, dgamma is NULL,
 * and no activation needs it. dgamma and dbeta have the type params->dtype. params->beta is used where there is an
 * activation. dx may be dy.
 * With z = bn(x) + residual, dz = dy * act'(z) takes the place of dy. With weights w of the sum W (not frozen)
 *   dx = gamma * rstd * (dz - w / W * dbeta - w / W * (x - mean) * rstd * dgamma). */
fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, const fastbn_params *params,
                              const double *mean, const double *rstd, int frozen, fastbn_output dx, void *dgamma,
                              void *dbeta, int num_threads);

/* Gradients of the backward: of a loss whose gradients with respect to dx, dgamma and dbeta are ddx, ddgamma and ddbeta
 * (NULL: zero), with respect to dy, x and gamma. With h = (x - mean) * rstd, b = rstd * (ddgamma - gamma * rstd *
 * mean(ddx * h)), c = -gamma * rstd^2 * mean(dy * h), and sums over the N = n * s entries of a feature:
 *   ddy    = gamma * rstd * (ddx - mean(ddx)) + b / rstd * h + ddbeta
 *   dx     = b * (dy - mean(dy)) + c * (ddx - mean(ddx))
 *            - (b * mean(dy * h) + c * mean(ddx * h) + gamma * rstd^2 * k) * h
 *   dgamma = N * rstd * k,  k = mean(ddx * (dy - mean(dy))) - mean(ddx * h) * mean(dy * h)
 *   frozen   ddy = gamma * rstd * ddx + ddgamma * h + ddbeta,  dx = ddgamma * rstd * dy,  dgamma = rstd * sum(ddx * dy)
 * ddy.data, dx.data, dgamma: NULL where not wanted. They overlap no input. x.data may be NULL where ddgamma is and,
 * unless frozen, ddx.data is. ddgamma, ddbeta and dgamma have the type params->dtype. Takes some 250 bytes a feature
 * more, and for tables up to 14 elements a column. It takes float32 and float64 data without an activation. */
fastbn_status fastbn_double_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, fastbn_input ddx,
                                     const void *ddgamma, const void *ddbeta, const fastbn_params *params,
                                     const double *mean, const double *rstd, int frozen, fastbn_output ddy,
                                     fastbn_output dx, void *dgamma, int num_threads);

/* The exponential moving average, c entries: running = momentum * running + (1 - momentum) * batch, where the batch
 * variance is first multiplied by var_scale (N / (N - ddof)). running_mean, running_var: of type dtype. */
fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum, double var_scale,
                                    void *running_mean, void *running_var, fastbn_dtype dtype);

/* 1 where an array of this shape is processed as one packed table (stride_c == s, stride_n == c * s); other strides
 * give the right result too, more slowly and perhaps with other last bits. */
int fastbn_wants_packed(const fastbn_shape *shape);

const char *fastbn_version(void);
int fastbn_abi_version(void);
const char *fastbn_status_text(fastbn_status status);

/* The names of the instruction sets, best first: "avx512", "avx2", "neon", "generic"; index 0, 1, ... until NULL. */
const char *fastbn_isa_name(int index);
int fastbn_isa_built(const char *name);
int fastbn_isa_supported(const char *name);
/* The one in use; chosen at first use: FASTBN_ISA, else the best. *name is NULL after an error. */
fastbn_status fastbn_isa_active(const char **name);
/* NULL goes back to the choice of first use. */
fastbn_status fastbn_set_isa(const char *name);

/* The threads that a call may use: the smallest of the runtime's maximum at the time of the call, fastbn_set_num_threads
 * (0: no limit; FASTBN_NUM_THREADS is its first value) and the argument of the call. Where OMP_NUM_THREADS does not set
 * the maximum, it is at most the number of processors that the calling thread may run on, and in a container at most its
 * quota of processor time in whole processors, rounded up. It is 1 without OpenMP, inside a parallel region of the caller,
 * and after a fork until fastbn_rearm_threads succeeds. A call takes fewer where it is short,
 * where other calls of the process are under way, where the runtime's threads have gone to sleep and waking them costs
 * more than they gain, while the process backs off (see below), and where the system has no more threads to give. */
int fastbn_get_num_threads(void);
void fastbn_set_num_threads(int num_threads);
/* In a forked child, where threads are off since the OpenMP pool may not have survived: switch them on again.
 * FASTBN_ERROR_FORKED, and they stay off, where this library had used threads before the fork: the next call would wait
 * for them for ever. It cannot know of a pool that another library started. */
fastbn_status fastbn_rearm_threads(void);
/* Backing off: where threads wait for each other longer than they gain, as on a machine that is busy with other
 * programs, the calls of this process take half as many threads for a while of at most a second, then more again.
 * 0 switches it off; FASTBN_BACKOFF=0 does so from the start. */
void fastbn_set_backoff(int on);
int fastbn_get_backoff(void);
/* Tells how often this process has backed off. */
int64_t fastbn_backoffs(void);
/* Names the runtime by the compiler that built it: "libgomp", "libomp", ...; NULL without OpenMP. */
const char *fastbn_openmp(void);

/* Gives the bytes of the data cache of a level (1, 2, 3), as used for planning; 0 where unknown. */
int64_t fastbn_cache_bytes(int level);

#ifdef __cplusplus
}
#endif
#endif
