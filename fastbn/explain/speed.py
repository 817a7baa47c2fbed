"""Speed here: fastbn, NumPy and what else is installed, beside how fast this machine copies the same array.

A batch norm has to read x once and write y once, which is a copy; so a copy's time is what remains when computing costs
nothing. Measured is NumPy's copyto into an array that exists, by one thread and by as many as fastbn may use, and
the faster counts. That needs no compiler; a loop with stores past the caches, which bench/limit.c has, is faster still for
large arrays.

Contenders take turns in short blocks, and ratios are taken within a round, since a machine's speed drifts. The
fastest call of a block counts: what else runs on the machine can only slow calls down, those by several threads most.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # Windows does not tell
    getrusage = None

import numpy as np

import fastbn
from fastbn.explain import _peers
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, GREEN, GROUND, INK, ORANGE, PURPLE, SKY, new_figure, styled

SECONDS, QUICK_SECONDS = 3.6, 0.5  # for an operation, where LEAST_ROUNDS do not take longer
LEAST_ROUNDS = 3
DROP_SECONDS = 0.004     # at the start of a block: threads of the contender before it spin on for some milliseconds
BLOCK_SECONDS = 0.008
SAMPLE_SECONDS = 200e-6  # calls shorter than this are timed several at once
LEAST_SAMPLES = 3        # of a block, unless it takes SLOW_SECONDS
SLOW_SECONDS = 0.03
COPIES = ("copy", "copy by threads")
ALONE = "fastbn, 1 thread"
COLOURS = {"fastbn": BLUE, ALONE: BLUE, "NumPy": ORANGE, "PyTorch": GREEN, "ONNX Runtime": PURPLE, "scikit-learn": SKY}


@dataclass(frozen=True)
class Case:
    """A shape to measure; axis is that of the features."""

    name: str
    shape: tuple
    axis: int

    @property
    def title(self):
        return f"{self.name}, {' x '.join(map(str, self.shape))}"

    @property
    def nbytes(self):
        """The bytes of x and y."""
        return 2 * 4 * int(np.prod(self.shape))


CASES = (
    Case("table", (512, 256), 1),
    Case("channels-first", (32, 64, 56, 56), 1),
    Case("channels-last", (32, 28, 28, 128), -1),
)


@dataclass(frozen=True)
class Data:
    """What a contender works on: x and out of one shape, and gamma, beta, mean, var of shape (C,), all of float32."""

    x: np.ndarray
    out: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    axis: int


def make_data(case, seed):
    rng = np.random.default_rng([seed, 10])
    features = case.shape[case.axis]
    gamma, var = rng.uniform(0.5, 2, (2, features)).astype(np.float32)
    beta, mean = rng.standard_normal((2, features), dtype=np.float32)
    x = rng.standard_normal(case.shape, dtype=np.float32)
    return Data(x, np.ones_like(x), gamma, beta, mean, var, case.axis)


def measure(operation, ours, seed, seconds):
    """The seconds of a call: {case name: {contender: an array, an entry a round}}, of fastbn, copies and the others.

    ours(data, threads): gives a call without arguments, that of fastbn. With one thread it is a contender of its own.
    seconds: about so long, for all cases together; but every contender takes LEAST_ROUNDS turns.
    """
    threads = fastbn.get_num_threads()
    found = {}
    for case in CASES:
        data = make_data(case, seed)
        calls = {"fastbn": ours(data, threads), ALONE: ours(data, 1) if threads > 1 else None}
        for name, prepare in _peers.installed(operation).items():
            calls[name] = prepare(data, threads)
        calls = {name: call for name, call in calls.items() if call is not None}
        with ThreadPoolExecutor(threads) as pool, _peers.threads_set(threads):
            found[case.name] = _in_turns({**_copies(data, pool, threads), **calls}, seconds / len(CASES))
    return found


def _copies(data, pool, threads):
    x, out = data.x.reshape(-1), data.out.reshape(-1)
    parts = list(zip(np.array_split(out, threads), np.array_split(x, threads)))

    def by_threads():
        for done in [pool.submit(np.copyto, *part) for part in parts]:
            done.result()

    return dict(zip(COPIES, (lambda: np.copyto(out, x), by_threads)))


def _in_turns(calls, seconds):
    """{name: seconds by round}; every other round runs backwards."""
    found, begin, rounds = {name: [] for name in calls}, perf_counter(), 0
    while rounds < LEAST_ROUNDS or perf_counter() - begin < seconds:
        for name in calls if rounds % 2 == 0 else reversed(calls):
            found[name].append(_block(calls[name]))
        rounds += 1
    return {name: np.array(values) for name, values in found.items()}


def _block(call):
    """The seconds of the fastest call, after DROP_SECONDS of calls that only tell how many make a sample."""
    begin, quickest = perf_counter(), _sample(call, 1)
    while perf_counter() - begin < DROP_SECONDS:
        quickest = min(quickest, _sample(call, 1))
    number = max(1, int(SAMPLE_SECONDS / quickest))
    begin, samples = perf_counter(), [_sample(call, number)]
    while (elapsed := perf_counter() - begin) < BLOCK_SECONDS or (
            len(samples) < LEAST_SAMPLES and elapsed < SLOW_SECONDS):
        samples.append(_sample(call, number))
    return min(samples)


def _sample(call, number):
    begin = perf_counter()
    for _ in range(number):
        call()
    return (perf_counter() - begin) / number


def limit(seconds):
    """The faster copy of every round, of one case."""
    return np.minimum(*(seconds[name] for name in COPIES))


def shares(seconds):
    """{contender: the share of the copy's speed that it reaches}, the median over the rounds, of one case."""
    least = limit(seconds)
    return {name: float(np.median(least / values)) for name, values in seconds.items() if name not in COPIES}


def times_ours(seconds):
    """{contender: how many times fastbn's time it takes}, the median over the rounds, of one case."""
    return {name: float(np.median(values / seconds["fastbn"])) for name, values in seconds.items()
            if name not in (*COPIES, "fastbn", ALONE)}


def microseconds(values):
    return 1e6 * float(np.median(values))


@styled
def draw_shares(seconds):
    """A panel for each case: bars of the share of the copy's speed, with the time of a call written beside them."""
    figure, axes = new_figure(len(CASES), 1, height=1.1 + 0.36 * sum(len(one) for one in seconds.values()), sharex=True,
                              height_ratios=[len(seconds[case.name]) for case in CASES])
    for panel, case in zip(axes, CASES):
        reached = shares(seconds[case.name])
        bars = panel.barh(list(reached), [100 * share for share in reached.values()],
                          color=[COLOURS[name] for name in reached], height=0.7)
        times = [f"{microseconds(seconds[case.name][name]):,.0f} µs" for name in reached]
        panel.bar_label(bars, times, padding=4, fontsize=9, bbox={"facecolor": GROUND, "edgecolor": "none", "pad": 1})
        panel.axvline(100, color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
        panel.set_title(case.title, loc="left")
        panel.grid(False, axis="y")
        panel.invert_yaxis()
        panel.margins(x=0.15)
    axes[-1].set_xlabel("share of the speed of a copy (%); dashed: the copy itself")
    return figure


def make(settings):
    before = _interruptions()
    training, inference = (_picture(operation, settings) for operation in ("training", "inference"))
    interruptions = None if before is None else _interruptions() - before
    found = {"training": training.values["seconds"], "inference": inference.values["seconds"]}
    return Section("Speed here", (
        _introduction(), training, _about_peers(interruptions), inference, _table(found),
    ))


_CALLS = {
    "training": "fastbn.batch_norm_training(\n"
                "        d.x, d.gamma, d.beta, axis=d.axis, out=d.out, num_threads=n)",
    "inference": "fastbn.batch_norm_inference(\n"
                 "        d.x, d.mean, d.var, d.gamma, d.beta, axis=d.axis, out=d.out, num_threads=n)",
}


def _picture(operation, settings):
    length = QUICK_SECONDS if settings.quick else SECONDS
    code = (
        "import fastbn\n"
        "from fastbn.explain import speed\n\n"
        "def ours(d, n):\n"
        f"    return lambda: {_CALLS[operation]}\n\n"
        f"seconds = speed.measure(\"{operation}\", ours, seed={settings.seed}, seconds={length})\n"
        "figure = speed.draw_shares(seconds)")
    values = run_code(code)
    reached = {case.title: shares(values["seconds"][case.name]) for case in CASES}
    told = "; ".join(f"{title}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in one.items())
                     for title, one in reached.items())
    return Picture(
        code=code, values=values, measured=True,
        caption=f"{operation.capitalize()}, float32, into an array that exists. The fastest call of a turn counts, and of "
                "the turns the median.",
        alt=f"Bars of the share of a copy's speed in {operation}. {told}.")


def _introduction():
    threads = fastbn.get_num_threads()
    sizes = "; ".join(f"{case.title}: {_size(case)}" for case in CASES)
    return Text(
        "A batch norm must read its input and write its output; at best, computing hides behind that. So the measure "
        "is how fast this machine copies an array, by NumPy's `copyto`, with one thread or with as many as fastbn may "
        "use ({speed_threads}), whichever is faster: 100 %. Training has more to do: statistics first, for which x is "
        "read once more where the caches do not hold it. A copy is a measure and no law: ordinary stores first fetch "
        "the memory that they overwrite, and a library that stores past the caches, as fastbn does for large outputs, "
        "saves that. "
        f"The arrays, input and output together: {sizes}.",
        speed_threads=Number(threads, f"{threads}"))


def _size(case):
    """Its bytes, and the first cache that holds them."""
    levels = fastbn.get_config()["cache_bytes"]
    fits = next((level for level, size in enumerate(levels, 1) if size and case.nbytes <= size), None)
    where = f"fits level {fits} of the caches" if fits else "larger than the caches" if any(levels) else "caches unknown"
    return f"{case.nbytes / 2**20:.1f} MiB ({where})"


def _about_peers(interruptions):
    about = (
        "Beside it: NumPy in as few passes as it allows, in place, which is always one thread; and what else is installed "
        f"here ({_peers.described()}). Not every library has every case. ")
    if interruptions is None:
        return Text(about)
    return Text(
        about + "On a busy machine calls by several threads suffer most, since one that waits for a processor holds up the "
        "others. Other programs interrupted this one {speed_interruptions} while it measured.",
        speed_interruptions=Number(interruptions, f"{interruptions:,} times", measured=True))


def _interruptions():
    """How often the system has taken a processor from this process so far; None where it does not tell."""
    if getrusage is None:
        return None
    return getrusage(RUSAGE_SELF).ru_nivcsw


def _table(found):
    """Where nothing else is installed NumPy is the fastest other."""
    rows = [(operation, case.title, *((f"speed_{operation}_{case.name}_{key}".replace("-", "_"), number)
                                      for key, number in _numbers(case, by_case[case.name]).items()))
            for operation, by_case in found.items() for case in CASES]
    return named_table("In the last column, above 1 fastbn is faster.", (
        "", "array", "copy (GB/s)", "fastbn (µs)", "with 1 thread (µs)", "share of the copy's speed",
        "time of the fastest other / fastbn's"), rows)


def _numbers(case, seconds):
    rate = case.nbytes / float(np.median(limit(seconds))) / 1e9
    time, alone = microseconds(seconds["fastbn"]), microseconds(seconds.get(ALONE, seconds["fastbn"]))
    share, ratios = shares(seconds)["fastbn"], times_ours(seconds)
    fastest = min(ratios, key=ratios.get)
    shown = {"copy": (rate, f"{rate:.1f}"), "time": (time, f"{time:,.1f}"), "time_1_thread": (alone, f"{alone:,.1f}"),
             "share": (share, f"{100 * share:.0f} %"), "other": (ratios[fastest], f"{ratios[fastest]:.2g} ({fastest})")}
    return {key: Number(value, text, measured=True) for key, (value, text) in shown.items()}
