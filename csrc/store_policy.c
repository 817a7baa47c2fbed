/* store_policy.c - how a call's arrays are stored and whether its sums prefetch, by the sizes of the caches. */
#include "call.h"
#include "machine.h"

/* Bytes of a run whose ends share lines with other threads' runs too often for non-temporal stores. */
enum { SHORT_RUN = 1024 };

/* Bytes of all arrays beyond which plain loops that store through the last-level cache were slower than those that store
 * past it. (Measured on Zen 4: of 32 MiB 18 and 35 for one input and 1 and 2 threads, 14 and 24 for two.) */
static int64_t most_in_cache(const struct fbn_call *call, int threads)
{
    const int64_t part = fbn_last_level_bytes() / 16;
    if (call->plan.gradient || call->given.residual.data)
        return threads > 1 ? 12 * part : 7 * part;
    return threads > 1 ? 17 * part : 9 * part;
}

/* Stores past the caches pay where these do not hold the arrays. They do not pay where y is in place, since its lines were
 * just read or are read again, nor in short runs. Stores in order pay where the second-level caches do not hold the
 * arrays. */
enum fbn_store_policy fbn_store_policy(const struct fbn_call *call, int64_t bytes, int threads)
{
    const char *y = call->given.y.data;
    int64_t run = fbn_output_run(call) * call->size;
    int in_place = y == call->given.x.data || y == call->given.dy.data || y == call->plan.dz.data ||
                   call->plan.activates_y;
    if (bytes > most_in_cache(call, threads) && run >= SHORT_RUN && !in_place)
        return FBN_STORE_NON_TEMPORAL;
    return bytes > threads * fbn_level2_bytes() ? FBN_STORE_IN_ORDER : FBN_STORE_CACHED;
}

/* Whether the second-level caches hold so little of x that prefetching gains. Beside dy, and what was in them before, they
 * do not hold all of it, but prefetching the rest costs more than it saves (measured). */
int fbn_prefetches(const struct fbn_call *call, int threads)
{
    return call->plan.sums.c * call->given.entries * call->size > threads * (fbn_level2_bytes() / 4 * 7);
}
