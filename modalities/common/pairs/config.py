"""Settings of pairs: where they are, what makes two samples a pair, and how each side is read."""

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from types import ModuleType
from typing import Any, ClassVar

from d2v.settings import Readers, check_readers, check_values, default_of, hints_of, section, setting

OF_PAIR = ("path", "split", "label")  # a side takes these of the pair where it names none of its own
OF_BOTH = "max_bad_share"  # is the pair's in any case


@dataclass
class PairConfig:
    """Samples of two modalities that belong together; each modality's section says how its side is read."""

    modules: ClassVar[dict[str, ModuleType]] = {}  # what a modality exports, by its name

    path: Any = setting(
        "",
        "A table with a column for each modality, a folder with transcripts or metadata beside its files, a Hub data "
        "set, or a list of these; required, unless each side has its own.",
        place=True,
    )
    split: str = setting("train", "The split to train on.")
    by: str = setting(
        "row",
        "row: what stands in one row is a pair; class: any two samples of one class are.",
        among=("row", "class"),
    )
    label: str = setting("label", "Of class: the column with the class.", only={"by": "class"})
    max_bad_share: float = setting(
        0.1, "Share of rows that one side or the other cannot read above which a run stops.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense, on a side too, or that nothing reads."""
        check_values(self, "data")
        for name in self.modules:
            side = section_of_side(self, name)
            if self.by == "row" and side.label:
                raise ValueError(
                    f"data.{key_of(name)}.label is {side.label!r}, and nothing reads it: data.by is row: leave it out"
                )
            with side_named(self, name):
                views = vars(side).get("views") or []
                if len(views) > 1:
                    raise ValueError(
                        f"data.views is {views}; a side of pairs is seen in one view: name one, or none for the "
                        "ordinary one"
                    )
                check_readers({"data": side_of(self, name)})


def key_of(modality: str) -> str:
    """The name of a modality's section: the last part of the name of a user's own package."""
    return modality.rpartition(".")[2]


def section_of_side(data: PairConfig, modality: str) -> Any:
    """The settings of one side as they were given."""
    return vars(data)[key_of(modality)]


def data_config(modules: Mapping[str, ModuleType]) -> type[PairConfig]:
    """The dataclass of the section of a part that pairs these two modalities, given by their names and packages.

    ValueError: they are not two, or one offers no side of pairs.
    """
    return _data_config(tuple(modules.items()))


@functools.cache
def _data_config(modules: tuple[tuple[str, ModuleType], ...]) -> type[PairConfig]:
    if len(modules) != 2:
        raise ValueError(f"pairs are of two modalities, such as image+text; here is {', '.join(dict(modules))}")
    sides = []
    for name, module in modules:
        missing = [part for part in ("Side", "SideConfig") if part not in vars(module)]
        if missing:
            raise ValueError(f"{name} can be no side of pairs: {module.__name__} does not export {', '.join(missing)}")
        kind = _side_config(name, module.SideConfig)
        sides.append((key_of(name), kind, section(kind, f"How the {name} side is read.")))
    title = "".join(key_of(name).title() for name, _ in modules)
    made: Any = make_dataclass(f"{title}Pairs", sides, bases=(PairConfig,), namespace={"modules": dict(modules)})
    made.__doc__ = f"Pairs of {' and '.join(name for name, _ in modules)}."
    return made


def _side_config(name: str, kind: type) -> type:
    """A dataclass of the same settings, of which those of the pair are empty: the pair's are taken then."""
    key, hints, settings = key_of(name), hints_of(kind), []
    for one in fields(kind):
        hint = hints[one.name]
        if one.name in OF_PAIR:
            place = bool(one.metadata.get("place"))
            made = setting("", f"Of this side, where it is another than the pair's: {one.name}.", place=place)
        elif one.name == OF_BOTH:
            continue
        elif is_dataclass(hint):
            hint = _side_config(name, hint)  # type: ignore[arg-type]
            made = section(hint, one.metadata["sentence"])
        else:
            default = default_of(one)
            made = field(default_factory=functools.partial(copy.deepcopy, default), metadata=_of_side(one, key))
        settings.append((one.name, hint, made))
    made: Any = make_dataclass(f"{key.title()}{kind.__name__}", settings)
    made.__doc__ = kind.__doc__
    return made


def _of_side(one: Field, key: str) -> dict[str, Any]:
    """What a field declares; its conditions on others, which name data.views, name data.<key>.views."""
    readers = one.metadata["readers"]
    cases = []
    for case in readers.cases:
        cases.append({re.sub(r"^data\.", f"data.{key}.", name): wanted for name, wanted in case.items()})
    return {**one.metadata, "readers": Readers(tuple(cases), readers.why)}


def side_of(data: PairConfig, modality: str, split: str = "") -> Any:
    """The modality's own DataConfig, by which its side is read alone: path, split and label are the pair's, where the
    side names no other.

    `split`: another than the one to train on, which is then read of both sides. ValueError: as of the DataConfig.
    """
    values = {**vars(section_of_side(data, modality)), OF_BOTH: data.max_bad_share}
    for name in OF_PAIR:
        values[name] = values[name] or getattr(data, name)
    if split and split != data.split:
        values["split"] = split
    kind = data.modules[modality].DataConfig
    with side_named(data, modality):
        for name, value in values.items():
            if is_dataclass(value):
                values[name] = hints_of(kind)[name](**vars(value))
        return kind(**values)


@contextmanager
def side_named(data: PairConfig, modality: str) -> Iterator[None]:
    """Within it errors name the settings of one side as those of pairs: data.image.min_size for data.min_size."""
    side = section_of_side(data, modality)
    names = [one.name for one in fields(side) if one.name not in OF_PAIR or getattr(side, one.name)]
    try:
        yield
    except ValueError as error:
        key = key_of(modality)  # where it stands already, an inner one of these has named the side
        said = re.sub(rf"(?<![\w./])data\.(?!{key}\.)(?=({'|'.join(names)})\b)", f"data.{key}.", str(error))
        if said == str(error):
            raise
        raise type(error)(said) from error
