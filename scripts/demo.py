"""Pretrains a tiny encoder on data that the installed packages bring, and scores it beside random inits.

d2v demo [image] [speech] [text] [runs=FOLDER]

All three without a name; about two minutes each on two CPU cores, without network. Folders are runs/demo_<modality>.
"""

import os
import subprocess
import sys
from pathlib import Path

from d2v.config.cli import Terminated, run_cli, take_arguments

MODALITIES = ("image", "speech", "text")


def main(argv: list[str]) -> None:
    """`argv`: names of modalities. ValueError: another name, or a run that ends in an error."""
    given, names = take_arguments(argv, "runs")
    for name in names:
        if name not in MODALITIES:
            raise ValueError(f"no demo of {name!r}; there are those of {', '.join(MODALITIES)}")
    for name in names or MODALITIES:
        run = Path(given["runs"] or "runs") / f"demo_{name}"
        print(f"== {name}", flush=True)
        d2v("pretrain", f"{name}/demo", f"run.dir={run}")
        models = f"model={run / 'export'},{run / 'export' / 'student'}"
        d2v("evaluate", f"{name}/demo", models, f"run.dir={run}", "run.overwrite=true")


def d2v(*arguments: str) -> None:
    """A command in a process of its own, on the CPU. ValueError: it ends in an error."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = subprocess.Popen([sys.executable, "-m", "d2v", *arguments], env=environment)
    try:
        code = command.wait()
    except KeyboardInterrupt as error:  # it heard a Ctrl-C itself, and has its own step to finish
        if isinstance(error, Terminated):
            command.terminate()
        command.wait()
        raise
    if code:
        raise ValueError(f"d2v {' '.join(arguments)} failed, see above")


if __name__ == "__main__":
    run_cli(main)
