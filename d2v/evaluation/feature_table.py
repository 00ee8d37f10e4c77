"""A table of features written part by part: each part whole or not at all, joined into one file at the end.

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
from d2v.config.differences import changes
from d2v.files import written

FORMATS = (".parquet", ".npy")
ABOUT = "d2v"  # the key of a parquet's metadata under which it says what it holds


class Tokens(NamedTuple):
    """The tokens of n samples, one after the other."""

    rows: np.ndarray  # (all of them, D) float32
    counts: list[int]  # n, how many each has


class Shards:
    """Parts of the table `out`, whose format is one of FORMATS, in a folder beside it."""

    def __init__(self, out: Path, settings: dict, *, places: Collection[str] = (), overwrite: bool = False):
        """`settings`: what the features depend on; `places`: the dotted names of those that are paths.

        ValueError: parts of other settings.
        """
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        files.check_folder(self.folder)
        if out.suffix == ".npy":
            files.check_file(out.with_suffix(".ids.json"))
        place = self.folder / "settings.json"
        if place.is_file():
            changed = changes(json.loads(place.read_text()), json.loads(json.dumps(settings)), places)
            if changed and not overwrite:
                raise ValueError(
                    f"{self.folder} holds parts that were made otherwise ({'; '.join(changed[:8])}); "
                    "run.overwrite=true begins anew"
                )
            if changed:
                files.remove_folder(self.folder)
        self._record(place)
        with written(place) as temporary:
            temporary.write_text(json.dumps(settings))

    def has(self, number: int, inputs: str) -> bool:
        """Whether a part of the same inputs is there, whole."""
        try:
            metadata = pq.read_schema(self._path(number)).metadata or {}
        except (OSError, pa.ArrowInvalid):
            return False
        return metadata.get(b"inputs") == inputs.encode()

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
        table = pa.table(
            {"id": pa.array(ids, pa.string()), "features": column}, metadata={"bad": json.dumps(bad), "inputs": inputs}
        )
        self._record(self._path(number))
        with written(self._path(number)) as temporary:
            pq.write_table(table, temporary)

    def bad(self) -> list[tuple[str, str]]:
        """Ids and reasons of all bad samples."""
        bad = []
        for path in self._paths():
            for name, why in json.loads(pq.read_schema(path).metadata[b"bad"]):
                bad.append((name, why))
        return bad

    def __len__(self) -> int:
        """Rows of all parts."""
        return sum(pq.read_metadata(path).num_rows for path in self._paths())

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
        paths = self._paths()
        metadata = {ABOUT: json.dumps(about)}
        schema = pq.read_schema(paths[0]).with_metadata(metadata)
        with pq.ParquetWriter(path, schema) as writer:
            for part in paths:
                writer.write_table(pq.read_table(part).replace_schema_metadata(metadata))

    def _join_npy(self, path: Path) -> None:
        paths = self._paths()
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

    def _record(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.record(path.parent, [path.name])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))
