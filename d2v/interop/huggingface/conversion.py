"""transformers' Data2VecAudio, Data2VecText, Data2VecVision and ViT models as ours and back.

Outputs are equal before and after. What one side's config cannot say and no weight needs (inits, some rates of dropout,
masks of training) travels in the other's as `origin`, which nothing reads but the way back.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from d2v import plugins
from d2v.interop.fidelity import counts
from d2v.interop.huggingface import audio, text, vision, vit
from d2v.interop.huggingface.shared import Head, Kind
from d2v.interop.pretrained import load_whole, read_config
from d2v.interop.renaming import Prefixes, fill, original, renamed, translated
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC
from d2v.models.trunk_config import TrunkConfig

log = logging.getLogger(__name__)
KINDS = {
    "data2vec-audio": audio.KIND,
    "data2vec-text": text.KIND,
    "data2vec-vision": vision.KIND,
    "vit": vit.KIND,
}
OPTIONAL = ("pooler.", "embeddings.mask_token")  # weights that a stock class may have or not
BY_WEIGHTS = {"frontend.mask_token", "frontend.positions"}  # settings that are read off the tensors
# Settings that may travel in `origin`, beside those of d2v.interop.fidelity: of tokenizers, of feature extractors, of
# training, where a table of positions begins.
OURS_ALONE = {
    "frontend.mask_token_id",
    "frontend.sample_rate",
    "trunk.prenet_depth",
    "task.mask_noise",
    "task.blank_bias",
    "frontend.position_offset",
}
LABELS = ("id2label", "label2id", "problem_type")
# entries of a config that are not the model's
OF_A_FILE = {"architectures", "dtype", "transformers_version", "_name_or_path", "origin"}


def from_transformers(source: str | Path | PreTrainedModel, reference_quirks: bool = False) -> PreTrainedModel:
    """The D2vModel or task model of a stock model, or of the folder or Hub name of one.

    A head without a counterpart is left out. What a preprocessor in the folder says of the model counts.

    `reference_quirks`: speech in padded batches as transformers computes it, where position layers read padded frames;
    a clip alone is the same. ValueError: no such folder or name, another architecture or setting, or the first weight
    that is missing, left over or of another shape.
    """
    theirs: Any = source if isinstance(source, PreTrainedModel) else _load(source)
    kind = _kind(theirs.config, theirs.name_or_path)
    if type(theirs) is not kind.model and type(theirs) not in kind.heads:
        log.warning("%s has a head without a counterpart: its encoder is read", type(theirs).__name__)
        theirs = theirs.base_model
    head = kind.heads.get(type(theirs))
    tower = _single(theirs.base_model.state_dict())
    ours = _read(kind, head, theirs.config, tower)
    ours |= {} if isinstance(source, PreTrainedModel) else kind.read_beside(str(source), theirs.config)
    if reference_quirks and kind is audio.KIND:
        ours["frontend.reference_padding"] = True
    labels = _labels(head, theirs.config)
    given, defaults = theirs.config.to_dict(), type(theirs.config)().to_dict()
    origin = _differences(given, defaults, {*OF_A_FILE, *labels, *_written(kind, head, ours)})
    ours |= {name: value for name, value in given.get("origin", {}).items() if _is_free(name)}
    with torch.random.fork_rng(devices=[]):  # a run in progress would miss the numbers that building draws
        model = (head.ours if head else D2vModel)(_our_config(kind, ours, {**labels, "origin": origin}))
    prefixes = _names(kind, head, ours)
    state = _joined(kind, head, kind.to_our_tensors(tower, ours), _single(theirs.state_dict()))
    without = [key for key in state if "pooler." in key and not translated(key, prefixes)]
    if without:
        log.warning("%s has a pooler, of its pooler_output: it is left out, ours have none", type(theirs).__name__)
    state = {key: value for key, value in state.items() if key not in without}
    fill(model, renamed(state, prefixes), prefixes, type(theirs).__name__)
    return model.eval()


def _single(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float32, as the model of it is: sums of weights in half precision would be other weights."""
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def to_transformers(model: Any) -> PreTrainedModel:
    """The stock model that computes what `model`, a D2vModel or a task model, computes.

    Of speech in padded batches it does not: its position layers read padded frames; a clip alone is the same.
    ValueError: no stock class holds such a model; the settings that it does not hold, and why.
    """
    modality, ours = _flat(model)
    kind = _kind_for(modality, ours)
    theirs_class, head = _their_class(kind, model)
    refused = {name: why for name, (allowed, why) in kind.held.items() if ours[name] not in allowed}
    if refused:
        reasons = [f"{_long(name, modality)}={ours[name]}: {why}" for name, why in refused.items()]
        if "trunk.final_norm" in refused and getattr(getattr(model, "task", None), "pooled_norm", False):
            reasons.append("task.pooled_norm=true takes that norm's place (fine-tune with task.pooled_norm=false)")
        try:
            kind.write_settings({**ours, **{name: kind.held[name][0][0] for name in refused}})
        except ValueError as error:
            reasons.append(str(error).partition("cannot hold ")[2] or str(error))
        raise ValueError(f"{theirs_class.__name__} cannot hold {'; '.join(reasons)}")
    fields = {**model.config.origin, **_labels(head, model.config), **_written(kind, head, ours)}
    build: Any = kind.model.config_class
    config = build(**fields)
    prefixes = _names(kind, head, ours)
    state = original(_in_units(model), prefixes)
    prefix = _prefix(kind, head)
    encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    tower = kind.to_their_tensors(encoder, ours)
    back = _read(kind, head, config, tower)
    different = _differences(ours, back, BY_WEIGHTS)
    unheld = {name: value for name, value in different.items() if not _is_free(name)}
    if unheld:
        reasons = [f"{_long(name, modality)}={value}: it has {back.get(name)}" for name, value in unheld.items()]
        raise ValueError(f"{theirs_class.__name__} cannot hold {'; '.join(reasons)}")
    if different:
        config.origin = different
    with torch.random.fork_rng(devices=[]):
        theirs = theirs_class(config, **({} if head else kind.bare))
    _load_into(theirs, _joined(kind, head, tower, state))
    return theirs.eval()


def _in_units(model: Any) -> dict[str, Tensor]:
    """The weights, of a regression with those of its last layer that answer in the units of its labels."""
    state, config = model.state_dict(), model.config
    if config.has_units:
        state["head.out.weight"] = state["head.out.weight"] * config.label_std
        state["head.out.bias"] = state["head.out.bias"] * config.label_std + config.label_mean
    return state


def _their_class(kind: Kind, model: Any) -> tuple[type[PreTrainedModel], Head | None]:
    """The stock class of a model of ours, and its head. ValueError: there is none."""
    if isinstance(model, D2vModel):
        return kind.model, None
    for theirs, head in kind.heads.items():
        if head.ours is type(model):
            return theirs, head
    raise ValueError(f"{kind.model.__name__} has no counterpart of {type(model).__name__}")


def _load(source: str | Path) -> PreTrainedModel:
    """The stock model of a folder or Hub name, of the class that its config names or else without its head."""
    config = read_config(source)
    kind = _kind(config, str(source))
    by_name = {theirs.__name__: theirs for theirs in (kind.model, *kind.heads)}
    named = (config.architectures or [kind.model.__name__])[0]
    theirs = by_name.get(named, kind.model)
    parts = ("embeddings.", "encoder.", "layers.", "layernorm.", "feature_extractor.", "feature_projection.")

    def drop(name: str) -> bool:
        return name.startswith(OPTIONAL) if named in by_name else not name.startswith(parts)

    if named not in by_name:
        log.warning("%s is a %s, a head without a counterpart: its encoder is read", source, named)
    return load_whole(theirs, source, drop, **(kind.bare if theirs is kind.model else {}))


def _kind(config: PreTrainedConfig, source: str) -> Kind:
    """The kind of a stock config's architecture. ValueError: there is none."""
    if config.model_type not in KINDS:
        raise ValueError(
            f"{source or 'the model'} is of the architecture {config.model_type!r}; this reads {', '.join(KINDS)}"
        )
    return KINDS[config.model_type]


def _kind_for(modality: str, ours: dict[str, Any]) -> Kind:
    """The kind whose classes may hold a model of ours. ValueError: there is none."""
    image = vision.KIND if ours["trunk.qkv_bias"] == "qv" else vit.KIND
    kinds = {"speech": audio.KIND, "text": text.KIND, "image": image}
    if modality not in kinds:
        raise ValueError(f"transformers has no class for {modality!r}; it has some for {', '.join(kinds)}")
    return kinds[modality]


def _flat(model: Any) -> tuple[str, dict[str, Any]]:
    """The modality of a model of ours, and its settings by flat names, as Kind describes them."""
    encoder = model if isinstance(model, D2vModel) else model.encoder
    if len(encoder.config.frontends) != 1:
        raise ValueError(
            f"transformers' classes read one modality; this model reads {', '.join(encoder.config.frontends)}"
            "; d2v.models.slices.one_modality takes one out"
        )
    (modality,) = encoder.config.frontends
    ours = _fields("frontend", encoder.frontend(modality).config) | _fields("trunk", encoder.trunk.config)
    if encoder is not model:
        ours |= _fields("task", model.task) | {"head.num_labels": model.config.num_labels}
    return modality, ours


def _fields(part: str, config: Any) -> dict[str, Any]:
    return _plain({f"{part}.{name}": value for name, value in vars(config).items()})


def _read(kind: Kind, head: Head | None, config: PreTrainedConfig, tower: dict[str, Tensor]) -> dict[str, Any]:
    """Our settings of a stock config. ValueError: those under which ours would compute something else."""
    others = []
    for name, wanted in kind.required.items():
        given = getattr(config, name)
        if given != wanted:
            others.append(f"{name}={given!r}; d2v computes only what {wanted!r} is")
    if others:
        raise ValueError(f"{type(config).__name__} has {'; it has '.join(others)}")
    frontend = plugins.load("d2v.modalities", kind.modality).FrontendConfig()
    ours = _fields("frontend", frontend) | _fields("trunk", TrunkConfig())
    for old, new in kind.settings.items():
        ours[new] = getattr(config, old)
    ours |= kind.read_settings(config, tower)
    if head is not None:
        ours |= _fields("task", head.ours.task_class()) | head.read_settings(config)
    return _plain(ours)


def _written(kind: Kind, head: Head | None, ours: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stock config that our settings determine."""
    theirs = {old: ours[new] for old, new in kind.settings.items()} | kind.write_settings(ours)
    return theirs | head.write_settings(ours) if head else theirs


def _our_config(kind: Kind, ours: dict[str, Any], others: dict[str, Any]) -> D2vConfig:
    """The inverse of `_flat`."""

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in ours.items() if name.startswith(prefix)}

    return D2vConfig({kind.modality: part("frontend.")}, part("trunk."), part("task."), **part("head."), **others)


def _labels(head: Head | None, config: PreTrainedConfig) -> dict[str, Any]:
    """What both sides' configs of classifiers say alike; the letters of CTC are the tokenizer's."""
    return {} if head is None or head.ours is D2vForCTC else {name: getattr(config, name) for name in LABELS}


def _differences(given: dict[str, Any], others: dict[str, Any], without: set[str]) -> dict[str, Any]:
    """What of `given`, without the names `without`, is missing in `others` or another value there."""
    given, others = _plain(given), _plain(others)
    different = {}
    for name, value in given.items():
        if name not in without and (name not in others or others[name] != value):
            different[name] = value
    return different


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as the lists that they are in a file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _is_free(name: str) -> bool:
    """Whether a setting of ours may travel in `origin`."""
    return name in OURS_ALONE or not counts(name)


def _long(name: str, modality: str) -> str:
    """The setting's name in a config file."""
    return name if name.startswith("task.") else f"model.{name.replace('frontend.', f'frontends.{modality}.')}"


def _prefix(kind: Kind, head: Head | None) -> str:
    return f"{kind.model.base_model_prefix}." if head else ""


def _names(kind: Kind, head: Head | None, ours: dict[str, Any]) -> Prefixes:
    """Theirs -> ours, of the whole model."""
    prefixes = [(_prefix(kind, head) + old, ("encoder." if head else "") + new) for old, new in kind.names(ours)]
    return [*prefixes, *head.names] if head else prefixes


def _joined(kind: Kind, head: Head | None, tower: dict[str, Tensor], whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stock model's state: its encoder's from `tower`, its head's from `whole`."""
    prefix = _prefix(kind, head)
    of_head = {key: value for key, value in whole.items() if head and not key.startswith(prefix)}
    return {**{prefix + key: value for key, value in tower.items()}, **of_head}


def _load_into(theirs: PreTrainedModel, state: dict[str, Tensor]) -> None:
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})
