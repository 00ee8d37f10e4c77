"""python -m fuzz [settings=4000] [files=3000] [first=0] [workers=2] [seconds=120]: attacks the scripts, and counts.

Cases are numbered from `first`; each follows from its number alone, so that one is tried again by first=NUMBER and a
count of 1. Processes do them; one that takes longer than `seconds`, or dies, is counted and replaced. Exit code 1: a
case ended in anything but a run or one line.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz import files, journeys, settings

KINDS = {"settings": settings.case, "files": files.case}
GOOD = ("ran", "refused")
MEMORY = 16 << 30  # bytes of address space of a worker: what asks for more gets an error, not the machine


def work(connection: Connection, template: journeys.Template) -> None:
    """Does cases that come by a connection, and answers what was done and how it ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    journeys.cut_runs_short()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        while (task := connection.recv()) is not None:
            kind, number = task
            said, outcome = KINDS[kind](template, number, journeys.emptied(Path(scratch) / "case"))
            connection.send((said, tuple(outcome)))


def build(folder: str) -> None:
    """The template, in a process of its own: this one imports what it needs only once."""
    journeys.cut_runs_short()
    journeys.build(Path(folder))


class Worker:
    """One process, its connection, and the case that it does."""

    def __init__(self, template: journeys.Template):
        self.template = template
        self.start()

    def start(self) -> None:
        """A new process."""
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=work, args=(theirs, self.template))
        self.process.start()
        theirs.close()
        self.task: Any = None

    def give(self, task: Any) -> None:
        """The next case."""
        self.task, self.since = task, time.monotonic()
        self.connection.send(task)

    def ended(self, seconds: float) -> tuple[str, tuple[str, str]] | None:
        """How the case ended, if it has; a process that hangs or has died is replaced."""
        if self.connection.poll():
            try:
                return self.connection.recv()
            except EOFError:
                self.process.join()
                fault = ("killed", f"exit code {self.process.exitcode}")
        elif time.monotonic() - self.since > seconds:
            self.process.kill()
            self.process.join()
            fault = ("a hang", f"longer than {seconds} seconds")
        else:
            return None
        self.start()
        return "unknown", fault


def main(argv: list[str]) -> int:
    """`argv`: key=number. Prints every fault and the counts."""
    given = {"settings": 4000, "files": 3000, "first": 0, "workers": 2, "seconds": 120}
    for argument in argv:
        key, _, value = argument.partition("=")
        if key not in given or not value.isdecimal():
            raise SystemExit(f"{argument!r} is none of {', '.join(given)}, with a number")
        given[key] = int(value)
    tasks = [(kind, given["first"] + number) for kind in KINDS for number in range(given[kind])]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_start_method("fork")
        maker = multiprocessing.Process(target=build, args=(folder,))
        maker.start()
        maker.join()
        if maker.exitcode:
            return 1
        counts = attack(
            tasks, [Worker(journeys.Template(Path(folder))) for _ in range(given["workers"])], given["seconds"]
        )
    for (family, kind), count in sorted(counts.items()):
        print(f"{family}: {kind}: {count}")
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(kind not in GOOD for _, kind in counts))


def attack(tasks: list[tuple[str, int]], workers: list[Worker], seconds: float) -> Counter[tuple[str, str]]:
    """Has the workers do all cases, prints the faults; counts by family and end."""
    counts: Counter[tuple[str, str]] = Counter()
    waiting = tasks[::-1]
    while waiting or any(worker.task for worker in workers):
        wait([worker.connection for worker in workers if worker.task], timeout=1)
        for worker in workers:
            end = worker.ended(seconds) if worker.task else None
            if end is not None:
                (family, number), (said, (kind, text)) = worker.task, end
                worker.task = None
                counts[family, kind] += 1
                if kind not in GOOD:
                    print(f"{family} {number}: {kind}: {said}\n{text}\n", flush=True)
            if worker.task is None and waiting:
                worker.give(waiting.pop())
    for worker in workers:
        worker.connection.send(None)
    return counts


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
