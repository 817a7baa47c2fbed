"""fastbn among processes, threads, limits and signals.

Everything runs in processes of its own with a time limit, since a hang is the failure to expect: each test is a short
script, whose last printed line is "fine".
"""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastbn
from fastbn import _core

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What scripts start with: data, and one function that goes through every operation.
PRELUDE = """
import gc, os, signal, sys, threading, time, warnings
import numpy as np
import fastbn
from fastbn import _core

def data(seed, shape=(400, 48), dtype=np.float32):
    return np.random.default_rng(seed).normal(3, 2, shape).astype(dtype)

def compute(x, dy, threads=None):
    y, saved = fastbn.batch_norm_training(x, num_threads=threads)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved, num_threads=threads)
    bn = fastbn.BatchNorm(x.shape[1], dtype=x.dtype)
    bn(x)
    again = bn.backward(dy)
    m = fastbn.moments(x, num_threads=threads)
    return b"".join(a.tobytes() for a in (y, dx, dgamma, dbeta, again, bn.running_var, bn.eval()(x), m.mean, m.M2))

x, dy = data(1), data(2)
_core.set_bytes_per_thread(0)
"""


SETTINGS = {"OMP_NUM_THREADS": "4", "OMP_DYNAMIC": "false", "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}


def run(script, *, prelude=PRELUDE, timeout=60, options=(), **environment):
    """Run a script with four OpenMP threads; its output. Idle threads sleep, so that two cores are enough."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBN_", "OMP_", "GOMP_", "KMP_"))}
    wanted = {k: v for k, v in {**clean, **SETTINGS, **environment}.items() if v is not None}
    done = subprocess.run([sys.executable, *options, "-c", prelude + textwrap.dedent(script)], timeout=timeout, env=wanted,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_fine(script, **more):
    lines = run(script, **more).splitlines()
    assert lines[-1:] == ["fine"], lines


# ---- fork ----

@needs_fork
@pytest.mark.parametrize("before", ["pass", "compute(x, dy, 4); assert not OPENMP or _core.last_team_size() == 4"])
def test_fork(before):
    """The child computes the same bits, on one thread, whether or not threads have run before; the parent goes on."""
    run_fine(f"""
        OPENMP = fastbn.get_config()["openmp"]
        expected = compute(x, dy, 1)
        {before}
        child = os.fork()
        if child == 0:
            same = compute(x, dy) == expected == compute(x, dy, 4)
            os._exit(0 if same and _core.last_team_size() == 1 and fastbn.get_num_threads() == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert compute(x, dy, 4) == expected
        print("fine")
    """)


@needs_fork
def test_fork_of_a_fork_while_other_threads_compute():
    run_fine("""
        expected = compute(x, dy, 1)
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                compute(x, dy, 2)
        workers = [threading.Thread(target=busy) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                grandchild = os.fork()
                same = compute(x, dy) == expected
                if grandchild == 0:
                    os._exit(not same)
                os._exit(not same or os.waitpid(grandchild, 0)[1] != 0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for worker in workers:
            worker.join()
        print("fine")
    """, options=("-W", "ignore::DeprecationWarning"))


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    """A pool of workers, as data loaders start them, after the parent has used threads."""
    script = tmp_path / "pool.py"
    script.write_text(PRELUDE + textwrap.dedent(f"""
        import multiprocessing

        def work(seed):
            return compute(data(seed), dy)

        if __name__ == "__main__":
            expected = [compute(data(seed), dy, 4) for seed in range(6)]
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert pool.map(work, range(6)) == expected
            print("fine")
    """))
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", str(script)], timeout=60,
                          env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stdout + done.stderr


# ---- threads of Python ----

def test_many_python_threads_at_once():
    run_fine("""
        from concurrent.futures import ThreadPoolExecutor
        jobs = [(data(seed, shape), data(seed + 50, shape)) for seed in range(4)
                for shape in ((400, 48), (900, 3), (8, 6, 20, 21))]
        expected = [compute(*job, 1) for job in jobs]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                assert list(pool.map(lambda job: compute(*job), jobs)) == expected
                assert list(pool.map(lambda job: compute(*job, 3), jobs)) == expected
        print("fine")
    """)


def test_first_call_from_many_threads():
    run_fine("""
        from concurrent.futures import ThreadPoolExecutor
        start = threading.Barrier(8)
        def first(_):
            start.wait()
            return compute(x, dy)
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(first, range(8)))) == 1
        print("fine")
    """)


def test_one_layer_in_eval_mode_from_many_threads():
    run_fine("""
        from concurrent.futures import ThreadPoolExecutor
        bn = fastbn.BatchNorm(48)
        bn(x)
        bn.eval()
        batches = [data(seed, (50 + seed, 48)) for seed in range(40)]
        expected = [bn(batch).tobytes() for batch in batches]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                assert [y.tobytes() for y in pool.map(bn, batches)] == expected
        print("fine")
    """)


def test_other_threads_run_during_a_call():
    """The GIL is released: another thread ticks while one call computes."""
    run_fine("""
        big = np.ones((4096, 2048))
        out = np.empty_like(big)
        stamps, stop = [], threading.Event()
        def tick():
            while not stop.is_set():
                stamps.append(time.perf_counter())
                time.sleep(0.0005)
        ticker = threading.Thread(target=tick)
        ticker.start()
        inside = 0
        for _ in range(20):
            begin = time.perf_counter()
            fastbn.batch_norm_training(big, out=out, num_threads=1)
            end = time.perf_counter()
            inside += sum(begin + 0.001 < stamp < end - 0.001 for stamp in list(stamps))
        stop.set()
        ticker.join()
        assert inside >= 5, inside
        print("fine")
    """)


# ---- how many threads ----

needs_openmp = pytest.mark.skipif(not fastbn.get_config()["openmp"], reason="built without OpenMP: one thread only")

TEAM = """
def team(threads=None):
    fastbn.batch_norm_training(x, num_threads=threads)
    return _core.last_team_size()
x = data(1, (8, 64, 400))
"""


@needs_openmp
def test_number_of_threads_by_argument():
    run_fine(TEAM + textwrap.dedent("""
        assert [team(k) for k in (1, 2, 3, 4)] == [1, 2, 3, 4]
        assert team(100) == 4 == team()
        print("fine")
    """))


@needs_openmp
def test_number_of_threads_by_function():
    run_fine(TEAM + textwrap.dedent("""
        assert fastbn.get_num_threads() == 4
        fastbn.set_num_threads(3)
        assert fastbn.get_num_threads() == 3 == team() and team(2) == 2 and team(4) == 3
        fastbn.set_num_threads(64)
        assert fastbn.get_num_threads() == 4 == team()
        print("fine")
    """))


@needs_openmp
def test_number_of_threads_by_environment():
    script = TEAM + "assert fastbn.get_num_threads() == 2 == team() == team(3)\nprint('fine')"
    run_fine(script, FASTBN_NUM_THREADS="2")
    run_fine(script, OMP_NUM_THREADS="2")
    run_fine(script, OMP_NUM_THREADS="2", FASTBN_NUM_THREADS="16")


@needs_openmp
@pytest.mark.parametrize("text", ["", "0", "-3", "many", "99999999999999999999"])
def test_useless_number_of_threads_in_the_environment(text):
    run_fine(TEAM + "assert fastbn.get_num_threads() == 4 == team()\nprint('fine')", FASTBN_NUM_THREADS=text)


@needs_openmp
def test_openmp_thread_limit():
    """The runtime may give a smaller team than it was asked for."""
    run_fine(TEAM + textwrap.dedent("""
        expected = compute(dy, dy, 1)
        assert team(4) == 2 and compute(dy, dy, 4) == expected
        print("fine")
    """), OMP_THREAD_LIMIT="2")


@needs_openmp
def test_threadpoolctl():
    """Limits set by threadpoolctl hold for the next call, and are gone after the block."""
    pytest.importorskip("threadpoolctl")
    run_fine(TEAM + textwrap.dedent("""
        from threadpoolctl import threadpool_info, threadpool_limits
        assert any(library["user_api"] == "openmp" for library in threadpool_info())
        assert team() == 4
        for limit in (1, 2, 3):
            with threadpool_limits(limits=limit):
                assert team() == limit == fastbn.get_num_threads() and team(4) == limit
        with threadpool_limits(limits=2, user_api="openmp"):
            assert team() == 2
        assert team() == 4
        print("fine")
    """))


@needs_openmp
def test_small_work_stays_on_one_thread():
    run_fine(TEAM + textwrap.dedent("""
        x = data(1, (16, 16))
        previous = _core.set_bytes_per_thread(64 * 1024)
        assert previous == 0 and team() == 1
        x = data(1, (64, 64, 400))
        assert team() == 4
        print("fine")
    """))


# ---- import ----

@linux_only
def test_import_starts_no_thread():
    run_fine("""
        import os
        import numpy
        before = len(os.listdir("/proc/self/task"))
        import fastbn
        fastbn.get_num_threads()
        assert len(os.listdir("/proc/self/task")) == before
        print("fine")
    """, prelude="")


def test_import_prints_nothing():
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import fastbn"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_import_imports_nothing_optional():
    run_fine("""
        import sys
        import numpy
        before = set(sys.modules)
        import fastbn
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        optional = {"torch", "sklearn", "scipy", "matplotlib", "rich", "tqdm", "ml_dtypes", "threadpoolctl",
                    "setuptools", "Cython", "onnx", "tensorflow", "keras", "jax", "flax", "chainer"}
        assert not new & optional, new & optional
        print("fine")
    """, prelude="")


def test_import_without_optional_packages():
    """None of them is needed, nor looked for in a way that fails."""
    run_fine("""
        import sys
        for name in ("torch", "sklearn", "scipy", "matplotlib", "rich", "tqdm", "ml_dtypes", "threadpoolctl"):
            sys.modules[name] = None
        import numpy as np
        import fastbn
        bn = fastbn.BatchNorm(3)
        bn.backward(bn(np.arange(12, dtype="f4").reshape(4, 3)))
        print("fine")
    """, prelude="")


# ---- floating-point state ----

def test_subnormals_survive():
    """In NumPy and Python before and after import and calls, and through a layer that changes no value."""
    run_fine("""
        import numpy as np
        tiny32, tiny64 = np.float32(1e-41), 1e-310
        def kept():
            return np.full(9, tiny32) * np.float32(1) == tiny32, tiny64 * 1.0 == tiny64 and tiny64 / 2 > 0
        import fastbn
        from fastbn import _core
        for team in (1, 4):
            _core.set_bytes_per_thread(0)
            for dtype, tiny in ((np.float32, tiny32), (np.float64, tiny64)):
                for shape in ((64, 33), (9000, 3), (4, 8, 50)):
                    x = np.full(shape, tiny, dtype)
                    mean, var = np.zeros(shape[1], dtype), np.full(shape[1], 0.75, dtype)
                    y = fastbn.batch_norm_inference(x, mean, var, eps=0.25, num_threads=team)
                    assert (y == tiny).all() and tiny > 0
                    fastbn.batch_norm_training(x, num_threads=team)
                    assert np.all(kept()[0]) and kept()[1]
        print("fine")
    """, prelude="")


def test_no_floating_point_warning():
    """Calls raise no NumPy floating-point warning, whatever is in the data."""
    run_fine("""
        warnings.simplefilter("error")
        for special in (np.nan, np.inf, 1e38, 1e-45):
            bad = x.copy()
            bad[3, 5] = special
            fastbn.batch_norm_training(bad)
            fastbn.moments(bad).var(ddof=1)
            bn = fastbn.BatchNorm(48)
            bn(bad)
            bn.backward(dy)
            bn.eval()(bad)
        print("fine")
    """)


# ---- leaks and interrupts ----

LEAK = """
bn = fastbn.BatchNorm(8)
small, small_dy = data(1, (16, 8)), data(2, (16, 8))
planes = data(3, (2, 8, 5))
out = np.empty_like(small)
gamma, beta, mean, var = np.ones(8, "f4"), np.zeros(8, "f4"), np.zeros(8, "f4"), np.ones(8, "f4")

def good():
    bn.train()
    bn(small)
    bn.backward(small_dy)
    bn.eval()(planes)
    bn(small, out=out)
    saved = fastbn.batch_norm_training(small, gamma, beta)[1]
    fastbn.batch_norm_backward(small_dy, saved, needs=("dgamma",))
    fastbn.batch_norm_inference(planes[::2], mean, var, gamma, beta)
    fastbn.moments(planes, axis=-1).merge(fastbn.moments(planes, axis=-1))

def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except (ValueError, TypeError, RuntimeError):
        return
    raise AssertionError(f"{call} accepted bad arguments")

def bad():
    refused(bn, small[:, :3])
    refused(bn, small.astype(np.int32))
    refused(bn, small, out=out[:5])
    refused(bn, small, out=small.T)
    refused(fastbn.batch_norm_training, small, gamma[:3])
    refused(fastbn.batch_norm_inference, small, mean, var, eps=-1.0)
    refused(fastbn.moments, small, axis=7)
    refused(fastbn.BatchNorm(8).backward, small_dy)
    refused(fastbn.BatchNorm, -3)

def grows(step, rounds):
    for _ in range(rounds // 10):
        step()
    gc.collect()
    blocks, memory = sys.getallocatedblocks(), resident()
    for _ in range(rounds):
        step()
    gc.collect()
    return sys.getallocatedblocks() - blocks, resident() - memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


@linux_only
@pytest.mark.parametrize("step, rounds", [("good", 11000), ("bad", 11000)])
def test_no_leak(step, rounds):
    """Over 10^5 calls (nine and more in a step). A leak of one object a step would be thousands of blocks."""
    output = run(LEAK + f"\nprint(*grows({step}, {rounds}))", OMP_NUM_THREADS="1")
    blocks, memory = map(int, output.split())
    assert blocks < 300 and memory < 1 << 20, f"{blocks} Python blocks, {memory} bytes more after {rounds} rounds"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child alone")
@pytest.mark.parametrize("shape", ["(16, 8)", "(2000, 512)"])
def test_keyboard_interrupt(shape):
    """Ctrl-C between or during calls is a KeyboardInterrupt, after which the layer computes what it did before."""
    script = PRELUDE + textwrap.dedent(f"""
        x, dy = data(1, {shape}), data(2, {shape})
        bn = fastbn.BatchNorm(x.shape[1])
        expected = bn(x).tobytes(), bn.backward(dy).tobytes()
        print("ready", flush=True)
        try:
            while True:
                bn(x)
                bn.backward(dy)
        except KeyboardInterrupt:
            assert (bn(x).tobytes(), bn.backward(dy).tobytes()) == expected
            assert int(bn.num_batches_tracked) > 1 and np.isfinite(bn.running_mean).all()
            print("fine")
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        try:
            child.wait(0.3)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert output == "fine\n", output + errors


def test_out_array_is_not_kept_alive_by_a_call():
    """Functions keep no reference to what they were given, apart from `saved`, which holds x."""
    x = np.ones((6, 4), np.float32)
    out = np.empty_like(x)
    before = sys.getrefcount(x), sys.getrefcount(out)
    y, saved = fastbn.batch_norm_training(x, out=out)
    assert y is out
    del y, saved
    fastbn.moments(x)
    assert fastbn.batch_norm_inference(x, x[0], x[0], out=out) is out
    assert (sys.getrefcount(x), sys.getrefcount(out)) == before
    assert _core.last_team_size() == 1
