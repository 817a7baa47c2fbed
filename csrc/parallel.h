/* parallel.h - threads: how many, running a function on a team, waiting for each other. */
#ifndef FBN_PARALLEL_H
#define FBN_PARALLEL_H

#include <stdint.h>

/* `threads` is the size of the team that the runtime really gave. */
typedef void fbn_work(void *context, int thread, int threads);

/* The threads of one call. */
struct fbn_team {
    int threads;
    int counted;   /* among the calls in flight */
    int64_t begun; /* nanoseconds; only where there was a choice */
};

/* Chooses the threads for a call that moves `bytes` and can be cut into `tasks`; what the threads pass to each other
 * costs as much as moving `exchanged` bytes. requested: the most to take; 0 or less: as the settings allow. Inside a
 * parallel region of the caller it is one thread. fbn_run must follow, since the call counts as in flight until then. */
struct fbn_team fbn_team_for(int requested, int64_t bytes, int64_t exchanged, int64_t tasks);

/* Calls work on each thread of the team, which may be smaller than asked for, and ends the call. */
void fbn_run(struct fbn_team team, fbn_work *work, void *context);

/* Thread t has the share [fbn_share(all, t, threads), fbn_share(all, t + 1, threads)) of `all` things. */
static inline int64_t fbn_share(int64_t all, int thread, int threads)
{
    return all / threads * thread + all % threads * thread / threads;
}

/* All threads of the team wait here. */
void fbn_barrier(int threads);

/* Whether OMP_NUM_THREADS chose the runtime's maximum when the library was loaded. */
int fbn_maximum_is_chosen(void);

/* ---- for tests ---- */

/* Sets the least number of bytes that a thread must have to do, and returns the previous one. 0: every call takes all
 * threads, whatever else goes on in the process and on the machine. */
int64_t fbn_set_bytes_per_thread(int64_t bytes);

/* The team of the last call made by the calling thread. */
int fbn_last_team_size(void);

/* From now on each thread but the calling one arrives so much later at the end of a call. */
void fbn_delay_threads(int64_t nanoseconds);

#endif
