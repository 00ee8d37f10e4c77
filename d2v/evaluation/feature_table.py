"""A table of features, written part by part: see parts.py.

n rows of a part, N of all, D width.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d2v import files
from d2v.evaluation.parts import Parts
from d2v.files import written

FORMATS = (".parquet", ".npy")
ABOUT = "d2v"  # the key of a parquet's metadata under which it says what it holds


class Tokens(NamedTuple):
    """The tokens of n samples, one after the other."""

    rows: np.ndarray  # (all of them, D) float32
    counts: list[int]  # n, how many each has


class Shards(Parts):
    """Parts of the table `out`, whose format is one of FORMATS."""

    def __init__(self, out: Path, settings: dict, *, places: Collection[str] = (), overwrite: bool = False):
        """As Parts."""
        if out.suffix == ".npy":
            files.check_file(out.with_suffix(".ids.json"))
        super().__init__(out, settings, places=places, overwrite=overwrite)

    def add(
        self,
        number: int,
        ids: list[str],
        features: np.ndarray | Tokens,
        bad: list[tuple[str, str]],
        inputs: str,
    ) -> None:
        """One part: ids of n samples, (n, D) float32 or their tokens, ids of bad ones with the reason, a digest of its
        inputs."""
        rows = features.rows if isinstance(features, Tokens) else features
        column: Any = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        if isinstance(features, Tokens):
            column = pa.ListArray.from_arrays(np.cumsum([0, *features.counts], dtype=np.int32), column)
        self.keep(number, pa.table({"id": pa.array(ids, pa.string()), "features": column}), bad, inputs)

    def join(self, about: dict | None = None) -> None:
        """Writes `out` and removes the parts.

        .npy: (N, D) float32, and the ids as a JSON list in a file of the same name, .ids.json. `about`: what a parquet
        says of itself, see d2v/evaluation/index.py.
        """
        with written(self.out) as temporary:
            if self.out.suffix == ".parquet":
                self._join_parquet(temporary, about or {})
            else:
                self._join_npy(temporary)
        files.record_results([self.out])
        files.remove_folder(self.folder)

    def _join_parquet(self, path: Path, about: dict) -> None:
        paths = self.paths()
        metadata = {ABOUT: json.dumps(about)}
        schema = pq.read_schema(paths[0]).with_metadata(metadata)
        with pq.ParquetWriter(path, schema) as writer:
            for part in paths:
                writer.write_table(pq.read_table(part).replace_schema_metadata(metadata))

    def _join_npy(self, path: Path) -> None:
        paths = self.paths()
        dim = pq.read_schema(paths[0]).field("features").type.list_size
        shape, start = (len(self), dim), 0
        ids_file = self.out.with_suffix(".ids.json")
        files.record_results([ids_file])
        # Written, not mapped: a full disk kills whoever writes to mapped memory.
        with written(ids_file) as place, place.open("w") as ids, path.open("wb") as array:
            np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for part in paths:
                table = pq.read_table(part)
                features = table["features"].combine_chunks().flatten().to_numpy()
                array.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
                for row, name in enumerate(table["id"].to_pylist(), start):
                    ids.write(f"{',' if row else '['}\n{json.dumps(name)}")
                start += len(table)
            ids.write("\n]\n")
