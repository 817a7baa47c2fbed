/* trial.h - whether the system gives this process more threads. */
#ifndef FBN_TRIAL_H
#define FBN_TRIAL_H

/* Starts so many threads at once and ends them again; 0 where the system refuses one of them. OpenMP's runtimes end the
 * process where they get fewer threads than they ask for, so a call asks first. */
int fbn_can_start(int threads);

/* For tests: from now on the system seems to refuse, or no longer. */
void fbn_pretend_refusal(int yes);

#endif
