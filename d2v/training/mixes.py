"""Which parts of a joint run an optimizer step trains, and the step of its own that is: pure functions of the step."""

from collections.abc import Mapping

import numpy as np

CYCLE = 0x7A2C  # sets the order of a cycle apart from other draws of the seed


class Together:
    """Every step trains every part."""

    def __init__(self, parts: Mapping[str, float]):
        """`parts`: which there are; what is 0 is left out."""
        self.parts = tuple(name for name, share in parts.items() if share)

    def at(self, step: int) -> dict[str, int]:
        """The parts of a step, and which of its own steps that is for each."""
        return dict.fromkeys(self.parts, step)

    def before(self, step: int) -> dict[str, int]:
        """How many steps of its own each part has done before `step`."""
        return dict.fromkeys(self.parts, step)


class Turns:
    """A step trains one part; a cycle of as many steps as there are shares has each as often as its share says.

    The order within a cycle is shuffled anew, by the seed and the cycle's number.
    """

    def __init__(self, parts: Mapping[str, int], seed: int):
        """`parts`: their shares, whole numbers; what is 0 is left out."""
        self.parts = tuple(name for name, share in parts.items() if share)
        self.shares = {name: parts[name] for name in self.parts}
        self.turns: list[str] = []  # of a cycle, not yet shuffled
        for name, share in self.shares.items():
            self.turns += [name] * share
        self.seed = seed

    def at(self, step: int) -> dict[str, int]:
        """The part of a step, and which of its own steps that is."""
        cycle, place = divmod(step, len(self.turns))
        order = self._order(cycle)
        part = order[place]
        return {part: cycle * self.shares[part] + order[:place].count(part)}

    def before(self, step: int) -> dict[str, int]:
        """How many steps of its own each part has done before `step`."""
        cycle, place = divmod(step, len(self.turns))
        begun = self._order(cycle)[:place]
        return {name: cycle * share + begun.count(name) for name, share in self.shares.items()}

    def _order(self, cycle: int) -> list[str]:
        """The parts of a cycle, one a step."""
        shuffled = np.random.default_rng((self.seed, CYCLE, cycle)).permutation(len(self.turns))
        return [self.turns[place] for place in shuffled]


Mix = Together | Turns
