"""Do the tests find mistakes? Plants one fault after the other in a copy: python -m tests.faults [--only 3,17].

Each fault is a mistake that somebody could make, and changes results, errors or the safety of memory. The list was
written by reading the product's code alone, before any test was looked at. It only says what it should while every old
text is there exactly once: the tool refuses to start otherwise, and tests/test_faults.py watches over it.
"""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

_MOST_MISSED = 4        # of all
_TEST_SECONDS = 900     # for one run of the tests, which takes a fifth of that
_BUILD_SECONDS = 1800
_COMPILED = {".c", ".h", ".inc", ".pyx", ".pxd", ".pxi"}
_NOT_COPIED = (".git", "__pycache__", ".hypothesis", ".pytest_cache", ".benchmarks", "*.egg-info")


class Fault(NamedTuple):
    number: int
    file: str
    old: str  # occurs exactly once
    new: str
    breaks: str


FAULTS = [
    # ---- csrc/kernels, csrc/vec ----
    Fault(1, "csrc/kernels/activations.inc",
          "OP(by_sign)(z, dy, OP(mul)(dy, slope))",
          "OP(by_sign)(z, dy, OP(mul)(z, slope))",
          "the gradient of leaky_relu below 0 is z * slope, not dy * slope"),
    Fault(2, "csrc/kernels/functions.inc",
          "return OP(less)(limit, z, limit, z);",
          "return OP(less)(z, limit, z, limit);",
          "a NaN becomes the limit beyond which exp vanishes"),
    Fault(3, "csrc/kernels/sum_terms.inc",
          "        k += 4;",
          "        k = 4;",
          "of 13 to 15 vectors, sums take some twice and leave others out"),
    Fault(4, "csrc/kernels/sum_rows.inc",
          "NAME(add_pairs)(NAME(add_pairs)(quad[0][k], quad[1][k]), NAME(add_pairs)(quad[2][k], quad[3][k]))",
          "NAME(add_pairs)(NAME(add_pairs)(quad[0][k], quad[2][k]), NAME(add_pairs)(quad[1][k], quad[3][k]))",
          "narrow tables are summed in another order where registers are few, so bits depend on the processor"),
    Fault(5, "csrc/kernels/map_rows.inc",
          "at = begin % period; j < end",
          "at = 0; j < end",
          "every strip of a wide table gets the parameters of the first one"),
    Fault(6, "csrc/kernels/map_planes.inc",
          "j = j < len ? j + W - len : 0;",
          "j = 0;",
          "entries after a seam of two planes are mapped once more, which in place is twice"),
    Fault(7, "csrc/kernels/statistics.inc",
          "(shift > 2.0 * m);",
          "(shift > 2.0 * v);",
          "a pivot far from the mean is never noticed, and the variance keeps few digits"),
    Fault(8, "csrc/kernels/elementwise.inc",
          "T share = w[i] != 0 ? c[i] * w[i] : 0;",
          "T share = c[i] * w[i];",
          "an infinite entry of weight 0 makes its dx NaN"),
    Fault(9, "csrc/vec/vec_avx512.h",
          "_mm512_mask_cvtps_pd(fill, fbn_mask8(n), ",
          "_mm512_maskz_cvtps_pd(fbn_mask8(n), ",
          "vector tails of float32 data summed in double are filled with 0, not with the pivot"),
    Fault(10, "csrc/vec/half.h",
          "(bits - bias + 0xfff + (bits >> 13 & 1)) >> 13",
          "(bits - bias + 0x1000) >> 13",
          "float16 rounds ties up, not to even, where the processor does not convert"),
    # ---- csrc ----
    Fault(11, "csrc/batchnorm.c",
          "running[f] = momentum * running[f] + (1.0 - momentum) * (batch[f] * scale);",
          "running[f] = (1.0 - momentum) * running[f] + momentum * (batch[f] * scale);",
          "momentum is the weight of the batch in float64 moving averages"),
    Fault(12, "csrc/operations.c",
          "if (isnan(scratch->m2[f]) && isfinite(scratch->mean[f]))",
          "if (isnan(scratch->m2[f]))",
          "float64 features with a NaN have an infinite variance, not NaN"),
    Fault(13, "csrc/sums.c",
          "last = chunk == plan->chunks - 1 ? plan->rows : row + plan->chunk;",
          "last = fbn_min(row + plan->chunk, plan->rows);",
          "rows beyond the last chunk of a table are in no sum"),
    Fault(14, "csrc/map.c",
          "(!given->residual.data || given->residual.stride_n == row);",
          "1;",
          "a residual with gaps between its rows is read as if it had none"),
    Fault(15, "csrc/schedule.c",
          "!memchr(call->scratch.bad, 1, (size_t)call->plan.sums.c)",
          "!memchr(call->scratch.bad + first, 1, (size_t)(end - first))",
          "a thread whose own features are good does not wait for those that sum theirs again"),
    Fault(16, "csrc/plan.c",
          "count = plan->runs > 1 ? 1 : fbn_min(plan->c - f, end - q);",
          "count = fbn_min(plan->c - f, end - q);",
          "the parts of a long plane are taken for planes of the next features"),
    Fault(17, "csrc/double_backward.c",
          "constant[f] -= (mean[f] - pass->rounded[f]) * scale[f];",
          "constant[f] += (mean[f] - pass->rounded[f]) * scale[f];",
          "what float32 does not hold of a mean counts with the wrong sign in the gradient of the backward"),
    Fault(18, "csrc/results/kept.c",
          "    kept -= block->bytes;\n",
          "",
          "memory that is used again still counts as kept"),
    Fault(19, "csrc/adapters/xla.c",
          "int half = buffer->dtype == FBN_XLA_F16 || buffer->dtype == FBN_XLA_BF16;",
          "int half = buffer->dtype == FBN_XLA_F16;",
          "under vmap the batches of bfloat16 lie twice as far apart as they are"),
    # ---- Cython ----
    Fault(20, "fastbn/_binding/layer_base.pxi",
          "if count == 1 or not can_train(",
          "if not can_train(",
          "a batch of one value per feature takes a step, with 1 / 0 for a factor"),
    Fault(21, "fastbn/_binding/layer_base.pxi",
          "        self._saved = None\n        self.dgamma, self.dbeta",
          "        self.dgamma, self.dbeta",
          "one forward call can be gone back through twice"),
    Fault(22, "fastbn/_binding/plain_arrays.pxi",
          "q + <size_t> cnp.PyArray_NBYTES(b) <= p",
          "q <= p",
          "an out that begins after x and overlaps it is accepted"),
    Fault(23, "fastbn/_binding/saved.pxi",
          "cnp.PyArray_NDIM(x) == self.ndim\n"
          "                and cnp.PyArray_CompareLists(self.dims, cnp.PyArray_DIMS(x), self.ndim))",
          "cnp.PyArray_NDIM(x) == self.ndim)",
          "an x whose shape was changed in place goes to backward"),
    Fault(24, "fastbn/_binding/plain_calls.pxi",
          "is_vector_of(beta, c, kind) and fits(out, x)",
          "is_vector(beta, c) and fits(out, x)",
          "a beta of another type than the statistics is read as theirs"),
    Fault(25, "fastbn/_binding/torch_exchange.pxi",
          "old -= PyFloat_AsDouble(momentum)",
          "old = PyFloat_AsDouble(momentum)",
          "PyTorch's momentum is taken for the weight of the old average"),
    # ---- Python ----
    Fault(26, "fastbn/_engine/moments.py",
          "return count - ddof * share if count > margin * share else np.nan",
          "return count - ddof if count > margin * share else np.nan",
          "unbiased variances of weighted entries do not know the effective number"),
    Fault(27, "fastbn/_engine/fusion.py",
          "if saved.holds_y and (self.has_residual or not self.activation.inverts):",
          "if saved.holds_y and not self.activation.inverts:",
          "backward takes y for x where a forward call in place had a residual"),
    Fault(28, "fastbn/_engine/weights.py",
          "np.ascontiguousarray(self.whole.transpose(order)).reshape(-1)",
          "np.ascontiguousarray(self.whole).reshape(-1)",
          "weights are in C order where x is not"),
    Fault(29, "fastbn/_training/missing.py",
          "counts = there & (weights > 0)[:, None]",
          "counts = there",
          "an entry of weight 0, infinite perhaps, stands for those that are missing"),
    Fault(30, "fastbn/_training/nan_policies.py",
          "fits = np.maximum(np.abs(moments.mean), var) <= np.finfo(dtype).max",
          "fits = var <= np.finfo(dtype).max",
          "a mean that float32 does not hold passes nan_policy"),
    Fault(31, "fastbn/_data/calibration.py",
          'refuse_read_only(self, ("mean", "var"))',
          'refuse_read_only(self, ("mean",))',
          "calibrate changes the mean and then fails at a read-only variance"),
    Fault(32, "fastbn/_api/double_backward.py",
          "((squares < _LEAST) | (squares > 1 / _LEAST)).any()",
          "(squares < _LEAST).any()",
          "the gradient of the backward overflows float32 for tiny variances"),
    Fault(33, "fastbn/_layer/freezing.py",
          "return self.training and self._normalizes_by_batch()",
          "return self.training",
          "a layer that trains by its running statistics updates them"),
    Fault(34, "fastbn/_layer/running.py",
          "momentum = seen / (seen + 1) if self.momentum is None else self.momentum",
          "momentum = (seen + 1) / (seen + 2) if self.momentum is None else self.momentum",
          "a cumulative average by update() weighs the batches unequally"),
    Fault(35, "fastbn/convert/keras.py",
          "std = np.sqrt(layer.running_var + layer.dtype.type(layer.eps))",
          "std = np.sqrt(layer.running_var)",
          "the standard deviations that Keras's renorm gets are without eps"),
    Fault(36, "fastbn/interop/onnx.py",
          "if self.since in (7, 9):",
          "if self.since == 9:",
          "nodes of opset 7 with several outputs are not in training mode"),
    Fault(37, "fastbn/sklearn/_sources.py",
          "weights = weights[rows:rows + len(chunk)]",
          "weights = weights[:len(chunk)]",
          "every chunk of an iterator gets the sample weights of the first one"),
    Fault(38, "fastbn/distributed/_merging.py",
          "records = _sorted(messages[:, _HEAD:].view(np.float64))",
          "records = messages[:, _HEAD:].view(np.float64)",
          "the bits of gradients depend on which rank has which batch"),
    Fault(39, "fastbn/standardize/files.py",
          "_write(file, shape, axes, found, out, progress, given is not None)",
          "_write(file, shape, axes, found, out, progress, given is None)",
          "infinite entries are not refused where the statistics are given"),
    Fault(40, "fastbn/folding.py",
          'padding == "same" and any(size > 1 for size in kernel)',
          'padding == "same" and all(size > 1 for size in kernel)',
          "a batch norm before a padding convolution of a 3 x 1 kernel is folded"),
]


def problems(faults=FAULTS, root=ROOT):
    """What is wrong with the list, a line for each fault that no longer fits the code."""
    found = []
    for fault in faults:
        path = root / fault.file
        if not path.is_file():
            found.append(f"fault {fault.number}: there is no {fault.file}")
        elif (times := path.read_text(encoding="utf-8").count(fault.old)) != 1:
            found.append(f"fault {fault.number}: its old text is {times} times in {fault.file}, expected once: "
                         f"{fault.old!r}")
    return found


class Outcome(NamedTuple):
    kind: str  # found, not found, does not build
    by: str    # the first test that failed
    seconds: float


# ---- the copy ----

class Tree:
    """A copy of the project in which one fault at a time is planted, with what was compiled."""

    def __init__(self, folder):
        self.path, self.saved = folder / "tree", folder / "saved"
        for old in (self.path, self.saved):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(ROOT, self.path, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        self.environment = os.environ | {"PYTHONPATH": str(self.path)}
        if not self.build():
            raise SystemExit(f"the project itself does not build: see {self.path}")
        self.saved.mkdir()
        for binary in self.binaries():
            shutil.copy2(binary, self.saved)

    def binaries(self):
        return [*self.path.glob("fastbn/_core.*.so"), *self.path.glob("fastbn/_core.*.pyd")]

    def plant(self, fault):
        """Returns what puts everything back."""
        path = self.path / fault.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")

        def remove():
            path.write_text(text, encoding="utf-8")
            for binary in self.saved.iterdir():
                shutil.copy2(binary, self.path / "fastbn")
        return remove

    def build(self):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return self.run(command, _BUILD_SECONDS)[0] == 0

    def run(self, command, seconds):
        """(status, or None where there was no end; what it printed). Its children end with it."""
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(command, cwd=self.path, env=self.environment, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end_group(process)
            log.seek(0)
            return status, log.read()


def end_group(process):
    """What a fault left running would take the processors from the next one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended
    process.wait()


# ---- the tests ----

def command_of(options):
    # The list's own test would find every fault, and say nothing.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--ignore", "tests/test_faults.py",
               "-n", str(options.processes), "-o", f"faulthandler_timeout={_TEST_SECONDS // 3}"]
    return [*command, "-m", ""] if options.all_tests else command


def outcome_of(tree, fault, options):
    started = time.monotonic()
    remove = tree.plant(fault)
    try:
        if Path(fault.file).suffix in _COMPILED and not tree.build():
            kind, by = "does not build", ""
        else:
            by = failing_test(tree, options)
            kind = "found" if by else "not found"
    finally:
        remove()
    return Outcome(kind, by, time.monotonic() - started)


def failing_test(tree, options):
    """The first one, or "". One that passes alone may have failed because the machine was busy: then all run once more.

    Random calls come first: they find most mistakes, in seconds.
    """
    for which in (["-n", "0", "tests/test_fuzz.py"], [], []):
        status, text = tree.run([*command_of(options), *which], _TEST_SECONDS)
        if status == 0 and which:
            continue
        if status == 0:
            return ""
        by = first_failure(status, text)
        if status is None or "::" not in by or tree.run([*command_of(options), "-n", "0", by], _TEST_SECONDS)[0] != 0:
            break
    return by


def first_failure(status, text):
    """The id of the test, or how the tests ended where none had a result."""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    if failed:
        return failed[1]
    if status is not None:
        return f"pytest ended with status {status}"
    hanging = re.findall(r'File "[^"]*?/(tests/\w+\.py)", line \d+ in (test_\w+)', text)
    return f"no end within {_TEST_SECONDS} s" + (f", in {'::'.join(hanging[-1])}" if hanging else "")


def refuse_failing(tree, options):
    """Nothing is known where the tests fail without a fault."""
    status, text = tree.run(command_of(options), _TEST_SECONDS)
    if status != 0:
        raise SystemExit(f"the tests fail without any fault: {first_failure(status, text)}")


# ---- the command ----

def main():
    options = parsed()
    if wrong := problems():
        raise SystemExit("\n".join([*wrong, "the list in tests/faults.py has to be brought up to date first"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of shells ignore it, and so would tests
    chosen = [fault for fault in FAULTS if options.only is None or fault.number in options.only]
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(options.work or folder).resolve())
        refuse_failing(tree, options)
        outcomes = {}
        for fault in chosen:
            one = outcomes[fault] = outcome_of(tree, fault, options)
            print(f"{fault.number}: {one.kind} {one.by} ({one.seconds:.0f} s)", flush=True)
    print(*table_of(outcomes), sep="\n")
    found = sum(outcome.kind == "found" for outcome in outcomes.values())
    print(f"\n{found} of {len(chosen)} faults were found")
    return int(len(chosen) - found > (_MOST_MISSED if options.only is None else 0))


def parsed():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", type=lambda text: {int(number) for number in text.split(",")}, help="these alone: 3,17")
    add("--work", help="a folder for the copy, which stays; without it a temporary one")
    add("--all-tests", action="store_true", help="both tiers of the tests")
    add("--processes", type=int, default=os.cpu_count(), help="that test at a time; 0: pytest's own")
    options = parser.parse_args()
    if options.only is not None and (unknown := options.only - {fault.number for fault in FAULTS}):
        parser.error(f"--only: there is no fault {min(unknown)}")
    return options


def table_of(outcomes):
    yield "| fault | file | what it breaks | first test that fails |"
    yield "|---|---|---|---|"
    for fault, outcome in outcomes.items():
        by = f"`{outcome.by}`" if outcome.by else outcome.kind
        yield f"| {fault.number} | {fault.file} | {fault.breaks} | {by} |"


if __name__ == "__main__":
    sys.exit(main())
