"""Says what is found in data: how many samples can be used, which cannot and why, how many there are of each class.

d2v data CONFIG data.path=PATH [key=value ...]

CONFIG names the modality and how the data is read; one of fine-tuning also opens labels. Nothing is trained or written.

d2v data tokenize CONFIG data.path=PATH [key=value ...]
d2v data pack SOURCE OUT [size=1000] [shorter_side=0]

tokenize: text becomes tokens in the cache ($D2V_CACHE, or ~/.cache/d2v), as the first start of a run would have it.
pack: images or recordings of a folder, table or data set are written as tar shards of size= megabytes, which
data.path=OUT reads, as webdataset does: an image, its label .cls, text .txt and other columns .json have one name.
Images whose shorter side has more than shorter_side= pixels shrink to that, which decodes faster; 0: all stay.

Two words in place of CONFIG make data for trials, which needs no download, in a folder of its own:

d2v data scenes OUT [train=4000] [test=1000] [size=32] [seed=0] [voice=formant|espeak]
d2v data digits OUT [speech=FOLDER] [seed=0]

scenes: drawn shapes, captions and what a synthesiser makes of them, row by row in OUT/train.csv, test.csv and
combinations.csv (colours of shapes that no other split has), with masks/ and boxes.csv. data.path=OUT reads it for
images, speech or text; data.split= names the split. test= is also the number of combinations, size= pixels of a side;
voice=espeak says the captions in English, with pip install 'd2v[espeak]'.
digits: OUT/image (scikit-learn's), OUT/speech (synthesised, or those of FOLDER, such as FSDD's) and OUT/text, each with
train and test of other images, speakers and templates, by the same ten class names.
The same arguments give the same files.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v import cache, plugins
from d2v.config.cli import run_cli
from d2v.config.find import find_config
from d2v.config.joint import load_parts
from d2v.config.loading import load_values, typed
from d2v.config.schema import Config
from d2v.config.written import Argument, in_home
from d2v.files import filled
from d2v.finetuning.config import KINDS, load
from d2v.modalities.common.generated import digits_folder, scenes_folder
from d2v.modalities.common.generated.folder import make
from d2v.modalities.common.packing import pack
from d2v.objectives.common.parts import BETWEEN, names_of
from d2v.settings import check_values, setting
from d2v.shown import printable
from d2v.training.pretraining import advice, uses_of_splits


@dataclass
class PackConfig:
    """How shards are written."""

    size: int = setting(1000, "Megabytes of a shard.", least=1, limit=1_000_000)
    shorter_side: int = setting(
        0, "Pixels that the shorter side of an image has at most; 0: as it is.", least=0, limit=65_500
    )

    def __post_init__(self) -> None:
        """ValueError: a value that is not allowed."""
        check_values(self, "pack")


GENERATED = {
    "scenes": (scenes_folder.ScenesConfig, scenes_folder.fill),
    "digits": (digits_folder.DigitsConfig, digits_folder.fill),
}
MOST_NAMED = 100  # bad samples of a kind


def main(argv: list[str]) -> None:
    """`argv`: CONFIG and overrides. ValueError: whatever the user can mend."""
    if argv[:1] and argv[0] in GENERATED:
        print(*_made(*argv), sep="\n")
        return
    if argv[:1] == ["pack"]:
        print(*_packed(argv[1:]), sep="\n")
        return
    if argv[:1] == ["tokenize"]:
        _tokenized(argv[1:])
        return
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v data CONFIG data.path=PATH [key=value ...]")
    overrides = [argument for argument in argv[1:] if not argument.startswith("model=")]
    with tempfile.TemporaryDirectory() as folder:  # for what is prepared: a tokenizer
        is_labelled = {"task", KINDS} & {*load_values(argv[0], overrides)}
        (_labelled if is_labelled else _unlabelled)(argv, Path(folder))


def _made(kind: str, *arguments: str) -> list[str]:
    """Writes data of a kind of GENERATED; returns what is said of it. ValueError: no folder, or odd settings."""
    places = [argument for argument in arguments if "=" not in argument]
    if len(places) != 1:
        raise ValueError(f"usage: d2v data {kind} OUT [key=value ...]; d2v data --help names the keys")
    config, fill = GENERATED[kind]
    given = _given(arguments)
    settings = typed(config, given, kind, f"d2v data {kind}")
    folder, start = Path(in_home(places[0])), time.perf_counter()
    said = make(folder.resolve(), kind, settings, fill)
    return [*said, f"{folder}: done in {time.perf_counter() - start:.0f} s"]


def _given(arguments: Sequence[str]) -> dict[str, Argument]:
    """The settings among the arguments."""
    given = {}
    for argument in arguments:
        key, is_setting, value = argument.partition("=")
        if is_setting:
            given[key] = Argument(value)
    return given


def _packed(arguments: list[str]) -> list[str]:
    """Writes shards; returns what is said of them. ValueError: not two places, or an odd size."""
    places = [argument for argument in arguments if "=" not in argument]
    given = _given(arguments)
    if len(places) != 2:
        raise ValueError("usage: d2v data pack SOURCE OUT [size=1000] [shorter_side=0]")
    settings = typed(PackConfig, given, "pack", "d2v data pack")
    source, out = in_home(places[0]), Path(in_home(places[1])).absolute()
    if out.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"{out} lies in {source}, which is packed: its shards would be read as data; choose another place"
        )
    with filled(out) as draft:
        said = pack(source, draft, settings.size * 1_000_000, settings.shorter_side)
    return [*said, f"{out}: data.path={out} reads them"]


def _tokenized(argv: list[str]) -> None:
    """Has the text of a config tokenized and kept. ValueError: it is of no text, or nothing can be kept."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v data tokenize CONFIG data.path=PATH [key=value ...]")
    if not cache.is_usable():
        raise ValueError(f"nothing can be kept in {cache.place()}: set D2V_CACHE to a folder that you may write to")
    with tempfile.TemporaryDirectory() as folder:
        parts = load_parts(find_config(argv[0]), argv[1:])
        for part, config in parts.items():
            if "vocab_size" not in vars(config.data):
                raise ValueError(f"{argv[0]} reads {part or config.modality}, and only text is tokenized")
            print(*_samples(config, Path(folder)).report.lines(), f"kept in {cache.place()}", sep="\n")


def _unlabelled(argv: list[str], folder: Path) -> None:
    """What pretraining would read."""
    for part, config in load_parts(find_config(argv[0]), argv[1:]).items():
        allowed, config.data.max_bad_share = config.data.max_bad_share, 1.0  # what is bad is to be seen first
        with names_of(part) if part else nullcontext():
            samples = _pairs(config, folder) if BETWEEN in part else _samples(config, folder)
        report = samples.report
        lines = [*report.lines(most=MOST_NAMED), uses_of_splits(config, report.splits), *advice(report)]
        print("\n".join([*([f"{part}:"] if part else []), *lines]), flush=True)
        with names_of(part) if part else nullcontext():
            report.check(allowed, config.data.path)


def _samples(config: Config, folder: Path) -> Any:
    modality = plugins.load("d2v.modalities", config.modality)
    modality.prepare(config.data, config.frontend, folder, config.train.seed)
    return modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)


def _pairs(config: Config, folder: Path) -> Any:
    """Of a part that compares two modalities."""
    for name, frontend in config.model.frontends.items():
        plugins.pairs().prepare(config.data, name, frontend, folder, config.train.seed)
    return plugins.pairs().Samples(config.data, config.model.frontends, split=config.data.split, folder=folder)


def _labelled(argv: list[str], folder: Path) -> None:
    """What fine-tuning would read, which says it itself."""
    config, task = load(argv)
    if task.said:
        print(printable(task.said))
    task.open(config, folder, lambda name, why: print(printable(f"{name}: {why}")), print)


if __name__ == "__main__":
    run_cli(main)
