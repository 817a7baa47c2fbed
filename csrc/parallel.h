/* parallel.h - threads: how many, running a function on a team, waiting for each other. */
#ifndef FBN_PARALLEL_H
#define FBN_PARALLEL_H

#include <stdint.h>

/* `threads` is the size of the team that the runtime really gave. */
typedef void fbn_work(void *job, int thread, int threads);

/* The threads of one call. */
struct fbn_team {
    int threads;
    int counted;   /* among the calls in flight */
    int64_t begun; /* nanoseconds; only where there was a choice */
};

/* Those worth using for a call that moves `bytes`, can be cut into `tasks`, and makes the threads pass each other what
 * costs as much as moving `exchanged` bytes. One inside a parallel region of the caller. fbn_run has to follow. */
struct fbn_team fbn_team_for(int requested, int64_t bytes, int64_t exchanged, int64_t tasks);

void fbn_run(struct fbn_team team, fbn_work *work, void *job);

/* All threads of the team wait here. */
void fbn_barrier(int threads);

/* ---- for tests ---- */

/* The least number of bytes a thread must have to do (returns the previous one); 0: all threads always, whatever else
 * goes on in the process and on the machine. */
int64_t fbn_set_bytes_per_thread(int64_t bytes);

/* The team of the last call made by the calling thread. */
int fbn_last_team_size(void);

/* From now on each thread but the calling one arrives so much later at the end of a call. */
void fbn_delay_threads(int64_t nanoseconds);

#endif
