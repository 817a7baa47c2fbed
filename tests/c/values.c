/* Values that must come out exactly: constant features, subnormals, features beside a broken one, the environment. */
#include <fenv.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "plan.h"

/* A constant feature gives beta to the last bit, whatever its size and however many entries there are. */
static int constant_features(int64_t n, int64_t s)
{
    static const float constants[6] = {14.62f, 1e7f, 3.3e10f, -0.1f, 1e-20f, 0x1p100f};
    enum { C = 6 };
    float *x = allocate((size_t)(n * C * s) * sizeof(float)), *y = allocate((size_t)(n * C * s) * sizeof(float));
    float gamma[C] = {1, -2, 0.5f, 3, 1, 1}, beta[C] = {0, 1, -0.3f, 7, 1e-8f, 5};
    double mean[C], var[C], rstd[C];
    fastbn_shape shape = {n, C, s, FASTBN_FLOAT32};
    fastbn_params params = {.gamma = gamma, .beta = beta, .dtype = FASTBN_FLOAT32};
    int failures = 0;
    for (int64_t i = 0; i < n * C * s; i++)
        x[i] = constants[i / s % C];
    fastbn_training(&shape, (fastbn_input){x, C * s, s}, &params, harness_eps, (fastbn_output){y, C * s, s}, mean, var,
                    rstd, 2);
    for (int64_t i = 0; i < n * C * s; i++)
        if (y[i] != beta[i / s % C] || mean[i / s % C] != constants[i / s % C] || var[i / s % C] != 0) {
            int64_t f = i / s % C;
            failures += failure("constant feature %g of (%lld, %d, %lld): mean %.17g var %g y %.9g, expected y %.9g",
                                constants[f], (long long)n, C, (long long)s, mean[f], var[f], y[i], beta[f]);
            break;
        }
    free(x);
    free(y);
    return failures;
}

/* The worst luck: every entry that the pivot is taken from lies far from all the others, more and more so from one
 * feature to the next. The statistics are as good as ever. */
static int misled_pivots(int64_t n, int64_t c, int64_t s)
{
    int64_t entry[FBN_PIVOT_SAMPLES];
    struct fbn_plan plan = fbn_plan_sums(n, c, s, 1);
    int failures = 0, samples = fbn_plan_samples(&plan, entry);
    problem p;
    fill_problem(&p, n, c, s, FASTBN_FLOAT32, ORDINARY);
    for (int64_t i = 0; i < elements(&p.shape); i++)
        ((float *)p.x)[i] = (float)(i * 40503 % 65536) * 0x1p-16f;
    for (int64_t f = 0; f < c; f++)
        for (int i = 0; i < samples; i++)
            ((float *)p.x)[entry[i] / plan.s * c * s + entry[i] % plan.s + f * s] += 0x1p8f * (float)(1 << 2 * f);
    fill_reference(&p);
    result r = new_result(&p);
    run(&p, &operations[0], &layouts[0], 2, &r);
    failures += !matches_reference(&p, &operations[0], &r);
    free_result(&r);
    free_problem(&p);
    return failures;
}

/* rstd is exactly 1: every value passes unchanged, subnormals included. */
static int subnormals_survive(int64_t n, int64_t c, int64_t s)
{
    int failures = 0;
    int64_t size = n * c * s;
    float *x = allocate((size_t)size * sizeof(float)), *y = allocate((size_t)size * sizeof(float));
    float *mean = allocate((size_t)c * sizeof(float)), *var = allocate((size_t)c * sizeof(float));
    fastbn_shape shape = {n, c, s, FASTBN_FLOAT32};
    fastbn_params params = {.dtype = FASTBN_FLOAT32};
    for (int64_t f = 0; f < c; f++)
        mean[f] = 0, var[f] = 0.75f;
    for (int64_t i = 0; i < size; i++)
        x[i] = (float)(i + 1) * 0x1p-149f;
    fastbn_inference(&shape, (fastbn_input){x, c * s, s}, mean, var, &params, 0.25, (fastbn_output){y, c * s, s}, 2);
    if (memcmp(x, y, (size_t)size * sizeof(float)) != 0)
        failures += failure("subnormals changed in (%lld, %lld, %lld)", (long long)n, (long long)c, (long long)s);
    free(x);
    free(y);
    free(mean);
    free(var);
    return failures;
}

/* Spoiling one entry leaves the bits of every other feature as they were. */
static int broken_feature_stays_alone(int64_t n, int64_t c, int64_t s, float spoiler)
{
    const operation *training = NULL;
    for (int o = 0; o < operation_count; o++)
        if (strcmp(operations[o].name, "training") == 0)
            training = &operations[o];
    problem p;
    fill_problem(&p, n, c, s, FASTBN_FLOAT32, ORDINARY);
    result whole = new_result(&p), spoilt = new_result(&p);
    int failures = 0;
    int64_t broken = c / 2;
    run(&p, training, &layouts[0], 1, &whole);
    ((float *)p.x)[broken * s] = spoiler;
    run(&p, training, &layouts[0], 1, &spoilt);
    for (int64_t i = 0; i < elements(&p.shape) && !failures; i++) {
        float was = ((float *)whole.y)[i], is = ((float *)spoilt.y)[i];
        int wrong = i / s % c == broken ? is == is : memcmp(&was, &is, sizeof is) != 0;
        if (wrong)
            failures += failure("%g in feature %lld of (%lld, %lld, %lld): y[%lld] is %g, was %g", spoiler,
                                (long long)broken, (long long)n, (long long)c, (long long)s, (long long)i, is, was);
    }
    free_result(&whole);
    free_result(&spoilt);
    free_problem(&p);
    return failures;
}

/* The control register without the flags of exceptions that have happened: rounding, traps, flushing of subnormals. */
static unsigned long control_word(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr() & ~0x3FUL;
#elif defined(__aarch64__)
    unsigned long word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
#else
    return (unsigned long)fegetround();
#endif
}

static int environment_untouched(void)
{
    problem p;
    fill_problem(&p, 50, 20, 1, FASTBN_FLOAT32, ORDINARY);
    result r = new_result(&p);
    int failures = 0;
    unsigned long before = control_word();
    for (int o = 0; o < operation_count; o++)
        run(&p, &operations[o], &layouts[0], 2, &r);
    if (control_word() != before)
        failures += failure("the floating-point environment was %lx and is %lx", before, control_word());
    free_result(&r);
    free_problem(&p);
    return failures;
}

int check_values(void)
{
    static const int64_t places[][3] = {{40, 6, 1}, {40, 23, 1}, {300, 6, 1}, {3, 6, 5}, {4, 6, 700}, {2, 6, 3000}};
    int failures = environment_untouched() + misled_pivots(8000, 5, 1) + misled_pivots(4, 5, 2000);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int64_t n = places[i][0], c = places[i][1], s = places[i][2];
        failures += constant_features(n, s) + subnormals_survive(n, c, s);
        failures += broken_feature_stays_alone(n, c, s, NAN) + broken_feature_stays_alone(n, c, s, INFINITY);
    }
    return failures;
}
