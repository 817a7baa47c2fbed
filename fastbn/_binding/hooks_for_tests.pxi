# What tests set, ask and pretend, included by _core.pyx.

def set_bytes_per_thread(int64_t nbytes):
    """For tests: the least work a thread is started for, in bytes; 0: always all threads. Returns the previous value."""
    return fbn_set_bytes_per_thread(nbytes)


def last_team_size():
    """For tests: the threads of the last call that this thread made."""
    return fbn_last_team_size()


def delay_threads(int64_t nanoseconds):
    """For tests: each thread but the calling one arrives so much later at the end of every call."""
    fbn_delay_threads(nanoseconds)


def refuse_threads(bint yes):
    """For tests: the system seems to have no thread to give."""
    fbn_pretend_refusal(yes)


def backoff_limit(int threads, int64_t now):
    """For tests: the largest team at a time of the test's own clock."""
    return fbn_backoff_limit(threads, now)


def backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now):
    """For tests: what a team tells at its end."""
    fbn_backoff_report(threads, elapsed, computed, now)


def backoff_reset():
    """For tests: as at the start."""
    fbn_backoff_reset()


def cgroup_processors(str root not None):
    """For tests: the processors that the control groups below a folder allow; 0: no limit."""
    return fbn_cgroup_processors(root.encode())
