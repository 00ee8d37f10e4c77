"""What Ctrl-C and SIGTERM do while a command of d2v is imported, which takes seconds; importing this sets it.

An exception there would be a trace of some library's. Programs that import d2v, and processes that a command starts,
keep their signals.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType

COMMAND = "d2v"
SCRIPTS = Path(__file__).parent / "scripts"


def is_command() -> bool:
    """Whether this program is `d2v ...`, `python -m d2v ...`, or one of the scripts."""
    if multiprocessing.parent_process() is not None or not sys.argv:
        return False
    if sys.argv[0] == "-m":  # packages above a module that is run are imported before it
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
        return module.partition(".")[0] in (COMMAND, SCRIPTS.name)
    place = Path(sys.argv[0])
    return place.name == COMMAND or place.resolve().parent == SCRIPTS.resolve()


def stop_quietly() -> None:
    """From here on these signals end the process in one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)


def _stopped(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped; nothing had begun\n")
    os._exit(128 + number)


if is_command():
    stop_quietly()
