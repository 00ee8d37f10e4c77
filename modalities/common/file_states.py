"""Sizes and times of files, of very many by several processes: each asks, and holds nothing but the names it is given.

This file is what those processes run. It imports the standard library alone, so that they start in milliseconds.
"""

import array
import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import BinaryIO

NONE = -1  # the size and the time of a file that is not there
MANY = 100_000  # files, of fewer one process asks faster
MOST = 8  # processes
CODE = "utf-8", "surrogateescape"
WIDTH = 8  # bytes of a number of an answer
NUMBER = "<q"  # how the number of bytes of a message goes before it

States = tuple[list[int], list[int]]  # sizes in bytes, times in ns


def states(names: list[str]) -> States:
    """Of these files; a loop without calls of ours, as there may be a million."""
    sizes, times = [], []
    for name in names:
        try:
            status = os.stat(name)  # noqa: PTH116 - a Path for each takes twice as long
        except (OSError, ValueError):
            sizes.append(NONE)
            times.append(NONE)
        else:
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
    return sizes, times


def states_of_all(chunks: Iterable[list[str]], number: int) -> Iterator[tuple[list[str], States]]:
    """Each chunk of names with the states of its files, in order; `number` of files in all."""
    helpers = min(os.cpu_count() or 1, MOST) if number >= MANY else 1
    if helpers == 1:
        for names in chunks:
            yield names, states(names)
        return
    with _Helpers(helpers) as pool:
        yield from pool(chunks)


class _Helpers:
    """Processes that ask, each one chunk at a time."""

    def __init__(self, number: int):
        command = [sys.executable, "-I", "-S", __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        quiet = {"stderr": subprocess.DEVNULL}  # Ctrl-C is theirs too, and is said by who asks them
        self.processes = [subprocess.Popen(command, **pipes, **quiet) for _ in range(number)]

    def __enter__(self) -> "_Helpers":
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def __call__(self, chunks: Iterable[list[str]]) -> Iterator[tuple[list[str], States]]:
        asked: list[list[str]] = []  # what is under way, the oldest first
        turn, answering = cycle(self.processes), cycle(self.processes)
        for names in chunks:
            if len(asked) == len(self.processes):
                yield asked[0], self._answer(next(answering), asked.pop(0))
            self._ask(next(turn), names)
            asked.append(names)
        for names in asked:
            yield names, self._answer(next(answering), names)

    def _ask(self, process: subprocess.Popen, names: list[str]) -> None:
        message = "\0".join("" if "\0" in name else name for name in names).encode(*CODE)
        with contextlib.suppress(OSError):  # it has died
            process.stdin.write(struct.pack(NUMBER, len(message)) + message)
            process.stdin.flush()

    def _answer(self, process: subprocess.Popen, names: list[str]) -> States:
        found = process.stdout.read(2 * len(names) * WIDTH)
        if len(found) < 2 * len(names) * WIDTH:
            return states(names)
        numbers = array.array("q", found).tolist()
        return numbers[: len(names)], numbers[len(names) :]


def answer(questions: BinaryIO, answers: BinaryIO) -> None:
    """Reads names until there are no more, and writes the sizes and then the times of each message's files."""
    while head := questions.read(struct.calcsize(NUMBER)):
        names = questions.read(*struct.unpack(NUMBER, head)).decode(*CODE).split("\0")
        sizes, times = states(names)
        answers.write(array.array("q", sizes + times).tobytes())
        answers.flush()


if __name__ == "__main__":
    answer(sys.stdin.buffer, sys.stdout.buffer)
