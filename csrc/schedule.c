/* schedule.c - the steps of a call in a good order. Two orders give the same bits:
 *
 *   by features  a thread owns a range of features and takes them group by group through all steps, while the data of
 *                a group is in its cache. Nobody waits for anybody. Where there are enough features to share out evenly.
 *   by phases    all threads together take each step over everything, with a barrier after it. The second pass of a
 *                table walks backwards, so that it starts on what the caches still hold. Where there are no sums, each
 *                thread makes all parameters for itself, unless features have few entries: lines that one processor
 *                writes and another reads take longer than computing them twice.
 */
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "call.h"
#include "parallel.h"

enum {
    FEATURES_TO_FINISH = 32, /* by a thread, at least: sums of fewer share cache lines */
    OWN_ENTRIES = 16,        /* of a feature, for each thread: then its parameters are little beside its data */
    /* bytes */
    BACKWARDS = 512 * 1024,
    SHORT_RUN = 1024,
    LONG_COLUMNS = 8192,
    EXCHANGE = 384,
    LONG_RUN = 128 * 1024 /* adjacent bytes that memory delivers at full speed */
};

struct schedule {
    struct fbn_call *call;
    int by_features;
    int64_t group; /* features that a cache holds */
    char *own;     /* storage for parameters of each thread's own, or NULL: they are shared */
    size_t own_bytes; /* of one thread */
};

/* Features that must stay together in both passes. Units are powers of two, or all features. */
static int64_t unit_of(const struct fbn_call *call)
{
    return call->sums_plan.grain > call->out_plan.grain ? call->sums_plan.grain : call->out_plan.grain;
}

static int64_t units(const struct fbn_call *call) { return (call->sums_plan.c + unit_of(call) - 1) / unit_of(call); }

/* The share of thread t: [share(t), share(t + 1)). */
static int64_t share(int64_t all, int thread, int threads)
{
    return all / threads * thread + all % threads * thread / threads;
}

/* ---- one range of features through all steps ---- */

static void pivots_again(struct fbn_call *call, int64_t first, int64_t end)
{
    double *about = call->sum_u; /* totals were used up */
    for (int64_t f = first; f < end; f++) {
        double m = call->mean[f];
        about[f] = m - m == 0.0 ? m : 0.0;
    }
    call->typed->round(end - first, about + first, (char *)call->pivot + first * call->lane_size);
    fbn_broadcast_pivots(call, first, end);
}

static int64_t take_sums(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    fbn_sum_chunks(call, first, end, 0, call->sums_plan.chunks, again);
    fbn_total_sums(call, first, end);
    return call->operation->finish(call, first, end, again);
}

/* Of the second pass, if there is one. */
static void make_params(struct fbn_call *call, int64_t first, int64_t end)
{
    if (!call->operation->params)
        return;
    call->operation->params(call, first, end);
    fbn_broadcast_params(call, first, end);
}

static void all_steps(struct fbn_call *call, int64_t first, int64_t end)
{
    fbn_load_params(call, first, end);
    if (call->operation->prepare) {
        call->operation->prepare(call, first, end);
        fbn_broadcast_pivots(call, first, end);
        if (take_sums(call, first, end, 0) > 0) {
            pivots_again(call, first, end);
            take_sums(call, first, end, 1);
        }
    }
    make_params(call, first, end);
    if (fbn_writes(call))
        fbn_map_features(call, first, end);
}

static int64_t first_feature(const struct fbn_call *call, int thread, int threads)
{
    int64_t c = call->sums_plan.c, first = share(units(call), thread, threads) * unit_of(call);
    return first < c ? first : c;
}

static void work_by_features(const struct schedule *schedule, int thread, int threads)
{
    int64_t last = first_feature(schedule->call, thread + 1, threads);
    for (int64_t first = first_feature(schedule->call, thread, threads); first < last; first += schedule->group) {
        int64_t end = last - first < schedule->group ? last : first + schedule->group;
        all_steps(schedule->call, first, end);
    }
}

/* ---- everything, step by step ---- */

static void sum_phase(struct fbn_call *call, int thread, int threads, int again)
{
    const struct fbn_plan *plan = &call->sums_plan;
    if (plan->layout == FBN_ROWS) {
        fbn_sum_chunks(call, 0, plan->c, share(plan->chunks, thread, threads), share(plan->chunks, thread + 1, threads),
                       again);
        return;
    }
    int64_t end = share(plan->c * plan->chunks, thread + 1, threads);
    for (int64_t q = share(plan->c * plan->chunks, thread, threads), features; q < end; q += features) {
        int64_t chunk = q / plan->c, f = q % plan->c;
        features = plan->c - f < end - q ? plan->c - f : end - q;
        fbn_sum_chunks(call, f, f + features, chunk, chunk + 1, again);
    }
}

/* How many stretches the second pass takes forwards, while it goes backwards as a whole. */
static int64_t backwards(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->out_plan;
    return BACKWARDS / ((plan->layout == FBN_ROWS ? plan->width : plan->run) * call->size) + 1;
}

static void map_phase(struct fbn_call *call, int thread, int threads)
{
    int64_t all = fbn_count_runs(call), begin = share(all, thread, threads), end = share(all, thread + 1, threads);
    int64_t step = call->operation->prepare ? backwards(call) : all;
    while (begin < end) {
        int64_t from = end - begin < step ? begin : end - step;
        fbn_map_runs(call, from, end);
        end = from;
    }
}

static void finish_phase(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    fbn_total_sums(call, first, end);
    call->operation->finish(call, first, end, again);
    make_params(call, first, end);
}

/* Between the passes, the first feature of thread t. Where a row of the plan holds each feature several times over, two
 * threads would write to the same cache lines all along it, so one takes all. */
static int64_t first_to_finish(const struct fbn_plan *plan, int thread, int threads)
{
    int64_t unit = plan->fold > 1 ? plan->c : FEATURES_TO_FINISH;
    return fbn_min(plan->c, share((plan->c + unit - 1) / unit, thread, threads) * unit);
}

/* The features [first, end) are those that this thread takes between the passes. */
static void sums_to_params(struct fbn_call *call, int thread, int threads, int64_t first, int64_t end)
{
    call->operation->prepare(call, first, end);
    fbn_broadcast_pivots(call, first, end);
    for (int again = 0; again < 2; again++) {
        fbn_barrier(threads);
        sum_phase(call, thread, threads, again);
        fbn_barrier(threads);
        finish_phase(call, first, end, again);
        fbn_barrier(threads);
        if (again || !memchr(call->bad, 1, (size_t)call->sums_plan.c))
            break;
        pivots_again(call, first, end);
    }
}

static void work_by_phases(const struct schedule *schedule, int thread, int threads)
{
    struct fbn_call *call = schedule->call;
    int64_t first = first_to_finish(&call->sums_plan, thread, threads);
    int64_t end = first_to_finish(&call->sums_plan, thread + 1, threads);
    fbn_load_params(call, first, end);
    if (call->operation->prepare) {
        sums_to_params(call, thread, threads, first, end);
    } else {
        make_params(call, first, end);
        fbn_barrier(threads);
    }
    if (fbn_writes(call))
        map_phase(call, thread, threads);
}

static void work_with_own_params(const struct schedule *schedule, int thread, int threads)
{
    struct fbn_call own = fbn_own_call(schedule->call, schedule->own + (size_t)thread * schedule->own_bytes);
    fbn_load_params(&own, 0, own.sums_plan.c);
    make_params(&own, 0, own.sums_plan.c);
    if (fbn_writes(&own))
        map_phase(&own, thread, threads);
}

/* ---- which of the two ---- */

static int64_t bytes_of_feature(const struct fbn_call *call)
{
    int64_t arrays = call->operation->prepare ? 1 + (call->dy.data != NULL) : 1;
    if (call->stores_dz)
        arrays += 1 + (call->written.data || call->residual.data);
    return arrays * call->entries * call->size;
}

static int shares_are_even(int64_t all, int threads)
{
    int64_t largest = (all + threads - 1) / threads;
    return 10 * largest * threads <= 11 * all;
}

/* Tables go by phases, each thread over rows of its own. Two threads in different columns of the same rows take cache
 * lines of y from each other, since a processor prefetches past the end of a thread's columns (512 rows of 512: four
 * times slower than one thread). Only where there are fewer chunks of rows than threads, and the columns of a thread
 * are a long run, they are shared out. */
static int goes_by_features(const struct fbn_call *call, int threads)
{
    const struct fbn_plan *plan = &call->sums_plan;
    if (!call->operation->prepare)
        return 0;
    if (threads == 1)
        return plan->layout == FBN_PLANES;
    if (plan->layout == FBN_PLANES)
        return shares_are_even(plan->c, threads);
    return plan->chunks < threads && plan->width * call->size >= (int64_t)threads * LONG_COLUMNS && units(call) >= threads;
}

/* As many as the second-level cache holds, or so many more, if the thread's share of the last one holds them, that
 * their planes are a long run of memory; all where there is no second pass. Groups are of about equal size: a small last
 * one would have short runs. */
static int64_t features_in_cache(const struct fbn_call *call, int threads)
{
    const int64_t c = call->sums_plan.c, feature = bytes_of_feature(call), plane = call->sums_plan.s * call->size;
    if (call->sums_plan.layout == FBN_ROWS || call->out_plan.layout == FBN_ROWS || !fbn_writes(call))
        return c;
    int64_t near = fbn_level2_bytes() / 2 / feature, far = fbn_last_level_bytes() / 2 / threads / feature;
    int64_t wanted = call->sums_plan.n > 1 ? (LONG_RUN + plane - 1) / plane : 1;
    int64_t most_in_group = fbn_max(1, fbn_max(near, fbn_min(far, wanted)));
    int64_t share_of_thread = (c + threads - 1) / threads;
    int64_t groups = (share_of_thread + most_in_group - 1) / most_in_group;
    return (share_of_thread + groups - 1) / groups;
}

static int64_t tasks(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->sums_plan;
    int64_t chunks = plan->layout == FBN_ROWS ? plan->chunks : plan->c * plan->chunks;
    int64_t stretches = fbn_writes(call) ? fbn_count_runs(call) : 1;
    if (!call->operation->prepare)
        return stretches;
    int64_t parts = fbn_max(chunks, units(call));
    return fbn_max(parts, stretches);
}

/* Bytes of all arrays beyond which plain loops that store through the last-level cache were slower than those that store
 * past it (measured on Zen 4: of 32 MiB 18 and 35 for one input and 1 and 2 threads, 14 and 24 for two). */
static int64_t most_in_cache(const struct fbn_call *call, int threads)
{
    const int64_t part = fbn_last_level_bytes() / 16;
    if (call->gradient || call->residual.data)
        return threads > 1 ? 12 * part : 7 * part;
    return threads > 1 ? 17 * part : 9 * part;
}

/* Past the caches where they do not hold the arrays; not in place, where y's lines were just read (or are read again), nor in
 * short runs, whose ends share lines. In order where the second-level caches do not hold them. */
static enum fbn_store_policy store_policy(const struct fbn_call *call, int64_t bytes, int threads)
{
    int64_t run = fbn_output_run(call) * call->size;
    int in_place = call->y.data == call->x.data || call->y.data == call->dy.data || call->y.data == call->dz.data ||
                   call->activates_y;
    if (bytes > most_in_cache(call, threads) && run >= SHORT_RUN && !in_place)
        return FBN_STORE_NON_TEMPORAL;
    return bytes > threads * fbn_level2_bytes() ? FBN_STORE_IN_ORDER : FBN_STORE_CACHED;
}

static void work(void *schedule_, int thread, int threads)
{
    const struct schedule *schedule = schedule_;
    if (schedule->by_features)
        work_by_features(schedule, thread, threads);
    else if (schedule->own)
        work_with_own_params(schedule, thread, threads);
    else
        work_by_phases(schedule, thread, threads);
    if (schedule->call->policy == FBN_STORE_NON_TEMPORAL)
        schedule->call->kernels->stream_fence();
}

/* By phases, every thread reads the sums and the parameters that the others wrote: some lines a feature, from another
 * core's cache, which takes as long as moving EXCHANGE bytes (measured). */
static int64_t exchanged(const struct fbn_call *call)
{
    return call->operation->prepare && call->sums_plan.layout == FBN_ROWS ? EXCHANGE * call->sums_plan.c : 0;
}

/* Bytes of x that the second-level caches hold well enough: beside dy, and what was in them before, they do not hold all
 * of it, but asking for the rest costs more than it saves (measured). */
static int prefetches(const struct fbn_call *call, int threads)
{
    return call->sums_plan.c * call->entries * call->size > threads * (fbn_level2_bytes() / 4 * 7);
}

/* Without the memory, parameters are shared. */
static void run_team(struct schedule *schedule, struct fbn_team team)
{
    const struct fbn_call *call = schedule->call;
    const int threads = team.threads;
    if (threads > 1 && !call->operation->prepare && call->entries >= (int64_t)OWN_ENTRIES * threads) {
        schedule->own_bytes = fbn_own_bytes(call);
        schedule->own = malloc((size_t)threads * schedule->own_bytes);
    }
    fbn_run(team, work, schedule);
    free(schedule->own);
}

void fbn_schedule(struct fbn_call *call, int num_threads)
{
    int64_t arrays = (call->y.data != NULL) + (call->residual.data != NULL) + (call->dresidual.data != NULL);
    int64_t bytes = (bytes_of_feature(call) + arrays * call->entries * call->size) * call->sums_plan.c;
    struct fbn_team team = fbn_team_for(num_threads, bytes, exchanged(call), tasks(call));
    const int threads = team.threads;
    call->policy = store_policy(call, bytes, threads);
    call->prefetches = prefetches(call, threads);
    struct schedule schedule = {call, goes_by_features(call, threads), features_in_cache(call, threads), NULL, 0};
    run_team(&schedule, team);
}
