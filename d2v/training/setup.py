"""How a run starts: its processes, its trackers and a new objective."""

import dataclasses
from pathlib import Path

import datasets
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers.utils.logging import disable_progress_bar

from d2v import plugins
from d2v.config.schema import Config, OneModality, RunConfig, TrainConfig
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
    accelerator = Accelerator(
        mixed_precision=train.mixed_precision,
        log_with=run.trackers or None,
        project_dir=run.dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # here alone a run chooses it
    return accelerator


def open_trackers(accelerator: Accelerator, config: OneModality) -> None:
    """Starts those of run.trackers; the files that they make are recorded as the run's."""
    if not config.run.trackers:
        return
    folder, settings = Path(config.run.dir), {key: str(value) for key, value in config.as_dict().items()}
    before = files_in(folder)
    accelerator.init_trackers("d2v", config=settings)
    record_trackers(folder, before)


def build_objective(config: Config, num_samples: int) -> Objective:
    """A new objective with its encoder.

    One that remembers each sample has room for `num_samples`, if its settings name no number. ValueError: settings
    that contradict one another.
    """
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    checkpoint_activations(encoder, config.train.checkpoint_activations)
    settings = config.objective
    remembered = vars(settings).get("num_samples")
    if remembered == 0:
        settings = dataclasses.replace(settings, num_samples=num_samples)
    elif remembered is not None and remembered < num_samples:
        raise ValueError(
            f"objective.num_samples is {remembered}, but the data has {num_samples} usable samples, each of which is "
            "remembered: 0 takes as many"
        )
    return plugins.load("d2v.objectives", settings.name).build(encoder, settings)


def checkpoint_activations(encoder: D2vModel, wanted: bool) -> None:
    """Blocks are recomputed in the backward pass, if `wanted`. ValueError: the trunk has none."""
    if wanted and not len(encoder.trunk.blocks):
        raise ValueError(
            "train.checkpoint_activations=true recomputes the trunk's blocks, and this one has none "
            "(model.trunk.depth=0): set it to false"
        )
    encoder.trunk.gradient_checkpointing = wanted
