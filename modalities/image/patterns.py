"""Demo data: pictures of 32 x 32 pixels, each a patterned ball on a blurred ground; the pattern is the class.

Place, size, phase, period, angle and colours are drawn for every picture: no pixel says anything by itself, and the
average picture of each class is grey.

N pictures, S pixels of a side.
"""

import functools
import io
from collections.abc import Callable

import datasets
import numpy as np
from PIL import Image

from d2v.protocols import NoSplitError

SIDE = 32
PICTURES = {"train": 2000, "validation": 500, "test": 500}
TURN = 2 * np.pi
# brightness between -1 and 1 of a point (u, v), in periods from the middle of the ball
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes across": lambda u, v: np.sin(TURN * v),
    "stripes down": lambda u, v: np.sin(TURN * u),
    "stripes rising": lambda u, v: np.sin(TURN * (u + v) / np.sqrt(2)),
    "stripes falling": lambda u, v: np.sin(TURN * (u - v) / np.sqrt(2)),
    "checks": lambda u, v: np.sign(np.sin(TURN * u) * np.sin(TURN * v)),
    "diamonds": lambda u, v: np.sign(np.sin(TURN * (u + v) / 2) * np.sin(TURN * (u - v) / 2)),
    "dots": lambda u, v: 1 - 2 * (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3),
    "grid": lambda u, v: 1 - 2 * ((u % 1 < 0.25) | (v % 1 < 0.25)),
    "bricks": lambda u, v: 1 - 2 * ((2 * v % 1 < 0.3) | ((u + 0.5 * (np.floor(2 * v) % 2)) % 1 < 0.2)),
    "zigzag": lambda u, v: np.sin(TURN * (v + np.abs(u % 1 - 0.5))),
}


@functools.cache  # a run, its health checks and what scores it open it each
def dataset(split: str) -> datasets.Dataset:
    """Columns image (PNG bytes) and label. ValueError: another split than train, validation, test."""
    if split not in PICTURES:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(PICTURES)}", list(PICTURES))
    generator = np.random.default_rng(list(PICTURES).index(split))
    labels = generator.permutation(np.arange(PICTURES[split]) % len(PATTERNS))
    pixels = draw(labels, generator)
    cells = [{"bytes": _png(picture), "path": None} for picture in pixels]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(PATTERNS))}
    )
    return datasets.Dataset.from_dict({"image": cells, "label": labels.tolist()}, features=features)


def draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A picture of each pattern (N,), by its number: (N, S, S, 3) uint8."""
    n = len(labels)

    def drawn(low: float, high: float, *shape: int) -> np.ndarray:
        return generator.uniform(low, high, (n, *(shape or (1, 1))))

    rows, columns = np.mgrid[:SIDE, :SIDE]  # (S, S) each
    y, x = rows - drawn(12, 20), columns - drawn(12, 20)  # (N, S, S), from the middle of the ball
    angle, period = drawn(-0.15, 0.15), drawn(5.0, 8.0)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + drawn(0, 1)
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + drawn(0, 1)
    pattern = np.stack([list(PATTERNS.values())[label](u[i], v[i]) for i, label in enumerate(labels)])
    paint, contrast = drawn(95, 160, 1, 1, 3), drawn(40, 80, 1, 1, 3) * generator.choice([-1, 1], (n, 1, 1, 3))
    ball = paint + contrast * pattern[..., None]  # (N, S, S, 3)
    coarse = drawn(85, 170, 4, 4, 3).astype(np.uint8)
    ground = np.stack(
        [np.asarray(Image.fromarray(four).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for four in coarse]
    )
    inside = np.clip(drawn(12, 16) - np.hypot(y, x), 0, 1)[..., None]  # with a soft edge
    pixels = inside * ball + (1 - inside) * ground + generator.normal(0, 8, ball.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()
