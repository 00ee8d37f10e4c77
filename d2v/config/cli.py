"""What every script does with its command line."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import torch

from d2v.config.written import in_home
from d2v.files import why_not_written
from d2v.shown import printable


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler or `kill` sends it."""


def take_arguments(arguments: list[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """The values of `name=value` for `names`, paths that are no settings ("" if not given), and the other arguments."""
    taken, others = {name: "" for name in names}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in names:
            taken[name] = in_home(value)
        else:
            others.append(argument)
    return taken, others


def run_cli(main: Callable[[list[str]], object]) -> None:
    """Runs a script's `main` on the command line; --help shows the script's docstring.

    A ValueError becomes one line on stderr and exit code 2, and so do memory and disks that are full; Ctrl-C one and
    130, SIGTERM one and 143. A second one of these ends the program at once, but for a run that saves: see
    d2v/training/stopping.py.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt as error:
        print("stopped; what was written before is whole", file=sys.stderr)
        raise SystemExit(143 if isinstance(error, Terminated) else 130) from None
    except SystemExit:  # of a run that a signal stopped, which launchers may pass on more than once
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    except BrokenPipeError:  # what read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        _stop(str(error))
    except Exception as error:
        line = why_not_written(error) or _why_no_memory(error)
        if line is None:
            raise
        _stop(line)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Data loading processes, which inherit it, end as they would without it."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _why_no_memory(error: Exception) -> str | None:
    """What to do where memory, a GPU's or the machine's, did not suffice; None for other errors."""
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not is_memory:
        return None
    said = str(error).partition("DefaultCPUAllocator: ")[2] or str(error) or "an array was too large"
    return (
        f"not enough memory: {said.splitlines()[0].rstrip('.')}. A smaller train.batch_size (evaluate.batch_size, "
        "embed.batch_size), a larger train.accumulate, train.checkpoint_activations=true or "
        "train.mixed_precision=bf16 take less"
    )


def _stop(line: str) -> NoReturn:
    print(f"error: {printable(line)}", file=sys.stderr)
    raise SystemExit(2) from None
