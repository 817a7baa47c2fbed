/* The gradient of the backward: in every layout, on every instruction set and with several numbers of threads the bits
 * of the first result, which is the formula of fastbn.h. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { DDY, SECOND_DX, ARRAYS };

typedef struct outputs {
    void *data[ARRAYS];
    double *dgamma;
} outputs;

/* One choice of arguments. */
typedef struct call_kind {
    const char *name;
    int frozen, ddx, ddgamma, ddbeta;
} call_kind;

static const call_kind kinds[] = {
    {"all", 0, 1, 1, 1},        {"ddx", 0, 1, 0, 0},         {"ddgamma", 0, 0, 1, 0},       {"ddbeta", 0, 0, 0, 1},
    {"frozen", 1, 1, 1, 1},     {"frozen ddx", 1, 1, 0, 0},  {"frozen ddgamma", 1, 0, 1, 0},
};
enum { KINDS = (int)(sizeof kinds / sizeof *kinds) };

static outputs new_outputs(const problem *p)
{
    outputs o;
    for (int i = 0; i < ARRAYS; i++)
        o.data[i] = allocate((size_t)elements(&p->shape) * type_size(p->shape.dtype));
    o.dgamma = allocate((size_t)p->shape.c * sizeof(double));
    return o;
}

static void free_outputs(outputs *o)
{
    for (int i = 0; i < ARRAYS; i++)
        free(o->data[i]);
    free(o->dgamma);
}

static fastbn_input as_input(const array *a) { return (fastbn_input){a->data, a->stride_n, a->stride_c}; }

static fastbn_output as_output(const array *a) { return (fastbn_output){a->data, a->stride_n, a->stride_c}; }

static int unharmed(array *a, const fastbn_shape *sh, const void *values)
{
    int fine = (values == NULL || holds(a, sh, values)) && padding_untouched(a, sh);
    free(a->base);
    return fine;
}

/* beta stands in for ddbeta, gamma for ddgamma. False where the call failed or wrote anything but its outputs. */
static int call(const problem *p, const void *ddx_values, const call_kind *kind, const layout *where, int threads,
                outputs *o)
{
    const fastbn_shape *sh = &p->shape;
    const fastbn_params params = {.gamma = p->gamma[1], .dtype = FASTBN_FLOAT64};
    array x = make_array(sh, where, p->x), dy = make_array(sh, where, p->dy), ddx = make_array(sh, where, ddx_values);
    array out[ARRAYS] = {make_array(sh, where, NULL), make_array(sh, where, NULL)};
    fastbn_input no_array = {NULL, 0, 0};
    fastbn_status status = fastbn_double_backward(
        sh, kind->frozen && !kind->ddgamma ? no_array : as_input(&x), as_input(&dy),
        kind->ddx ? as_input(&ddx) : no_array, kind->ddgamma ? p->gamma[1] : NULL, kind->ddbeta ? p->beta[1] : NULL,
        &params, p->saved_mean, p->saved_rstd, kind->frozen, as_output(&out[DDY]), as_output(&out[SECOND_DX]),
        o->dgamma, threads);
    int fine = status == FASTBN_OK;
    for (int i = 0; i < ARRAYS; i++) {
        gather(&out[i], sh, o->data[i]);
        fine &= unharmed(&out[i], sh, NULL);
    }
    fine &= unharmed(&x, sh, p->x);
    fine &= unharmed(&dy, sh, p->dy);
    return fine & unharmed(&ddx, sh, ddx_values);
}

/* The sums of a feature, and those of the magnitudes of what they add up. */
typedef struct sums {
    real dy, ddx, dy_h, ddx_h, product;
} sums;

static real magnitude(real value) { return value < 0 ? -value : value; }

/* Entry `within` of a feature: x as h. */
static real entry(const problem *p, const void *data, int64_t f, int64_t within)
{
    int64_t s = p->shape.s, at = (within / s * p->shape.c + f) * s + within % s;
    real value = value_at(data, p->shape.dtype, at);
    return data == p->x ? (value - p->saved_mean[f]) * p->saved_rstd[f] : value;
}

static void add_means(const problem *p, const void *ddx, const call_kind *kind, int64_t f, sums *m, sums *most)
{
    const real weight = 1 / (real)p->count;
    for (int64_t i = 0; i < p->count; i++) {
        real v = kind->ddx ? entry(p, ddx, f, i) : 0, dy = entry(p, p->dy, f, i);
        real h = kind->frozen ? 0 : entry(p, p->x, f, i), terms[] = {dy, v, dy * h, v * h, v * dy};
        real *to[] = {&m->dy, &m->ddx, &m->dy_h, &m->ddx_h, &m->product};
        real *most_to[] = {&most->dy, &most->ddx, &most->dy_h, &most->ddx_h, &most->product};
        for (int k = 0; k < 5; k++)
            *to[k] += terms[k] * weight, *most_to[k] += magnitude(terms[k]) * weight;
    }
}

/* ddy, dx and dgamma from the means; with sign = 1 and magnitudes for all, the magnitudes of what they add up. */
static void formulas(const problem *p, const call_kind *kind, int64_t f, sums m, real h, real dy, real v, real sign,
                     real result[3])
{
    const int all = sign > 0, centred = !kind->frozen;
    real gamma = value_at(p->gamma[1], FASTBN_FLOAT64, f), rstd = p->saved_rstd[f];
    real ddgamma = kind->ddgamma ? gamma : 0, ddbeta = kind->ddbeta ? value_at(p->beta[1], FASTBN_FLOAT64, f) : 0;
    if (all)
        gamma = magnitude(gamma), ddgamma = magnitude(ddgamma), ddbeta = magnitude(ddbeta);
    if (!centred)
        m.dy = m.ddx = 0;
    real k = m.product + sign * m.dy * m.ddx + sign * m.ddx_h * m.dy_h;
    real b = rstd * (ddgamma + sign * gamma * rstd * m.ddx_h), c = sign * gamma * rstd * rstd * m.dy_h;
    result[0] = gamma * rstd * (v + sign * m.ddx) + b / rstd * h + ddbeta;
    result[1] = b * (dy + sign * m.dy);
    if (centred)
        result[1] += c * (v + sign * m.ddx) + sign * (b * m.dy_h + c * m.ddx_h + gamma * rstd * rstd * k) * h;
    result[2] = (real)p->count * rstd * k;
}

static int near(const problem *p, const call_kind *kind, const char *what, int64_t f, real got, real want, real most)
{
    real tolerance = most * (p->shape.dtype == FASTBN_FLOAT32 ? (real)0x1p-20 : (real)0x1p-43);
    if (magnitude(got - want) <= tolerance)
        return 1;
    failure("%s (%s) of feature %lld of (%lld, %lld, %lld): %.17g, expected %.17g, allowed error %.3g", what,
            kind->name, (long long)f, (long long)p->shape.n, (long long)p->shape.c, (long long)p->shape.s, (double)got,
            (double)want, (double)tolerance);
    return 0;
}

static int feature_matches(const problem *p, const void *ddx, const call_kind *kind, int64_t f, const outputs *o)
{
    sums means = {0, 0, 0, 0, 0}, most = {0, 0, 0, 0, 0};
    real want[3] = {0, 0, 0}, bound[3] = {0, 0, 0};
    add_means(p, ddx, kind, f, &means, &most);
    for (int64_t i = 0; i < p->count; i++) {
        real h = entry(p, p->x, f, i), dy = entry(p, p->dy, f, i), v = kind->ddx ? entry(p, ddx, f, i) : 0;
        formulas(p, kind, f, means, h, dy, v, -1, want);
        formulas(p, kind, f, most, magnitude(h), magnitude(dy), magnitude(v), 1, bound);
        if (!near(p, kind, "ddy", f, entry(p, o->data[DDY], f, i), want[0], bound[0])
            || !near(p, kind, "dx", f, entry(p, o->data[SECOND_DX], f, i), want[1], bound[1]))
            return 0;
    }
    return near(p, kind, "dgamma", f, o->dgamma[f], want[2], bound[2]);
}

static int same(const problem *p, const outputs *a, const outputs *b)
{
    size_t bytes = (size_t)elements(&p->shape) * type_size(p->shape.dtype);
    return memcmp(a->data[DDY], b->data[DDY], bytes) == 0 && memcmp(a->data[SECOND_DX], b->data[SECOND_DX], bytes) == 0
           && memcmp(a->dgamma, b->dgamma, (size_t)p->shape.c * sizeof(double)) == 0;
}

static int usable(const char *isa) { return fastbn_isa_built(isa) && fastbn_isa_supported(isa); }

static int check_kind(const problem *p, const void *ddx, const call_kind *kind, const layout *where)
{
    static const int threads[] = {1, 2, 3, 7};
    int failures = 0;
    outputs first = new_outputs(p), again = new_outputs(p);
    fastbn_set_isa("generic");
    failures += !call(p, ddx, kind, where, 1, &first);
    for (int64_t f = 0; f < p->shape.c && failures == 0; f++)
        failures += !feature_matches(p, ddx, kind, f, &first);
    for (int i = 0; fastbn_isa_name(i) != NULL; i++)
        for (int t = 0; t < 4 && usable(fastbn_isa_name(i)); t++) {
            fastbn_set_isa(fastbn_isa_name(i));
            if (!call(p, ddx, kind, where, threads[t], &again) || !same(p, &first, &again))
                failures += failure("double backward (%s) of (%lld, %lld, %lld) %s, isa %s, %d threads: other bits",
                                    kind->name, (long long)p->shape.n, (long long)p->shape.c, (long long)p->shape.s,
                                    where->name, fastbn_isa_name(i), threads[t]);
        }
    free_outputs(&first);
    free_outputs(&again);
    return failures;
}

/* The entries of dy in the opposite order. */
static void *reversed(const problem *p)
{
    const size_t size = type_size(p->shape.dtype), count = (size_t)elements(&p->shape);
    unsigned char *result = allocate(count * size);
    for (size_t i = 0; i < count; i++)
        memcpy(result + i * size, (const unsigned char *)p->dy + (count - 1 - i) * size, size);
    return result;
}

int check_double_backward(void)
{
    static const int64_t shapes[][3] = {{1, 1, 1},  {1, 33, 1}, {130, 16, 1}, {501, 3, 1}, {257, 30, 1}, {60, 300, 1},
                                        {3, 5, 17}, {8, 7, 49}, {40, 12, 4},  {5, 1, 63},  {2, 3, 333},  {70, 4, 16}};
    int failures = 0;
    for (int i = 0; i < 2 * (int)(sizeof shapes / sizeof *shapes); i++) {
        problem p;
        const int64_t *at = shapes[i / 2];
        fill_problem(&p, at[0], at[1], at[2], (fastbn_dtype)(i % 2), ORDINARY);
        void *ddx = reversed(&p);
        for (int w = 0; w < layout_count; w++)
            for (int k = 0; k < KINDS; k++)
                if (!layouts[w].in_place && (p.shape.s > 1 || !(layouts[w].swapped || layouts[w].pad_c)))
                    failures += check_kind(&p, ddx, &kinds[k], &layouts[w]);
        free(ddx);
        free_problem(&p);
    }
    fastbn_set_isa(NULL);
    return failures;
}
