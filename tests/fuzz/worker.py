"""The child process: runs calls one by one, and leaves word of each before it starts, for who finds it dead."""
import json
import os
import traceback
import warnings
from pathlib import Path

from .calls import described, make, run

_ROOM = 4000  # bytes of a report
_WARM_UP = 2000  # calls, or a fifth of all, after which memory has to stay as it is
_STATM = Path("/proc/self/statm")


def report(handle, **values):
    """As JSON of a fixed length, so that one write replaces the last one."""
    values["what"] = values.get("what", "")[:_ROOM // 2]
    os.pwrite(handle, json.dumps(values).encode().ljust(_ROOM), 0)


def read_report(handle):
    text = os.pread(handle, _ROOM, 0).decode(errors="replace").strip()
    return json.loads(text) if text else {}


def resident():
    """Bytes, or None where the system does not tell."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if _STATM.exists() else None


def work(handle, seed, numbers, say):
    """Leaves the number of faults and the growth of resident memory since the warm-up."""
    warnings.simplefilter("ignore")
    faults, growth, warm = 0, 0, None
    warm_at = numbers[min(_WARM_UP, len(numbers) // 5)]
    for number in numbers:
        report(handle, number=number, faults=faults, growth=growth, done=False)
        if number == warm_at:
            warm = resident()
        faults += _one(handle, seed, number, faults, growth, say)
        if warm is not None and number % 256 == 0:
            growth = resident() - warm
    growth = growth if warm is None else resident() - warm
    report(handle, number=numbers[-1], faults=faults, growth=growth, done=True)


def _one(handle, seed, number, faults, growth, say):
    """Whether it is a fault."""
    case = None
    try:
        case = make(seed, number)
        if case is None:
            return False
        report(handle, number=number, faults=faults, growth=growth, done=False, what=described(case))
        run(case)
    except Exception as error:  # whatever it is, it is a fault, and the next call is to be made
        where = "" if isinstance(error, AssertionError) else f"\n{traceback.format_exc()}"
        what = "" if case is None else described(case)
        say(f"fault: seed {seed}, call {number}: {type(error).__name__}: {error}\n    {what}{where}")
        return True
    return False
