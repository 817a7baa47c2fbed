/* trial.c - whether the system gives this process more threads, see machine.h.
 *
 * Each thread starts the next one and waits for its end, so that all exist at the same time. A thread that was joined
 * counts against the process's limit for a moment longer; on Linux its number is looked at until the kernel has
 * forgotten it, since otherwise the real threads could be the ones that are refused.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif
#include "machine.h"

#include <stdatomic.h>
#include <stdlib.h>

static atomic_int refuses = 0;

void fbn_pretend_refusal(int yes) { atomic_store(&refuses, yes); }

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

/* The size of a thread's stack as OpenMP's runtimes read it: a number and a unit, KiB without one. 0: nobody has set it. */
static size_t stack_bytes(void)
{
    const char *text = getenv("OMP_STACKSIZE");
    char *end = NULL;
    text = text ? text : getenv("GOMP_STACKSIZE");
    unsigned long long size = text ? strtoull(text, &end, 10) : 0;
    while (end && *end == ' ')
        end++;
    switch (end ? *end : 'B') {
    case 'B': case 'b': return (size_t)size;
    case 'M': case 'm': return (size_t)(size << 20);
    case 'G': case 'g': return (size_t)(size << 30);
    default: return (size_t)(size << 10);
    }
}

struct trial {
    const pthread_attr_t *attributes;
    int left; /* threads still to start */
    long number;
};

static void *start_next(void *trial_)
{
    struct trial *trial = trial_, next = {trial->attributes, trial->left - 1, 0};
    pthread_t thread;
    trial->number = number_of_this_thread();
    if (trial->left == 0)
        return NULL;
    if (pthread_create(&thread, trial->attributes, start_next, &next) != 0)
        return NULL;
    pthread_join(thread, NULL);
    wait_until_gone(next.number);
    trial->left = next.left;
    return NULL;
}

int fbn_can_start(int threads)
{
    pthread_attr_t attributes;
    struct trial trial = {&attributes, threads, 0};
    int before;
    if (atomic_load(&refuses) || pthread_attr_init(&attributes) != 0)
        return 0;
    size_t bytes = stack_bytes();
    if (bytes > 0)
        pthread_attr_setstacksize(&attributes, bytes); /* what is too small is ignored by the runtimes as well */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    start_next(&trial);
    pthread_setcancelstate(before, NULL);
    pthread_attr_destroy(&attributes);
    return trial.left == 0;
}

#else
int fbn_can_start(int threads) { return (void)threads, !atomic_load(&refuses); }
#endif
