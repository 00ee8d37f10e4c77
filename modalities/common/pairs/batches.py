"""Training batches of pairs: pure functions of (seed, step, part, parts).

B pairs of a batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from d2v.modalities.common import sampling
from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.common.pairs.config import PairConfig, side_of
from d2v.modalities.common.pairs.samples import Samples
from d2v.reading import ignored
from d2v.types import View


def batches(
    samples: Samples,
    data: PairConfig,
    frontends: dict[str, Any],
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = ignored,
) -> "PairBatches":
    """Training batches of `samples`; `bad_log(id, reason)` hears of files that can no longer be read.

    `frontends`: FrontendConfigs by modality. ValueError: fewer pairs than one batch.
    """
    sides = []
    for name, module in data.modules.items():
        sides.append(module.Side(samples.side(name), side_of(data, name), frontends[name], bad_log))
    return PairBatches(samples, sides, batch_size=batch_size, seed=seed, bad_log=bad_log)


class PairBatches:
    """A view of each side, whole, of the same pairs; and labels, equal where rows are right for one another too.

    Those are of one class, or their words are the same. None: each row belongs to its own partner alone. An epoch goes
    over the first side's samples; they are not sorted by length, which would put like beside like and leave few wrong
    answers to tell apart.
    """

    def __init__(
        self,
        samples: Samples,
        sides: list[Any],
        *,
        batch_size: int,
        seed: int,
        bad_log: Callable[[str, str], None],
    ):
        """`sides`: a d2v.protocols.Side of each. ValueError: fewer pairs than one batch."""
        self.sampler = sampling.Sampler(len(samples), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)
        self.labels = _labels(samples, sides)  # (n,), or None
        self._samples, self._sides, self._seed, self._bad_log = samples, sides, seed, bad_log

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch: the views of the first and of the second side, with labels (B,) if
        there are any; the ids of the samples, of both where they differ."""
        batch = self.sampler(step)
        generators = sampling.generators(self._seed, step, range(len(batch)))
        partners = [self._partners(place, generator) for place, generator in zip(batch, generators, strict=True)]
        # as wide as the whole batch: positions may depend on it, and parts must not
        wanted = self._samples.first[batch], np.array([some[0] for some in partners])
        widths = [side.width(indices) for side, indices in zip(self._sides, wanted, strict=True)]
        places, names, read = [], [], []
        for row in range(len(batch))[sampling.share(len(batch), part, parts)]:
            place, name, views = self._pair(int(batch[row]), partners[row], generators[row], widths)
            places.append(place)
            names.append(name)
            read.append(views)
        labels = None if self.labels is None else torch.from_numpy(self.labels[places])
        made = []
        for side, width, some in zip(self._sides, widths, zip(*read, strict=True), strict=True):
            made.append(side.view(some, width)._replace(labels=labels))
        return made, names

    def _partners(self, place: int, generator: np.random.Generator) -> np.ndarray:
        """Samples of the second side that may be a pair's: one that is drawn, and those that stand in for it."""
        members = self._samples.members[int(self._samples.groups[place])]
        return np.roll(members, -int(generator.integers(len(members))))[: sampling.STAND_INS]

    def _pair(
        self, place: int, partners: np.ndarray, generator: np.random.Generator, widths: list[int]
    ) -> tuple[int, str, list[Any]]:
        """Which pair, its name and what was read of both sides: that of `place`, or the next that both can read."""
        # a generator of its own for each side: how much one draws does not change the other
        for_first, for_second = generator.spawn(2)
        for candidate in sampling.following(place, len(self._samples)).tolist():
            first = int(self._samples.first[candidate])
            one = self._read(0, first, for_first, widths)
            if one is None:
                continue
            for partner in (partners if candidate == place else self._partners(candidate, generator)).tolist():
                other = self._read(1, partner, for_second, widths)
                if other is not None:
                    return candidate, self._name(first, partner), [*one, *other]
        raise ValueError(
            f"{sampling.STAND_INS} pairs in a row cannot be read, the first is {self._samples.ids[place]}: "
            "was data.path changed or unmounted?"
        )

    def _read(self, side: int, index: int, generator: np.random.Generator, widths: list[int]) -> tuple[Any] | None:
        """The view of a sample of one side; None: it can no longer be read, and the log has heard of it."""
        try:
            return (self._sides[side].read(index, generator, widths[side]),)
        except (UnreadableError, OSError) as error:
            name = self._samples.names[side]
            self._bad_log(self._samples.sides[name].ids[index], f"{name}: {error}")
            return None

    def _name(self, first: int, second: int) -> str:
        names = [side.ids[index] for side, index in zip(self._samples.sides.values(), (first, second), strict=True)]
        return "+".join(dict.fromkeys(names))


def _labels(samples: Samples, sides: list[Any]) -> np.ndarray | None:
    """(n,) equal where pairs are right for one another: of one class, of the same words or of the same file; None:
    nowhere. (n, 2) where rows repeat on both sides: equal in one of the two."""
    if samples.classes is not None:
        return samples.groups
    keys = [side.keys[samples.matched(name)] for name, side in zip(samples.names, sides, strict=True) if _knows(side)]
    repeated = [some for some in keys if len(np.unique(some)) < len(some)]
    if len(repeated) == 2:
        return np.stack(repeated, axis=1)
    return repeated[0] if repeated else None


def _knows(side: Any) -> bool:
    """Whether the side tells which of its rows are the same."""
    return side.keys is not None
