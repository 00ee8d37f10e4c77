"""Seconds of a real training step of several configs, data included, taken in turn because machines drift.

    python benchmarks/config_steps.py CONFIG CONFIG ... [steps=20] [threads=1] [key=value ...]

key=value holds for every config, e.g. data.path=photos/. Columns: median wall and CPU seconds of a step, samples and
masked rows a second, minutes of all train.steps.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from turns import parse_options

from d2v import plugins
from d2v.config.loading import load_config
from d2v.config.schema import Config
from d2v.training.loop import Loop
from d2v.training.setup import build_objective

WARM_UP = 3


class Steps:
    """The loop's own steps of one config, without what it logs and saves."""

    def __init__(self, config: Config):
        """`config`: with a run.dir that is not there."""
        self.config = config
        folder, modality = Path(config.run.dir), plugins.load("d2v.modalities", config.modality)
        folder.mkdir(parents=True)
        modality.prepare(config.data, config.frontend, folder, config.train.seed)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
        torch.manual_seed(config.train.seed)
        objective = build_objective(config, len(samples)).train()
        batches = modality.batches(
            samples, config.data, config.frontend, config.train.batch_size, config.train.seed, print
        )
        self.take(Loop(objective, batches, train=config.train, run=config.run, accelerator=Accelerator(cpu=True)))

    def take(self, loop: Loop) -> None:
        """The loop whose steps these are, from its first."""
        self.loop, self.batches = loop, loop._batches()
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.loop._step(self.batches)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    mine = [a for a in arguments if "=" not in a or a.startswith(("steps=", "threads="))]
    overrides = [a for a in arguments if a not in mine]
    paths, options = parse_options(mine, {"steps": 20, "threads": 1})
    if not paths:
        raise SystemExit(__doc__)
    torch.set_num_threads(options["threads"])
    with tempfile.TemporaryDirectory() as folder:
        all_steps = []
        for number, path in enumerate(paths):
            all_steps.append(Steps(load_config(path, [*overrides, f"run.dir={folder}/{number}"])))
        for _ in range(WARM_UP + options["steps"]):
            for steps in all_steps:
                steps()
    print(f"torch {torch.__version__}, {options['threads']} threads, load {os.getloadavg()[0]:.1f}")
    print("| config | s | CPU s | samples/s | rows/s | steps | minutes |\n" + "|---" * 7 + "|")
    for path, steps in zip(paths, all_steps, strict=True):
        wall, cpu = (statistics.median(times[WARM_UP:]) for times in (steps.wall, steps.cpu))
        train, masks = steps.config.train, steps.config.data.masks
        size = train.batch_size
        print(
            f"| {path} | {wall:.3f} | {cpu:.3f} | {size / wall:.1f} | {size * masks / wall:.0f} | {train.steps} "
            f"| {wall * train.steps / 60:.1f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
