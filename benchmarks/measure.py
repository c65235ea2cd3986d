"""How every benchmark measures.

Contestants take turns, so that whatever else the machine does falls on all of them alike, and each
run has a process of its own, so that its CPU time and its memory are its own. What a machine does
once, to fill its page cache say, is left to a warm-up round that does not count.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import resource
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bintally.errors import UsageError, WorkError
from bintally.terminal.progress import Progress, say

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = [
    "Contestant",
    "Measurement",
    "Result",
    "Role",
    "Spread",
    "cpu_seconds",
    "family_memory_mib",
    "forget_peak",
    "peak_memory_mib",
    "take_turns",
    "workers_memory_mib",
]

Role = Literal["ours", "peer", "limit"]
Measurement = Mapping[str, float]
"""What a run measured, by the metric's key."""

TIMEOUT_S = 300.0
FIRST_RUN_S = 20.0
"""What a contestant is thought to take before it was seen."""
TEARDOWN_S = 30.0


@dataclass(frozen=True)
class Contestant:
    """What is measured beside others."""

    name: str
    run: Callable[[], Measurement]
    """Measures once. Picklable, for it is called in a new process."""
    settings: Mapping[str, str | int | bool]
    """How it was set up, for the reader of the results."""
    role: Role = "peer"


@dataclass(frozen=True)
class Spread:
    """A metric over the rounds."""

    median: float
    minimum: float
    maximum: float


@dataclass
class Result:
    """What a contestant's counted rounds measured, or why there is nothing."""

    contestant: Contestant
    rounds: list[Measurement] = field(default_factory=list)
    error: str | None = None

    def spread(self, key: str) -> Spread | None:
        """The metric's median and range; None where it was not measured, or a run failed."""
        if self.error is not None or not self.rounds or key not in self.rounds[0]:
            return None
        values = [measured[key] for measured in self.rounds]
        return Spread(statistics.median(values), min(values), max(values))


def take_turns(
    contestants: Sequence[Contestant],
    num_rounds: int,
    *,
    task: str,
    num_warmups: int = 1,
    timeout_s: float = TIMEOUT_S,
    seconds: float = math.inf,
) -> list[Result]:
    """Runs A B C A B C …; the first `num_warmups` rounds do not count.

    A contestant that fails once is not run again, and its result is an error instead of numbers.
    Where there are only so many `seconds`, a run that would not end in time is not begun, and a
    contestant for which there was no time at all has no rounds.
    """
    results = [Result(contestant) for contestant in contestants]
    num_all_rounds = num_warmups + num_rounds
    end = time.monotonic() + seconds
    longest: dict[str, float] = {}
    with Progress(task, num_all_rounds * len(results), "runs") as progress:
        for number in range(num_all_rounds):
            for result in results:
                name, began = result.contestant.name, time.monotonic()
                if result.error is None and began + longest.get(name, FIRST_RUN_S) < end:
                    measured = _run_alone(result.contestant.run, min(timeout_s, end - began))
                    longest[name] = max(longest.get(name, 0), time.monotonic() - began)
                    if isinstance(measured, _Failure):
                        result.error, result.rounds = measured.reason, []
                        say(f"{result.contestant.name}: {measured.reason}")
                    elif number >= num_warmups:
                        result.rounds.append(measured)
                progress.update()
    return results


@dataclass(frozen=True)
class _Failure:
    reason: str


def _run_alone(run: Callable[[], Measurement], timeout_s: float) -> Measurement | _Failure:
    """Calls `run` in a process of its own."""
    # Not fork: a child would begin with all that this process has in memory.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, run))
    process.start()
    sender.close()
    try:
        # Not the pipe alone: a worker that outlives a killed process holds its end open.
        ready = multiprocessing.connection.wait([receiver, process.sentinel], timeout_s)
        if not ready:
            return _Failure(f"no result after {timeout_s:g} s")
        try:
            answer = receiver.recv() if receiver.poll() else None
        except EOFError:
            answer = None
        # The next contestant should not share the machine with what this one still tidies away.
        process.join(TEARDOWN_S)
        if answer is None:
            return _Failure(f"its process ended with exit code {process.exitcode}")
        measured: Measurement | _Failure = answer
        return measured
    finally:
        process.kill()
        process.join()
        receiver.close()


def _answer(sender: Connection, run: Callable[[], Measurement]) -> None:
    # The benchmark reports an interruption; a traceback from here would only bury it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A spawned process would spawn its own workers; those of a loader start as they do elsewhere.
    multiprocessing.set_start_method(None, force=True)
    answer: Measurement | _Failure
    try:
        answer = dict(run())
    except (UsageError, WorkError) as error:
        answer = _Failure(str(error))
    except Exception as error:
        # Another library's failure: the table has room for a line, whoever looks into it needs all.
        traceback.print_exc()
        first_line = next(iter(str(error).strip().splitlines()), "")
        answer = _Failure(f"{type(error).__name__}: {first_line}")
    sender.send(answer)
    sender.close()


def cpu_seconds() -> float:
    """User and system time of this process so far, and of the children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_mib() -> float:
    """Peak resident memory of this process; what its workers have comes on top."""
    # Not ru_maxrss: Linux counts there what the process had that a spawned one was started from.
    peak_kib = _kib("/proc/self/status", "VmHWM")
    if peak_kib is None:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return peak_kib / 1024


def forget_peak() -> None:
    """Has `peak_memory_mib` begin anew with what this process has now; Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def workers_memory_mib() -> float:
    """Memory that this process's living workers have to themselves now.

    Pages that they share with it, as after a fork, are its own. 0 where the system does not tell.
    """
    private = [
        _kib(f"/proc/{worker.pid}/smaps_rollup", "Private_Clean", "Private_Dirty")
        for worker in multiprocessing.active_children()
    ]
    return sum(kib or 0 for kib in private) / 1024


def family_memory_mib(pid: int) -> float:
    """Memory of a process and all of its descendants now (Linux): the sum of their proportional
    set sizes, in which what several processes share counts once."""
    return sum(map(process_memory_mib, _family(pid)))


def _family(pid: int) -> Iterator[int]:
    """A process and all of its descendants."""
    yield pid
    # A process that ends meanwhile takes its files with it.
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def process_memory_mib(pid: int) -> float:
    """A process's proportional set size now (Linux); 0 where it is gone."""
    return (_kib(f"/proc/{pid}/smaps_rollup", "Pss") or 0) / 1024


def _kib(path: str, *names: str) -> int | None:
    """The sum of fields of a file of /proc, None where they are not to be had."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return sum(int(fields[name][0]) for name in names) if fields.keys() >= {*names} else None
