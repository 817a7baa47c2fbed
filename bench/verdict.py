"""What the measured cells say: who is faster, by how much, and how near to the machine's limit. Plain dicts in and out.

A comparison is one cell with one kind of output: fastbn against the fastest of the peers that produce it the same way.
Where another process disturbed one of them, nobody knows who is the fastest: such comparisons are counted, no more.
"""
import math
import statistics
from collections import Counter

from bench.cases import FUSED, arrays_moved, plain
from bench.cell import LOST
from bench.peers import BASELINE

FUSED_BAR = 1.05    # times the bytes that must move, divided by those of the plain call
HALF_BAR = 1 / 1.7


def entry_of(cell, contender, output):
    return next((e for e in cell["entries"] if (e["contender"], e["output"]) == (contender, output)), None)


def peers_of(cells):
    """Names, in the order in which they were asked for."""
    return list(dict.fromkeys(e["contender"] for cell in cells for e in cell["entries"] if e["contender"] != BASELINE))


def outputs_of(cell):
    return list(dict.fromkeys(e["output"] for e in cell["entries"]))


def best_output(cell, contender):
    """The entry that says most about the computation: into an array that exists, or else a fresh one."""
    return entry_of(cell, contender, "out=") or entry_of(cell, contender, "fresh")


def fastest_peer(cell, output):
    """(its time / fastbn's, its name); None where nobody compares. The one in the middle of five measurements counts."""
    if cell["retries"]:
        found = sorted(min((value, name) for name, value in ratios[output].items())
                       for ratios in cell["retries"] if ratios.get(output))
        if found:
            return found[(len(found) - 1) // 2]
    return min(((e["ratio"], e["contender"]) for e in cell["entries"]
                if e["output"] == output and e["ratio"] is not None), default=None)


def comparisons(cells):
    """[(ratio, peer, output, cell)], one for each cell and output, and the number of disturbed ones left out."""
    found, disturbed = [], 0
    for cell in cells:
        for output in outputs_of(cell):
            fastest = fastest_peer(cell, output)
            if fastest is None:
                continue
            if any(e["disturbed"] for e in cell["entries"] if e["output"] == output):
                disturbed += 1
            else:
                found.append((*fastest, output, cell))
    return found, disturbed


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def regime(cell, caches):
    """Where the data of a call fit: in the L2 of its threads, in the last-level cache, or only in memory."""
    if caches["l2"] and cell["bytes"] <= caches["l2"] * cell["threads"]:
        return "L2"
    if caches["llc"] and cell["bytes"] <= caches["llc"]:
        return "last-level cache"
    return "memory" if caches["llc"] else "unknown"


def judge(cells, caches):
    """The verdict on a grid or on the sweeps, as it stands in run.json."""
    found, disturbed = comparisons(cells)
    ratios = [ratio for ratio, *_ in found]
    return {
        "cells": len(cells),
        "flagged": sum(cell["flagged"] for cell in cells),
        "handover": _handovers(cells),
        "comparisons": len(found),
        "disturbed": disturbed,
        "geometric_mean": geometric_mean(ratios),
        "under_1": sum(ratio < 1 for ratio in ratios),
        "lost_below": LOST,
        "lost": _lost(found),
        "peers": _by_peer(cells),
        "shares": _shares(cells, caches),
        "own": _own(cells, caches),
        "failed": _failed(cells),
    }


def handover_of(cell):
    """Nanoseconds; None where one thread computed, and in runs of before it was measured."""
    return statistics.fmean(cell["handover"]) if cell.get("handover") else None


def _handovers(cells):
    found = [value for value in map(handover_of, cells) if value is not None]
    return {"least": min(found), "median": statistics.median(found), "greatest": max(found)} if found else None


def _lost(found):
    lost = sorted((item for item in found if item[0] < LOST), key=lambda item: item[0])
    names = "operation", "shape", "layout", "dtype", "alignment", "threads", "flagged"
    return [{**{name: cell[name] for name in names}, "handover": handover_of(cell), "output": output, "peer": peer,
             "ratio": ratio, "measurements": len(cell["retries"]) or 1} for ratio, peer, output, cell in lost]


def _by_peer(cells):
    peers = {}
    for name in peers_of(cells):
        ratios = [e["ratio"] for cell in cells for e in cell["entries"]
                  if e["contender"] == name and e["ratio"] is not None and not e["disturbed"]]
        if ratios:
            peers[name] = {"comparisons": len(ratios), "geometric_mean": geometric_mean(ratios), "least": min(ratios),
                           "greatest": max(ratios), "under_1": sum(ratio < 1 for ratio in ratios)}
    return peers


def _shares(cells, caches):
    """fastbn's share of the limit, into arrays that exist, by operation, layout, threads and cache: the undisturbed."""
    groups = {}
    for cell in cells:
        entry = best_output(cell, BASELINE)
        if entry is None or entry["share"] is None or cell["operation"] == "call":
            continue
        if not (entry["disturbed"] or cell["limit_disturbed"]):
            key = cell["operation"], cell["dtype"], cell["layout"], cell["threads"], regime(cell, caches)
            groups.setdefault(key, []).append(entry["share"])
    names = "operation", "dtype", "layout", "threads", "regime"
    return [{**dict(zip(names, key)), "cells": len(shares), "least": min(shares), "median": statistics.median(shares),
             "greatest": max(shares)} for key, shares in groups.items()]


def own_bar(cell, caches):
    """What fastbn's time, divided by that of its own plain or float32 call, should not exceed; None: no such aim.

    The activation alone is to cost next to nothing, and a residual what its bytes do. Where memory is the
    limit, half the bytes would at best take half the time.
    """
    if cell["operation"] in FUSED:
        moved = arrays_moved(cell["operation"]) / arrays_moved(plain(cell["operation"]))
        return FUSED_BAR * moved
    return HALF_BAR if cell["dtype"] == "bfloat16" and regime(cell, caches) == "memory" else None


def _own(cells, caches):
    """fastbn's times / those of its own plain or float32 calls, by operation, type, layout, cache: the undisturbed."""
    groups = {}
    for cell in cells:
        key = cell["operation"], cell["dtype"], cell["layout"], regime(cell, caches), own_bar(cell, caches)
        ratios = [own["ratio"] for own in cell["own"] if own["ratio"] is not None and not own["disturbed"]]
        if ratios:
            groups.setdefault(key, []).extend(ratios)
    names = "operation", "dtype", "layout", "regime", "bar"
    return [{**dict(zip(names, key)), "comparisons": len(ratios), "least": min(ratios),
             "median": statistics.median(ratios), "greatest": max(ratios),
             "above": 0 if key[-1] is None else sum(ratio > key[-1] for ratio in ratios)}
            for key, ratios in groups.items()]


def _failed(cells):
    """What could not be measured, each reason once with the number of times."""
    counts = Counter((f["contender"], cell["operation"], f["reason"]) for cell in cells for f in cell["failed"])
    return [{"contender": name, "operation": operation, "reason": reason, "times": times}
            for (name, operation, reason), times in counts.items()]
