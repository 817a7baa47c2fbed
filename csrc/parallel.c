/* parallel.c - the only file that knows OpenMP.
 *
 * After a fork the child computes serially: the threads of the OpenMP pool did not survive, whichever library had
 * started them, and a parallel region could wait for them for ever. The handler is therefore installed when the library
 * is loaded, not at its first parallel region.
 *
 * Small work never reaches the pragma: even a region of one thread costs a quarter of a microsecond. It does not read the
 * clock either, and does not count among the calls that share the processors.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime, nanosleep */
#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "backoff.h"
#include "fastbn.h"
#include "machine.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* A parallel region costs about a microsecond where the processors share a cache, in which one moves some tens of KiB.
 * It costs several where they do not, and each line of data that the other had last costs six times as much; the host of
 * a virtual machine moves its processors from one state to the other at any time. Measured on Zen 5, the time with two
 * threads in times of one thread's:
 *     bytes of the call                     0.4 MB        0.8 MB        1.6 MB
 *     processors that share a cache         0.8 to 1.2    0.7           0.5
 *     processors that do not                1.3 to 2.0    0.9 to 1.2    0.6 to 0.7 */
#define DEFAULT_BYTES_PER_THREAD (512 * 1024)

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

enum {
    WATCHED = 8,             /* threads of a team whose time is taken; more would say the same */
    LINE = 64,
    WORK_BEFORE_WAKING = 32, /* done alone, in times of the least work for a thread */
    /* nanoseconds */
    AWAKE = 80000,           /* after a call; then the runtime's threads sleep */
    LONG_CALL = 100000
};

static const int64_t SECOND = 1000000000;

/* Each thread writes to a line of its own, which nobody reads in a short call: see report. */
struct watch {
    _Atomic int64_t computed;
    char rest_of_the_line[LINE - sizeof(int64_t)];
};

static atomic_int thread_limit = -1; /* 0: none, -1: FASTBN_NUM_THREADS not read yet */
static atomic_int forked = 0, has_pool = 0, calls = 0;
static atomic_int maximum_is_chosen = 0;
static _Atomic int64_t bytes_per_thread = DEFAULT_BYTES_PER_THREAD, delay = 0;

/* What each thread remembers. Every thread of a team, the caller too, uses `waited`; the other members are used by threads
 * that call. */
static THREAD_LOCAL struct memory {
    int last_team;
    int pool;                      /* the other threads that the runtime keeps for this one */
    int64_t awake_until;           /* they sleep from then on */
    int64_t last_ended, done_alone; /* see leaves_asleep */
    int processors;                /* that it may run on */
    int64_t processors_asked;
    int64_t waited;                /* at the barriers of this call */
    struct watch watches[WATCHED];
} mine;

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>

static int64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static void in_forked_child(void)
{
    atomic_store(&forked, 1);
    atomic_store(&calls, 0);
}

/* OMP_NUM_THREADS is a number that somebody chose; without it the runtime's maximum is only a default. It is read here when
 * the runtime reads it. The runtime ignores one that is no number too. */
__attribute__((constructor)) static void at_load(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    atomic_store(&maximum_is_chosen, text && strtol(text, NULL, 10) > 0);
    pthread_atfork(NULL, NULL, in_forked_child);
}
#else
/* Untested. This clock can be set back, see backoff.h; Windows has QueryPerformanceCounter. */
static int64_t clock_now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}
#endif

/* ---- how many threads ---- */

static int limit_from_environment(void)
{
    const char *text = getenv("FASTBN_NUM_THREADS");
    char *end = NULL;
    long n = text ? strtol(text, &end, 10) : 0;
    return n > 0 && n < 1 << 20 && *end == '\0' ? (int)n : 0;
}

static int current_limit(void)
{
    int limit = atomic_load(&thread_limit);
    if (limit < 0) {
        limit = limit_from_environment();
        atomic_store(&thread_limit, limit);
    }
    return limit;
}

static int smaller(int threads, int64_t limit) { return limit < threads ? (int)limit : threads; }

#ifdef _OPENMP
/* The quota is the same for all threads. -1: not asked yet. */
static int quota(int64_t now)
{
    static atomic_int known = -1;
    static _Atomic int64_t asked = 0;
    if (atomic_load_explicit(&known, memory_order_relaxed) < 0
        || now - atomic_load_explicit(&asked, memory_order_relaxed) > SECOND) {
        atomic_store(&asked, now);
        atomic_store(&known, fbn_cgroup_processors(""));
    }
    return atomic_load_explicit(&known, memory_order_relaxed);
}

/* The processors that the calling thread may run on, and with it the threads that it starts; fewer where a container's
 * quota is less. The system is asked once a second. */
static int processors(int64_t now)
{
    struct memory *my = &mine;
    if (my->processors == 0 || now - my->processors_asked > SECOND) {
        my->processors_asked = now;
        my->processors = omp_get_num_procs();
    }
    return fbn_limited(my->processors, quota(now));
}

/* A region of one thread counts as one of the caller's too: the runtime keeps no threads within it. */
static int runtime_threads(int64_t now)
{
    if (atomic_load(&forked) || omp_get_level() > 0)
        return 1;
    int threads = omp_get_max_threads();
    return atomic_load_explicit(&maximum_is_chosen, memory_order_relaxed) ? threads : smaller(threads, processors(now));
}
#else
static int processors(int64_t now) { return (void)now, 1; }

static int runtime_threads(int64_t now) { return (void)now, 1; }
#endif

static int threads_at(int64_t now)
{
    return fbn_limited(runtime_threads(now), current_limit());
}

int fbn_maximum_is_chosen(void) { return atomic_load(&maximum_is_chosen); }

int fastbn_get_num_threads(void) { return threads_at(clock_now()); }

void fastbn_set_num_threads(int threads) { atomic_store(&thread_limit, threads > 0 ? threads : 0); }

fastbn_status fastbn_rearm_threads(void)
{
    if (atomic_load(&forked) && atomic_load(&has_pool))
        return FASTBN_ERROR_FORKED;
    atomic_store(&forked, 0);
    return FASTBN_OK;
}

/* Calls in flight share the processors. */
static int share_of_call(int threads, int others, int64_t now)
{
    if (others <= 0)
        return threads;
    int share = processors(now) / (others + 1);
    return smaller(threads, share > 1 ? share : 1);
}

/* Whether sleeping threads are left asleep. Waking them pays once calls that follow each other at once have done enough
 * work without them, whether that is one large call or a long row of short ones. */
static int leaves_asleep(struct memory *my, int64_t now, int64_t bytes)
{
    if (now < my->awake_until)
        return 0;
    my->done_alone = now - my->last_ended > AWAKE ? bytes : my->done_alone + bytes;
    return my->done_alone < WORK_BEFORE_WAKING * atomic_load_explicit(&bytes_per_thread, memory_order_relaxed);
}

struct fbn_team fbn_team_for(int requested, int64_t bytes, int64_t exchanged, int64_t tasks)
{
    struct fbn_team team = {1, 0, 0};
    int64_t least = atomic_load_explicit(&bytes_per_thread, memory_order_relaxed);
    struct memory *my = &mine;
    my->last_team = 1;
    if (bytes < 2 * least)
        return team;
    team.counted = 1;
    int others = atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed), always = least == 0;
    least += always ? 1 : exchanged;
    if (requested == 1 || tasks <= 1 || (!always && bytes < 2 * least))
        return team;
    team.begun = clock_now();
    int threads = fbn_limited(smaller(threads_at(team.begun), tasks), requested);
    if (!always) {
        threads = share_of_call(smaller(threads, bytes / least), others, team.begun);
        threads = fbn_backoff_limit(threads, team.begun);
        if (threads > 1 && leaves_asleep(my, team.begun, bytes))
            threads = 1;
    }
    team.threads = threads > 1 ? threads : 1;
    return team;
}

/* ---- running on them ---- */

#ifdef _OPENMP

/* LLVM's library lets idle threads spin for a fifth of a second. A millisecond is the shortest time that leaves the
 * barriers of a call fast; it is set for each calling thread, unless somebody has chosen. */
static void let_idle_threads_sleep(void)
{
#ifdef KMP_VERSION_MAJOR
    if (mine.pool == 0 && !getenv("KMP_BLOCKTIME") && !getenv("OMP_WAIT_POLICY"))
        kmp_set_blocktime(1);
#endif
}

/* Asks the system for the threads that the pool lacks; 0 where it refuses them.
 * The runtime ends the threads that a smaller team does not need and starts them again for a larger one. (It also ends
 * them where the calling thread runs a smaller region of somebody else's, of which nothing is known here.) */
static int get_threads_ready(struct fbn_team team)
{
    if (team.threads - 1 > mine.pool && !fbn_can_start(team.threads - 1 - mine.pool)) {
        fbn_backoff_refused(team.begun);
        return 0;
    }
    let_idle_threads_sleep();
    atomic_store_explicit(&has_pool, 1, memory_order_relaxed);
    return 1;
}

static void wait_as_tests_want(int thread)
{
    int64_t wanted = atomic_load_explicit(&delay, memory_order_relaxed);
    if (wanted > 0 && thread > 0)
        for (int64_t end = clock_now() + wanted; clock_now() < end;)
            continue;
}

/* Reports the time of the team's quickest thread. After a short call only the caller's own time is looked at, since reading
 * what another processor wrote would cost too much. A long call reads all of them, which shows whether the caller itself
 * had to wait for a processor. */
static void report(struct memory *my, int threads, int64_t begun)
{
    int64_t now = clock_now(), elapsed = now - begun, computed = my->watches[0].computed;
    for (int i = 1; elapsed > LONG_CALL && i < threads && i < WATCHED; i++)
        if (my->watches[i].computed < computed)
            computed = my->watches[i].computed;
    fbn_backoff_report(threads, elapsed, computed, now);
    my->last_ended = now;
    my->awake_until = now + AWAKE;
    my->last_team = threads;
    my->pool = threads - 1;
}

static void run_on_threads(struct fbn_team team, fbn_work *work, void *context)
{
    int given = 1;
    struct memory *caller = &mine;
#pragma omp parallel num_threads(team.threads) shared(given, caller)
    {
        struct memory *my = &mine;
        int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        int64_t begun = thread == 0 ? team.begun : clock_now();
        if (thread == 0)
            given = threads;
        my->waited = 0;
        work(context, thread, threads);
        if (thread < WATCHED)
            atomic_store_explicit(&caller->watches[thread].computed, clock_now() - begun - my->waited,
                                  memory_order_relaxed);
        wait_as_tests_want(thread);
    }
    report(caller, given, team.begun);
}
#endif

void fbn_run(struct fbn_team team, fbn_work *work, void *context)
{
#ifdef _OPENMP
    if (team.threads > 1 && get_threads_ready(team))
        run_on_threads(team, work, context);
    else
#endif
    {
        work(context, 0, 1);
        if (team.begun)
            mine.last_ended = clock_now();
    }
    if (team.counted)
        atomic_fetch_sub_explicit(&calls, 1, memory_order_relaxed);
}

void fbn_barrier(int threads)
{
#ifdef _OPENMP
    if (threads > 1) {
        int64_t begun = clock_now();
#pragma omp barrier
        mine.waited += clock_now() - begun;
    }
#else
    (void)threads;
#endif
}

void fbn_delay_threads(int64_t nanoseconds) { atomic_store(&delay, nanoseconds); }

int64_t fbn_set_bytes_per_thread(int64_t bytes) { return atomic_exchange(&bytes_per_thread, bytes); }

int fbn_last_team_size(void) { return mine.last_team; }

const char *fastbn_openmp(void)
{
#if !defined(_OPENMP)
    return NULL;
#elif defined(_MSC_VER)
    return "vcomp";
#elif defined(__clang__)
    return "libomp";
#else
    return "libgomp";
#endif
}
