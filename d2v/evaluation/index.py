"""A table that `d2v embed` wrote, to be searched: its rows, what it says of itself, and which rows are nearest.

N rows, D width.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d2v.evaluation.config import PROJECTED
from d2v.evaluation.feature_table import ABOUT
from d2v.evaluation.nearest import cosines

# what a table says: which model made it and its fingerprint, and the settings that it was made with
SAID = ("model", "weights", "modality", "data", "frontend", "embed")


class Index(NamedTuple):
    """The rows of a table in memory."""

    path: Path
    ids: list[str]
    features: np.ndarray  # (N, D)
    about: dict[str, Any]  # SAID; empty: another program wrote the table, or an older d2v

    @property
    def projected(self) -> bool:
        """Whether rows lie where a model aligns modalities, so that queries of each of these can be compared."""
        return bool(self.about) and self.about["embed"]["layers"] == [PROJECTED]

    def nearest(self, query: np.ndarray, number: int) -> list[tuple[float, int]]:
        """Cosine with (D,), and place, of the `number` rows that are nearest, the nearest first.

        The table's mean is taken off both, but not where rows are projected: they were trained to lie near by their
        cosines as they are, and the mean of one modality is not another's.
        """
        near = self.features @ query if self.projected else cosines(query[None], self.features)[0]
        return [(float(near[row]), int(row)) for row in np.argsort(-near, kind="stable")[:number]]


def read_index(path: Path) -> Index:
    """A table by its file. ValueError: it is not there, is none of embed's, has no rows, or they are not finite."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: `d2v embed CONFIG model=PATH out={path}` writes it")
    try:
        table = pq.read_table(path, columns=["id", "features"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no table of d2v embed: {str(error).splitlines()[0]}") from None
    if not len(table):
        raise ValueError(f"{path} has no rows: there is nothing to search")
    kind = table.schema.field("features").type
    if pa.types.is_nested(kind) and pa.types.is_nested(kind.value_type):
        raise ValueError(
            f"{path} holds each token of a sample (embed.pool=none), of which no sample is nearest: embed its files "
            "again by embed.pool=mean"
        )
    features = np.stack(table["features"].to_numpy())
    if not np.isfinite(features).all():
        raise ValueError(f"{path} holds features that are not finite")
    return Index(path, table["id"].to_pylist(), features, _about(path, table.schema.metadata or {}))


def _about(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What a table says of itself. ValueError: something else than embed writes."""
    try:
        about = json.loads(metadata.get(ABOUT.encode(), b"{}"))
    except ValueError:
        about = None
    if isinstance(about, dict) and (not about or all(name in about for name in SAID)):
        return about
    raise ValueError(f"{path} does not say what this version of d2v embed writes; embed its files again")
