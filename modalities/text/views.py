"""Views of rows of text, for methods that compare them: a row as it is, without some of its tokens, or a part of it.

T tokens of a row, with <s> before and </s> after.
"""

from dataclasses import dataclass

import numpy as np

from d2v.modalities.common import masking
from d2v.modalities.common.checks import check_settings, in_order
from d2v.settings import check_fields, setting

VIEWS = ("same", "deletion", "crop")


@dataclass
class AugmentConfig:
    """How rows are changed; every view draws anew."""

    deletion: float = setting(
        0.2,
        "Of deletion: share of a row's tokens that it takes out, before spans overlap.",
        above=0,
        below=1,
        only={"data.views": "deletion"},
        why="data.views has no deletion",
    )
    deletion_length: int = setting(
        1,
        "Of deletion: tokens that are taken out side by side, 1 as EDA takes words (arXiv 1901.11196), "
        "more as CLEAR takes spans (arXiv 2012.15466).",
        least=1,
        limit=100_000,
        only={"data.views": "deletion"},
        why="data.views has no deletion",
    )
    crop: list[float] = setting(
        [0.5, 1.0],
        "Of crop: least and greatest share of a row's tokens that it holds, drawn uniformly.",
        least=0,
        most=1,
        count=2,
        only={"data.views": "crop"},
        why="data.views has no crop",
    )

    def __post_init__(self):
        """ValueError: a value out of range."""
        check_fields(self, "data.augment")
        good = in_order(self.crop, 0, 1) and self.crop[1] > 0
        check_settings(self, ("crop", good, "[least, most], between 0 and 1"), where="data.augment")


def made(name: str, row: np.ndarray, generator: np.random.Generator, augment: AugmentConfig) -> np.ndarray:
    """The view `name` of a row, two (T,); <s>, </s> and at least one token between them stay.

    "same" relies on the student's dropout for a difference (SimCSE, arXiv 2104.08821).
    """
    if name == "same":
        return row
    words = row[1:-1]
    if name == "deletion":
        share, length = augment.deletion, augment.deletion_length
        words = words[~masking.span(generator, len(words), share, length, min_spans=0, last_frame=True)]
    else:
        size = max(1, round(generator.uniform(*augment.crop) * len(words)))
        start = int(generator.integers(len(words) - size + 1))
        words = words[start : start + size]
    return np.concatenate([row[:1], words, row[-1:]])
