/* scratch.c - memory for one call: a small block on the stack, else one allocation, gone when the call returns.
 *
 * By feature some hundred bytes; by column of a table that has more columns than features up to five elements; and the
 * sums of the chunks, fbn_plan_partials() doubles.
 */
#include <stdlib.h>

#include "job.h"

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

static void lay_out_features(struct fbn_job *job, const struct fbn_job *given, struct arena *arena)
{
    int64_t c = job->sums_plan.c;
    double **arrays[] = {&job->mean,    &job->var,   &job->rstd,  &job->gamma, &job->beta,   &job->mean_dy,
                         &job->slope,   &job->sum_u, &job->sum_v, &job->m2,    &job->dgamma, &job->dbeta};
    double *provided[] = {given->mean,  given->var,   given->rstd,  given->gamma, given->beta,   given->mean_dy,
                          given->slope, given->sum_u, given->sum_v, given->m2,    given->dgamma, given->dbeta};
    for (int i = 0; i < (job->op->prepare ? WITH_SUMS : WITHOUT_SUMS); i++)
        take_doubles(arena, arrays[i], c, provided[i]);
    job->bad = job->op->prepare ? take(arena, c, 1) : NULL;
    job->pivot = job->op->prepare ? take(arena, c, (size_t)job->lane_size) : NULL;
    for (int i = 0; i < fbn_params_of(job); i++)
        job->par[i] = take(arena, c, (size_t)job->lane_size);
}

/* But for the sums. */
static void lay_out_columns(struct fbn_job *job, struct arena *arena)
{
    size_t size = (size_t)job->lane_size;
    int more = job->op->prepare && fbn_more_columns(&job->sums_plan);
    job->pivot_columns = more ? take(arena, job->sums_plan.width, size) : job->pivot;
    int64_t columns = fbn_param_columns(job);
    for (int i = 0; i < fbn_params_of(job); i++)
        job->par_columns[i] = columns > 0 ? take(arena, columns, size) : job->par[i];
    for (int i = 0; fbn_needs_z(job) && i < 3; i++) {
        job->z[i] = take(arena, job->sums_plan.c, size);
        job->z_columns[i] = fbn_more_columns(&job->sums_plan) ? take(arena, job->sums_plan.width, size) : job->z[i];
    }
}

static int64_t columns_of_constants(const struct fbn_job *job)
{
    return fbn_most(fbn_most(job->sums_plan.c, fbn_param_columns(job)), job->sums_plan.width);
}

static void fill_constants(struct fbn_job *job)
{
    static const double value[FBN_CONSTANTS] = {[FBN_ZERO] = 0.0, [FBN_MINUS_ZERO] = -0.0, [FBN_ONE] = 1.0};
    if (!job->weights)
        return;
    int64_t columns = columns_of_constants(job);
    for (int i = 0; i < FBN_CONSTANTS; i++)
        for (int64_t j = 0; j < columns; j++)
            job->lanes->round(1, &value[i], (char *)job->constant[i] + j * job->lane_size);
}

static size_t lay_out(struct fbn_job *job, const struct fbn_job *given, char *base)
{
    struct arena arena = {base, 0};
    lay_out_features(job, given, &arena);
    lay_out_columns(job, &arena);
    job->partial = job->op->prepare ? take(&arena, fbn_plan_partials(&job->sums_plan), sizeof(double)) : NULL;
    fbn_place_totals(job);
    for (int i = 0; job->weights && i < FBN_CONSTANTS; i++)
        job->constant[i] = take(&arena, columns_of_constants(job), (size_t)job->lane_size);
    return arena.used;
}

/* What is only read, of a job without sums. */
static struct fbn_job inputs_of(const struct fbn_job *job)
{
    struct fbn_job inputs = {.gamma = job->gamma == job->given.gamma ? job->gamma : NULL,
                             .beta = job->beta == job->given.beta ? job->beta : NULL};
    if (job->dy.data || (job->given.mean && job->mean == job->given.mean)) {
        inputs.mean = job->mean;
        inputs.var = job->var;
    }
    if (job->dy.data)
        inputs.rstd = job->rstd;
    return inputs;
}

static char *aligned(char *p) { return p + (LINE - (uintptr_t)p % LINE) % LINE; }

static size_t lay_out_own(struct fbn_job *own, char *base)
{
    const struct fbn_job inputs = inputs_of(own);
    struct arena arena = {base, 0};
    lay_out_features(own, &inputs, &arena);
    lay_out_columns(own, &arena);
    return arena.used + LINE;
}

size_t fbn_own_bytes(const struct fbn_job *job)
{
    struct fbn_job own = *job;
    return lay_out_own(&own, NULL);
}

struct fbn_job fbn_own_job(const struct fbn_job *job, char *base)
{
    struct fbn_job own = *job;
    lay_out_own(&own, aligned(base));
    return own;
}

fastbn_status fbn_with_scratch(struct fbn_job *job, void (*run)(struct fbn_job *job, void *context), void *context)
{
    const struct fbn_job given = *job;
    char small[ON_STACK + LINE], *large = NULL;
    size_t bytes = lay_out(job, &given, NULL);
    if (bytes > ON_STACK) {
        large = malloc(bytes + LINE);
        if (!large)
            return FASTBN_ERROR_MEMORY;
    }
    lay_out(job, &given, aligned(large ? large : small));
    fill_constants(job);
    run(job, context);
    free(large);
    return FASTBN_OK;
}
