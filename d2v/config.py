"""One typed Config from a YAML file and key=value arguments; an unknown or ill-typed key is an error.

Sections say what they may change: model, data, objective and train may change the result; run, evaluate and embed may not.
"""

import dataclasses
import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2v import plugins
from d2v.differences import changes
from d2v.embedding import EmbedConfig
from d2v.evaluation import EvaluateConfig
from d2v.files import written
from d2v.layers import TrunkConfig
from d2v.probe import ProbeConfig
from d2v.schedules import SCHEDULES

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


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The Config of a YAML file and `key=value` overrides. ValueError: whatever is wrong with them, with a suggestion."""
    return from_dict(load_values(path, overrides), str(path))


def load_values(path: str | Path, overrides: list[str] | None = None) -> dict:
    """A YAML file and `key=value` overrides as plain dictionaries. ValueError: whatever is wrong with their form."""
    values = OmegaConf.create(_read_yaml(Path(path)))
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"argument {override!r} is not key=value")
        if not value:  # what a shell leaves of key=''; YAML would read a null
            override = f"{key}=''"
        try:
            values = OmegaConf.merge(values, OmegaConf.from_dotlist([override]))
        except Exception as error:  # YAML and OmegaConf have no common base here
            raise ValueError(f"argument {override!r}: {' '.join(str(error).split())}") from None
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return plain


def from_dict(values: dict, path: str = "config.yaml") -> Config:
    """The Config of plain dictionaries; `path` is named in errors. ValueError as in load_config."""
    check_keys(values, SECTIONS, "", path)
    name = modality_of(values, path)
    modality = plugins.load("modalities", name)
    objective = plugins.load("d2v.objectives", (values.get("objective") or {}).get("name", "data2vec"))
    parts = {
        "model": {"frontends": {name: modality.FrontendConfig}, "trunk": TrunkConfig},
        "data": modality.DataConfig,
        "objective": objective.Config,
        "train": TrainConfig,
        "run": RunConfig,
        "evaluate": EvaluateConfig,
        "embed": EmbedConfig,
    }
    built = typed(parts, OmegaConf.create(values), "", path)
    return Config(**{**built, "model": ModelConfig(**built["model"])})


def modality_of(values: dict, path: str) -> str:
    """The one modality that model.frontends names. ValueError: none, or several."""
    model = values.get("model") if isinstance(values.get("model"), dict) else {}
    frontends = model.get("frontends") or {}
    if not isinstance(frontends, dict) or len(frontends) != 1:
        names = ", ".join(plugins.available("modalities"))
        raise ValueError(f"{path}: model.frontends must name one modality ({names}) and its settings; it is {frontends!r}")
    return next(iter(frontends))


def save_yaml(values: dict, path: Path) -> None:
    """Plain dictionaries as YAML, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(values)))


def differences(old: dict, new: dict, sections: tuple[str, ...] = RESULT_SECTIONS) -> list[str]:
    """Which settings differ between two configs as dictionaries, one "key: old -> new" each, in `sections` only."""
    return changes({s: old.get(s) for s in sections}, {s: new.get(s) for s in sections})


def take_arguments(arguments: list[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """The values of `name=value` for `names`, which are no settings ("" if not given), and the other arguments."""
    taken = {name: "" for name in names} | {name: value for name, _, value in (a.partition("=") for a in arguments) if name in names}
    return taken, [argument for argument in arguments if argument.partition("=")[0] not in names]


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Runs a script's `main` on the command line; a ValueError becomes one line on stderr and exit code 2; --help shows the script's docstring."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"no config file {path.absolute()}; the first argument is a YAML file such as those in configs/")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # whatever the YAML reader raises; among others: a duplicate key
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{path} must hold sections such as model:, data:, train:")
    values = OmegaConf.to_container(loaded)
    assert isinstance(values, dict)
    return values


def typed(parts: Any, values: Any, where: str, path: str) -> Any:
    """Dataclasses from nested `parts` (dicts of dataclasses) and the values given for them."""
    if isinstance(parts, dict):
        values = {} if values is None else values
        if not isinstance(values, dict | DictConfig):
            raise ValueError(f"{path}: {where} must hold the keys {', '.join(parts)}; it is {values!r}")
        check_keys(values, tuple(parts), where, path)
        return {name: typed(part, values.get(name), f"{where}.{name}".lstrip("."), path) for name, part in parts.items()}
    values = {} if values is None else values
    if not isinstance(values, dict | DictConfig):
        raise ValueError(f"{path}: {where} must hold keys of {parts.__name__}; it is {values!r}")
    _check_fields(parts, values, where, path)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(parts), values))
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ValueError) and not isinstance(error.__cause__, OmegaConfBaseException):
            raise error.__cause__ from None
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: {where}.{error.full_key or '?'}: {reason}") from None


def _check_fields(kind: type, values: Any, where: str, path: Any) -> None:
    """ValueError: a key that is no field of a dataclass, or of one that it holds."""
    fields = {f.name: f.default_factory for f in dataclasses.fields(kind)}
    check_keys(values, tuple(fields), where, path)
    for name, inner in values.items():
        if isinstance(inner, dict | DictConfig) and dataclasses.is_dataclass(fields[name]):
            _check_fields(fields[name], inner, f"{where}.{name}", path)  # type: ignore[arg-type]


def check_keys(values: Any, allowed: tuple[str, ...], where: str, path: Any) -> None:
    """ValueError: a key that is not among `allowed`, with a suggestion."""
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it may be {', '.join(allowed)}"
            raise ValueError(f"unknown key {f'{where}.{key}'.lstrip('.')!r} ({path} or the command line); {hint}")
