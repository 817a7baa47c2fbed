/* backoff.h - smaller teams while large ones lose time.
 *
 * A parallel call ends when its last thread does. Where other programs want the processors too, the system takes one
 * thread of a team off its processor, and the others wait for it: a call of 10 microseconds can take as long as a time
 * slice of the scheduler, several milliseconds. So every call with more than one thread reports how long it took and how
 * long its quickest thread computed. Where the waits add up to more than the team gained, teams are halved for a
 * period of at most a second. A period is twice as long as the last one if it follows at once, and shorter the more quiet
 * time lies between. After a period teams double in steps, so that all threads are back within two seconds of quiet.
 *
 * The state is the process's. Its members are atomic each by itself: two calls that report at the same moment can lose
 * one of the reports, which does no harm.
 */
#ifndef FBN_BACKOFF_H
#define FBN_BACKOFF_H

#include <stdint.h>

/* Times are nanoseconds of one clock. It must not go back: teams would stay small until it had caught up. */

/* The largest team that a call may take at this time, of `threads` that it would take otherwise. */
int fbn_backoff_limit(int threads, int64_t now);

/* Tells that a team of so many threads has just ended. elapsed: the time of the call; computed: that of its quickest
 * thread, waits left out. */
void fbn_backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now);

/* Tells that the system refuses threads. Every call takes one thread for a second, also where backing off is switched off. */
void fbn_backoff_refused(int64_t now);

/* Forgets losses, gains and refusals. The switch and the count of fastbn_backoffs stay as they are. */
void fbn_backoff_reset(void);

#endif
