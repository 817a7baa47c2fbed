/* The formulas of fastbn.h, term by term, in the widest type at hand; and how far a result may be from them. */
#include <math.h>

#include "harness.h"

static real magnitude(real value) { return value < 0 ? -value : value; }

static real larger(real a, real b) { return a > b ? a : b; }

static real root(real value) { return sizeof(real) > sizeof(double) ? sqrtl(value) : (real)sqrt((double)value); }

static int finite_real(real value) { return value - value == 0; }

static int64_t position(const fastbn_shape *sh, int64_t feature, int64_t within)
{
    return (within / sh->s * sh->c + feature) * sh->s + within % sh->s;
}

static double entry(const problem *p, const void *data, int64_t feature, int64_t within)
{
    return value_at(data, p->shape.dtype, position(&p->shape, feature, within));
}

static void reference_moments(problem *p, int64_t f)
{
    real sum = 0, squares = 0, rest = 0;
    for (int64_t i = 0; i < p->count; i++)
        sum += entry(p, p->x, f, i);
    real mean = p->count ? sum / (real)p->count : 0;
    for (int64_t i = 0; i < p->count; i++) {
        real d = entry(p, p->x, f, i) - mean;
        rest += d;
        squares += d * d;
    }
    p->ref_mean[f] = mean;
    p->ref_m2[f] = p->count ? squares - rest * rest / (real)p->count : 0;
}

/* What the backward calls are given: the same bits on every machine, so plain double in a fixed order. */
static void saved_statistics(problem *p, int64_t f)
{
    double sum = 0, squares = 0, count = p->count ? (double)p->count : 1;
    for (int64_t i = 0; i < p->count; i++)
        sum += entry(p, p->x, f, i);
    p->saved_mean[f] = sum / count;
    for (int64_t i = 0; i < p->count; i++) {
        double d = entry(p, p->x, f, i) - p->saved_mean[f];
        squares += d * d;
    }
    p->saved_rstd[f] = 1 / sqrt(squares / count + harness_eps);
}

static void reference_gradients(problem *p, int64_t f)
{
    real mean = p->saved_mean[f], rstd = p->saved_rstd[f], dbeta = 0, dgamma = 0, abs_dbeta = 0, abs_dgamma = 0;
    for (int64_t i = 0; i < p->count; i++) {
        real dy = entry(p, p->dy, f, i), term = dy * (entry(p, p->x, f, i) - mean) * rstd;
        dbeta += dy;
        dgamma += term;
        abs_dbeta += magnitude(dy);
        abs_dgamma += magnitude(term);
    }
    p->ref_dbeta[f] = dbeta;
    p->ref_dgamma[f] = dgamma;
    p->abs_dbeta[f] = abs_dbeta;
    p->abs_dgamma[f] = abs_dgamma;
}

void fill_reference(problem *p)
{
    for (int64_t f = 0; f < p->shape.c; f++) {
        reference_moments(p, f);
        reference_gradients(p, f);
    }
}

void fill_saved(problem *p)
{
    for (int64_t f = 0; f < p->shape.c; f++)
        saved_statistics(p, f);
}

/* Half types are computed as float. */
static int is_float(const problem *p) { return p->shape.dtype != FASTBN_FLOAT64; }

/* One unit in the last place of a number of magnitude 1, as the data and as the parameters see it. */
static real unit(fastbn_dtype dtype) { return dtype == FASTBN_FLOAT64 ? (real)0x1p-52 : (real)0x1p-23; }

/* What a few roundings of an entry cost, relative to its terms. The sums behind float data are as good as exact; those
 * behind double data carry roundings of their own, as many as the longest chain has additions. */
static real few_roundings(const problem *p) { return is_float(p) ? (real)0x1p-20 : (real)0x1p-43; }

static int near(real got, real want, real tolerance)
{
    if (want != want)
        return got != got;
    if (!finite_real(want))
        return got == want;
    return magnitude(got - want) <= tolerance;
}

/* An entry of y or dx, which a half type rounds once more: by half a unit in its last place, or to Inf. */
static int near_entry(const problem *p, real got, real want, real tolerance)
{
    if (p->shape.dtype == FASTBN_FLOAT16)
        tolerance += magnitude(want) * 0x1p-11 + 0x1p-25;
    if (p->shape.dtype == FASTBN_BFLOAT16)
        tolerance += magnitude(want) * 0x1p-8 + 0x1p-134;
    if (p->shape.dtype == FASTBN_FLOAT16 && got == got && !finite_real(got) && finite_real(want))
        return (got < 0) == (want < 0) && magnitude(want) + tolerance >= 65520;
    return near(got, want, tolerance);
}

/* The sum over a feature with an infinity may be that infinity or NaN, by the way it is computed. */
static int near_or_lost(real got, real want, real tolerance)
{
    return finite_real(want) ? near(got, want, tolerance) : !finite_real(got);
}

static const char *type_name(fastbn_dtype dtype)
{
    static const char *const names[] = {"float", "double", "float16", "bfloat16"};
    return names[dtype];
}

static int report(const problem *p, const char *what, int64_t f, real got, real want, real tolerance)
{
    const fastbn_shape *sh = &p->shape;
    failure("%s of feature %lld of (%lld, %lld, %lld) %s %s: %.17g, expected %.17g, allowed error %.3g", what,
            (long long)f, (long long)sh->n, (long long)sh->c, (long long)sh->s, type_name(sh->dtype),
            p->kind == ORDINARY ? "ordinary" : "extreme", (double)got, (double)want, (double)tolerance);
    return 0;
}

static int mean_matches(const problem *p, const result *r, int64_t f)
{
    real std = root(p->ref_m2[f] / (real)(p->count ? p->count : 1)), mean = p->ref_mean[f];
    real tolerance = larger(magnitude(mean), std) * (is_float(p) ? (real)0x1p-23 : (real)0x1p-50);
    if (near_or_lost(r->stat[0][f], mean, tolerance))
        return 1;
    return report(p, "mean", f, r->stat[0][f], mean, tolerance);
}

static real spread_tolerance(const problem *p) { return is_float(p) ? (real)1e-6 : (real)1e-12; }

static int moments_match(const problem *p, const result *r, int64_t f)
{
    real tolerance = p->ref_m2[f] * spread_tolerance(p);
    if (!mean_matches(p, r, f))
        return 0;
    return near_or_lost(r->stat[1][f], p->ref_m2[f], tolerance)
           || report(p, "m2", f, r->stat[1][f], p->ref_m2[f], tolerance);
}

static int statistics_match(const problem *p, const result *r, int64_t f)
{
    if (p->count == 0)
        return (r->stat[0][f] == 0 && r->stat[1][f] != r->stat[1][f] && r->stat[2][f] != r->stat[2][f])
               || report(p, "mean of nothing", f, r->stat[0][f], 0, 0);
    real var = p->ref_m2[f] / (real)p->count, rstd = 1 / root(var + harness_eps);
    if (!mean_matches(p, r, f))
        return 0;
    if (!near_or_lost(r->stat[1][f], var, var * spread_tolerance(p)))
        return report(p, "var", f, r->stat[1][f], var, var * spread_tolerance(p));
    return near_or_lost(r->stat[2][f], rstd, rstd * spread_tolerance(p))
           || report(p, "rstd", f, r->stat[2][f], rstd, rstd * spread_tolerance(p));
}

static real parameter(void *const by_type[2], fastbn_dtype type, int64_t f) { return value_at(by_type[type], type, f); }

/* y for one mean and rstd; in double the mean itself is rounded, in float its two parts together are not. */
static int output_matches(const problem *p, const operation *op, const result *r, int64_t f, real mean, real rstd)
{
    fastbn_dtype type = param_type(op, p);
    real gamma = op->flags & GAMMA ? parameter(p->gamma, type, f) : 1;
    real beta = op->flags & BETA ? parameter(p->beta, type, f) : 0;
    real u = unit(p->shape.dtype), floor = is_float(p) ? 0 : magnitude(gamma * rstd * mean) * u;
    if (!finite_real(floor))
        floor = 0;
    for (int64_t i = 0; i < p->count; i++) {
        real x_hat = (entry(p, p->x, f, i) - mean) * rstd, want = x_hat * gamma + beta;
        real tolerance = few_roundings(p) * magnitude(gamma) * larger(1, magnitude(x_hat) / 4) + floor
                         + u * (magnitude(want) + magnitude(beta));
        real got = entry(p, r->y, f, i);
        if (!near_entry(p, got, want, tolerance))
            return report(p, op->name, f, got, want, tolerance);
    }
    return 1;
}

static int inference_matches(const problem *p, const operation *op, const result *r, int64_t f)
{
    fastbn_dtype type = param_type(op, p);
    real var = parameter(p->var, type, f);
    return output_matches(p, op, r, f, parameter(p->mean, type, f), 1 / root(var + harness_eps));
}

static int training_matches(const problem *p, const operation *op, const result *r, int64_t f)
{
    if (p->count == 0)
        return statistics_match(p, r, f);
    real var = p->ref_m2[f] / (real)p->count;
    return statistics_match(p, r, f) && output_matches(p, op, r, f, p->ref_mean[f], 1 / root(var + harness_eps));
}

static int gradients_match(const problem *p, const operation *op, const result *r, int64_t f)
{
    fastbn_dtype type = param_type(op, p);
    real factor = few_roundings(p) / 2, rounding = unit(type);
    if (op->flags & DGAMMA) {
        /* x - mean in double carries the rounding of the mean into every term */
        real lost = is_float(p) ? 0 : magnitude(p->abs_dbeta[f] * p->saved_rstd[f] * p->saved_mean[f]) * 0x1p-52;
        real tolerance = factor * p->abs_dgamma[f] + rounding * magnitude(p->ref_dgamma[f]) + lost;
        real got = value_at(r->grad[0], type, f);
        if (!near_or_lost(got, p->ref_dgamma[f], tolerance))
            return report(p, "dgamma", f, got, p->ref_dgamma[f], tolerance);
    }
    if (op->flags & DBETA) {
        real tolerance = factor * p->abs_dbeta[f] + rounding * magnitude(p->ref_dbeta[f]);
        real got = value_at(r->grad[1], type, f);
        if (!near(got, p->ref_dbeta[f], tolerance))
            return report(p, "dbeta", f, got, p->ref_dbeta[f], tolerance);
    }
    return 1;
}

static int input_gradient_matches(const problem *p, const operation *op, const result *r, int64_t f)
{
    real mean = p->saved_mean[f], rstd = p->saved_rstd[f], count = (real)p->count;
    real gamma = op->flags & GAMMA ? parameter(p->gamma, param_type(op, p), f) : 1;
    for (int64_t i = 0; i < p->count; i++) {
        real x_hat = (entry(p, p->x, f, i) - mean) * rstd, dy = entry(p, p->dy, f, i), want = dy, scale = magnitude(dy);
        if (!(op->flags & FROZEN)) {
            want -= p->ref_dbeta[f] / count + x_hat * p->ref_dgamma[f] / count;
            scale += p->abs_dbeta[f] / count + magnitude(x_hat) * p->abs_dgamma[f] / count;
        }
        want *= gamma * rstd;
        real got = entry(p, r->y, f, i), tolerance = few_roundings(p) * scale * magnitude(gamma * rstd) + 0x1p-149;
        if (!near_entry(p, got, want, tolerance))
            return report(p, op->name, f, got, want, tolerance);
    }
    return 1;
}

/* Whether the result is what the formulas say; reports the first entry that is not. */
int matches_reference(const problem *p, const operation *op, const result *r)
{
    if (r->status != FASTBN_OK)
        return !failure("%s returned %s", op->name, fastbn_status_text(r->status));
    if (op->flags & FUSED)
        return 1;
    for (int64_t f = 0; f < p->shape.c; f++) {
        int fine = 1;
        switch (op->entry) {
        case MOMENTS: fine = moments_match(p, r, f); break;
        case INFERENCE: fine = inference_matches(p, op, r, f); break;
        case TRAINING: fine = training_matches(p, op, r, f); break;
        case BACKWARD:
            fine = gradients_match(p, op, r, f) && (!(op->flags & DX) || input_gradient_matches(p, op, r, f));
            break;
        case DOUBLE_BACKWARD: break; /* see double.c */
        }
        if (!fine)
            return 0;
    }
    return 1;
}
