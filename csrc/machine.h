/* machine.h - what the machine and the system offer: caches, processors, threads. */
#ifndef FBN_MACHINE_H
#define FBN_MACHINE_H

#include <stdint.h>

/* The smaller of a number and a limit, where 0 means that there is none. */
static inline int fbn_limited(int number, int limit)
{
    return limit > 0 && (number == 0 || limit < number) ? limit : number;
}

/* ---- cache_sizes.c ---- */

/* The bytes of one core's level 2 and of the shared last level; a usual size where the system does not tell. They decide
 * where things are computed and how they are stored, never what comes out. */
int64_t fbn_level2_bytes(void);
int64_t fbn_last_level_bytes(void);

/* ---- cgroup.c ---- */

/* The quota of processor time that the control groups of this process leave it, in whole processors, rounded up; 0 where
 * nothing limits it. root: "", or for tests a folder that holds proc/self/cgroup and sys/fs/cgroup. */
int fbn_cgroup_processors(const char *root);

/* ---- trial.c ---- */

/* Starts so many threads at once and ends them again. Returns 0 where the system refuses one of them. OpenMP's runtimes end the
 * process where they get fewer threads than they ask for, so a call asks first. */
int fbn_can_start(int threads);

/* For tests: from now on the system seems to refuse, or no longer. */
void fbn_pretend_refusal(int yes);

#endif
