"""How many processors a call may use: containers' quotas, affinity, other calls in flight, and threads that are refused."""

import os

import pytest

from fastbn import _core
from test_processes import TEAM, linux_only, needs_fork, needs_openmp, run, run_fine

# ---- quotas of control groups ----

V2, V1 = "0::{}\n", "3:memory:/m\n2:cpuacct,cpu:{}\n1:name=systemd:/s\n"


def tree(root, groups, files):
    """A folder that looks like a system whose process is in these groups; files: {path in sys/fs/cgroup: text}."""
    files = {f"sys/fs/cgroup/{path}": text for path, text in files.items()}
    for path, text in {"proc/self/cgroup": groups, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return _core.cgroup_processors(str(root))


@linux_only
@pytest.mark.parametrize("text, processors", [
    ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("1000 100000", 1), ("max 100000\n", 0),
    ("800000 100000\n", 8), ("", 0), ("nonsense", 0), ("100000 0\n", 0), ("-1 100000\n", 0),
])
def test_quota_of_version_2(tmp_path, text, processors):
    assert tree(tmp_path, V2.format("/"), {"cpu.max": text}) == processors


@linux_only
def test_the_least_quota_from_the_group_to_the_root_holds(tmp_path):
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "500000 100000",
             "other/cpu.max": "100000 100000"}
    assert tree(tmp_path, V2.format("/a/b"), files) == 3
    assert tree(tmp_path, V2.format("/a/b"), {"a/b/cpu.max": "200000 100000"}) == 2


@linux_only
def test_a_group_of_which_only_the_root_is_mounted(tmp_path):
    """As in a container without a namespace for control groups: the path is the host's."""
    assert tree(tmp_path, V2.format("/system.slice/docker-1234.scope"), {"cpu.max": "100000 100000"}) == 1
    assert tree(tmp_path, V2.format("/" + 3000 * "x"), {"cpu.max": "100000 100000"}) == 1


@linux_only
@pytest.mark.parametrize("quota, period, processors", [
    ("400000", "100000", 4), ("250000", "100000", 3), ("-1", "100000", 0), ("0", "100000", 0), ("100000", "", 0),
])
def test_quota_of_version_1(tmp_path, quota, period, processors):
    files = {"cpu/g/cpu.cfs_quota_us": quota, "cpu/g/cpu.cfs_period_us": period,
             "memory/cpu.cfs_quota_us": "100000", "memory/cpu.cfs_period_us": "100000"}
    assert tree(tmp_path, V1.format("/g"), files) == processors


@linux_only
def test_no_control_groups(tmp_path):
    assert _core.cgroup_processors(str(tmp_path)) == 0
    assert tree(tmp_path, "garbage\n1:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000"}) == 0


# ---- affinity ----

@linux_only
@needs_openmp
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True,
                    reason="there is one processor")
def test_affinity():
    """Without OMP_NUM_THREADS the default is what this process may run on, also where that changes later."""
    run_fine("""
        processors = sorted(os.sched_getaffinity(0))
        assert fastbn.get_num_threads() <= len(processors)
        os.sched_setaffinity(0, processors[:1])
        end = time.monotonic() + 30
        while fastbn.get_num_threads() > 1:   # asked once a second
            assert time.monotonic() < end
            time.sleep(0.1)
        compute(x, dy)
        assert _core.last_team_size() == 1
        print("fine")
    """, OMP_NUM_THREADS=None)
    run_fine("os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
             "assert fastbn.get_num_threads() == 1\nprint('fine')", OMP_NUM_THREADS=None)
    run_fine("assert fastbn.get_num_threads() == 3\nprint('fine')", OMP_NUM_THREADS="3")


@linux_only
@needs_openmp
def test_affinity_is_each_thread_s_own():
    """A thread that pins itself changes nothing for the others."""
    run_fine("""
        everywhere, found = fastbn.get_num_threads(), []
        def pinned():
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])   # this thread's
            found.append(fastbn.get_num_threads())
        other = threading.Thread(target=pinned)
        other.start()
        other.join()
        time.sleep(1.2)
        assert found == [1] and fastbn.get_num_threads() == everywhere
        print("fine")
    """, OMP_NUM_THREADS=None)


@linux_only
@needs_openmp
def test_a_maximum_that_nobody_chose_is_a_default():
    """What comes into the environment later, or is no number, the runtime has not read."""
    script = """
        os.environ["OMP_NUM_THREADS"] = "64"
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        assert fastbn.get_num_threads() == 1
        print("fine")
    """
    run_fine(script, OMP_NUM_THREADS=None)
    run_fine(script, OMP_NUM_THREADS="")


# ---- other calls in flight ----

@needs_openmp
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
def test_calls_in_flight_share_the_processors():
    """While calls of another thread take all processors, most of their time waiting, one here takes its share."""
    run_fine(TEAM + """
_core.set_bytes_per_thread(1)
fastbn.set_backoff(False)
processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
if processors < 2:
    sys.exit(print("fine"))
fastbn.set_num_threads(processors)
assert team() == processors
_core.delay_threads(100_000_000)
stop, teams = threading.Event(), []
def others_calls():
    while not stop.is_set():
        teams.append(team())
other = threading.Thread(target=others_calls)
other.start()
seen, end = set(), time.monotonic() + 30
while not any(size <= max(1, processors // 2) for size in seen):
    assert time.monotonic() < end, (seen, teams)
    seen.add(team())
stop.set()
other.join()
_core.delay_threads(0)
assert team() == processors
print("fine")
""", OMP_NUM_THREADS="64")


# ---- threads that are refused ----

@needs_openmp
def test_refused_threads():
    """The call runs on one thread. With all threads forced, as here, every calling thread and every larger team asks again."""
    run_fine(TEAM + """
expected = compute(dy, dy, 1)
assert team(2) == 2
_core.refuse_threads(True)
assert team(2) == 2                        # it has that one
assert team(4) == 1 and compute(dy, dy, 4) == expected
found = []
other = threading.Thread(target=lambda: found.extend([team(2), compute(dy, dy) == expected]))
other.start()
other.join()
assert found == [1, True], found
_core.refuse_threads(False)
assert team(4) == 4
print("fine")
""")


@linux_only
@needs_openmp
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become a user with a limit")
def test_limit_of_processes():
    """RLIMIT_NPROC: GNU's OpenMP library would end the process."""
    run_fine(TEAM + """
import resource
fastbn.set_num_threads(1)
expected = compute(dy, dy, 1)
fastbn.set_num_threads(None)
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
assert team(4) == 1 and compute(dy, dy) == expected
print("fine")
""")
    output = run(TEAM + """
import resource
os.setgroups([])
os.setgid(54322)
os.setuid(54322)
resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))   # just enough
print([team(4) for _ in range(5)])
print([team(n) in (1, n) for n in (2, 4, 3, 4)])   # threads that a smaller team ended may still count
""")
    assert output == "[4, 4, 4, 4, 4]\n[True, True, True, True]\n"


@needs_openmp
def test_refused_threads_are_remembered_for_a_second():
    """Also where backing off is switched off; and it is none."""
    run_fine(TEAM + """
_core.set_bytes_per_thread(1)
_core.refuse_threads(True)
assert team() == 1
_core.refuse_threads(False)
assert team() == 1 and fastbn.get_config()["backoffs"] == 0
_core.backoff_reset()
assert team() == 4
print("fine")
""", FASTBN_BACKOFF="0")


@needs_openmp
def test_a_team_smaller_than_asked_for_is_what_the_thread_has():
    """The runtime gives two; a larger team later is asked for again."""
    run_fine(TEAM + """
assert team(4) == 2
_core.refuse_threads(True)
assert team(2) == 2 and team(3) == 1
print("fine")
""", OMP_THREAD_LIMIT="2")


@linux_only
@needs_openmp
def test_stacks_that_do_not_fit():
    """OMP_STACKSIZE holds for the trial as for the runtime's threads."""
    run_fine(TEAM + """
import resource
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
assert team(4) == 1
print("fine")
""", OMP_STACKSIZE="1G")


# ---- fork ----

@needs_fork
@needs_openmp
def test_rearming_after_a_fork():
    """Refused where fastbn had used threads before the fork, since the next call would hang; else threads are back."""
    run_fine(TEAM + """
def child_of(work):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    return os.waitpid(child, 0)[1] == 0

def rearmed():
    fastbn.rearm_threads()
    return team() == 4 and child_of(refused)

def refused():
    try:
        fastbn.rearm_threads()
    except RuntimeError as error:
        return "before the fork" in str(error) and team() == 1 and fastbn.get_num_threads() == 1
    return False

team(1)
assert child_of(rearmed)
assert team() == 4
assert child_of(refused) and child_of(lambda: child_of(refused))
fastbn.rearm_threads()     # in the parent, where there is nothing to do
assert team() == 4
print("fine")
""")
