/* trial.c - see trial.h.
 *
 * Each thread starts the next one and waits for its end, so that all exist at the same time. A thread that was joined
 * counts against the process's limit for a moment longer; on Linux its number is looked at until the kernel has
 * forgotten it, since otherwise the real threads could be the ones that are refused.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif
#include "trial.h"

#include <stdatomic.h>

static atomic_int refuses = 0;

void fbn_refuse_threads(int yes) { atomic_store(&refuses, yes); }

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

static long number_of_this_thread(void) { return syscall(SYS_gettid); }

static void wait_until_gone(long number)
{
    while (syscall(SYS_tgkill, getpid(), number, 0) == 0)
        sched_yield();
}
#else
static long number_of_this_thread(void) { return 0; }

static void wait_until_gone(long number) { (void)number; }
#endif

struct trial {
    int left; /* threads still to start */
    long number;
};

static void *start_next(void *trial_)
{
    struct trial *trial = trial_, next = {trial->left - 1, 0};
    pthread_t thread;
    trial->number = number_of_this_thread();
    if (trial->left == 0)
        return NULL;
    if (pthread_create(&thread, NULL, start_next, &next) != 0)
        return NULL;
    pthread_join(thread, NULL);
    wait_until_gone(next.number);
    trial->left = next.left;
    return NULL;
}

int fbn_can_start(int threads)
{
    struct trial trial = {threads, 0};
    if (atomic_load(&refuses))
        return 0;
    start_next(&trial);
    return trial.left == 0;
}

#else
int fbn_can_start(int threads) { return (void)threads, !atomic_load(&refuses); }
#endif
