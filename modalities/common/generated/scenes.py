"""What a scene holds: one to three things of a size, a colour and a shape, and where the first is from the second.

Some pairs of a colour and a shape are held out: they are in no scene of training, and in each of `combinations`.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (215, 40, 40),
    "green": (35, 150, 50),
    "blue": (40, 75, 215),
    "yellow": (240, 220, 40),
    "purple": (140, 45, 165),
    "orange": (245, 140, 25),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SIZES = ("small", "large")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITES)  # of the first thing to the second
HELD_OUT = tuple(zip(COLOURS, itertools.cycle(SHAPES), strict=False))  # 8 of 48, each colour once
SEEN = tuple(pair for pair in itertools.product(COLOURS, SHAPES) if pair not in HELD_OUT)
NUMBERS = (0.1, 0.6, 0.3)  # shares of scenes of one, two and three things


class Thing(NamedTuple):
    """One thing of a scene."""

    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """Things, and the relation of the first to the second, "" where there is one alone."""

    things: tuple[Thing, ...]
    relation: str


def draw(generator: np.random.Generator, held_out: bool) -> Scene:
    """A scene of different things of SEEN pairs; `held_out`: one of them, in any place, is of HELD_OUT."""
    number = 1 + generator.choice(len(NUMBERS), p=NUMBERS)
    odd = generator.integers(number) if held_out else -1
    while True:
        things = []
        for place in range(number):
            pairs = HELD_OUT if place == odd else SEEN
            things.append(Thing(str(generator.choice(SIZES)), *pairs[generator.integers(len(pairs))]))
        if len(set(things)) == number:
            break
    relation = RELATIONS[generator.integers(len(RELATIONS))] if number > 1 else ""
    return Scene(tuple(things), relation)


def different(number: int, generator: np.random.Generator, held_out: bool) -> Iterator[Scene]:
    """As many scenes, of which no two say the same: a caption belongs to one picture of them."""
    seen = set()
    while len(seen) < number:
        scene = draw(generator, held_out)
        if _meaning(scene) not in seen:
            seen.add(_meaning(scene))
            yield scene


def _meaning(scene: Scene) -> Scene:
    """The scene, told from the left or from above: a red one above a blue one is a blue one below a red one."""
    if scene.relation in ("right of", "below"):
        first, second, *others = scene.things
        return Scene((second, first, *others), OPPOSITES[scene.relation])
    return scene
