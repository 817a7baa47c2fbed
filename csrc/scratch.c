/* scratch.c - memory for one call: a small block on the stack, else one allocation, gone when the call returns.
 *
 * By feature some hundred bytes; by column of a table that has more columns than features up to five elements; and the
 * sums of the chunks, fbn_plan_partials() doubles.
 */
#include <stdlib.h>

#include "call.h"

enum {
    LINE = 64,
    ON_STACK = 16 * 1024,
    WITHOUT_SUMS = 7, /* arrays of a double for each feature */
    WITH_SUMS = 12
};

struct arena {
    char *base; /* NULL: only counts */
    size_t used;
};

static void *take(struct arena *arena, int64_t count, size_t size)
{
    void *place = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)count * size + LINE - 1) / LINE * LINE;
    return place;
}

/* Takes what the caller has not provided. */
static void take_doubles(struct arena *arena, double **array, int64_t c, const double *provided)
{
    if (!provided)
        *array = take(arena, c, sizeof **array);
}

static void lay_out_features(struct fbn_call *call, const struct fbn_call *given, struct arena *arena)
{
    int64_t c = call->sums_plan.c;
    double **arrays[] = {&call->mean,    &call->var,   &call->rstd,  &call->gamma, &call->beta,   &call->mean_dy,
                         &call->slope,   &call->sum_u, &call->sum_v, &call->m2,    &call->dgamma, &call->dbeta};
    double *provided[] = {given->mean,  given->var,   given->rstd,  given->gamma, given->beta,   given->mean_dy,
                          given->slope, given->sum_u, given->sum_v, given->m2,    given->dgamma, given->dbeta};
    for (int i = 0; i < (call->operation->prepare ? WITH_SUMS : WITHOUT_SUMS); i++)
        take_doubles(arena, arrays[i], c, provided[i]);
    call->bad = call->operation->prepare ? take(arena, c, 1) : NULL;
    call->pivot = call->operation->prepare ? take(arena, c, (size_t)call->lane_size) : NULL;
    for (int i = 0; i < fbn_params_of(call); i++)
        call->par[i] = take(arena, c, (size_t)call->lane_size);
}

/* But for the sums. */
static void lay_out_columns(struct fbn_call *call, struct arena *arena)
{
    size_t size = (size_t)call->lane_size;
    int more = call->operation->prepare && fbn_more_columns(&call->sums_plan);
    call->pivot_columns = more ? take(arena, call->sums_plan.width, size) : call->pivot;
    int64_t columns = fbn_param_columns(call);
    for (int i = 0; i < fbn_params_of(call); i++)
        call->par_columns[i] = columns > 0 ? take(arena, columns, size) : call->par[i];
    for (int i = 0; fbn_needs_z(call) && i < 3; i++) {
        call->z[i] = take(arena, call->sums_plan.c, size);
        call->z_columns[i] = fbn_more_columns(&call->sums_plan) ? take(arena, call->sums_plan.width, size) : call->z[i];
    }
}

static int64_t columns_of_constants(const struct fbn_call *call)
{
    return fbn_max(fbn_max(call->sums_plan.c, fbn_param_columns(call)), call->sums_plan.width);
}

static void fill_constants(struct fbn_call *call)
{
    static const double value[FBN_CONSTANTS] = {[FBN_ZERO] = 0.0, [FBN_MINUS_ZERO] = -0.0, [FBN_ONE] = 1.0};
    if (!call->weights)
        return;
    int64_t columns = columns_of_constants(call);
    for (int i = 0; i < FBN_CONSTANTS; i++)
        for (int64_t j = 0; j < columns; j++)
            call->lanes->round(1, &value[i], (char *)call->constant[i] + j * call->lane_size);
}

static size_t lay_out(struct fbn_call *call, const struct fbn_call *given, char *base)
{
    struct arena arena = {base, 0};
    lay_out_features(call, given, &arena);
    lay_out_columns(call, &arena);
    call->partial = call->operation->prepare ? take(&arena, fbn_plan_partials(&call->sums_plan), sizeof(double)) : NULL;
    fbn_place_totals(call);
    for (int i = 0; call->weights && i < FBN_CONSTANTS; i++)
        call->constant[i] = take(&arena, columns_of_constants(call), (size_t)call->lane_size);
    return arena.used;
}

/* What is only read, of a job without sums. */
static struct fbn_call inputs_of(const struct fbn_call *call)
{
    struct fbn_call inputs = {.gamma = call->gamma == call->given.gamma ? call->gamma : NULL,
                             .beta = call->beta == call->given.beta ? call->beta : NULL};
    if (call->dy.data || (call->given.mean && call->mean == call->given.mean)) {
        inputs.mean = call->mean;
        inputs.var = call->var;
    }
    if (call->dy.data)
        inputs.rstd = call->rstd;
    return inputs;
}

static char *aligned(char *p) { return p + (LINE - (uintptr_t)p % LINE) % LINE; }

static size_t lay_out_own(struct fbn_call *own, char *base)
{
    const struct fbn_call inputs = inputs_of(own);
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

fastbn_status fbn_with_scratch(struct fbn_call *call, void (*run)(struct fbn_call *call, void *context), void *context)
{
    const struct fbn_call given = *call;
    char small[ON_STACK + LINE], *large = NULL;
    size_t bytes = lay_out(call, &given, NULL);
    if (bytes > ON_STACK) {
        large = malloc(bytes + LINE);
        if (!large)
            return FASTBN_ERROR_MEMORY;
    }
    lay_out(call, &given, aligned(large ? large : small));
    fill_constants(call);
    run(call, context);
    free(large);
    return FASTBN_OK;
}
