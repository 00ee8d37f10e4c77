"""Whether a run may have another number of steps than it began with: where nothing that it did depended on it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2v.config.loading import differences, save_yaml
from d2v.config.schema import AnyRun
from d2v.objectives.common.objective import Objective
from d2v.training.checkpoint import checkpoints_in
from d2v.training.run_folder import CONFIG, EXPORT, LENGTH, PAGE, former
from d2v.training.schedules import cosine_between, rate

Paced = Callable[[int, Any], Any]  # something of step `step` (0 is the first) by a TrainConfig


def changed_length(folder: Path, config: AnyRun) -> list[str]:
    """What of the run's length is other than in the run that a folder holds, one "key: old -> new" each."""
    before = former(folder, config)
    changed = differences(before, config.as_dict(), ("train",)) if before else []
    return [one for one in changed if one.partition(":")[0] in LENGTH]


def bind(folder: Path, config: AnyRun, ends: Sequence[str] = (PAGE,)) -> None:
    """A folder is this run's from now on; `ends`, what it wrote at its end when it was to be shorter, is no longer."""
    if changed_length(folder, config):
        for name in ends:
            (folder / name).unlink(missing_ok=True)
    save_yaml(config.as_dict(), folder / CONFIG)


def check_length(
    folder: Path, config: Any, objective: Objective, *, setting: str, others: dict[str, Paced] | None = None
) -> None:
    """The run in a folder may go on to train.steps, and then is one that had this length from the start.

    `setting` names what a run starts from; `others`: what else may depend on the length. ValueError: it has done more,
    or a step that it has done would have been another.
    """
    checkpoints, changed, train = checkpoints_in(folder / "checkpoints"), changed_length(folder, config), config.train
    if not checkpoints or not changed:
        return
    done = int(checkpoints[-1].name)
    if train.steps < done:
        raise ValueError(
            f"train.steps is {train.steps}, but {folder} holds a run that has done {done} steps; "
            "give at least as many, or another run.dir"
        )
    old = former(folder, config)["train"]
    before = dataclasses.replace(train, **{name: old[name] for name in old if f"train.{name}" in LENGTH})
    paced: dict[str, Paced] = {
        f"the learning rate (train.schedule={train.schedule})": lambda step, train: rate(train, step, train.steps),
        "the weight decay (train.end_weight_decay)": lambda step, train: cosine_between(
            step, train.steps, train.weight_decay, train.end_weight_decay
        ),
        "what the method anneals over a run (its teacher's decay, ...)": lambda step, train: objective.of_length(
            step, train.steps
        ),
    }
    for name, of in {**paced, **(others or {})}.items():
        if any(of(step, before) != of(step, train) for step in range(done)):
            weights = folder if (folder / EXPORT / "config.json").is_file() else checkpoints[-1]
            raise ValueError(
                f"{folder} holds a run of another length ({'; '.join(changed)}), and its {done} steps would have been "
                f"others in one of this length: {name} depends on it. To train its weights further: "
                f"{setting}={weights}, and another run.dir"
            )
