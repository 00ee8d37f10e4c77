"""The settings of fine-tuning, and how they are read from a script's command line.

A config may hold `kinds: {classes: {...}, letters: {...}}`: sections for one kind of labels each, below all others, of
which those count that the data or the settings ask for.
"""

from dataclasses import dataclass
from typing import Any

from d2v import plugins
from d2v.config.bases import merged
from d2v.config.checks import check_keys
from d2v.config.differences import flattened
from d2v.config.find import find_config
from d2v.config.given import given
from d2v.config.loading import load_values, modality_of, typed
from d2v.config.schema import ModelConfig, OneModality, RunConfig, TrainConfig
from d2v.config.written import section_of, unquoted
from d2v.models.trunk_config import TrunkConfig
from d2v.protocols import LabelledTask
from d2v.settings import setting

SECTIONS = ("model", "task", "data", "train", "run")
KINDS = "kinds"
RESULT_SECTIONS = SECTIONS[:-1]  # those that may change the result
OF_PRETRAINING = ("health_every", "health_samples", "stop_on_collapse", "probe")  # of run.*
LAYERS = ("all", "frozen")


@dataclass
class TuneConfig(TrainConfig):
    """Optimisation of fine-tuning.

    `init_from`, or model=PATH, is the encoder to start from; without it training is from scratch.
    """

    layers: str = setting(
        "all", "frozen: the encoder is never trained, and has no dropout; this is a probe.", among=LAYERS
    )
    freeze: list[str] = setting([], "Parts of the encoder that are never trained, by prefixes of their names.")
    freeze_steps: int = setting(0, "For so many steps the head alone is trained.", least=0)
    ema_decay: float = setting(
        0.0, "Above 0: the moving average of the weights is validated and exported.", least=0, below=1
    )
    metric: str = setting(
        "", "The score that chooses the best model, by its name in d2v/finetuning/scores.py; empty: the task's first."
    )
    validate_every: int = setting(0, "Steps between validations; 0: twenty in a run.", least=0)
    patience: int = setting(0, "The run stops after so many validations without a better score; 0: never.", least=0)

    def __post_init__(self):
        """ValueError: as TrainConfig; settings that contradict one another."""
        super().__post_init__()
        if self.freeze_steps > self.steps:
            raise ValueError(
                f"train.freeze_steps is {self.freeze_steps}; it must be between 0 and train.steps, {self.steps}"
            )
        if self.freeze_steps and self.sharding != "none":
            raise ValueError(
                f"train.freeze_steps is {self.freeze_steps}, and train.sharding {self.sharding}, which shares out what "
                "is trained once: one of them must be left out"
            )
        if not self.update_teacher:
            raise ValueError("train.update_teacher is False; it must be true: it is a control of pretraining")
        neutral = {"freeze": [], "freeze_steps": 0, "layer_decay": 1}
        for name, value in neutral.items():
            if self.layers == "frozen" and getattr(self, name) != value:
                raise ValueError(
                    f"train.layers=frozen trains the head alone, and train.{name} is {getattr(self, name)}, of the "
                    f"encoder: set it to {value}"
                )


@dataclass
class FinetuneConfig(OneModality):
    """All settings of fine-tuning; `data` is the modality's for labelled data, `task` the task model's."""

    model: ModelConfig
    task: Any
    data: Any
    train: TuneConfig
    run: RunConfig


def read_values(argv: list[str]) -> tuple[dict, list[str]]:
    """The settings of `CONFIG [model=PATH] key=value ...` as plain dictionaries, and its overrides.

    ValueError: whatever is wrong with their form.
    """
    if not argv or "=" in argv[0]:
        raise ValueError(
            "usage: CONFIG [model=PATH] key=value ...; model= names an export of pretraining, "
            "without it training is from scratch"
        )
    overrides = []
    for argument in argv[1:]:
        key, _, value = argument.partition("=")
        overrides.append(f"train.init_from={value}" if key == "model" else argument)
    values = load_values(argv[0], overrides)
    check_keys(values, (*SECTIONS, KINDS), "", argv[0])
    return values, overrides


def load(argv: list[str], modality: str = "") -> tuple[FinetuneConfig, LabelledTask]:
    """The config of `CONFIG [model=PATH] key=value ...`, and the kind of labelled data that it asks for.

    ValueError: whatever is wrong with it, or another modality than `modality`, where that is given.
    """
    values, overrides = read_values(argv)
    argv = [str(find_config(argv[0])), *argv[1:]]  # which is named in errors
    name = modality_of(values, argv[0])
    if modality and name != modality:
        raise ValueError(f"{argv[0]} is a config for {name}; this script fine-tunes {modality}")
    package = plugins.load("d2v.modalities", name)
    data = section_of(values.get("data"))
    task = package.labelled_task(unquoted(data) if isinstance(data, dict) else {})
    of_kind = _of_kind(values.pop(KINDS, None), task.kind, argv[0])
    values = merged(merged(of_kind, {"data": {**task.settings}}), values)
    parts = {
        "model": {"frontends": {name: package.FrontendConfig}, "trunk": TrunkConfig},
        "data": task.config,  # first: its keys say whether classes or letters were meant
        "task": task.model.task_class,
        "train": TuneConfig,
        "run": RunConfig,
    }
    built = typed(parts, values, "", argv[0])
    config = FinetuneConfig(**{**built, "model": ModelConfig(**built["model"])})
    config.given = dict.fromkeys(flattened(of_kind), argv[0]) | given(argv[0], overrides)
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    for name in OF_PRETRAINING:
        value = getattr(config.run, name)
        if value != getattr(RunConfig(), name):
            raise ValueError(f"run.{name} is {value}; it is a setting of pretraining")
    return config, task


def _of_kind(kinds: Any, kind: str, path: str) -> dict:
    """The sections that a config holds for a kind of labels. ValueError: they are none."""
    kinds = section_of(kinds)
    found = section_of(kinds.get(kind)) if isinstance(kinds, dict) else kinds
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {KINDS} must hold the sections of each kind, such as classes: {{train: ...}}")
    check_keys(found, SECTIONS, f"{KINDS}.{kind}", path)
    return found
