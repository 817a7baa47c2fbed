/* More than 2^31 entries, without the memory for them: inputs that are pages of zeros nobody wrote to, but for single
 * entries at both ends, and arrays whose outer entries all lie at one place (stride_n == 0). */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#endif
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"

enum { MANY = 1 << 21 };

static int wrong(const char *what, double got, double expected)
{
    if (fabs(got - expected) <= 1e-6 * fabs(expected))
        return 0;
    printf("large: %s is %.17g, expected %.17g\n", what, got, expected);
    return 1;
}

/* The first and the last feature hold one entry that is not 0, at the first and at the last place. */
static int check_far_ends(const fastbn_shape *shape, float *x)
{
    const double entries = (double)shape->n * (double)shape->s, mean = 1 / entries;
    const fastbn_input in = {x, shape->c * shape->s, shape->s};
    double means[64], m2[64];
    int64_t last = shape->n * shape->c * shape->s - 1;
    x[0] = 1;
    x[last] = 1;
    fastbn_status status = fastbn_moments(shape, in, means, m2, 0);
    int failures = status != FASTBN_OK;
    for (int f = 0; f < (int)shape->c; f++) {
        int end = f == 0 || f == shape->c - 1;
        failures += wrong("mean at far ends", means[f], end ? mean : 0);
        failures += wrong("m2 at far ends", m2[f], end ? 1 - mean : 0);
    }
    x[0] = 0;
    x[last] = 0;
    return failures;
}

static int check_far(void)
{
#if defined(__linux__)
    const fastbn_shape shapes[] = {{MANY + 1, 2, 512, FASTBN_FLOAT32}, {(int64_t)MANY * 16 + 1, 64, 1, FASTBN_FLOAT32}};
    const size_t bytes = ((size_t)MANY + 1) * 1024 * sizeof(float);
    float *x = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (x == MAP_FAILED) {
        printf("large: no address space for 2^31 entries, left out\n");
        return 0;
    }
    madvise(x, bytes, MADV_HUGEPAGE);
    int failures = check_far_ends(&shapes[0], x) + check_far_ends(&shapes[1], x);
    munmap(x, bytes);
    return failures;
#else
    return 0;
#endif
}

/* n copies of one outer entry have its statistics, and each the same result. */
static int check_repeated(int64_t n, int64_t c, int64_t s)
{
    static float x[2048], y[2048], once[2048], gamma[64], beta[64];
    static double mean[64], var[64], rstd[64], mean_once[64], var_once[64], rstd_once[64];
    const fastbn_shape many = {n, c, s, FASTBN_FLOAT32}, one = {1, c, s, FASTBN_FLOAT32};
    const fastbn_params params = {.gamma = gamma, .beta = beta, .dtype = FASTBN_FLOAT32};
    int64_t all = c * s;
    int failures = 0;
    for (int64_t i = 0; i < all; i++)
        x[i] = (float)((i * 37 + i / 5) % 101) / 8;
    for (int64_t f = 0; f < c; f++)
        gamma[f] = (float)(f % 3 + 1), beta[f] = (float)f;
    fastbn_status status = fastbn_training(&many, (fastbn_input){x, 0, s}, &params, harness_eps,
                                           (fastbn_output){y, 0, s}, mean, var, rstd, 1);
    status = status != FASTBN_OK ? status
                                 : fastbn_training(&one, (fastbn_input){x, all, s}, &params, harness_eps,
                                                   (fastbn_output){once, all, s}, mean_once, var_once, rstd_once, 1);
    failures += status != FASTBN_OK;
    for (int64_t f = 0; f < c; f++) {
        failures += wrong("mean of copies", mean[f], mean_once[f]);
        failures += wrong("var of copies", var[f], var_once[f]);
    }
    for (int64_t i = 0; s > 1 && i < all; i++)
        failures += fabs((double)y[i] - once[i]) > 1e-5;
    return failures;
}

int check_large(void)
{
    int failures = check_far() + check_repeated(MANY + 1, 2, 512) + check_repeated(MANY + 1, 40, 26);
    printf("%d failures\n", failures);
    return failures != 0;
}
