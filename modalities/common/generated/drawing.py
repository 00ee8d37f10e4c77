"""Draws a scene: smooth edges, any place and angle, a blurred ground, a little noise; with a mask and boxes.

S pixels of a side, K x K points of a pixel.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from d2v.modalities.common.generated.scenes import COLOURS, SHAPES, Scene

RADII = {"small": (0.125, 0.145), "large": (0.2, 0.22)}  # of the circle around a thing, as shares of S
GAP = 0.06  # least share of S between two such circles
SLANT = 0.5  # most that a thing left of another is above or below it, as a share of how far it is left
ANGLE = 0.25  # most that a thing is turned, in radians
POINTS = 4  # K
TRIES = 256  # places that are drawn at once


class Picture(NamedTuple):
    """A drawn scene; of a mask 0 is the ground, and 1, 2, ... are SHAPES."""

    pixels: np.ndarray  # (S, S, 3) uint8
    mask: np.ndarray  # (S, S) uint8
    boxes: list[tuple[int, int, int, int]]  # of each thing: left, top, right, bottom, in pixels


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points at 1, five corners at a half."""
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)  # from the nearest point, 0 to a tenth
    along, across = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    corner = 0.5 * np.cos(fifth / 2), 0.5 * np.sin(fifth / 2)
    return (1 - along) * corner[1] > (1 - corner[0]) * across


# Whether a point (right, down) of the circle of radius 1 around a thing belongs to it.
INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) < 0.92,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.72,
    "triangle": lambda u, v: (v < 0.5) & (v > np.sqrt(3) * np.abs(u) - 1),
    "star": _star,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 0.95),
    "ring": lambda u, v: (np.hypot(u, v) < 0.95) & (np.hypot(u, v) > 0.5),
}


def draw(scene: Scene, side: int, generator: np.random.Generator) -> Picture:
    """One of the pictures of a scene, `side` pixels wide and high."""
    radii = np.array([generator.uniform(*RADII[thing.size]) for thing in scene.things]) * side
    places = _places(scene.relation, radii, side, generator)  # (things, 2) right, down
    pixels = _ground(side, generator)
    mask, boxes = np.zeros((side, side), np.uint8), []
    for thing, radius, place in zip(scene.things, radii, places, strict=True):
        cover = _cover(thing.shape, place, radius, generator.uniform(-ANGLE, ANGLE), side)
        colour = np.array(COLOURS[thing.colour]) + generator.uniform(-12, 12, 3)
        pixels += cover[..., None] * (colour - pixels)
        solid = cover >= 0.5
        mask[solid] = 1 + SHAPES.index(thing.shape)
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    pixels += generator.normal(0, 6, pixels.shape)
    return Picture(np.clip(pixels, 0, 255).astype(np.uint8), mask, boxes)


def _places(relation: str, radii: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """Where the middles of things are: apart, inside of the picture, the first as the relation says, (things, 2)."""
    low, high = radii[:, None], side - radii[:, None]
    least = radii[:, None] + radii + GAP * side
    np.fill_diagonal(least, 0)
    while True:
        places = generator.uniform(low, high, (TRIES, len(radii), 2))
        apart = np.hypot(*np.moveaxis(places[:, :, None] - places[:, None], -1, 0))  # (TRIES, things, things)
        good = (apart >= least).all(axis=(1, 2))
        if relation:
            good &= _holds(relation, places[:, 1] - places[:, 0])
        if good.any():
            return places[good.argmax()]


def _holds(relation: str, way: np.ndarray) -> np.ndarray:
    """Whether the way from the first thing to the second (n, 2) is as the relation says."""
    right, down = way.T
    along, across = (right, down) if relation in ("left of", "right of") else (down, right)
    if relation in ("right of", "below"):
        along = -along
    return np.abs(across) <= SLANT * along


def _cover(shape: str, place: np.ndarray, radius: float, angle: float, side: int) -> np.ndarray:
    """Which share of each pixel a thing covers, (S, S)."""
    (left, top), (right, bottom) = np.floor(place - radius).astype(int), np.ceil(place + radius).astype(int)
    x = _points(left, right, place[0]) / radius  # (columns K,)
    y = _points(top, bottom, place[1])[:, None] / radius  # (rows K, 1)
    inside = INSIDE[shape](np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x)
    cover = np.zeros((side, side))
    cover[top:bottom, left:right] = inside.reshape(bottom - top, POINTS, right - left, POINTS).mean(axis=(1, 3))
    return cover


def _points(first: int, last: int, middle: float) -> np.ndarray:
    """Points of the pixels from `first` to `last`, as they are from the middle of a thing, ((last - first) K,)."""
    return first + (np.arange(POINTS * (last - first)) + 0.5) / POINTS - middle


def _ground(side: int, generator: np.random.Generator) -> np.ndarray:
    """A blurred ground that is neither dark nor bright, (S, S, 3)."""
    coarse = generator.uniform(95, 165, (4, 4, 3)).astype(np.uint8)
    blurred = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(blurred).astype(float)
