"""What the rows of a part hold, as a digest: features that were made of them are good as long as it stays the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets

from d2v.modalities.common.tables import PATH_COLUMNS
from d2v.training.same_data import table_marks


class PartInputs:
    """The inputs of any rows of a source.

    Of a file its size and when it was changed, of a table's cell what it says. Media that are cells of a table count by
    the table's file.
    """

    def __init__(self, rows: Any, path: Any):
        self.rows, self.tables = rows, {}
        if isinstance(rows, datasets.Dataset):
            plain = [name for name, feature in rows.features.items() if _is_plain(feature)]
            if len(plain) < len(rows.column_names):
                self.tables = table_marks(path)
            self.rows = rows.select_columns(plain) if plain else [None] * len(rows)

    def __call__(self, start: int, stop: int) -> str:
        """A digest of the rows from `start` to `stop`."""
        digest = hashlib.sha256(json.dumps([self.tables, start, stop]).encode())
        if isinstance(self.rows, datasets.Dataset):
            for name, cells in self.rows[start:stop].items():
                marks = [_of_file(cell) for cell in cells] if name in PATH_COLUMNS else []
                digest.update(json.dumps([name, cells, marks], default=str).encode())
        else:
            cells = [self.rows[row] for row in range(start, stop)]
            marks = [_of_file(cell) for cell in cells]
            digest.update(json.dumps([cells, marks], default=str).encode())
        return digest.hexdigest()


def _is_plain(feature: Any) -> bool:
    """Whether cells of this type are a string, a number or a class."""
    return isinstance(feature, datasets.Value | datasets.ClassLabel) and "binary" not in feature.dtype


def _of_file(cell: Any) -> list[int] | None:
    """Size and time of the last change of the file that a cell names; None if it names none."""
    try:
        found = Path(cell).stat()
    except (OSError, ValueError, TypeError):
        return None
    return [found.st_size, found.st_mtime_ns]
