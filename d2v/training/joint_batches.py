"""Batches of a joint run: each part reads as it does alone, in the steps that the mix gives it."""

import time
from collections.abc import Mapping

from d2v.protocols import Batches
from d2v.training.mixes import Mix
from d2v.types import View


class JointBatches:
    """Views of all parts of a step, each marked with its part and the seconds that it took; all but these are a pure
    function, as each part's own is."""

    def __init__(self, parts: Mapping[str, Batches], mix: Mix):
        self.parts, self.mix = parts, mix

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of each batch of the step, and the ids of their samples."""
        views, ids = [], []
        for name, own in self.mix.at(step).items():
            start = time.perf_counter()
            found, names = self.parts[name](own, part, parts)
            seconds = time.perf_counter() - start
            views += [view._replace(part=name, seconds=seconds) for view in found]
            ids += names
        return views, ids
