"""The settings of a run as dataclasses, which hold the defaults.

Sections say what they may change: model, data, objective and train may change the result; run, evaluate and embed may not.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from d2v.evaluation.embedding import EmbedConfig
from d2v.evaluation.scoring import EvaluateConfig
from d2v.models.transformer import TrunkConfig
from d2v.training.online_probe import ProbeConfig
from d2v.training.schedules import SCHEDULES

RESULT_SECTIONS = ("model", "data", "objective", "train")
OPTIMIZERS = ("adamw", "sgd", "lars")
SECTIONS = (*RESULT_SECTIONS, "run", "evaluate", "embed")


@dataclass
class TrainConfig:
    """Optimisation. Batch sizes are global: all processes and micro-batches of one optimizer step together."""

    steps: int = 10000
    batch_size: int = 64
    accumulate: int = 1  # micro-batches per step and process
    seed: int = 0
    optimizer: str = "adamw"  # adamw, sgd, lars (trust ratio 0.001, matrices only)
    lr: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    floor: float = 0.0  # the last rate, as a share of lr
    start: float = 0.0  # the first rate, as a share of lr
    hold: float = 0.9  # tri_stage: share of the run at the full rate
    weight_decay: float = 0.01
    end_weight_decay: float | None = None  # reached by half a cosine; None: it stays
    decay_all: bool = False  # fairseq decays norms and biases too
    layer_decay: float = 1.0  # the rate of a block is this times that of the block above it
    layer_decay_frontends: bool = True  # what comes before the blocks is one below the first (BEiT); false: at the full rate (data2vec 2.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])  # of adamw
    eps: float = 1e-6  # of adamw
    momentum: float = 0.9  # of sgd and lars
    clip: float = 0.0  # global gradient norm; 0 never clips
    clip_each: bool = False  # clip is of the norm of each tensor by itself (DINO)
    mixed_precision: str = "no"  # no, bf16, fp16
    checkpoint_activations: bool = False  # recompute blocks in the backward pass: less memory, a third more time
    max_bad_steps: int = 10  # stop after so many non-finite steps in a row
    init_from: str = ""  # an export, a run folder or a fairseq checkpoint to go on from; optimizer, step and rates start anew
    update_teacher: bool = True  # false: a teacher frozen at its random init, the control of an experiment

    def __post_init__(self):
        """ValueError: a number that makes no sense, or an unknown choice."""
        for name in ("steps", "batch_size", "accumulate", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"train.{name} is {getattr(self, name)!r}; it may be {', '.join(allowed)}")
        if self.mixed_precision == "False":  # YAML reads a bare `no` as false
            self.mixed_precision = "no"
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"train.mixed_precision is {self.mixed_precision!r}; it may be no, bf16, fp16")
        self._check_optimizer()
        if self.schedule == "tri_stage" and not 0 < self.floor <= 1:
            raise ValueError(f"train.floor is {self.floor}; tri_stage falls exponentially to a share above 0")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"train.warmup_steps is {self.warmup_steps}; it must lie between 0 and train.steps, {self.steps}")

    def _check_optimizer(self) -> None:
        """ValueError: a number that makes no sense, or one that nothing reads; one that has its default's value cannot be told from none."""
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"train.layer_decay is {self.layer_decay}; it must lie above 0 and be at most 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"train.momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.end_weight_decay is not None and self.end_weight_decay < 0:
            raise ValueError(f"train.end_weight_decay is {self.end_weight_decay}; it must be 0 or more, or null: the decay stays")
        if self.clip_each and not self.clip:
            raise ValueError("train.clip_each is true, but train.clip is 0: there is no norm to clip to")
        defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(self)}
        for name in ("momentum",) if self.optimizer == "adamw" else ("betas", "eps"):
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"train.{name} is {getattr(self, name)}, which train.optimizer={self.optimizer} does not read: "
                    f"leave it out, or give it its default, {defaults[name]}"
                )


@dataclass
class RunConfig:
    """Where a run writes and what it shows; nothing here may change the result."""

    dir: str = ""  # required
    resume: str = "auto"  # auto: go on if the folder has a checkpoint; never: such a folder is an error
    overwrite: bool = False  # results that exist already are replaced: a run starts anew, a table or file of features is made again
    log_every: int = 20
    save_every: int = 1000
    keep: int = 2  # checkpoints
    health_every: int = 0  # steps between health checks; 0: ten in a run
    health_samples: int = 512
    probe: ProbeConfig = field(default_factory=ProbeConfig)  # k-NN on a labelled set while training
    stop_on_collapse: bool = False
    workers: int = 0  # data loading processes
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb

    def __post_init__(self):
        """ValueError: an unknown choice or a number that makes no sense."""
        if self.resume not in ("auto", "never"):
            raise ValueError(f"run.resume is {self.resume!r}; it may be auto, never")
        unknown = set(self.trackers) - {"tensorboard", "wandb"}
        if unknown:
            raise ValueError(f"run.trackers holds {', '.join(sorted(unknown))}; it may hold tensorboard, wandb")
        for name in ("log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass
class ModelConfig:
    """One frontend by modality name, and the trunk."""

    frontends: dict[str, Any]
    trunk: TrunkConfig


class OneModality:
    """What the configs of pretraining and of fine-tuning, which are dataclasses, have in common."""

    model: ModelConfig

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
    """All settings of a run; `data` and the frontend are the modality's own dataclasses, `objective` the objective's."""

    model: ModelConfig
    data: Any
    objective: Any
    train: TrainConfig
    run: RunConfig
    evaluate: EvaluateConfig
    embed: EmbedConfig
