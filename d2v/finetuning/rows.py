"""Rows of what was predicted, as a csv that a spreadsheet may open."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from d2v.files import written
from d2v.shown import in_cell


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """All rows have the columns of the first."""
    with written(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, row in enumerate(rows):
            if not number:
                writer.writerow(map(in_cell, row))
            writer.writerow(map(in_cell, row.values()))
