"""What benchmarks share: options of the command line, and sides that take turns, because machines drift."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


def parse_options(arguments: list[str], defaults: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """Arguments without "=", and the options that they and `defaults` give. SystemExit: an unknown option."""
    words, options = [], dict(defaults)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            words.append(argument)
        elif name in defaults:
            options[name] = int(value)
        else:
            allowed = ", ".join(f"{key}={default}" for key, default in defaults.items())
            raise SystemExit(f"{argument} is no option; there are {allowed}")
    return words, options


class Seconds(NamedTuple):
    """Medians of the time on the clock, and of the processor's, which tells more on a busy machine."""

    wall: float
    cpu: float


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 0) -> dict[str, Seconds]:
    """Seconds of each of some functions, called one after the other for so many rounds after the first `warm_up`."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name, run in runs.items():
            began, busy = time.perf_counter(), time.process_time()
            run()
            if number >= warm_up:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - busy)
    return {name: Seconds(statistics.median(wall[name]), statistics.median(cpu[name])) for name in runs}


class Worker(NamedTuple):
    """A process: `target(pipe, *arguments)` answers each "step" with what it measured, and "end" with its last word."""

    target: Callable[..., None]
    arguments: tuple


class Measured(NamedTuple):
    """What a worker answered."""

    steps: list[Any]
    end: Any


def processes_in_turn(workers: dict[Any, Worker], steps: int, warm_up: int) -> dict[Any, Measured]:
    """Each worker in a process of its own, which take `steps` in turn after `warm_up` that are not counted."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Any, Connection] = {}
    processes = []
    for name, worker in workers.items():
        pipes[name], far_end = context.Pipe()
        process = context.Process(target=worker.target, args=(far_end, *worker.arguments), daemon=True)
        process.start()
        processes.append(process)
        far_end.close()  # this process's copy of it: else a worker that died would be waited for
    answers: dict[Any, list] = {name: [] for name in workers}
    for _ in range(warm_up + steps):
        for name, pipe in pipes.items():
            pipe.send("step")
            answers[name].append(pipe.recv())
    measured = {}
    for name, pipe in pipes.items():
        pipe.send("end")
        measured[name] = Measured(answers[name][warm_up:], pipe.recv())
    for process in processes:
        process.join()
    return measured
