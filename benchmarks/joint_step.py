"""Time and memory of one training step of MoCo v2 and DINO, against the same step built from lightly's parts.

    python benchmarks/joint_step.py [moco dino] [backbones=resnet18,resnet50,vit_small] [threads=2] [steps=8]
                                    [batch=4] [size=112] [tuned=0]

Backbones are timm's, the same on both sides. One step: student forward and backward, teacher forward, optimizer, EMA;
float32; random views are made beforehand: two of `size` pixels, and for DINO eight of 3/7 of that. Published heads,
queue and prototypes (65536 each). Ours also measures the gradient norm and what it would log, as in a run, and keeps
freed memory (d2v/training/memory.py); lightly's clips where ours does (DINO) and measures nothing. tuned=1 adds
lightly's parts with views joined and a fused optimizer, which its examples do not do (see benchmarks/joint_peer.py).
Processes, turns and memory are those of benchmarks/step_time.py, whose first columns these are; ratios are to lightly,
and the last column is the arithmetic of products and convolutions, by which the work can be seen to be the same.

First both sides are built in small with the same weights: they must have as many parameters, and the same loss of the
same views.
"""

import gc
import math
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from joint_work import DINO_TEMPERATURE, MOCO_TEMPERATURE, MOMENTUM, RECIPES, JointWork, make_views
from step_time import COLUMNS, WARM_UP, Task, measure, optimizer_step, row
from torch import Tensor

SHORT_NAMES = {"vit_small": "vit_small_patch16_224"}  # of backbones; others are timm's own
OPTIONS = {"threads": 2, "steps": 8, "batch": JointWork.batch, "size": JointWork.size, "tuned": 0}


class OurStep:
    """One optimizer step, as d2v/training/loop.py takes it."""

    def __init__(self, work: JointWork):
        from d2v import plugins  # only the process that measures ours pays for the imports
        from d2v.config.schema import TrainConfig
        from d2v.models.configuration import D2vConfig
        from d2v.models.encoder import D2vModel
        from d2v.training.memory import keep_freed_memory
        from d2v.training.optim import make_optimizer

        keep_freed_memory()  # as d2v/training/setup.py does
        frontend = {"image_size": work.size, "backbone": work.backbone}
        encoder = D2vModel(D2vConfig({"image": frontend}, {"depth": 0, "dim": work.num_features, "input_norm": False}))
        method = plugins.load("d2v.objectives", work.method)
        if work.method == "moco":
            config = method.Config(queue_size=work.queue, temperature=MOCO_TEMPERATURE)
        else:
            config = method.Config(
                num_prototypes=work.prototypes, start_temperature=DINO_TEMPERATURE, teacher_temperature=DINO_TEMPERATURE
            )
        self.objective, self.recipe = method.build(encoder, config).train(), RECIPES[work.method]
        settings = {"optimizer": self.recipe.optimizer, "lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay}
        settings |= {"momentum": MOMENTUM} if self.recipe.optimizer == "sgd" else {"betas": [0.9, 0.999], "eps": 1e-8}
        self.optimizer = make_optimizer(self.objective, TrainConfig(**settings))

    def __call__(self, views: list[Tensor]) -> float:
        """Everything but the teacher's update; the loss of a sample."""
        from d2v.types import View

        return optimizer_step(
            self.objective, self.optimizer, [View("image", {"pixel_values": view}) for view in views], self.recipe.clip
        )

    def update_teacher(self) -> None:
        self.objective.update_teacher(self.recipe.ema_decay)


def make_task(name: str, work: JointWork) -> tuple[Any, list[Tensor]]:
    """Step and views of the implementation by its name in the table."""
    torch.manual_seed(0)
    if name == "d2v":
        return OurStep(work), make_views(work)
    from joint_peer import PeerStep

    return PeerStep(work, tuned=name.endswith("tuned")), make_views(work)


def small(work: JointWork) -> JointWork:
    """A method and backbone on little data."""
    return replace(work, batch=4, size=32, queue=64, prototypes=64)


def check(work: JointWork) -> float:
    """How far the first losses are apart at the same weights and views.

    Compared with the tuned side: where each view of DINO has statistics of batch norm of its own, the loss is another.
    AssertionError: losses differ, or parameters, or a loss is not finite.
    """
    (ours, views), (theirs, _) = (make_task(name, small(work)) for name in ("d2v", "lightly, tuned"))
    with torch.no_grad():
        for own, peer in (
            (ours.objective.student, theirs.model.student),
            (ours.objective.teacher, theirs.model.teacher),
        ):
            for mine, other in zip(own.parameters(), peer.parameters(), strict=True):
                other.copy_(mine)
                assert mine.shape == other.shape, (mine.shape, other.shape)
        if work.method == "moco":
            theirs.model.criterion.memory_bank.bank.copy_(ours.objective.queue.rows)
    first = [step(views) for step in (ours, theirs)]
    for step in (ours, theirs):
        step.update_teacher()
    losses = first + [step(views) for step in (ours, theirs)]
    assert all(map(math.isfinite, losses)), losses
    assert abs(first[0] - first[1]) < 1e-3, first
    return abs(first[0] - first[1])


def parse(arguments: list[str]) -> tuple[list[JointWork], dict[str, int]]:
    """What is measured, in the table's order, and the options. SystemExit: an unknown one."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    methods = [a for a in arguments if "=" not in a] or list(RECIPES)
    backbones = given.pop("backbones", "resnet18,resnet50,vit_small").split(",")
    unknown = [*(set(given) - set(OPTIONS)), *(set(methods) - set(RECIPES))]
    if unknown:
        raise SystemExit(
            f"{', '.join(unknown)} is not known; methods are {', '.join(RECIPES)}, "
            f"options backbones, {', '.join(OPTIONS)}"
        )
    options = OPTIONS | {key: int(value) for key, value in given.items()}
    sizes = {"batch": options["batch"], "size": options["size"]}
    works = []
    for method in methods:
        works += [JointWork(method, SHORT_NAMES.get(name, name), **sizes) for name in backbones]
    return works, options


def main(arguments: list[str]) -> None:
    """Prints the table."""
    works, options = parse(arguments)
    os.environ["KINETO_LOG_LEVEL"] = "5"  # the profiler of the workers talks about GPUs
    difference = max(map(check, works))
    gc.collect()
    print(
        f"torch {torch.__version__}, {options['threads']} threads, load {os.getloadavg()[0]:.1f}, "
        f"{options['steps']} steps after {WARM_UP}"
    )
    print(
        f"batches of {options['batch']}, views of {works[0].size} and {works[0].local_size} pixels; "
        f"first losses at most {difference:.1e} apart\n"
    )
    print(f"{COLUMNS} GFLOP |\n" + "|---" * 11 + "|")
    names = ["d2v", "lightly", *(["lightly, tuned"] if options["tuned"] else [])]
    for work in works:
        results = measure(names, Task(make_task, work, small(work)), options["threads"], options["steps"])
        for name in names:
            columns = row(f"{work.method} {work.backbone}", name, results[name], results["lightly"])
            print(f"{columns} {results[name]['gflop']:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
