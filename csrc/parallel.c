/* parallel.c - the only file that knows OpenMP.
 *
 * After a fork the child computes serially: the threads of the OpenMP pool did not survive, whichever library had
 * started them, and a parallel region could wait for them for ever. The handler is therefore installed when the library
 * is loaded, not at its first parallel region.
 *
 * Small work never reaches the pragma: even a region of one thread costs a quarter of a microsecond.
 */
#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "fastbn.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* A parallel region costs about a microsecond, in which one core moves some tens of KiB. */
#define DEFAULT_BYTES_PER_THREAD (128 * 1024)

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

static atomic_int thread_limit = -1; /* 0: none, -1: FASTBN_NUM_THREADS not read yet */
static atomic_int forked = 0;
static _Atomic int64_t bytes_per_thread = DEFAULT_BYTES_PER_THREAD;
static THREAD_LOCAL int last_team = 1;

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>

static void in_forked_child(void) { atomic_store(&forked, 1); }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_forked_child); }
#endif

static int limit_from_environment(void)
{
    const char *text = getenv("FASTBN_NUM_THREADS");
    long n = text ? strtol(text, NULL, 10) : 0;
    return n > 0 && n < 1 << 20 ? (int)n : 0;
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

static int runtime_threads(void)
{
#ifdef _OPENMP
    if (atomic_load(&forked) || omp_in_parallel())
        return 1;
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static int smaller(int threads, int64_t limit) { return limit < threads ? (int)limit : threads; }

int fastbn_get_num_threads(void)
{
    int threads = runtime_threads(), limit = current_limit();
    return limit > 0 ? smaller(threads, limit) : threads;
}

void fastbn_set_num_threads(int threads) { atomic_store(&thread_limit, threads > 0 ? threads : 0); }

void fastbn_rearm_threads(void) { atomic_store(&forked, 0); }

int fbn_team_for(int requested, int64_t bytes, int64_t exchanged, int64_t tasks)
{
    int64_t least = atomic_load(&bytes_per_thread);
    last_team = 1;
    if (least > 0)
        least += exchanged;
    if (requested == 1 || tasks <= 1 || (least > 0 && bytes < 2 * least))
        return 1;
    int threads = fastbn_get_num_threads();
    if (requested > 0)
        threads = smaller(threads, requested);
    if (least > 0)
        threads = smaller(threads, bytes / least);
    return smaller(threads, tasks);
}

void fbn_run(int threads, fbn_work *work, void *job)
{
#ifdef _OPENMP
    if (threads > 1) {
        int team = 1;
#pragma omp parallel num_threads(threads) shared(team)
        {
            if (omp_get_thread_num() == 0)
                team = omp_get_num_threads();
            work(job, omp_get_thread_num(), omp_get_num_threads());
        }
        last_team = team;
        return;
    }
#endif
    work(job, 0, 1);
}

void fbn_barrier(int threads)
{
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp barrier
    }
#else
    (void)threads;
#endif
}

int64_t fbn_set_bytes_per_thread(int64_t bytes) { return atomic_exchange(&bytes_per_thread, bytes); }

int fbn_last_team_size(void) { return last_team; }

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
