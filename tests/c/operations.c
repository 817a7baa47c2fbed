/* Every entry point with every choice of arguments that takes another path, and the places where arrays may lie. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define ALL_GRADIENTS (DX | DGAMMA | DBETA)

const operation operations[] = {
    {"moments", MOMENTS, 0},
    {"inference", INFERENCE, GAMMA | BETA},
    {"inference_plain", INFERENCE, 0},
    {"inference_gamma_mixed", INFERENCE, GAMMA | MIXED},
    {"inference_beta", INFERENCE, BETA},
    {"inference_fused", INFERENCE, GAMMA | BETA | LEAKY | RESIDUAL},
    {"training", TRAINING, GAMMA | BETA},
    {"training_plain", TRAINING, 0},
    {"training_mixed", TRAINING, GAMMA | BETA | MIXED},
    {"training_fused", TRAINING, GAMMA | BETA | LEAKY},
    {"training_weighted", TRAINING, GAMMA | BETA | RESIDUAL | WEIGHTED},
    {"backward", BACKWARD, GAMMA | ALL_GRADIENTS},
    {"backward_mixed", BACKWARD, GAMMA | MIXED | ALL_GRADIENTS},
    {"backward_plain", BACKWARD, ALL_GRADIENTS},
    {"backward_dx", BACKWARD, GAMMA | DX},
    {"backward_dx_dgamma", BACKWARD, GAMMA | DX | DGAMMA},
    {"backward_dgamma_dbeta", BACKWARD, GAMMA | DGAMMA | DBETA},
    {"backward_dgamma", BACKWARD, GAMMA | DGAMMA},
    {"backward_dbeta", BACKWARD, GAMMA | DBETA},
    {"backward_fused", BACKWARD, GAMMA | BETA | LEAKY | RESIDUAL | ALL_GRADIENTS},
    {"backward_weighted", BACKWARD, GAMMA | BETA | LEAKY | WEIGHTED | ALL_GRADIENTS},
    {"frozen_fused", BACKWARD, GAMMA | BETA | LEAKY | RESIDUAL | FROZEN | DX},
    {"frozen", BACKWARD, GAMMA | FROZEN | ALL_GRADIENTS},
    {"frozen_dx", BACKWARD, GAMMA | FROZEN | DX | NO_X},
    {"frozen_dx_dbeta", BACKWARD, GAMMA | FROZEN | DX | DBETA | NO_X},
    {"frozen_dgamma_dbeta", BACKWARD, GAMMA | FROZEN | DGAMMA | DBETA},
};
const int operation_count = (int)(sizeof operations / sizeof *operations);

const layout layouts[] = {
    {"dense", 0, 0, 0, 0, 0},
    {"offset", 1, 0, 0, 0, 0},
    {"in_place", 3, 0, 0, 0, 1},
    {"outer_strided", 2, 5, 0, 0, 0},
    {"outer_strided_in_place", 0, 16, 0, 0, 1},
    {"feature_strided", 0, 0, 3, 0, 0},
    {"feature_major", 0, 0, 0, 1, 0},
};
const int layout_count = (int)(sizeof layouts / sizeof *layouts);

int layout_applies(const layout *where, const operation *op, const fastbn_shape *sh)
{
    if (where->in_place && (op->entry == MOMENTS || (op->entry == BACKWARD && !(op->flags & DX))))
        return 0;
    return sh->s > 1 || !(where->swapped || where->pad_c);
}

fastbn_dtype param_type(const operation *op, const problem *p)
{
    int mixed = (op->flags & MIXED) != 0, is_double = p->shape.dtype == FASTBN_FLOAT64;
    return mixed != is_double ? FASTBN_FLOAT64 : FASTBN_FLOAT32;
}

static void *canaries(size_t bytes)
{
    void *memory = allocate(bytes);
    memset(memory, 0xA5, bytes);
    return memory;
}

result new_result(const problem *p)
{
    result r;
    size_t features = (size_t)p->shape.c;
    r.status = FASTBN_OK;
    r.y = canaries((size_t)elements(&p->shape) * type_size(p->shape.dtype));
    for (int i = 0; i < 3; i++)
        r.stat[i] = canaries(features * sizeof(double));
    for (int i = 0; i < 2; i++)
        r.grad[i] = canaries(features * sizeof(double));
    return r;
}

void free_result(result *r)
{
    free(r->y);
    for (int i = 0; i < 3; i++)
        free(r->stat[i]);
    for (int i = 0; i < 2; i++)
        free(r->grad[i]);
}

static fastbn_input as_input(const array *a) { return (fastbn_input){a->data, a->stride_n, a->stride_c}; }

static fastbn_output as_output(const array *a) { return (fastbn_output){a->data, a->stride_n, a->stride_c}; }

/* What a fused operation has more. */
typedef struct fused {
    fastbn_weights weights;
    fastbn_extra extra;
    void *weight; /* 0, 1, 2, 0, ... */
} fused;

static fused new_fused(const problem *p, const operation *op)
{
    fused f = {.weight = allocate((size_t)p->count * sizeof(double))};
    for (int64_t i = 0; i < p->count; i++) {
        f.weights.total += (double)(i % 3);
        if (p->shape.dtype == FASTBN_FLOAT64)
            ((double *)f.weight)[i] = (double)(i % 3);
        else
            ((float *)f.weight)[i] = (float)(i % 3);
    }
    f.weights.data = f.weight;
    if (op->flags & RESIDUAL)
        f.extra.residual = (fastbn_input){p->dy, p->shape.c * p->shape.s, p->shape.s};
    return f;
}

static fastbn_params params_of(const problem *p, const operation *op, fused *f)
{
    fastbn_dtype type = param_type(op, p);
    if (op->flags & WEIGHTED)
        f->extra.weights = &f->weights;
    return (fastbn_params){.gamma = op->flags & GAMMA ? p->gamma[type] : NULL,
                           .beta = op->flags & BETA ? p->beta[type] : NULL,
                           .dtype = type,
                           .activation = op->flags & LEAKY ? FASTBN_LEAKY_RELU : FASTBN_IDENTITY,
                           .slope = 0.25,
                           .extra = op->flags & FUSED ? &f->extra : NULL};
}

static fastbn_status call_backward(const problem *p, const operation *op, const array *x, const array *dy,
                                   const array *dx, const fastbn_params *params, int threads, result *out)
{
    fastbn_input given = as_input(x);
    fastbn_output wanted = as_output(dx);
    if (op->flags & NO_X)
        given.data = NULL;
    if (!(op->flags & DX))
        wanted.data = NULL;
    return fastbn_backward(&p->shape, given, as_input(dy), params, p->saved_mean, p->saved_rstd,
                           (op->flags & FROZEN) != 0, wanted, op->flags & DGAMMA ? out->grad[0] : NULL,
                           op->flags & DBETA ? out->grad[1] : NULL, threads);
}

static fastbn_status call_with(const problem *p, const operation *op, const array *x, const array *dy, const array *y,
                               fastbn_params params, int threads, result *out)
{
    const fastbn_shape *sh = &p->shape;
    switch (op->entry) {
    case MOMENTS: return fastbn_moments(sh, as_input(x), out->stat[0], out->stat[1], threads);
    case INFERENCE:
        return fastbn_inference(sh, as_input(x), p->mean[params.dtype], p->var[params.dtype], &params, harness_eps,
                                as_output(y), threads);
    case TRAINING:
        return fastbn_training(sh, as_input(x), &params, harness_eps, as_output(y), out->stat[0], out->stat[1],
                               out->stat[2], threads);
    default: return call_backward(p, op, x, dy, y, &params, threads, out);
    }
}

static fastbn_status call(const problem *p, const operation *op, const array *x, const array *dy, const array *y,
                          int threads, result *out)
{
    fused f = new_fused(p, op);
    fastbn_status status = call_with(p, op, x, dy, y, params_of(p, op, &f), threads, out);
    free(f.weight);
    return status;
}

static array absent(void) { return (array){NULL, NULL, 0, 0, 0}; }

/* An input has its values still, unless it was the output; and nothing between the entries was written. */
static int unharmed(array *a, const fastbn_shape *sh, const void *values)
{
    int fine = a->base == NULL || ((values == NULL || holds(a, sh, values)) && padding_untouched(a, sh));
    free(a->base);
    return fine;
}

/* The call with arrays in that layout. False where the call wrote anything but its output. */
int run(const problem *p, const operation *op, const layout *where, int threads, result *out)
{
    const fastbn_shape *sh = &p->shape;
    int backward = op->entry == BACKWARD, has_output = op->entry != MOMENTS && (!backward || (op->flags & DX));
    array x = op->flags & NO_X ? absent() : make_array(sh, where, p->x);
    array dy = backward ? make_array(sh, where, p->dy) : absent();
    array y = has_output && !where->in_place ? make_array(sh, where, NULL) : absent();
    array *target = !where->in_place ? &y : backward ? &dy : &x;
    out->status = call(p, op, &x, &dy, target, threads, out);
    if (has_output)
        gather(target, sh, out->y);
    int fine = unharmed(&x, sh, target == &x ? NULL : p->x);
    fine &= unharmed(&dy, sh, target == &dy ? NULL : p->dy);
    return fine & unharmed(&y, sh, NULL);
}

static uint64_t step(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return hash ^ hash >> 29;
}

static uint64_t hash_floats(uint64_t hash, const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, values + i, sizeof word);
        hash = step(hash, values[i] != values[i] ? UINT32_C(0x7FC00000) : word);
    }
    return hash;
}

static uint64_t hash_doubles(uint64_t hash, const double *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t word;
        memcpy(&word, values + i, sizeof word);
        hash = step(hash, values[i] != values[i] ? UINT64_C(0x7FF8000000000000) : word);
    }
    return hash;
}

static uint64_t hash_halves(uint64_t hash, const uint16_t *values, fastbn_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double value = half_value(dtype, values[i]);
        hash = step(hash, value != value ? 0xFFFF : values[i]);
    }
    return hash;
}

static uint64_t hash_values(uint64_t hash, const void *data, fastbn_dtype dtype, int64_t count)
{
    if (is_half(dtype))
        return hash_halves(hash, data, dtype, count);
    return dtype == FASTBN_FLOAT32 ? hash_floats(hash, data, count) : hash_doubles(hash, data, count);
}

/* A hash of every byte that the operation has to write. Every NaN counts as the same one. */
uint64_t hash_result(const problem *p, const operation *op, const result *r)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325) + (uint64_t)r->status;
    int64_t c = p->shape.c;
    int stats = op->entry == MOMENTS ? 2 : op->entry == TRAINING ? 3 : 0;
    if (op->entry == INFERENCE || op->entry == TRAINING || (op->flags & DX))
        hash = hash_values(hash, r->y, p->shape.dtype, elements(&p->shape));
    for (int i = 0; i < stats; i++)
        hash = hash_values(hash, r->stat[i], FASTBN_FLOAT64, c);
    if (op->flags & DGAMMA)
        hash = hash_values(hash, r->grad[0], param_type(op, p), c);
    if (op->flags & DBETA)
        hash = hash_values(hash, r->grad[1], param_type(op, p), c);
    return hash;
}
