/* schedule.c - the steps of a call in a good order. Two orders give the same bits:
 *
 *   by features  a thread owns a range of features and takes them group by group through all steps, while the data of
 *                a group is in its cache. Nobody waits for anybody. This order is taken where there are enough features
 *                to share out evenly.
 *   by phases    all threads together take each step over everything, with a barrier after it. The map of a table walks
 *                backwards, so that it starts on what the caches still hold. Where there are no sums, each thread makes
 *                all parameters for itself, unless features have few entries: lines that one processor writes and
 *                another reads take longer than computing them twice.
 */
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "machine.h"
#include "parallel.h"

enum {
    FEATURES_TO_FINISH = 32, /* that a thread takes between the passes, at least: sums of fewer share cache lines */
    OWN_ENTRIES = 16,        /* of a feature, for each thread: then parameters of its own are little beside the data */
    /* bytes */
    BACKWARDS = 512 * 1024,  /* that the map takes forwards, while it goes backwards as a whole */
    LONG_COLUMNS = 8192,     /* of a row, which a thread may have for itself */
    EXCHANGE = 384,          /* see exchanged */
    LONG_RUN = 128 * 1024    /* adjacent bytes that memory delivers at full speed */
};

struct schedule {
    struct fbn_call *call;
    int by_features;
    int64_t group;    /* features that a cache holds */
    char *own;        /* storage for parameters of each thread's own, or NULL: they are shared */
    size_t own_bytes; /* of one thread */
};

/* The features that must stay together in both passes. Grains are powers of two, or all features. */
static int64_t grain_of(const struct fbn_call *call) { return fbn_max(call->plan.sums.grain, call->plan.map.grain); }

static int64_t grains(const struct fbn_call *call) { return fbn_divide_up(call->plan.sums.c, grain_of(call)); }

/* ---- one range of features through all steps ---- */

/* The totals were used up, so their memory is free for the means. */
static void pivots_again(struct fbn_call *call, int64_t first, int64_t end)
{
    struct fbn_scratch *scratch = &call->scratch;
    double *about = scratch->sum_u;
    for (int64_t f = first; f < end; f++) {
        double m = scratch->mean[f];
        about[f] = m - m == 0.0 ? m : 0.0;
    }
    call->typed->round(end - first, about + first, (char *)scratch->pivot + first * call->lane_size);
    fbn_broadcast_pivots(call, first, end);
}

static int64_t take_sums(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    fbn_sum_chunks(call, first, end, 0, call->plan.sums.chunks, again);
    fbn_total_sums(call, first, end);
    return call->operation->finish(call, first, end, again);
}

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
    return fbn_min(call->plan.sums.c, fbn_share(grains(call), thread, threads) * grain_of(call));
}

static void work_by_features(const struct schedule *schedule, int thread, int threads)
{
    int64_t last = first_feature(schedule->call, thread + 1, threads);
    for (int64_t first = first_feature(schedule->call, thread, threads); first < last; first += schedule->group)
        all_steps(schedule->call, first, fbn_min(last, first + schedule->group));
}

/* ---- everything, step by step ---- */

static void sum_phase(struct fbn_call *call, int thread, int threads, int again)
{
    const struct fbn_plan *plan = &call->plan.sums;
    int64_t all = plan->layout == FBN_ROWS ? plan->chunks : plan->c * plan->chunks;
    int64_t begin = fbn_share(all, thread, threads), end = fbn_share(all, thread + 1, threads);
    if (plan->layout == FBN_ROWS) {
        fbn_sum_chunks(call, 0, plan->c, begin, end, again);
        return;
    }
    for (int64_t features; begin < end; begin += features) {
        int64_t chunk = begin / plan->c, f = begin % plan->c;
        features = fbn_min(plan->c - f, end - begin);
        fbn_sum_chunks(call, f, f + features, chunk, chunk + 1, again);
    }
}

/* How many runs the map takes forwards, while it goes backwards as a whole. */
static int64_t runs_forwards(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.map;
    return BACKWARDS / ((plan->layout == FBN_ROWS ? plan->width : plan->run) * call->size) + 1;
}

static void map_phase(struct fbn_call *call, int thread, int threads)
{
    int64_t all = fbn_count_runs(call), begin = fbn_share(all, thread, threads);
    int64_t end = fbn_share(all, thread + 1, threads), step = call->operation->prepare ? runs_forwards(call) : all;
    for (int64_t from; begin < end; end = from) {
        from = fbn_max(begin, end - step);
        fbn_map_runs(call, from, end);
    }
}

static void finish_phase(struct fbn_call *call, int64_t first, int64_t end, int again)
{
    fbn_total_sums(call, first, end);
    call->operation->finish(call, first, end, again);
    make_params(call, first, end);
}

/* The first feature of thread t between the passes. Where a row of the plan holds each feature several times over, two
 * threads would write to the same cache lines all along it, so one takes all. */
static int64_t first_to_finish(const struct fbn_plan *plan, int thread, int threads)
{
    int64_t grain = plan->fold > 1 ? plan->c : FEATURES_TO_FINISH;
    return fbn_min(plan->c, fbn_share(fbn_divide_up(plan->c, grain), thread, threads) * grain);
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
        if (again || !memchr(call->scratch.bad, 1, (size_t)call->plan.sums.c))
            break;
        pivots_again(call, first, end);
    }
}

static void work_by_phases(const struct schedule *schedule, int thread, int threads)
{
    struct fbn_call *call = schedule->call;
    int64_t first = first_to_finish(&call->plan.sums, thread, threads);
    int64_t end = first_to_finish(&call->plan.sums, thread + 1, threads);
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
    fbn_load_params(&own, 0, own.plan.sums.c);
    make_params(&own, 0, own.plan.sums.c);
    if (fbn_writes(&own))
        map_phase(&own, thread, threads);
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
    if (schedule->call->plan.policy == FBN_STORE_NON_TEMPORAL)
        schedule->call->kernels->stream_fence();
}

/* ---- which of the two ---- */

static int64_t bytes_of_feature(const struct fbn_call *call)
{
    int64_t arrays = call->operation->prepare ? 1 + (call->given.dy.data != NULL) : 1;
    if (call->plan.stores_dz)
        arrays += 1 + (call->given.written.data || call->given.residual.data);
    return arrays * call->given.entries * call->size;
}

static int shares_are_even(int64_t all, int threads)
{
    int64_t largest = fbn_divide_up(all, threads);
    return 10 * largest * threads <= 11 * all;
}

/* Tables go by phases, each thread over rows of its own. Two threads in different columns of the same rows would take cache
 * lines of y from each other, since a processor prefetches past the end of a thread's columns (512 rows of 512: four
 * times slower than one thread). Columns are shared out only where there are fewer chunks of rows than threads, and the
 * columns of a thread are a long run. */
static int goes_by_features(const struct fbn_call *call, int threads)
{
    const struct fbn_plan *plan = &call->plan.sums;
    if (!call->operation->prepare)
        return 0;
    if (threads == 1)
        return plan->layout == FBN_PLANES;
    if (plan->layout == FBN_PLANES)
        return shares_are_even(plan->c, threads);
    return plan->chunks < threads && plan->width * call->size >= (int64_t)threads * LONG_COLUMNS &&
           grains(call) >= threads;
}

/* The features of a group are as many as the second-level cache holds. There are more of them if the thread's share of the
 * last level holds so many that their planes are a long run of memory. Without a map they are all. Groups are of about
 * equal size, because a small last one would have short runs. */
static int64_t features_in_cache(const struct fbn_call *call, int threads)
{
    const struct fbn_plan *plan = &call->plan.sums;
    const int64_t feature = bytes_of_feature(call), plane = plan->s * call->size;
    if (plan->layout == FBN_ROWS || call->plan.map.layout == FBN_ROWS || !fbn_writes(call))
        return plan->c;
    int64_t near = fbn_level2_bytes() / 2 / feature, far = fbn_last_level_bytes() / 2 / threads / feature;
    int64_t wanted = plan->n > 1 ? fbn_divide_up(LONG_RUN, plane) : 1;
    int64_t most_in_group = fbn_max(1, fbn_max(near, fbn_min(far, wanted)));
    int64_t share_of_thread = fbn_divide_up(plan->c, threads);
    return fbn_divide_up(share_of_thread, fbn_divide_up(share_of_thread, most_in_group));
}

/* Into so many parts the call can be cut. */
static int64_t tasks(const struct fbn_call *call)
{
    const struct fbn_plan *plan = &call->plan.sums;
    int64_t chunks = plan->layout == FBN_ROWS ? plan->chunks : plan->c * plan->chunks;
    int64_t runs = fbn_writes(call) ? fbn_count_runs(call) : 1;
    return call->operation->prepare ? fbn_max(fbn_max(chunks, grains(call)), runs) : runs;
}

/* ---- the call ---- */

/* By phases, every thread reads the sums and the parameters that the others wrote. These are some lines a feature, from
 * another core's cache, which takes as long as moving EXCHANGE bytes (measured). */
static int64_t exchanged(const struct fbn_call *call)
{
    return call->operation->prepare && call->plan.sums.layout == FBN_ROWS ? EXCHANGE * call->plan.sums.c : 0;
}

/* Where there is no memory for parameters of their own, threads share them. */
static void run_team(struct schedule *schedule, struct fbn_team team)
{
    const struct fbn_call *call = schedule->call;
    const int threads = team.threads;
    if (threads > 1 && !call->operation->prepare && call->given.entries >= (int64_t)OWN_ENTRIES * threads) {
        schedule->own_bytes = fbn_own_bytes(call);
        schedule->own = malloc((size_t)threads * schedule->own_bytes);
    }
    fbn_run(team, work, schedule);
    free(schedule->own);
}

void fbn_schedule(struct fbn_call *call)
{
    const struct fbn_given *given = &call->given;
    int64_t arrays = (given->y.data != NULL) + (given->residual.data != NULL) + (given->dresidual.data != NULL);
    int64_t bytes = (bytes_of_feature(call) + arrays * given->entries * call->size) * call->plan.sums.c;
    struct fbn_team team = fbn_team_for(given->threads, bytes, exchanged(call), tasks(call));
    const int threads = team.threads;
    call->plan.policy = fbn_store_policy(call, bytes, threads);
    call->plan.prefetches = fbn_prefetches(call, threads);
    struct schedule schedule = {call, goes_by_features(call, threads), features_in_cache(call, threads), NULL, 0};
    run_team(&schedule, team);
}
