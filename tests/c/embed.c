/* embed.c - fastbn in a program without Python: training, backward and inference of a table, checked by plain C.
 * A program of its own, in C11 and in C++20:
 *
 *     make -C csrc
 *     cc -std=c11 -Icsrc tests/c/embed.c csrc/libfastbn.a -fopenmp -lm -o embed && ./embed
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastbn.h"

#define N 20000
#define C 6
#define TABLES 8

static const double eps = 1e-5;
static const float scale[C] = {1.0f, -0.5f, 2.0f, 0.0f, 1.5f, 0.25f}, shift[C] = {0.0f, 1.0f, -1.0f, 3.0f, 0.5f, -2.0f};

typedef struct table {
    float x[N * C], dy[N * C]; /* given */
    float y[N * C], dx[N * C], inferred[N * C], dgamma[C], dbeta[C], running_mean[C], running_var[C];
    double mean[C], var[C], rstd[C];
} table;

/* Repeatable noise about `mean`, of 16 random bits an entry. */
static void fill(float *a, unsigned seed, float mean)
{
    for (int i = 0; i < N * C; i++) {
        seed = seed * 1664525u + 1013904223u;
        a[i] = mean + (float)(seed >> 16) / 32768.0f;
    }
}

/* A step of training: y, the statistics and the gradients; then inference with the moving averages. */
static fastbn_status run(table *t, int num_threads)
{
    const fastbn_shape shape = {.n = N, .c = C, .s = 1, .dtype = FASTBN_FLOAT32};
    const fastbn_params params = {.gamma = scale, .beta = shift, .dtype = FASTBN_FLOAT32};
    const fastbn_input x = {t->x, C, 1}, dy = {t->dy, C, 1};
    const fastbn_output y = {t->y, C, 1}, dx = {t->dx, C, 1}, inferred = {t->inferred, C, 1};
    fastbn_status status = fastbn_training(&shape, x, &params, eps, y, t->mean, t->var, t->rstd, num_threads);
    if (status == FASTBN_OK)
        status = fastbn_backward(&shape, x, dy, &params, t->mean, t->rstd, 0, dx, t->dgamma, t->dbeta, num_threads);
    if (status == FASTBN_OK)
        status = fastbn_update_running(C, t->mean, t->var, 0.9, (double)N / (N - 1), t->running_mean, t->running_var,
                                       FASTBN_FLOAT32);
    if (status == FASTBN_OK)
        status = fastbn_inference(&shape, x, t->running_mean, t->running_var, &params, eps, inferred, num_threads);
    return status;
}

/* ---- the same in plain C, in double ---- */

static int differ(const char *what, int feature, double got, double expected, double unit)
{
    if (fabs(got - expected) <= 2e-6 * unit)
        return 0;
    printf("%s of feature %d: %.9g, expected %.9g\n", what, feature, got, expected);
    return 1;
}

static int check_feature(const table *t, int f)
{
    double mean = 0, var = 0, dbeta = 0, dgamma = 0;
    for (int i = f; i < N * C; i += C)
        mean += t->x[i] / (double)N;
    for (int i = f; i < N * C; i += C)
        var += (t->x[i] - mean) * (t->x[i] - mean) / N;
    const double rstd = 1 / sqrt(var + eps), running_mean = 0.1 * mean, running_var = 0.9 + 0.1 * var * N / (N - 1);
    for (int i = f; i < N * C; i += C) {
        dbeta += t->dy[i];
        dgamma += t->dy[i] * (t->x[i] - mean) * rstd;
    }
    int wrong = differ("mean", f, t->mean[f], mean, fabs(mean) + 1) + differ("var", f, t->var[f], var, var) +
                differ("dbeta", f, t->dbeta[f], dbeta, N) + differ("dgamma", f, t->dgamma[f], dgamma, N);
    for (int i = f; i < N * C && wrong < 5; i += C) {
        double h = (t->x[i] - mean) * rstd, dx = scale[f] * rstd * (t->dy[i] - dbeta / N - h * dgamma / N);
        double z = (t->x[i] - running_mean) / sqrt(running_var + eps);
        wrong += differ("y", f, t->y[i], h * scale[f] + shift[f], 10) + differ("dx", f, t->dx[i], dx, 10) +
                 differ("inference", f, t->inferred[i], z * scale[f] + shift[f], 10);
    }
    return wrong;
}

static int check(const table *t)
{
    int wrong = 0;
    for (int f = 0; f < C; f++)
        wrong += check_feature(t, f);
    return wrong;
}

/* ---- */

static table *new_table(int number)
{
    table *t = (table *)calloc(1, sizeof *t);
    if (!t)
        exit(2);
    fill(t->x, 7u + (unsigned)number, (float)number);
    fill(t->dy, 1000u + (unsigned)number, -1.0f);
    for (int f = 0; f < C; f++)
        t->running_var[f] = 1.0f;
    return t;
}

static int failed(const char *where, fastbn_status status)
{
    if (status != FASTBN_OK)
        printf("%s: %s\n", where, fastbn_status_text(status));
    return status != FASTBN_OK;
}

/* The threads of the library, then ours, each with a table of its own: the same bits. */
static int both_ways(int number)
{
    table *t = new_table(number), *own = new_table(number);
    int wrong = failed("on one thread", run(t, 1)) + check(t);
    wrong += failed("with the settings' threads", run(own, 0)) || memcmp(t, own, sizeof *t) != 0;
    free(t);
    free(own);
    return wrong;
}

static int many_tables(void)
{
    int wrong = 0;
    for (int k = 0; k < TABLES; k++)
        wrong += both_ways(k);
#pragma omp parallel for reduction(+ : wrong)
    for (int k = 0; k < TABLES; k++)
        wrong += both_ways(k);
    return wrong;
}

/* What is wrong is told by a status, before anything is written. */
static int refuses_nonsense(void)
{
    const fastbn_shape shape = {.n = -1, .c = C, .s = 1, .dtype = FASTBN_FLOAT32};
    const fastbn_input x = {scale, C, 1};
    double mean[C], m2[C];
    return fastbn_moments(&shape, x, mean, m2, 1) != FASTBN_ERROR_SHAPE;
}

int main(void)
{
    if (fastbn_abi_version() != FASTBN_ABI_VERSION) {
        printf("the header is of another version than the library, %s\n", fastbn_version());
        return 2;
    }
    const char *isa;
    int wrong = failed("instruction set", fastbn_isa_active(&isa)) + many_tables() + refuses_nonsense();
    printf("fastbn %s, %s, %d threads: %s\n", fastbn_version(), isa, fastbn_get_num_threads(), wrong ? "WRONG" : "ok");
    return wrong != 0;
}
