"""The settings of a joint run: sections of one run, with those of each part under its name.

A part is named by the modality that it reads, or by two that it compares: image+text.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from d2v import plugins
from d2v.config.checks import check_keys
from d2v.config.find import find_config
from d2v.config.given import given
from d2v.config.loading import follow_label, load_config, load_values, typed
from d2v.config.schema import SECTIONS, Config, ModelConfig, OneModality, RunConfig, TrainConfig
from d2v.config.written import read, section_of
from d2v.evaluation.config import EmbedConfig, EvaluateConfig
from d2v.models.transformer import TrunkConfig
from d2v.objectives.common.parts import BETWEEN, JointSettings, names_of
from d2v.settings import check_readers, setting, shortened
from d2v.training.online_probe import ProbeConfig


def _as(kind: Any, settings: Any, **changed: Any) -> Any:
    """The settings of a dataclass that extends `kind` as that, some of them changed."""
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(kind)}
    return kind(**{**values, **changed})


@dataclass
class JointTrainConfig(TrainConfig):
    """Optimisation of a joint run."""

    batch_size: Any = setting({}, "Samples of each part in one of its steps, over all processes and micro-batches.")
    init_from: Any = setting(
        {},
        "An export, run folder or checkpoint for each modality to go on from; the trunk is that of the first.",
    )

    def __post_init__(self):
        """ValueError: as of TrainConfig, or sizes of batches that are no numbers by part."""
        if not isinstance(self.batch_size, dict):
            raise ValueError(
                f"train.batch_size is {shortened(self.batch_size)}; a joint run has one for each part, such as "
                "train.batch_size.image=32"
            )
        if not isinstance(self.init_from, dict):
            raise ValueError(
                f"train.init_from is {shortened(self.init_from)}; a joint run has one for each modality, such as "
                "train.init_from.image=runs/photos/export"
            )
        for name, size in self.batch_size.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise ValueError(f"train.batch_size.{name} is {shortened(size)}; it must be a whole number")
            with names_of(name):
                self.mixed_precision = self.of(name).mixed_precision

    def samples(self) -> str:
        """How many samples a step takes, for a person."""
        return ", ".join(f"{size} of {part}" for part, size in self.batch_size.items())

    def of(self, part: str) -> TrainConfig:
        """Those of one part."""
        return _as(TrainConfig, self, batch_size=self.batch_size[part], init_from="")


@dataclass
class JointRunConfig(RunConfig):
    """Where a joint run writes and what it shows."""

    probe: dict[str, ProbeConfig] = setting(  # type: ignore[assignment]
        {}, "k-NN on a labelled set while training, for each modality."
    )

    def check_probes(self) -> None:
        """ValueError: one that is due at steps of its own."""
        for name, probe in self.probe.items():
            if probe.every != self.probe_every:
                first = next(iter(self.probe))
                raise ValueError(
                    f"run.probe.{name}.every is {probe.every} and run.probe.{first}.every {self.probe_every}; all "
                    "probes of a joint run are due at the same steps"
                )

    @property
    def probe_every(self) -> int:
        """Steps between probes; 0: ten times in a run."""
        return next((probe.every for probe in self.probe.values()), 0)

    def of(self, modality: str) -> RunConfig:
        """Those of one modality."""
        return _as(RunConfig, self, probe=self.probe.get(modality, ProbeConfig()))


@dataclass
class JointConfig:
    """All settings of a joint run."""

    model: ModelConfig
    data: dict[str, Any]  # by part: the modality's, or those of pairs
    objective: JointSettings
    train: JointTrainConfig
    run: JointRunConfig
    evaluate: dict[str, EvaluateConfig]  # by part
    embed: EmbedConfig
    given: ClassVar[Mapping[str, str]] = OneModality.given

    @property
    def modality(self) -> str:
        """All that it trains, for a person."""
        *others, last = self.model.frontends
        return f"{', '.join(others)} and {last}" if others else last

    def of(self, part: str) -> Config:
        """The settings of one part, as a run of it alone has them; what is changed in them is changed here."""
        frontends = {name: self.model.frontends[name] for name in part.split(BETWEEN)}
        trunk = self.model.trunk
        if len(frontends) == 1 and (trunk.own_norms or trunk.own_ffn_from):
            trunk = trunk.shared  # nothing is a modality's own where there is one
        config = Config(
            model=ModelConfig(frontends, trunk),
            data=self.data[part],
            objective=self.objective.parts[part],
            train=self.train.of(part),
            run=self.run.of(part),
            evaluate=self.evaluate[part],
            embed=self.embed,
        )
        config.given, config.part = _given_of(part, self.given), part
        return config

    def reading(self, modality: str) -> Config:
        """The settings by which a modality is read: of its own part, or of its side of the first pairs that have it.

        Of a side `data` is another object than what is written in the config.
        """
        if modality in self.data:
            return self.of(modality)
        part = next(part for part in self.data if modality in part.split(BETWEEN))
        config = self.of(part)
        config.model = ModelConfig({modality: self.model.frontends[modality]}, config.model.trunk)
        config.data = plugins.pairs().side_of(self.data[part], modality)
        config.run = self.run.of(modality)
        return config

    def as_dict(self) -> dict:
        """Plain dictionaries, as written to config.yaml."""
        return dataclasses.asdict(self)


def is_joint(values: dict) -> bool:
    """Whether settings are those of a joint run."""
    objective = section_of(values.get("objective"))
    return isinstance(objective, dict) and section_of(objective.get("name")) == "joint"


def load_joint(path: str | Path, overrides: list[str] | None = None) -> JointConfig:
    """The settings of a YAML file, or of one that d2v brings by its name, and `key=value` overrides.

    ValueError: what is wrong with them, with a suggestion.
    """
    path = find_config(path)
    config = joint_from_dict(load_values(path, overrides), str(path))
    config.given = given(path, overrides or [])  # type: ignore[misc]
    return config


def load_parts(path: str | Path, overrides: list[str], part: str = "") -> dict[str, Config]:
    """The settings of each part of a joint run, or of the one asked for; of another run under "".

    ValueError: as load_joint, or no such part.
    """
    if not is_joint(load_values(path, overrides)):
        if part:
            raise ValueError(f"part is {part!r}, but {path} is no joint run, which alone has parts: leave it out")
        return {"": load_config(path, overrides)}
    config = load_joint(path, overrides)
    if part and part not in config.data:
        raise ValueError(f"part is {part!r}; the parts of {path} are {', '.join(config.data)}")
    return {name: config.of(name) for name in config.data if part in ("", name)}


def joint_from_dict(values: dict, path: str = "config.yaml") -> JointConfig:
    """The settings of plain dictionaries; `path` is named in errors. ValueError as in load_joint."""
    check_keys(values, SECTIONS, "", path)
    objective = dict(section_of(values.get("objective")))
    methods = section_of(objective.pop("parts", None))
    parts = _parts(methods, path)
    modalities = list(dict.fromkeys(BETWEEN.join(parts).split(BETWEEN)))
    loaded = {name: plugins.load("d2v.modalities", name) for name in modalities}
    kinds: dict[str, Any] = {
        "model": {"frontends": {name: loaded[name].FrontendConfig for name in modalities}, "trunk": TrunkConfig},
        "data": {part: _data_of(part, loaded) for part in parts},
        "objective": JointSettings,
        "train": JointTrainConfig,
        "run": JointRunConfig,
        "evaluate": dict.fromkeys(parts, EvaluateConfig),
        "embed": EmbedConfig,
    }
    model = section_of(values.get("model")) or {}
    check_keys(section_of(model.get("frontends")) or {}, tuple(modalities), "model.frontends", path)
    train = _leaves_read(section_of(values.get("train")), "train", batch_size=Any, init_from=str)
    objective = _leaves_read(objective, "objective", shares=Any, weights=Any)
    run, probes = _probes(section_of(values.get("run")) or {}, modalities, path)
    built = typed(kinds, {**values, "objective": objective, "train": train, "run": run}, "", path)
    config = JointConfig(**{**built, "model": ModelConfig(**built["model"])})
    for part, evaluate in config.evaluate.items():
        follow_label(evaluate, config.data[part], (section_of(values.get("evaluate")) or {}).get(part))
    config.objective.parts = {part: _method_of(part, methods[part], path) for part in parts}
    config.run.probe = {name: typed(ProbeConfig, one, f"run.probe.{name}", path) for name, one in probes.items()}
    _check(config, parts)
    return config


def _parts(methods: Any, path: str) -> list[str]:
    """Their names. ValueError: none, or one that names no modality, or more than two."""
    if not isinstance(methods, dict) or not methods:
        raise ValueError(
            f"{path}: objective.parts must name a method for each modality, such as image: {{name: data2vec2}}; it is "
            f"{shortened(methods)}"
        )
    for name in methods:
        if not 1 <= len(str(name).split(BETWEEN)) <= 2:
            raise ValueError(f"{path}: objective.parts.{name}: a part reads one modality, or compares two: image+text")
    return list(methods)


def _data_of(part: str, loaded: dict[str, Any]) -> Any:
    """The dataclass of a part's data."""
    if BETWEEN not in part:
        return loaded[part].DataConfig
    return plugins.pairs().data_config({name: loaded[name] for name in part.split(BETWEEN)})


def _method_of(part: str, values: Any, path: str) -> Any:
    """The settings of a part's method."""
    where, family = f"objective.parts.{part}", "d2v.objectives.paired" if BETWEEN in part else "d2v.objectives"
    values = section_of(values)
    if not isinstance(values, dict) or "name" not in values:
        raise ValueError(
            f"{path}: {where} must name its method, such as {where}.name=data2vec2; it is {shortened(values)}"
        )
    return typed(plugins.load(family, read(values["name"], str)).Config, values, where, path)


def _probes(run: Any, modalities: list[str], path: str) -> tuple[Any, dict[str, Any]]:
    """The settings of a run without its probes, and these by modality. ValueError: they are not by modality."""
    if not isinstance(run, dict):  # which is an error of its own
        return run, {}
    probes = section_of(run.get("probe")) or {}
    if not isinstance(probes, dict):
        raise ValueError(
            f"{path}: run.probe is {shortened(probes)}; a joint run has one for each modality, such as "
            f"run.probe.{modalities[0]}.path=FOLDER"
        )
    check_keys(probes, tuple(modalities), "run.probe", path)
    return {name: value for name, value in run.items() if name != "probe"}, probes


def _leaves_read(values: dict, section: str, **kinds: Any) -> dict:
    """A section some of whose settings are numbers or places by part, which may come from the command line."""
    found = dict(values)
    for name, kind in kinds.items():
        inner = section_of(found.get(name))
        if isinstance(inner, dict):
            found[name] = {part: _leaf(f"{section}.{name}.{part}", value, kind) for part, value in inner.items()}
    return found


def _leaf(key: str, value: Any, kind: Any) -> Any:
    try:
        return read(value, kind)
    except ValueError as error:
        raise ValueError(f"{key} is {shortened(value)}; {error}") from None


def _check(config: JointConfig, parts: Iterable[str]) -> None:
    """ValueError: sizes of batches of other parts, the teacher's decay in a part, or settings that nothing reads."""
    for name in (*config.train.batch_size, *parts):
        if name not in parts or name not in config.train.batch_size:
            raise ValueError(
                f"train.batch_size names {', '.join(config.train.batch_size)}; the parts are {', '.join(parts)}: each "
                "needs a number of samples"
            )
    config.run.check_probes()
    for name in config.train.init_from:
        if name not in config.model.frontends:
            raise ValueError(
                f"train.init_from.{name}: the run has no modality of that name, but {', '.join(config.model.frontends)}"
            )
    for part in parts:
        _check_part(part, config.of(part))


def _check_part(part: str, config: Config) -> None:
    """ValueError: what a run of this part alone would refuse, or a teacher's decay that the joint teacher does not
    have."""
    sections = {
        "data": config.data,
        "objective": config.objective,
        "train": config.train,
        "model.trunk": config.model.trunk,
    }
    sections |= {f"model.frontends.{name}": frontend for name, frontend in config.model.frontends.items()}
    with names_of(part):
        check_readers(sections)
    for one in dataclasses.fields(config.objective):
        if one.name.startswith("ema_") and getattr(config.objective, one.name) != one.default:
            value = getattr(config.objective, one.name)
            raise ValueError(
                f"objective.parts.{part}.{one.name} is {value}, and nothing reads it: one teacher serves all parts, "
                "and its decay is objective.ema_decay, ema_end_decay and ema_anneal_steps"
            )


def _given_of(part: str, places: Any) -> dict[str, str]:
    """Where the settings of a part were given, by the names that a run of it alone has for them."""
    found = {}
    for name, place in places.items():
        for section, own in (("data.", f"data.{part}."), ("objective.", f"objective.parts.{part}.")):
            if name.startswith(own):
                found[section + name.removeprefix(own)] = place
        if name.startswith(("model.", "train.", "run.")):
            found[name] = place
    return found
