/* What the parts of the C core's test program share.
 *
 * The program needs nothing but fastbn.h and a C11 compiler, so that it can be cross-compiled and run under an
 * emulator. All inputs come from integers: no libm, no parsing of decimal numbers, nothing that could differ from
 * one machine to another. A problem is one shape with its data; an operation is one entry point with one choice of
 * arguments; a layout is where the arrays lie. Every combination gives one hash.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

#include "fastbn.h"

#if defined(__x86_64__) || defined(__i386__)
typedef long double real; /* 64 bits of significand: errors of the reference vanish beside the tolerances */
#else
typedef double real; /* elsewhere long double may be done in software, very slowly under an emulator */
#endif

enum { GAMMA = 1, BETA = 2, MIXED = 4, DX = 8, DGAMMA = 16, DBETA = 32, FROZEN = 64, NO_X = 128 };
/* Through a leaky relu; with a residual, which is dy; with the weights 0, 1, 2, 0, ... Compared with themselves only: the
 * values are the Python tests' business. */
enum { LEAKY = 256, RESIDUAL = 512, WEIGHTED = 1024, FUSED = LEAKY | RESIDUAL | WEIGHTED };
enum entry_point { MOMENTS, INFERENCE, TRAINING, BACKWARD, DOUBLE_BACKWARD };

typedef struct operation {
    const char *name;
    enum entry_point entry;
    int flags; /* MIXED: parameters of the other float type than the data; with half types of double */
} operation;

typedef struct layout {
    const char *name;
    int offset;   /* entries between a 64-byte boundary and the first one */
    int pad_n;    /* unused entries after each outer entry */
    int pad_c;    /* unused entries after each plane; rows have none */
    int swapped;  /* planes only: feature-major, the outer index inside */
    int in_place; /* y is x, dx is dy */
} layout;

/* An array in some layout. Its allocation ends with its last entry, so that a sanitizer sees what runs over. */
typedef struct array {
    unsigned char *base, *data;
    size_t bytes;
    int64_t stride_n, stride_c;
} array;

/* A shape and its data, dense, in the order (n, c, s). kind chooses ordinary or extreme values. */
enum kind { ORDINARY, EXTREME };
typedef struct problem {
    fastbn_shape shape;
    enum kind kind;
    int64_t count; /* n * s */
    void *x, *dy;
    void *gamma[2], *beta[2], *mean[2], *var[2]; /* by type: [0] float, [1] double */
    double *saved_mean, *saved_rstd;             /* of x, from a plain loop in double */
    real *ref_mean, *ref_m2;                     /* of x */
    real *ref_dbeta, *ref_dgamma, *abs_dbeta, *abs_dgamma; /* gradients, and sums of the magnitudes of their terms */
} problem;

/* What a call gave: y (or dx) dense, three statistics or two gradients of each feature. */
typedef struct result {
    fastbn_status status;
    void *y;
    double *stat[3];
    void *grad[2]; /* dgamma, dbeta */
} result;

extern const double harness_eps;

/* halves.c: without the core's conversions */
int is_half(fastbn_dtype dtype);
double half_value(fastbn_dtype dtype, uint16_t bits);
uint16_t nearest_half(fastbn_dtype dtype, double value);

/* data.c */
size_t type_size(fastbn_dtype dtype);
int64_t elements(const fastbn_shape *shape);
void *allocate(size_t bytes);
double value_at(const void *data, fastbn_dtype dtype, int64_t index);
void fill_problem(problem *p, int64_t n, int64_t c, int64_t s, fastbn_dtype dtype, enum kind kind);
void free_problem(problem *p);
array make_array(const fastbn_shape *shape, const layout *where, const void *dense);
void gather(const array *a, const fastbn_shape *shape, void *dense);
int holds(const array *a, const fastbn_shape *shape, const void *dense);
int padding_untouched(array *a, const fastbn_shape *shape);

/* operations.c */
extern const operation operations[];
extern const int operation_count;
extern const layout layouts[];
extern const int layout_count;
int layout_applies(const layout *where, const operation *op, const fastbn_shape *shape);
fastbn_dtype param_type(const operation *op, const problem *p);
result new_result(const problem *p);
void free_result(result *r);
int run(const problem *p, const operation *op, const layout *where, int threads, result *out);
uint64_t hash_result(const problem *p, const operation *op, const result *r);

/* reference.c */
void fill_saved(problem *p);
void fill_reference(problem *p); /* needed by matches_reference alone; slow */
int matches_reference(const problem *p, const operation *op, const result *r);

/* caches.c */
void use_tiny_caches(int yes);

/* The other groups of checks: each returns the number of failures and says what failed. */
int check_arguments(void);
int check_values(void);
int check_halves(void);
int check_concurrent(void);
int check_double_backward(void);

int failure(const char *format, ...);

#endif
