/* Deterministic data from integers, and arrays in memory.
 *
 * Entry i of a feature is the sum of four 16-bit pieces of a hashed index, centred: close to a normal distribution with
 * a standard deviation of 37837 units. A feature adds an offset of its own and multiplies by a power of two. Up
 * to the one conversion to floating point, everything is exact.
 */
#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define CANARY 0xA5

const double harness_eps = 0x1p-16;

int failure(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("FAIL ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    return 1;
}

size_t type_size(fastbn_dtype dtype)
{
    return is_half(dtype) ? sizeof(uint16_t) : dtype == FASTBN_FLOAT32 ? sizeof(float) : sizeof(double);
}

int64_t elements(const fastbn_shape *shape) { return shape->n * shape->c * shape->s; }

void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1) != 0) {
        fprintf(stderr, "out of memory\n");
        exit(3);
    }
    return memory;
}

double value_at(const void *data, fastbn_dtype dtype, int64_t index)
{
    if (is_half(dtype))
        return half_value(dtype, ((const uint16_t *)data)[index]);
    return dtype == FASTBN_FLOAT32 ? (double)((const float *)data)[index] : ((const double *)data)[index];
}

static void store(void *data, fastbn_dtype dtype, int64_t index, double value)
{
    if (is_half(dtype))
        ((uint16_t *)data)[index] = nearest_half(dtype, value);
    else if (dtype == FASTBN_FLOAT32)
        ((float *)data)[index] = (float)value;
    else
        ((double *)data)[index] = value;
}

static uint64_t mix(uint64_t seed, uint64_t index) /* splitmix64 */
{
    uint64_t z = seed * UINT64_C(0xD1342543DE82EF95) + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* In units of 2^-15: standard deviation 37837 units, about 1.155. Twelve more bits make doubles worth their width. */
static double bell(uint64_t seed, uint64_t index, int64_t offset)
{
    uint64_t z = mix(seed, index);
    int64_t sum = (int64_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48)) - 131070 + offset;
    int64_t more = (int64_t)(mix(seed + 1000003, index) & 0xFFF);
    return (double)(sum * 4096 + more) * 0x1p-27;
}

/* Mean / std of 0, 100, -1e4 and 1e6; and ordinary features of small and large scale. */
static double ordinary_value(int64_t feature, uint64_t index)
{
    static const int64_t offsets[7] = {0, 3783700, 0, -378370000, 12345, INT64_C(37837000000), 0};
    static const double scales[7] = {1, 1, 0x1p-20, 1, 0x1p30, 1, 1};
    return bell((uint64_t)feature, index, offsets[feature % 7]) * scales[feature % 7];
}

/* Features whose squares overflow float, vanish or fade in it, whose products with dy do, that are constant, subnormal,
 * or hold a NaN, an infinity or one outlier. */
enum { EXTREMES = 16 };

static double extreme_value(int64_t feature, uint64_t index)
{
    const double plain = bell((uint64_t)feature, index, 1000);
    switch (feature % EXTREMES) {
    case 0: return plain * 0x1p90;
    case 1: return plain * 0x1p-100;
    case 2: return (double)14.62f;
    case 3: return 1e7;
    case 4: return (double)3.3e10f;
    case 5: return (double)(int64_t)(mix(5, index) & 0x3FFFFF) * 0x1p-149;
    case 6: return index == 3 ? NAN : plain;
    case 7: return index == 4 ? INFINITY : plain;
    case 8: return index == 0 ? 0x1p40 : plain;
    case 9: return index < 32 ? plain + 0x1p14 : plain;
    case 10: return 0;
    case 11: return plain * 0x1p-70;
    case 12: return plain * 0x1p-56;
    case 13: return plain * 0x1p70;
    case 14: return plain * 0x1p-30;
    default: return plain;
    }
}

static double upstream_value(const problem *p, int64_t feature, uint64_t index)
{
    double value = bell((uint64_t)feature + 77, index, feature % 3 == 1 ? 20000 : 0);
    if (p->kind == EXTREME && feature % EXTREMES == 13)
        return value * 0x1p70;
    return value;
}

static void fill_data(problem *p)
{
    const fastbn_shape *sh = &p->shape;
    for (int64_t i = 0; i < sh->n; i++)
        for (int64_t f = 0; f < sh->c; f++)
            for (int64_t k = 0; k < sh->s; k++) {
                uint64_t within = (uint64_t)(i * sh->s + k);
                int64_t at = (i * sh->c + f) * sh->s + k;
                store(p->x, sh->dtype, at, p->kind == ORDINARY ? ordinary_value(f, within) : extreme_value(f, within));
                store(p->dy, sh->dtype, at, upstream_value(p, f, within));
            }
}

/* A spread of gammas with a zero and a negative one among them. The running statistics are near those of the data. */
static void fill_parameters(problem *p)
{
    for (int type = 0; type < 2; type++)
        for (int64_t f = 0; f < p->shape.c; f++) {
            double gamma = f % 11 == 10 ? 0 : 1 + bell(501, (uint64_t)f, 0) / 2;
            store(p->gamma[type], (fastbn_dtype)type, f, gamma);
            store(p->beta[type], (fastbn_dtype)type, f, bell(502, (uint64_t)f, 0));
            double mean = isfinite(p->saved_mean[f]) ? p->saved_mean[f] : 0;
            double std = isfinite(p->saved_rstd[f]) && p->saved_rstd[f] > 0 ? 1 / p->saved_rstd[f] : 1;
            store(p->mean[type], (fastbn_dtype)type, f, mean + bell(503, (uint64_t)f, 0) * std / 8);
            store(p->var[type], (fastbn_dtype)type, f, std * std * (1 + (double)(mix(504, (uint64_t)f) & 0xFF) / 256));
        }
}

void fill_problem(problem *p, int64_t n, int64_t c, int64_t s, fastbn_dtype dtype, enum kind kind)
{
    memset(p, 0, sizeof *p);
    p->shape = (fastbn_shape){n, c, s, dtype};
    p->kind = kind;
    p->count = n * s;
    size_t bytes = (size_t)elements(&p->shape) * type_size(dtype), features = (size_t)c;
    p->x = allocate(bytes);
    p->dy = allocate(bytes);
    for (int type = 0; type < 2; type++) {
        void **each[4] = {&p->gamma[type], &p->beta[type], &p->mean[type], &p->var[type]};
        for (int i = 0; i < 4; i++)
            *each[i] = allocate(features * type_size((fastbn_dtype)type));
    }
    p->saved_mean = allocate(features * sizeof(double));
    p->saved_rstd = allocate(features * sizeof(double));
    real **sums[6] = {&p->ref_mean, &p->ref_m2, &p->ref_dbeta, &p->ref_dgamma, &p->abs_dbeta, &p->abs_dgamma};
    for (int i = 0; i < 6; i++)
        *sums[i] = allocate(features * sizeof(real));
    fill_data(p);
    fill_saved(p);
    fill_parameters(p);
}

void free_problem(problem *p)
{
    void *all[] = {p->x,       p->dy,      p->gamma[0], p->gamma[1], p->beta[0],    p->beta[1],    p->mean[0],
                   p->mean[1], p->var[0],  p->var[1],   p->saved_mean, p->saved_rstd, p->ref_mean,  p->ref_m2,
                   p->ref_dbeta, p->ref_dgamma, p->abs_dbeta, p->abs_dgamma};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* Strides of a layout; for rows the features of a row stay adjacent. */
static void set_strides(array *a, const fastbn_shape *sh, const layout *where)
{
    int64_t pad_c = sh->s > 1 ? where->pad_c : 0;
    if (where->swapped && sh->s > 1) {
        a->stride_n = sh->s + pad_c;
        a->stride_c = a->stride_n * sh->n;
    } else {
        a->stride_c = sh->s + pad_c;
        a->stride_n = a->stride_c * sh->c + where->pad_n;
    }
    if (sh->s == 1)
        a->stride_c = 1;
}

/* How the array falls into runs of adjacent entries: all of it where nothing lies between the entries, else plane by
 * plane (or, of rows, row by row). */
typedef struct runs {
    int64_t count, per_outer;
    size_t bytes;
} runs;

static runs runs_of(const array *a, const fastbn_shape *sh)
{
    size_t size = type_size(sh->dtype);
    if (elements(sh) == 0)
        return (runs){0, 1, 0};
    if (a->stride_c == sh->s && a->stride_n == sh->c * sh->s)
        return (runs){1, 1, (size_t)elements(sh) * size};
    if (a->stride_c == sh->s)
        return (runs){sh->n, 1, (size_t)(sh->c * sh->s) * size};
    return (runs){sh->n * sh->c, sh->c, (size_t)sh->s * size};
}

static unsigned char *run_at(const array *a, const fastbn_shape *sh, const runs *r, int64_t i)
{
    int64_t entry = i / r->per_outer * a->stride_n + i % r->per_outer * a->stride_c;
    return a->data + (size_t)entry * type_size(sh->dtype);
}

/* The array, filled from dense data; without any, every byte is a canary. */
array make_array(const fastbn_shape *sh, const layout *where, const void *dense)
{
    array a;
    size_t size = type_size(sh->dtype);
    set_strides(&a, sh, where);
    int64_t extent = 0;
    if (elements(sh) > 0)
        extent = (sh->n - 1) * a.stride_n + (sh->c - 1) * a.stride_c + sh->s;
    a.bytes = (size_t)(extent + where->offset) * size;
    a.base = allocate(a.bytes);
    a.data = a.base + (size_t)where->offset * size;
    memset(a.base, CANARY, a.bytes);
    runs r = runs_of(&a, sh);
    for (int64_t i = 0; dense != NULL && i < r.count; i++)
        memcpy(run_at(&a, sh, &r, i), (const char *)dense + (size_t)i * r.bytes, r.bytes);
    return a;
}

void gather(const array *a, const fastbn_shape *sh, void *dense)
{
    runs r = runs_of(a, sh);
    for (int64_t i = 0; i < r.count; i++)
        memcpy((char *)dense + (size_t)i * r.bytes, run_at(a, sh, &r, i), r.bytes);
}

int holds(const array *a, const fastbn_shape *sh, const void *dense)
{
    runs r = runs_of(a, sh);
    for (int64_t i = 0; i < r.count; i++)
        if (memcmp((const char *)dense + (size_t)i * r.bytes, run_at(a, sh, &r, i), r.bytes) != 0)
            return 0;
    return 1;
}

/* Overwrites the entries of the array, after which nothing but canaries may be left. */
int padding_untouched(array *a, const fastbn_shape *sh)
{
    runs r = runs_of(a, sh);
    if (r.count == 1 && a->data == a->base)
        return 1;
    for (int64_t i = 0; i < r.count; i++)
        memset(run_at(a, sh, &r, i), CANARY, r.bytes);
    return a->bytes == 0 || (a->base[0] == CANARY && memcmp(a->base, a->base + 1, a->bytes - 1) == 0);
}
