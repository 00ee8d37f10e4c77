"""A table that is written part by part, each part whole or not at all, and joined into one file at the end."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d2v import files
from d2v.config.differences import changes
from d2v.files import written
from d2v.reading import named


class Parts:
    """Parts of the table `out` as parquet files in a folder beside it."""

    def __init__(self, out: Path, settings: dict, *, places: Collection[str] = (), overwrite: bool = False):
        """`settings`: what the rows depend on; `places`: the dotted names of those that are paths.

        ValueError: parts of other settings.
        """
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        files.check_folder(self.folder)
        place = self.folder / "settings.json"
        if not place.is_file() and self.paths():  # a kill, while those of other settings were removed
            files.remove_folder(self.folder)
        if place.is_file() and self.paths():
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

    def keep(self, number: int, table: pa.Table, bad: list[tuple[str, str]], inputs: str) -> None:
        """One part: its rows, ids of bad samples with the reason, a digest of its inputs."""
        self._record(self._path(number))
        with written(self._path(number)) as temporary:
            said = {"bad": json.dumps(bad), "inputs": inputs}
            pq.write_table(table.replace_schema_metadata(said), temporary)

    def cut(self, count: int) -> None:
        """Removes parts beyond the first `count`, which are of data that has become less."""
        for path in self.paths():
            if int(path.stem) >= count:
                path.unlink()

    def check(self, max_bad_share: float, where: Any) -> None:
        """ValueError: there is nothing, or a larger share of samples than `max_bad_share` cannot be read."""
        bad = dict(self.bad())
        if not len(self):
            raise ValueError(f"{where} has nothing that can be read{f': {named(bad)}' if bad else ''}")
        if len(bad) > max_bad_share * (len(self) + len(bad)):
            raise ValueError(
                f"{len(bad)} of {len(self) + len(bad)} samples of {where} cannot be read ({named(bad)}); "
                f"data.max_bad_share is {max_bad_share}; the others are kept in {self.folder}"
            )

    def bad(self) -> list[tuple[str, str]]:
        """Ids and reasons of all bad samples."""
        bad = []
        for path in self.paths():
            for name, why in json.loads(pq.read_schema(path).metadata[b"bad"]):
                bad.append((name, why))
        return bad

    def __len__(self) -> int:
        """Rows of all parts."""
        return sum(pq.read_metadata(path).num_rows for path in self.paths())

    def paths(self) -> list[Path]:
        """The files of the parts, in their order."""
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _record(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.record(path.parent, [path.name])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"
