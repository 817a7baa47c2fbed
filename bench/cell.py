"""One cell measured: a case with a number of threads, everybody who can do it, and the machine's limit.

Each contender's result is checked against the answer in float64 before it is timed. Probes before and after, of the
memory's speed and of the time that threads take to hand something over, tell whether the machine was the same all the
while. Where a peer comes out ahead of fastbn, the cell is measured five times in all, and the median decides.

What is fused is compared with fastbn's own plain call too, and half types with float32, in the same rounds.
"""
from dataclasses import replace
from functools import partial

from bench.cases import check, make_data, reference, sample_features
from bench.peers import BASELINE, variants
from bench.timing import LEAST_ROUNDS, Entry, measure, ratio

PROBE_TOLERANCE = 0.15  # by which the two probes of the memory may differ
HANDOVER_TOLERANCE = 1  # and those of a handover, which are one thing or several times as much
LOST = 0.95             # a peer's time / fastbn's: below this the cell counts as lost
MEASUREMENTS = 5        # of a cell that seems lost


def measure_cell(job, contenders, limit, data, seconds, least_rounds=LEAST_ROUNDS, most=MEASUREMENTS):
    """A plain dict, JSON-ready. data: those of the case, with one output array for all. limit may be None.

    most: how many times a cell is measured that seems lost.
    """
    case, threads = job.case, job.threads
    limit = limit if limit and (threads == 1 or limit.has_threads) else None
    before = _probe(limit, threads)
    entries, errors, failed = _prepare(case, threads, contenders, data)
    limits = limit_entries(limit, case, data, threads)
    own = own_entries(case, threads, contenders, data)
    measurements = _measure_until_sure(entries, [*limits, *own], seconds, least_rounds, most)
    probes, handovers = map(_both, before, _probe(limit, threads))
    best = min(limits, key=lambda entry: entry.seconds, default=None)
    limit_seconds = best and best.seconds
    return {
        "operation": case.operation, "shape": list(case.shape), "layout": case.layout, "dtype": case.dtype,
        "alignment": case.alignment, "threads": threads, "sweep": job.sweep,
        "bytes": case.bytes, "array_bytes": case.array_bytes,
        "limit_seconds": limit_seconds, "limit_disturbed": best is not None and best.disturbed,
        "limits": {entry.contender: entry.seconds for entry in limits},
        "probe": probes, "handover": handovers,
        "flagged": _differ(probes, PROBE_TOLERANCE) or _differ(handovers, HANDOVER_TOLERANCE),
        "own": [_own_dict(entry, entries) for entry in own],
        "entries": [_entry_dict(entry, entries, errors, case, limit_seconds) for entry in entries],
        "failed": failed,
        "retries": measurements if most > 1 and _is_lost(measurements) else [],
    }


def _probe(limit, threads):
    """(the memory's GB/s, ns of a handover); None for what is not measured."""
    return limit and limit.probe(threads), limit.handover() if limit and threads > 1 else None


def _both(before, after):
    return None if before is None or after is None else [before, after]


def _differ(probes, tolerance):
    return probes is not None and max(probes) > (1 + tolerance) * min(probes)


def limit_entries(limit, case, data, threads):
    """Entries of the limit on the very buffers of the case: ordinary and non-temporal stores."""
    if limit is None:
        return []
    out = None if case.operation == "moments" else data.empty()
    entries = limit.entries(case.operation, data, out, threads)
    for entry in entries:
        entry.kept, entry.output = True, "limit"  # an output of its own: nobody is far behind because of it
    return entries


def own_case(case):
    """What fastbn's time is compared with: of fused operations the plain one, of half types float32; or None."""
    if case.is_fused:
        return replace(case, operation=case.plain)
    return replace(case, dtype="float32") if case.is_half and case.operation != "call" else None


def own_entries(case, threads, contenders, data):
    """Entries of fastbn on own_case, for each kind of output."""
    other = own_case(case)
    if other is None:
        return []
    others = data if other.dtype == case.dtype else make_data(other)
    others = others.for_operation(other.operation)
    entries = []
    for contender, output in variants(other, [c for c in contenders if c.name == BASELINE]):
        session = partial(contender.session, threads)
        with session():
            work = contender.work(other, others, output, threads)
        entries.append(Entry(str(other), f"own {output}", work.expression, work.timer(), session, kept=True))
    return entries


def _own_dict(own, entries):
    """ratio: fastbn's time / that of its own other call."""
    output = own.output.removeprefix("own ")
    base = next((e for e in entries if e.key == (BASELINE, output)), None)
    found, disturbed = (None, False) if base is None else ratio(base, own)
    return {"against": own.contender, "output": output, "seconds": own.seconds, "ratio": found,
            "disturbed": own.disturbed or disturbed}


def _prepare(case, threads, contenders, data):
    """(entries, {(contender, output): error}, what could not be measured and why)."""
    features = sample_features(case)
    common = reference(case, data, features)
    entries, errors, failed = [], {}, []
    for contender, output in variants(case, contenders):
        expected = common
        if hasattr(contender, "reference_data"):
            expected = reference(case, contender.reference_data(case, data), features)
        session = partial(contender.session, threads)
        try:
            with session():
                work = contender.work(case, data, output, threads)
                got = contender.arrays(case, work.function()())
                error = check(case, f"{contender.name} ({output})", got, expected, features)
                del got
        except Exception as problem:  # whatever one library cannot do must not end a run of hours
            failed.append({"contender": contender.name, "output": output,
                           "reason": f"{type(problem).__name__}: {problem}"})
            continue
        errors[contender.name, output] = error
        entries.append(Entry(contender.name, output, work.expression, work.timer(), session,
                             kept=contender.name == BASELINE))
    return entries, errors, failed


def _measure_until_sure(entries, limits, seconds, least_rounds, most):
    """The ratios of each measurement: one; two where something was disturbed; `most` where a peer was ahead in one."""
    measurements = []
    while True:
        first = max((len(entry.blocks) for entry in entries), default=0)
        measure([*entries, *limits], seconds, least_rounds)
        measurements.append(_ratios(entries, first))
        wanted = MEASUREMENTS if _is_lost(measurements) else 1 + any(entry.disturbed for entry in entries)
        if len(measurements) >= min(wanted, most):
            return measurements


def _is_lost(measurements):
    """Whether a peer was ahead in any of them."""
    return any(value < LOST for outputs in measurements for ratios in outputs.values() for value in ratios.values())


def _base(entry, entries):
    return next((e for e in entries if e.key == (BASELINE, entry.output)), None)


def _ratios(entries, first):
    """{output: {peer: its time / fastbn's}} over the rounds from `first` on, without those that were disturbed."""
    ratios = {}
    for entry in entries:
        base = _base(entry, entries)
        if base is not None and base is not entry and len(entry.blocks) > first:
            value, disturbed = ratio(entry, base, first)
            if not disturbed:
                ratios.setdefault(entry.output, {})[entry.contender] = value
    return ratios


def _entry_dict(entry, entries, errors, case, limit_seconds):
    base, seconds = _base(entry, entries), entry.seconds
    found, disturbed = (None, False) if base in (None, entry) else ratio(entry, base)
    return {
        "contender": entry.contender, "output": entry.output, "expression": entry.expression, "seconds": seconds,
        "gbps": case.bytes / seconds / 1e9, "share": limit_seconds and limit_seconds / seconds,
        "ratio": found, "error": errors[entry.key], "disturbed": entry.disturbed or disturbed,
        "blocks": entry.blocks, "clean": entry.clean,
    }
