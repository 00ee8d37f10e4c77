"""Seconds of a joint run's step beside those of its parts' own runs, taken in turn because machines drift.

    python benchmarks/joint_parts.py [CONFIG] [steps=20] [threads=1] [key=value ...]

CONFIG: joint/demo if it is not given. Data included. The last line is the joint step over the sum of the others.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import replace

import torch
from accelerate import Accelerator
from config_steps import WARM_UP, Steps
from turns import parse_options

from d2v.config.joint import JointConfig, load_joint
from d2v.training import joint_run


class JointSteps(Steps):
    """Those of a joint run."""

    def __init__(self, config: JointConfig):
        loop, _ = joint_run.assemble(config, Accelerator(cpu=True))
        loop.objective.train()
        self.take(loop)


def compare(name: str, overrides: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of a step: of the joint run, and of each part's own, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_joint(name, [*overrides, f"run.dir={folder}/joint"])
        sides: dict[str, Steps] = {}
        for part in config.data:
            alone = config.of(part)
            alone.run = replace(alone.run, dir=f"{folder}/{part}")
            sides[part] = Steps(alone)
        sides["joint"] = JointSteps(config)
        for _ in range(WARM_UP + rounds):
            for side in sides.values():
                side()
    return {
        name: (statistics.median(side.wall[WARM_UP:]), statistics.median(side.cpu[WARM_UP:]))
        for name, side in sides.items()
    }


def main(arguments: list[str]) -> None:
    """Prints the table."""
    mine = [a for a in arguments if "=" not in a or a.startswith(("steps=", "threads="))]
    names, options = parse_options(mine, {"steps": 20, "threads": 1})
    torch.set_num_threads(options["threads"])
    found = compare(*(names or ["joint/demo"]), [a for a in arguments if a not in mine], options["steps"])
    print(f"torch {torch.__version__}, {options['threads']} threads, load {os.getloadavg()[0]:.1f}")
    print("| step of | s | CPU s |\n|---|---|---|")
    for name, (wall, cpu) in found.items():
        print(f"| {name} | {wall:.3f} | {cpu:.3f} |")
    joint = found.pop("joint")
    walls, cpus = zip(*found.values(), strict=True)
    print(f"joint over the sum: {joint[0] / sum(walls):.3f}, of CPU {joint[1] / sum(cpus):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
