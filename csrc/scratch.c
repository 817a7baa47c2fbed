/* scratch.c - memory for one call: a small block on the stack, else one allocation that is gone when the call returns.
 *
 * A feature takes some hundred bytes, a column up to five elements where a table has more columns than features, and the
 * sums of the chunks take fbn_plan_partials() doubles.
 */
#include <stdlib.h>

#include "call.h"

enum {
    LINE = 64,
    ON_STACK = 16 * 1024,
    WITHOUT_SUMS = 7, /* arrays of a double for each feature */
    WITH_SUMS = 12
};

/* Where base is NULL, the memory is only counted. */
struct arena {
    char *base;
    size_t used;
};

static void *take(struct arena *arena, int64_t count, size_t size)
{
    void *place = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)count * size + LINE - 1) / LINE * LINE;
    return place;
}

static void lay_out_features(struct fbn_call *call, const struct fbn_scratch *provided, struct arena *arena)
{
    int64_t c = call->plan.sums.c;
    struct fbn_scratch *to = &call->scratch;
    double **arrays[] = {&to->mean,    &to->var,   &to->rstd,  &to->gamma, &to->beta,   &to->mean_dy,
                         &to->slope,   &to->sum_u, &to->sum_v, &to->m2,    &to->dgamma, &to->dbeta};
    double *had[] = {provided->mean,  provided->var,   provided->rstd,  provided->gamma, provided->beta,
                     provided->mean_dy, provided->slope, provided->sum_u, provided->sum_v, provided->m2,
                     provided->dgamma, provided->dbeta};
    for (int i = 0; i < (call->operation->prepare ? WITH_SUMS : WITHOUT_SUMS); i++)
        if (!had[i])
            *arrays[i] = take(arena, c, sizeof(double));
    to->bad = call->operation->prepare ? take(arena, c, 1) : NULL;
    to->pivot = call->operation->prepare ? take(arena, c, (size_t)call->lane_size) : NULL;
    for (int i = 0; i < fbn_params_of(call); i++)
        to->par[i] = take(arena, c, (size_t)call->lane_size);
}

static void lay_out_columns(struct fbn_call *call, struct arena *arena)
{
    const struct fbn_plan *sums = &call->plan.sums;
    struct fbn_scratch *to = &call->scratch;
    size_t size = (size_t)call->lane_size;
    int more = fbn_more_columns(sums);
    int64_t columns = fbn_param_columns(call);
    to->pivot_columns = call->operation->prepare && more ? take(arena, sums->width, size) : to->pivot;
    for (int i = 0; i < fbn_params_of(call); i++)
        to->par_columns[i] = columns > 0 ? take(arena, columns, size) : to->par[i];
    for (int i = 0; fbn_needs_z(call) && i < 3; i++) {
        to->z[i] = take(arena, sums->c, size);
        to->z_columns[i] = more ? take(arena, sums->width, size) : to->z[i];
    }
}

static int64_t columns_of_constants(const struct fbn_call *call)
{
    return fbn_max(fbn_max(call->plan.sums.c, fbn_param_columns(call)), call->plan.sums.width);
}

static void fill_constants(struct fbn_call *call)
{
    static const double value[FBN_CONSTANTS] = {[FBN_ZERO] = 0.0, [FBN_MINUS_ZERO] = -0.0, [FBN_ONE] = 1.0};
    if (!call->given.weights)
        return;
    int64_t columns = columns_of_constants(call);
    for (int i = 0; i < FBN_CONSTANTS; i++)
        for (int64_t j = 0; j < columns; j++)
            call->lanes->round(1, &value[i], (char *)call->scratch.constant[i] + j * call->lane_size);
}

static size_t lay_out(struct fbn_call *call, const struct fbn_scratch *provided, char *base)
{
    struct arena arena = {base, 0};
    lay_out_features(call, provided, &arena);
    lay_out_columns(call, &arena);
    call->scratch.partial =
        call->operation->prepare ? take(&arena, fbn_plan_partials(&call->plan.sums), sizeof(double)) : NULL;
    fbn_place_totals(call);
    for (int i = 0; call->given.weights && i < FBN_CONSTANTS; i++)
        call->scratch.constant[i] = take(&arena, columns_of_constants(call), (size_t)call->lane_size);
    return arena.used;
}

/* A call without sums only reads these arrays of its scratch memory. */
static struct fbn_scratch inputs_of(const struct fbn_call *call)
{
    const struct fbn_scratch *scratch = &call->scratch;
    struct fbn_scratch inputs = {.gamma = scratch->gamma == call->given.gamma ? scratch->gamma : NULL,
                                 .beta = scratch->beta == call->given.beta ? scratch->beta : NULL};
    if (call->given.dy.data || (call->given.mean && scratch->mean == call->given.mean)) {
        inputs.mean = scratch->mean;
        inputs.var = scratch->var;
    }
    if (call->given.dy.data)
        inputs.rstd = scratch->rstd;
    return inputs;
}

static char *aligned(char *p) { return p + (LINE - (uintptr_t)p % LINE) % LINE; }

static size_t lay_out_own(struct fbn_call *own, char *base)
{
    const struct fbn_scratch inputs = inputs_of(own);
    struct arena arena = {base, 0};
    lay_out_features(own, &inputs, &arena);
    lay_out_columns(own, &arena);
    return arena.used + LINE;
}

size_t fbn_own_bytes(const struct fbn_call *call)
{
    struct fbn_call own = *call;
    return lay_out_own(&own, NULL);
}

struct fbn_call fbn_own_call(const struct fbn_call *call, char *base)
{
    struct fbn_call own = *call;
    lay_out_own(&own, aligned(base));
    return own;
}

fastbn_status fbn_with_scratch(struct fbn_call *call, void (*run)(struct fbn_call *call))
{
    const struct fbn_scratch provided = call->scratch;
    char small[ON_STACK + LINE], *large = NULL;
    size_t bytes = lay_out(call, &provided, NULL);
    if (bytes > ON_STACK) {
        large = malloc(bytes + LINE);
        if (!large)
            return FASTBN_ERROR_MEMORY;
    }
    lay_out(call, &provided, aligned(large ? large : small));
    fill_constants(call);
    run(call);
    free(large);
    return FASTBN_OK;
}
