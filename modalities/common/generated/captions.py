"""Tells a scene in words: "a small red square above a big blue circle with a little white ring"."""

import numpy as np

from d2v.modalities.common.generated.scenes import Scene, Thing

OPENINGS = ("", "", "", "there is", "i see")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
JOINTS = ("and", "with")  # before a third thing, of whose place nothing is said


def caption(scene: Scene, generator: np.random.Generator) -> str:
    """One of the captions of a scene, in small letters and spaces: what is read is what is said."""
    parts = [_one_of(OPENINGS, generator), _named(scene.things[0], generator)]
    if scene.relation:
        parts += [_one_of(RELATION_WORDS[scene.relation], generator), _named(scene.things[1], generator)]
    for thing in scene.things[2:]:
        parts += [_one_of(JOINTS, generator), _named(thing, generator)]
    return " ".join(filter(None, parts))


def _named(thing: Thing, generator: np.random.Generator) -> str:
    return f"a {_one_of(SIZE_WORDS[thing.size], generator)} {thing.colour} {thing.shape}"


def _one_of(words: tuple[str, ...], generator: np.random.Generator) -> str:
    return words[generator.integers(len(words))]
