"""A new encoder of several modalities that starts with encoders that were trained before, one for each of its own."""

from collections.abc import Mapping

from d2v.interop.fidelity import FREE
from d2v.models.encoder import D2vModel
from d2v.models.own import own_layers
from d2v.models.slices import fill_trunk, one_modality

SETTING = "train.init_from"


def start_many(encoder: D2vModel, sources: Mapping[str, D2vModel], trunk_from: str) -> list[str]:
    """Fills the frontend of each modality that has a source, and the trunk from that of `trunk_from`.

    What each modality has for itself in the trunk is of its own source. Modalities without one start anew, but for the
    trunk. Says what came from where. ValueError: a source that does not read its modality, another width or another
    architecture; nothing is half filled.
    """
    if trunk_from not in sources:
        raise ValueError(f"the trunk is to be {trunk_from}'s, of which {SETTING} names no encoder")
    own = {name: _taken(encoder, name, source) for name, source in sources.items()}
    needed = own if own_layers(encoder.trunk) else {trunk_from: own[trunk_from]}
    for name, one in needed.items():
        _check_same(vars(encoder.trunk.config), one.config.trunk, "model.trunk", name)
    for name, one in own.items():
        encoder.frontend(name).load_state_dict(one.frontend(name).state_dict())
    fill_trunk(encoder, {name: one.trunk.state_dict() for name, one in needed.items()}, trunk_from)
    anew = [name for name in encoder.config.frontends if name not in own]
    said = [f"frontends of {', '.join(own)}: from {SETTING}; the trunk: from {trunk_from}'s"]
    if len(needed) > 1:
        said[0] += f", but for what {', '.join(needed)} have for themselves"
    return said + ([f"starts anew: the frontend of {', '.join(anew)}"] if anew else [])


def _taken(encoder: D2vModel, name: str, source: D2vModel) -> D2vModel:
    """The source as it reads this modality alone. ValueError: it does not fit."""
    try:
        one = one_modality(source, name)
    except ValueError as error:
        raise ValueError(f"{SETTING}.{name}: {error}") from None
    width, wanted = one.trunk.config.dim, encoder.trunk.config.dim
    if width != wanted:
        raise ValueError(
            f"{SETTING}.{name}: the encoder is {width} wide, and model.trunk.dim is {wanted}: one trunk reads all "
            "modalities, so that all must be as wide"
        )
    _check_same(vars(encoder.frontend(name).config), one.config.frontends[name], f"model.frontends.{name}", name)
    return one


def _check_same(settings: Mapping, trained: Mapping, part: str, name: str) -> None:
    """ValueError: a setting under which the same weights would compute something else."""
    for field, value in settings.items():
        if any(word in field for word in FREE) or field not in trained or trained[field] == value:
            continue
        raise ValueError(
            f"{part}.{field} is {value}; the encoder of {SETTING}.{name} was trained with {trained[field]}"
        )
