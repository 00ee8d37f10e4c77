"""The settings of a run as dataclasses, which hold the defaults.

Sections say what they may change: model, data, objective and train the result; run, evaluate and embed never.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from d2v.evaluation.config import EmbedConfig, EvaluateConfig
from d2v.models.trunk_config import TrunkConfig
from d2v.settings import check_fields, section, setting
from d2v.training.online_probe import ProbeConfig
from d2v.training.schedules import SCHEDULES

RESULT_SECTIONS = ("model", "data", "objective", "train")
OPTIMIZERS = ("adamw", "sgd", "lars")
PRECISIONS = ("no", "bf16", "fp16")
SHARDINGS = ("none", "fsdp")
SECTIONS = (*RESULT_SECTIONS, "run", "evaluate", "embed")


@dataclass
class TrainConfig:
    """Optimisation. Batch sizes are global: all processes and micro-batches of one optimizer step together."""

    steps: int = setting(10000, "Optimizer steps.", least=1)
    batch_size: int = setting(64, "Samples of one optimizer step, over all processes and micro-batches.", least=1)
    accumulate: int = setting(1, "Micro-batches per step and process.", least=1)
    seed: int = setting(0, "Of initial weights, data order, masks and augmentations.", least=0, limit=4_000_000_000)
    optimizer: str = setting("adamw", "lars: trust ratio 0.001, matrices only.", among=OPTIMIZERS)
    lr: float = setting(5e-4, "The full learning rate.", above=0, limit=1000)
    schedule: str = setting("cosine", "How the rate falls after the warm-up.", among=tuple(SCHEDULES))
    warmup_steps: int = setting(0, "Steps over which the rate rises to the full one.", least=0)
    floor: float = setting(
        0.0,
        "The last rate, as a share of lr.",
        least=0,
        most=1,
        only={"schedule": ("cosine", "polynomial", "tri_stage")},
    )
    start: float = setting(0.0, "The first rate, as a share of lr.", least=0, most=1, only={"warmup_steps": True})
    hold: float = setting(
        0.9,
        "Of tri_stage: share of the run at the full rate; of what the warm-up leaves, where both would fill the run.",
        least=0,
        below=1,
        only={"schedule": "tri_stage"},
    )
    weight_decay: float = setting(0.01, "Of matrices; it stays, or moves to end_weight_decay.", least=0, limit=1000)
    end_weight_decay: float | None = setting(
        None, "Reached by half a cosine; null: the decay stays.", least=0, limit=1000
    )
    decay_all: bool = setting(False, "Norms and biases decay too, as in fairseq.")
    layer_decay: float = setting(1.0, "The rate of a block is this times that of the block above it.", above=0, most=1)
    layer_decay_frontends: bool = setting(
        True,
        "What comes before the blocks is one below the first (BEiT); false: at the full rate (data2vec 2.0).",
        only={"layer_decay": lambda decay: decay != 1},
    )
    betas: list[float] = setting([0.9, 0.98], "Of adamw.", least=0, below=1, count=2, only={"optimizer": "adamw"})
    eps: float = setting(1e-6, "Of adamw.", least=0, limit=1, only={"optimizer": "adamw"})
    momentum: float = setting(0.9, "Of sgd and lars.", least=0, below=1, only={"optimizer": ("sgd", "lars")})
    clip: float = setting(0.0, "Largest global gradient norm; 0 never clips.", least=0)
    clip_each: bool = setting(False, "clip is of the norm of each tensor by itself (DINO).", only={"clip": True})
    mixed_precision: str = setting("no", "What matrix products compute in.", among=PRECISIONS)
    checkpoint_activations: bool = setting(
        False, "Blocks are computed again in the backward pass: less memory, a third more time."
    )
    sharding: str = setting(
        "none",
        "fsdp: each process holds a share of parameters, gradients and moments, and a block is whole while it "
        "computes; none: each holds all of them.",
        among=SHARDINGS,
    )
    compile: bool = setting(
        False, "Blocks run as code compiled for this machine (torch.compile): minutes at the start, then faster steps."
    )
    max_bad_steps: int = setting(10, "The run stops after so many non-finite steps in a row.", least=1)
    init_from: str = setting(
        "",
        "An export, a run folder, a checkpoint in one, a folder of transformers or a fairseq checkpoint to go on from, "
        "which brings its architecture; optimizer, step and rates start anew.",
        place=True,
    )
    update_teacher: bool = setting(True, "false: a teacher frozen at its random init, the control of an experiment.")

    def __post_init__(self):
        """ValueError: a number that makes no sense, an unknown choice, or settings that contradict one another."""
        if self.mixed_precision == "False":  # YAML reads a bare `no` as false
            self.mixed_precision = "no"
        check_fields(self, "train")
        if self.schedule == "tri_stage" and not 0 < self.floor <= 1:
            raise ValueError(f"train.floor is {self.floor}; tri_stage falls exponentially to a share above 0")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"train.accumulate is {self.accumulate}; it must be at most train.batch_size, {self.batch_size}: "
                "a micro-batch has a sample"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"train.warmup_steps is {self.warmup_steps}; it must lie between 0 and train.steps, {self.steps}: a "
                f"shorter run takes fewer, such as train.warmup_steps={self.steps // 10}"
            )

    def samples(self) -> str:
        """How many samples a step takes, for a person."""
        return f"{self.batch_size} samples"


@dataclass
class RunConfig:
    """Where a run writes and what it shows; nothing here may change the result."""

    dir: str = setting("", "The folder that a run writes to; required.", place=True)
    resume: str = setting(
        "auto",
        "auto: go on if the folder has a checkpoint; changed: also with other data than it began with; "
        "never: such a folder is an error.",
        among=("auto", "changed", "never"),
    )
    overwrite: bool = setting(
        False, "Results that exist already are replaced: a run starts anew, a table or file of features is made again."
    )
    log_every: int = setting(20, "Steps between log lines.", least=1)
    save_every: int = setting(1000, "Steps between checkpoints.", least=1)
    keep: int = setting(2, "Checkpoints that are kept.", least=1)
    save_async: bool = setting(
        False,
        "A checkpoint is copied into memory and written while training goes on.",
        only={"train.sharding": "none"},
    )
    health_every: int = setting(0, "Steps between health checks; 0: ten in a run.", least=0)
    health_samples: int = setting(512, "Samples of a health check.", least=2)
    probe: ProbeConfig = section(ProbeConfig, "k-NN on a labelled set while training.")
    stop_on_collapse: bool = setting(False, "The run stops when its verdict is collapsed.")
    dry: bool = setting(
        False, "The data is read and twenty steps are done, to say what the run would take; nothing is written."
    )
    ddp_timeout: int = setting(
        1800,
        "Seconds that processes wait for one of them before the run ends; what is prepared once must take less.",
        least=1,
    )
    workers: int = setting(0, "Data loading processes.", least=0, limit=256)
    trackers: list[str] = setting([], "Where else the log goes.", among=("tensorboard", "wandb"))

    def __post_init__(self):
        """ValueError: an unknown choice or a number that makes no sense."""
        check_fields(self, "run")

    @property
    def probe_every(self) -> int:
        """Steps between probes; 0: ten times in a run."""
        return self.probe.every


@dataclass
class ModelConfig:
    """One frontend by modality name, and the trunk."""

    frontends: dict[str, Any]
    trunk: TrunkConfig


class AnyRun(Protocol):
    """What the configs of all runs have in common."""

    run: Any

    @property
    def modality(self) -> str:
        """The modalities that it trains, for a person."""
        ...

    def as_dict(self) -> dict:
        """Plain dictionaries, as written to config.yaml."""
        ...


class OneModality:
    """What the configs of pretraining and of fine-tuning, which are dataclasses, have in common."""

    model: ModelConfig
    run: RunConfig
    given: Mapping[str, str] = MappingProxyType({})  # no setting: where settings were given, see d2v/config/given.py
    part = ""  # no setting: of which part of a joint run these are, see d2v/config/joint.py

    @property
    def modality(self) -> str:
        """The one modality that this config trains."""
        return next(iter(self.model.frontends))

    @property
    def frontend(self) -> Any:
        """That modality's FrontendConfig."""
        return self.model.frontends[self.modality]

    def as_dict(self) -> dict:
        """Plain dictionaries, as written to config.yaml."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@dataclass
class Config(OneModality):
    """All settings of a run; `data` and the frontend are the modality's, `objective` is the objective's."""

    model: ModelConfig
    data: Any
    objective: Any
    train: TrainConfig
    run: RunConfig
    evaluate: EvaluateConfig
    embed: EmbedConfig
