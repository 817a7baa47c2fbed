"""Settings in the environment: what cannot be read is told, once, with what is used in its place; where values come from."""

import io
import os
import subprocess
import sys

import pytest

import fastbn
from fastbn import _environment
from test_processes import linux_only, needs_openmp

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("FASTBN_", "OMP_", "GOMP_", "KMP_"))}


def shown(**environment):
    """(what `python -m fastbn` prints, what it warns)."""
    done = subprocess.run([sys.executable, "-m", "fastbn"], env={**CLEAN, **environment}, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return {line[:17].strip(): line[18:] for line in done.stdout.splitlines()}, done.stderr


@pytest.mark.parametrize("text, nbytes", [
    ("0", 0), ("1000", 1000), ("64K", 64 * 2**10), ("64M", 64 * 2**20), ("2g", 2 * 2**30), ("64MiB", 64 * 2**20),
    (" 5 MB ", 5 * 2**20), ("", None), ("64X", None), ("-1", None), ("M", None), ("1.5G", None), ("9" * 30, None), ("999999999999G", None),
])
def test_bytes(text, nbytes):
    assert _environment.read_bytes(text) == nbytes


@pytest.mark.parametrize("text, threads", [
    ("1", 1), ("16", 16), (" 2 ", 2), ("0", 0), ("", 0), ("two", None), ("-3", None), ("2.0", None), ("9" * 20, None),
    ("1048576", None), ("\u0663", None),
])
def test_threads(text, threads):
    assert _environment.read_threads(text) == threads


@pytest.mark.parametrize("text, on", [("0", False), ("1", True), ("no", None), ("", None)])
def test_switch(text, on):
    assert _environment.read_switch(text) is on


@pytest.mark.parametrize("name, text, expected", [
    ("FASTBN_NUM_THREADS", "two", "there is no limit"), ("FASTBN_NUM_THREADS", "+1", "there is no limit"),
    ("FASTBN_OUTPUT_CACHE", "64X", "are kept"), ("FASTBN_BACKOFF", "no", "it is on"),
])
def test_what_cannot_be_read_is_told_once(name, text, expected):
    lines, warned = shown(**{name: text})
    assert warned.count("RuntimeWarning") == 1 and f"{name}={text!r} cannot be read, expected " in warned
    assert expected in warned and name not in str(lines)
    assert lines["threads"] == shown()[0]["threads"]


def test_what_can_be_read_is_told_by_nobody():
    lines, warned = shown(FASTBN_NUM_THREADS="1", FASTBN_OUTPUT_CACHE="64M", FASTBN_BACKOFF="0", FASTBN_ISA="generic")
    assert warned == ""
    assert lines["backing off"].startswith("off (FASTBN_BACKOFF)")
    assert lines["instruction sets"].endswith("active generic (FASTBN_ISA)")
    if fastbn.get_config()["openmp"]:
        assert lines["threads"] == "1 (FASTBN_NUM_THREADS)"
    if sys.platform.startswith("linux"):
        assert lines["output cache"] == "64 MiB (FASTBN_OUTPUT_CACHE)"


@needs_openmp
def test_where_the_number_of_threads_comes_from():
    assert shown()[0]["threads"].endswith("(default: OpenMP's maximum, within the processors that this process may use)")
    assert shown(OMP_NUM_THREADS="3")[0]["threads"] == "3 (OMP_NUM_THREADS)"
    assert shown(FASTBN_NUM_THREADS="0", OMP_NUM_THREADS="3")[0]["threads"] == "3 (OMP_NUM_THREADS)"
    before, output = fastbn.get_num_threads(), io.StringIO()
    fastbn.set_num_threads(1)
    try:
        fastbn.show_config(output)
    finally:
        fastbn.set_num_threads(None)
    assert "1 (set_num_threads(1))" in output.getvalue() and fastbn.get_num_threads() == before


# ---- idle threads ----

def idle_threads(prelude="", **environment):
    script = f"{prelude}\nimport os, fastbn\nassert 'GOMP_SPINCOUNT' not in os.environ or {bool(environment)}\n" \
             "print(fastbn.get_config()['idle_threads'])"
    return subprocess.run([sys.executable, "-c", script], env={**CLEAN, **environment}, capture_output=True, text=True,
                          timeout=60, check=True).stdout.strip()


with_libgomp = pytest.mark.skipif(fastbn.get_config()["openmp"] != "libgomp", reason="built without GNU's OpenMP")


@linux_only
@with_libgomp
def test_idle_threads_soon_sleep():
    assert idle_threads() == "sleep after a tenth of a millisecond"


@linux_only
@with_libgomp
def test_idle_threads_where_the_caller_has_chosen():
    assert idle_threads(GOMP_SPINCOUNT="77") == "as GOMP_SPINCOUNT=77 in the environment says"
    assert idle_threads(OMP_WAIT_POLICY="passive") == "as OMP_WAIT_POLICY=passive in the environment says"


@linux_only
@with_libgomp
def test_idle_threads_where_the_library_was_there_before():
    """It has read its settings then. Here it is loaded under the very name by which fastbn asks for it."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split()[-1] for line in maps if "gomp" in line}
    ours = [file for file in files if os.path.basename(file).startswith("libgomp.so")]
    if not ours:
        pytest.skip("fastbn brings a library of its own")
    assert idle_threads(f"import ctypes; ctypes.CDLL({ours[0]!r})").startswith("spin for some milliseconds")
