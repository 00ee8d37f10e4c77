"""How a run starts: its processes and a new objective."""

import dataclasses

import datasets
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers.utils.logging import disable_progress_bar

from d2v import plugins
from d2v.config.schema import Config, RunConfig, TrainConfig
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective
from d2v.training.memory import keep_freed_memory


def open_accelerator(train: TrainConfig, run: RunConfig, *, unused: bool) -> Accelerator:
    """The processes of a run, whose loop shows the only bar. `unused`: some parameters have no gradient in some steps."""
    datasets.disable_progress_bars()
    disable_progress_bar()
    accelerator = Accelerator(
        mixed_precision=train.mixed_precision,
        log_with=run.trackers or None,
        project_dir=run.dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def build_objective(config: Config, num_samples: int) -> Objective:
    """A new objective with its encoder; one that remembers each sample has room for `num_samples`, if its settings name no number.

    ValueError: settings that contradict one another.
    """
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    checkpoint_activations(encoder, config.train.checkpoint_activations)
    settings = config.objective
    if getattr(settings, "num_samples", None) == 0:
        settings = dataclasses.replace(settings, num_samples=num_samples)
    return plugins.load("d2v.objectives", settings.name).build(encoder, settings)


def checkpoint_activations(encoder: D2vModel, wanted: bool) -> None:
    """Blocks are recomputed in the backward pass, if `wanted`. ValueError: the trunk has none."""
    if wanted and not len(encoder.trunk.blocks):
        raise ValueError(
            "train.checkpoint_activations=true recomputes the trunk's blocks, and this one has none (model.trunk.depth=0): set it to false"
        )
    encoder.trunk.gradient_checkpointing = wanted
