"""How a run starts: its processes, its trackers and a new objective."""

import dataclasses
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from transformers.utils.logging import disable_progress_bar

from d2v import plugins
from d2v.config.schema import AnyRun, Config, RunConfig, TrainConfig
from d2v.files import files_in
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective
from d2v.training.memory import keep_freed_memory
from d2v.training.run_folder import record_trackers


def open_accelerator(train: TrainConfig, run: RunConfig, *, unused: bool) -> Accelerator:
    """The processes of a run, whose loop shows the only bar. `unused`: some steps give some parameters no gradient."""
    datasets.disable_progress_bars()
    disable_progress_bar()
    _check_launch()
    several_on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()
    patience = timedelta(seconds=run.ddp_timeout)
    accelerator = Accelerator(
        cpu=several_on_cpu,
        mixed_precision=train.mixed_precision,
        log_with=run.trackers or None,  # type: ignore[arg-type]
        project_dir=run.dir,
        kwargs_handlers=[data_parallel(unused=unused), InitProcessGroupKwargs(timeout=patience)],
    )
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {asked}, but {accelerator.num_processes} of them train together; start as many as "
            "there are devices, by accelerate launch or torchrun"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # here alone a run chooses it
    return accelerator


def _check_launch() -> None:
    """ValueError: accelerate launch was asked for several processes on the CPU, of which it starts one, silently."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if on_cpu and by_accelerate and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "accelerate launch --cpu was asked for several processes and has started one, as it does without mpirun; "
            "give --num_processes 1, or: torchrun --nproc_per_node 2 -m d2v pretrain CONFIG ..."
        )


@contextmanager
def dry_folder(run: RunConfig, accelerator: Accelerator) -> Iterator[None]:
    """Within it a run with run.dry writes to a folder that then goes."""
    if not run.dry:
        yield
        return
    wanted, places = run.dir, [tempfile.mkdtemp() if accelerator.is_main_process else None]
    broadcast_object_list(places)
    run.dir = str(places[0])
    try:
        yield
    finally:
        run.dir = wanted
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(str(places[0]), ignore_errors=True)


def data_parallel(*, unused: bool) -> DistributedDataParallelKwargs:
    """How processes share a model; `unused`: some steps give some parameters no gradient.

    Buffers are not sent around: what a method remembers changes equally everywhere, from gathered rows.
    """
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # torch 2.11 has no other
    return DistributedDataParallelKwargs(find_unused_parameters=unused, broadcast_buffers=False)


def open_trackers(accelerator: Accelerator, config: AnyRun) -> None:
    """Starts those of run.trackers; the files that they make are recorded as the run's."""
    if not config.run.trackers:
        return
    folder, settings = Path(config.run.dir), {key: str(value) for key, value in config.as_dict().items()}
    before = files_in(folder)
    accelerator.init_trackers("d2v", config=settings)
    if "tensorboard" in config.run.trackers:
        accelerator.print(f"TensorBoard: tensorboard --logdir {folder}")
    record_trackers(folder, before)


def build_objective(config: Config, num_samples: int, samples: Any = None, family: str = "d2v.objectives") -> Objective:
    """A new objective, of a family of plug-ins, with its encoder, which takes of `samples`, if they are given, what its
    settings ask for.

    One that remembers each sample has room for `num_samples`, if its settings name no number. ValueError: settings
    that contradict one another.
    """
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    checkpoint_activations(encoder, config.train.checkpoint_activations)
    if samples is not None:
        encoder.begin_with(config.modality, samples)
    settings = config.objective
    remembered = vars(settings).get("num_samples")
    if remembered == 0:
        settings = dataclasses.replace(settings, num_samples=num_samples)
    elif remembered is not None and remembered < num_samples:
        raise ValueError(
            f"objective.num_samples is {remembered}, but the data has {num_samples} usable samples, each of which is "
            "remembered: 0 takes as many"
        )
    objective = plugins.load(family, settings.name).build(encoder, settings)
    if not isinstance(objective, Objective) or "encoder" not in objective.student:
        raise ValueError(
            f"build of {settings.name} returned a {type(objective).__name__}; it must be an Objective "
            "(d2v/objectives/common/objective.py) that was given its encoder: super().__init__(encoder=encoder)"
        )
    objective.seed = config.train.seed
    return objective


def checkpoint_activations(encoder: D2vModel, wanted: bool) -> None:
    """Blocks are recomputed in the backward pass, if `wanted`. ValueError: the trunk has none."""
    if wanted and not len(encoder.trunk.blocks):
        raise ValueError(
            "train.checkpoint_activations=true recomputes the trunk's blocks, and this one has none "
            "(model.trunk.depth=0): set it to false"
        )
    encoder.trunk.gradient_checkpointing = wanted
