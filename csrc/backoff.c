/* backoff.c - see backoff.h.
 *
 * A team has lost where half of it would have been faster. A thread of a team half as large computes twice as long, and
 * waits for nobody where the large team waited for a thread without a processor; so a call that takes more than twice
 * its quickest thread's time has lost what is beyond that, and another has gained what is below it. The balance decides,
 * not the single call: on an idle machine too a thread waits now and then, and beside as many busy programs as there are
 * processors two threads get more of them than one, which was worth a quarter of the time in the mean, waits included.
 */
#include "backoff.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fastbn.h"

enum {
    US = 1000,
    WAKING_TIME = 20 * US, /* of a call: threads that were asleep start later, which says nothing of other programs */
    TOLERATED = 8000 * US, /* lost on balance before teams are halved: two or three time slices of a scheduler */
    CREDIT = 8000 * US,    /* gained before, which losses may use up */
    FACTOR = 4,            /* the first period, in times of what was lost */
    GROWTH_STEPS = 8       /* teams double this often in a time as long as the last period */
};

static const int64_t LONGEST = INT64_C(1000000000);

static atomic_int enabled = -1; /* -1: FASTBN_BACKOFF not read yet */
static atomic_int limit;
static _Atomic int64_t until, length, lost, times, refused_until;

static int is_enabled(void)
{
    int is = atomic_load_explicit(&enabled, memory_order_relaxed);
    if (is < 0) {
        const char *text = getenv("FASTBN_BACKOFF");
        is = !text || strcmp(text, "0") != 0;
        atomic_store(&enabled, is);
    }
    return is;
}

static void forget_losses(void)
{
    atomic_store(&until, 0);
    atomic_store(&length, 0);
    atomic_store(&lost, 0);
}

void fastbn_set_backoff(int on)
{
    atomic_store(&enabled, on != 0);
    forget_losses();
}

int fastbn_get_backoff(void) { return is_enabled(); }

int64_t fastbn_backoffs(void) { return atomic_load(&times); }

int fbn_backoff_limit(int threads, int64_t now)
{
    if (now < atomic_load_explicit(&refused_until, memory_order_relaxed))
        return 1;
    int64_t end = atomic_load_explicit(&until, memory_order_relaxed);
    int64_t most = atomic_load_explicit(&limit, memory_order_relaxed);
    if (now >= end) {
        int64_t doublings = 1 + (now - end) / (atomic_load_explicit(&length, memory_order_relaxed) / GROWTH_STEPS + 1);
        if (doublings >= 31)
            return threads;
        most <<= doublings;
    }
    return most < threads && is_enabled() ? (int)most : threads;
}

/* A team that began before teams were last halved says nothing about the smaller ones, so its report is dropped. A period
 * that follows at once is twice as long as the last one; quiet time since then is taken off. */
static void back_off(int threads, int64_t loss, int64_t now)
{
    int64_t end = atomic_load(&until), last = atomic_load(&length);
    if (now < end && threads > atomic_load(&limit))
        return;
    int64_t again = 2 * last - (now - end), first = FACTOR * loss;
    int64_t wanted = again > first ? again : first, time = wanted < LONGEST ? wanted : LONGEST;
    atomic_store(&limit, threads > 1 ? threads / 2 : 1);
    atomic_store(&length, time);
    atomic_store(&until, now + time);
    atomic_store(&lost, 0);
    atomic_fetch_add(&times, 1);
}

void fbn_backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now)
{
    int64_t before = atomic_load_explicit(&lost, memory_order_relaxed), balance = elapsed - 2 * computed;
    if (balance > WAKING_TIME)
        balance -= WAKING_TIME;
    else if (balance > 0)
        balance = 0;
    int64_t after = before + balance > -CREDIT ? before + balance : -CREDIT;
    if (after > TOLERATED && is_enabled())
        back_off(threads, after, now);
    else if (after != before)
        atomic_store_explicit(&lost, after, memory_order_relaxed);
}

void fbn_backoff_refused(int64_t now) { atomic_store(&refused_until, now + LONGEST); }

void fbn_backoff_reset(void)
{
    forget_losses();
    atomic_store(&refused_until, 0);
}
