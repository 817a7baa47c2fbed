/* parallel.h - threads: how many, running a function on a team, waiting for each other. */
#ifndef FBN_PARALLEL_H
#define FBN_PARALLEL_H

#include <stdint.h>

/* `threads` is the size of the team that the runtime really gave. */
typedef void fbn_work(void *job, int thread, int threads);

/* Threads worth using for a call that moves `bytes`, can be cut into `tasks`, and makes the threads pass each other
 * what costs as much as moving `exchanged` bytes. 1 inside a parallel region of the caller. */
int fbn_team_for(int requested, int64_t bytes, int64_t exchanged, int64_t tasks);

void fbn_run(int threads, fbn_work *work, void *job);

/* All threads of the team wait here. */
void fbn_barrier(int threads);

/* For tests: the least number of bytes a thread must have to do (returns the previous one), and the team of the last
 * call made by the calling thread. */
int64_t fbn_set_bytes_per_thread(int64_t bytes);
int fbn_last_team_size(void);

#endif
