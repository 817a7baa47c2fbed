"""A whole run: the cells in their order until the end, the budget or Ctrl-C; then tables, verdict, JSON and charts."""
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import machine, report, store
from bench.cases import has_bfloat16, make_data
from bench.cell import measure_cell
from bench.grid import Wanted, make_groups, make_jobs, share_time
from bench.limit import Limit, LimitError
from bench.peers import BASELINE
from bench.verdict import judge

INTERRUPTED = "Interrupted"
SWEEPS_SHARE = 1 / 3  # of the time, as long as there is also a grid to measure


@dataclass
class Plan:
    folder: Path
    resume: bool
    arguments: str
    wanted: Wanted
    largest: int          # bytes of an array
    seconds: float        # for a cell
    least_rounds: int
    measurements: int     # of a cell that seems lost
    budget: float | None  # seconds from `begin` to the last cell
    begin: float          # perf_counter() at the start of the process
    charts: bool
    tables: bool


def run(plan, contenders, missing):
    """The process's exit status: 0, 1 where fastbn failed, 130 after Ctrl-C."""
    console = report.console_for()
    limit = _find_limit(console)
    described = machine.describe(contenders, limit)
    _print_begin(console, described, missing)
    runs, cells = _earlier(plan, described)
    jobs = _select(console, plan)
    if not jobs:
        raise store.StoreError("no case has these operations, shapes and layouts")
    done = {store.key(cell) for cell in cells}
    missing_jobs = [job for job in jobs if store.key_of_job(job) not in done]
    with store.Store(plan.folder) as kept:
        runs.append({"date": datetime.now().strftime("%Y-%m-%d"), "arguments": plan.arguments, "seconds": plan.seconds,
                     "budget": plan.budget, "machine": described})
        kept.add("run", runs[-1])
        ended_by = _measure(plan, missing_jobs, contenders, limit, kept, cells)
        document = make_document(runs, cells, len(jobs))
        kept.write_document(document)
    _print_end(console, plan, document)
    if ended_by:
        console.print(f"{ended_by}: {len(cells)} of {len(jobs)} cells; --resume --out {plan.folder} goes on.", soft_wrap=True)
    if ended_by == INTERRUPTED:
        return 130
    return int(any(failed["contender"] == BASELINE for cell in cells for failed in cell["failed"]))


def _find_limit(console):
    try:
        return Limit()
    except LimitError as error:
        console.print(f"The machine's limit is left out: {error}", markup=False)
        return None


def _print_begin(console, described, missing):
    report.print_head(console, described)
    for name, reason in missing.items():
        console.print(f"{name} left out: {reason}", markup=False)
    if described["load"] and described["load"][0] > 0.5:
        console.print(f"The load average is {described['load'][0]:.1f}: other work on this machine disturbs the times.")


def _earlier(plan, described):
    """(runs, cells) of the folder that the run goes on with."""
    runs, cells = store.read(plan.folder)
    if cells and not plan.resume:
        raise store.StoreError(f"{plan.folder} has {len(cells)} measured cells: --resume goes on with them, or choose "
                               "another folder with --out")
    if runs and not machine.same(runs[-1]["machine"], described):
        raise store.StoreError(f"{plan.folder} was measured on another machine, or with other versions or peers: times "
                               "of the two do not belong in one table; choose another folder with --out")
    return runs, cells


def _select(console, plan):
    jobs = make_jobs(plan.wanted)
    if not has_bfloat16():
        without = [job for job in jobs if job.case.dtype != "bfloat16"]
        if len(without) < len(jobs):
            console.print(f"{len(jobs) - len(without)} cells left out: bfloat16 needs ml_dtypes", markup=False)
        jobs = without
    kept = [job for job in jobs if job.case.array_bytes <= plan.largest]
    if len(kept) < len(jobs):
        console.print(f"{len(jobs) - len(kept)} of {len(jobs)} cells left out: their arrays are larger than "
                      f"{report.size_text(plan.largest)} (--max-bytes)")
    return kept


def _progress():
    console = Console(stderr=True)
    return Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                    TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal)


def _measure(plan, jobs, contenders, limit, kept, cells):
    """Appends to cells and to what is kept. Returns what ended it before its time, or None."""
    queues = {"grid": (make_groups([job for job in jobs if not job.sweep]), 1 - SWEEPS_SHARE),
              "sweeps": (make_groups([job for job in jobs if job.sweep]), SWEEPS_SHARE)}
    used = dict.fromkeys(queues, 0.0)
    try:
        with _progress() as progress:
            task = progress.add_task("", total=len(jobs))
            for name, group in share_time(queues, used):
                started, data = perf_counter(), _group_data(group)
                for job in group:
                    if plan.budget is not None and perf_counter() - plan.begin > plan.budget:
                        return f"{plan.budget:g} s are over"
                    progress.update(task, description=f"{job.case}, {report.threads_text(job.threads)}")
                    cells.append(measure_cell(job, contenders, limit, data.for_operation(job.case.operation),
                                              plan.seconds, plan.least_rounds, plan.measurements))
                    kept.add("cell", cells[-1])
                    progress.advance(task)
                del data  # before the next group's
                used[name] += perf_counter() - started
    except KeyboardInterrupt:
        return INTERRUPTED
    return None


def _group_data(group):
    """Made once for all jobs of a group, with one output array that every contender writes into."""
    operations = {job.case.operation for job in group}
    data = make_data(group[0].case, operations=operations)
    if operations != {"moments"}:
        data.output = data.empty()
        data.output.fill(0)  # touches its pages
    return data


def make_document(runs, cells, wanted):
    """run.json: everything that tables, charts and the README are made from. wanted: how many cells there should be."""
    described = runs[-1]["machine"]
    parts = {"grid": [cell for cell in cells if not cell["sweep"]], "sweeps": [cell for cell in cells if cell["sweep"]]}
    return {"machine": described, "runs": runs, "complete": len(cells) >= wanted,
            "verdict": {name: judge(part, described["caches"]) for name, part in parts.items()}, "cells": cells}


def _print_end(console, plan, document):
    cells = document["cells"]
    report.print_headline(console, document["verdict"])
    if report.rows_of(cells) <= report.ROWS_ON_TERMINAL or plan.tables:
        report.print_tables(console, cells)
    for name, verdict in document["verdict"].items():
        report.print_verdict(console, name, verdict)
    with open(plan.folder / "tables.txt", "w", encoding="utf-8") as file:
        report.print_head(report.console_for(file), document["machine"])
        report.print_headline(report.console_for(file), document["verdict"])
        report.print_tables(report.console_for(file), cells)
        for name, verdict in document["verdict"].items():
            report.print_verdict(report.console_for(file), name, verdict)
    drawn = _draw(console, plan, document) if plan.charts else []
    console.print(f"{plan.folder}: run.json, tables.txt" + "".join(f", {path.name}" for path in drawn), soft_wrap=True)


def _draw(console, plan, document):
    try:
        from bench import charts
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        console.print("No charts: matplotlib is not installed; in a checkout: pip install -e '.[bench]'", markup=False)
        return []
    return charts.draw(plan.folder, document["cells"], document["machine"])
