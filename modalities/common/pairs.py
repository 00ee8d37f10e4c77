"""Samples of two modalities side by side: the columns of a table, recordings and their texts, or two of a class.

n pairs, B rows of a batch.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2v import plugins
from d2v.evaluation.class_names import class_names
from d2v.modalities.common import sampling
from d2v.modalities.common.data_report import Report
from d2v.protocols import Rows
from d2v.reading import ignored
from d2v.settings import check_values, default_of, section, setting
from d2v.types import View

# what a side's settings hold for masks, views and streams, which pairs have not, and what is the pairs' own
UNREAD = ("mask", "view", "pack_seconds", "break_mode", "context_scale", "target_scale", "equalise")
PAIRS_OWN = ("split", "max_bad_share")
PARTNER = 0x9A12  # sets the draw of a partner apart from the augmentation of a row


@dataclass
class PairConfig:
    """Where pairs are; each side has a section of its own, by the name of its modality."""

    path: Any = setting(
        "",
        "A table with a column for each side (image, audio, text), or recordings beside texts of their names.",
        place=True,
    )
    split: str = setting("train", "The split to train on.")
    by: str = setting(
        "row",
        "row: what stands in one row belongs together; class: whatever has the same class, of a side's own path too.",
        among=("row", "class"),
    )
    max_bad_share: float = setting(0.1, "Share of bad pairs above which a run stops.", least=0, most=1)

    def __post_init__(self):
        """ValueError: a value that makes no sense, or settings of a side that pairs do not read."""
        check_values(self, "data")
        for name in sides_of(self):
            side = getattr(self, name)
            for one in dataclasses.fields(side):
                value = getattr(side, one.name)
                if value == default_of(one):
                    continue
                if one.name in PAIRS_OWN:
                    raise ValueError(f"data.{name}.{one.name} is {value}; of pairs it is data.{one.name}")
                if any(word in one.name for word in UNREAD):
                    raise ValueError(f"data.{name}.{one.name} is {value}, and pairs are read whole: leave it out")
            if self.by == "row" and side.path and side.path != self.path:
                raise ValueError(
                    f"data.{name}.path is {side.path}; sides of data.by=row are in one place: give data.path, or "
                    "data.by=class"
                )


def data_config(modalities: Mapping[str, Any]) -> type:
    """The dataclass of the settings of pairs of two modalities, packages by name."""
    fields = [
        (name, package.DataConfig, section(package.DataConfig, f"How the side of {name} is read; path: its own."))
        for name, package in modalities.items()
    ]
    return dataclasses.make_dataclass("PairData", fields, bases=(PairConfig,))


def sides_of(config: Any) -> list[str]:
    """The names of the two sides."""
    return [one.name for one in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, one.name))]


def side_of(config: Any, name: str) -> Any:
    """The settings by which a side is read, as those of its modality alone."""
    side = getattr(config, name)
    return dataclasses.replace(side, path=side.path or config.path, split=config.split, max_bad_share=1.0)


class Samples:
    """The usable pairs of one split: of each, its place among the samples of both sides."""

    def __init__(self, config: Any, frontends: Mapping[str, Any], *, split: str, folder: Path):
        """ValueError: the data cannot be opened, too many of its pairs are bad, or there are no classes."""
        if not config.path and not all(getattr(config, name).path for name in sides_of(config)):
            raise ValueError("data.path is required: a table with a column for each side, or recordings with texts")
        self.config, self.sides = config, dict[str, Any]()
        dataset = _with_transcripts(config, split)
        for name, frontend in frontends.items():
            modality, data = plugins.load("d2v.modalities", name), side_of(config, name)
            rows = None if dataset is None else Rows(dataset, 0)
            with _of_side(name):
                self.sides[name] = modality.Samples(data, frontend, split=split, folder=folder, rows=rows)
        self.names = list(frontends)
        first, second = self.sides.values()
        if config.by == "row":
            self.places, self.labels = _aligned(first, second), None
            self.labels = self._same_text()
        else:
            self.places, self.labels, self.pools = self._of_classes()
        self.ids = [first.ids[place] for place in self.places[:, 0]]
        self.lengths = None
        self.report = self._report()
        self.report.check(config.max_bad_share, config.path or first.config.path)

    def __len__(self) -> int:
        return len(self.places)

    def side(self, name: str) -> Any:
        """All usable samples of a side."""
        return self.sides[name]

    def matched(self, name: str) -> np.ndarray:
        """(n,) which samples of a side the pairs are of."""
        return self.places[:, self.names.index(name)]

    def pair(self, number: int, generator: np.random.Generator) -> tuple[int, int]:
        """The places of a pair's samples; of a class the partner is drawn."""
        first, second = self.places[number].tolist()
        if self.config.by == "class":
            pool = self.pools[int(self.labels[number])]
            second = int(pool[generator.integers(len(pool))])
        return first, second

    def _same_text(self) -> np.ndarray | None:
        """(n,) numbers, equal where the words are: such rows belong to one another too. None: no side is words."""
        if "text" not in self.sides:
            return None
        numbers, side = dict[bytes, int](), self.names.index("text")
        rows = [self.sides["text"].row(place).tobytes() for place in self.places[:, side]]
        return np.array([numbers.setdefault(row, len(numbers)) for row in rows])

    def _of_classes(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Each sample of the first side whose class the other has too, the class's number, and the other's members."""
        named = []
        for name, side in self.sides.items():
            with _of_side(name):
                named.append(class_names(side, side.config.label))
        common = sorted({*named[0]} & {*named[1]} - {None}, key=str)
        if not common:
            some = [", ".join(map(str, sorted({*names} - {None}, key=str)[:5])) for names in named]
            raise ValueError(
                f"data.by is class, but the sides have no class of one name: {self.names[0]} has {some[0]}; "
                f"{self.names[1]} has {some[1]}"
            )
        numbers = {name: number for number, name in enumerate(common)}
        kept = [place for place, name in enumerate(named[0]) if name in numbers]
        pools = [np.array([place for place, one in enumerate(named[1]) if one == name]) for name in common]
        places = np.array([[place, pools[numbers[named[0][place]]][0]] for place in kept])
        return places, np.array([numbers[named[0][place]] for place in kept]), pools

    def _report(self) -> Report:
        """What was found, with what either side could not read, once."""
        first, second = self.sides.values()
        found = max(first.report.found, second.report.found) if self.config.by == "row" else len(first.ids)
        report = Report(" and ".join(self.names), found=found, usable=len(self))
        bad = {}
        for side in (first, second):
            for kind in ("unreadable", "too_short"):
                bad |= {name: f"{why} ({side.report.what})" for name, why in getattr(side.report, kind)}
        report.unreadable = list(bad.items())
        report.sizes = "; ".join(side.report.sizes for side in (first, second) if side.report.sizes)
        report.notes = list(dict.fromkeys(note for side in (first, second) for note in side.report.notes))
        report.splits = first.report.splits
        if self.config.by == "class":
            left = len(first.ids) - len(self)
            report.notes.append(f"pairs by class: {len(self.pools)} that both sides have; without a partner: {left}")
        return report


def _with_transcripts(config: Any, split: str) -> Any:
    """Recordings with the texts that lie beside them; None: the sides read columns by themselves."""
    if {*sides_of(config)} != {"speech", "text"} or config.by != "row":
        return None
    return plugins.load("d2v.modalities", "speech").open_labelled(config.path, split)


def _aligned(first: Any, second: Any) -> np.ndarray:
    """(n, 2): places of the samples of both sides whose row is the same."""
    _, one, other = np.intersect1d(first.rows, second.rows, return_indices=True)
    return np.stack([one, other], axis=1)


@contextmanager
def _of_side(name: str) -> Iterator[None]:
    """Within it an error names the settings of a side."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("data.", f"data.{name}.")) from error


def batches(
    samples: Samples,
    config: Any,
    frontends: Mapping[str, Any],
    batch_size: int,
    seed: int,
    bad_log: Any = ignored,
) -> "PairBatches":
    """Pairs in batches; `bad_log(id, reason)` hears of those that can no longer be read."""
    return PairBatches(samples, config, frontends, batch_size=batch_size, seed=seed, bad_log=bad_log)


class PairBatches:
    """One augmented view of each side, rows side by side: a pure function of (seed, step, part, parts)."""

    def __init__(
        self, samples: Samples, config: Any, frontends: Mapping[str, Any], *, batch_size: int, seed: int, bad_log: Any
    ):
        """ValueError: fewer pairs than one batch, or a modality that has no pairs."""
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)
        self._samples, self._seed, self._bad_log = samples, seed, bad_log
        self._readers = []
        for name, frontend in frontends.items():
            modality = plugins.load("d2v.modalities", name)
            if not hasattr(modality, "Plain"):
                raise ValueError(f"{modality.__name__} exports no Plain, which reads samples of pairs")
            self._readers.append(modality.Plain(samples.side(name), side_of(config, name), frontend))

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: a view of each side with equal labels; the ids of the pairs."""
        batch = self.sampler(step)
        drawn = [self._samples.pair(int(number), self._partner(step, row)) for row, number in enumerate(batch)]
        rows = range(len(batch))[sampling.share(len(batch), part, parts)]
        read: tuple[list, list] = ([], [])
        places: tuple[list[int], list[int]] = ([], [])
        numbers = []
        for row, generator in zip(rows, sampling.generators(self._seed, step, rows), strict=True):
            number, pair, found = self._read(int(batch[row]), drawn[row], generator)
            numbers.append(number)
            for side in range(2):
                read[side].append(found[side])
                places[side].append(pair[side])
        labels = None if self._samples.labels is None else torch.from_numpy(self._samples.labels[numbers]).long()
        views = []
        for side, reader in enumerate(self._readers):
            whole = np.array([pair[side] for pair in drawn])
            views.append(reader.collate(read[side], places[side], whole)._replace(labels=labels))
        return views, [self._samples.ids[number] for number in numbers]

    def _partner(self, step: int, row: int) -> np.random.Generator:
        """What draws the partner of a row of the global batch, which every part draws."""
        return np.random.default_rng((self._seed, PARTNER, step, row))

    def _read(
        self, number: int, pair: tuple[int, int], generator: np.random.Generator
    ) -> tuple[int, tuple[int, int], Sequence[Any]]:
        """The pair, or the next one of which both sides can be read, with its places and what was read."""

        def read(candidate: int) -> tuple[int, tuple[int, int], list[Any]]:
            places = pair if candidate == number else self._samples.pair(candidate, generator)
            readers = zip(self._readers, places, strict=True)
            return candidate, places, [reader.read(place, generator) for reader, place in readers]

        candidates = sampling.following(number, len(self._samples))
        none = "100 pairs in a row cannot be read"
        return sampling.readable(self._samples.ids, candidates, read, self._bad_log, none)[1]
