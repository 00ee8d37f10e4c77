"""A folder of data that d2v makes: whole or not at all, with the settings it was made by, and never over something."""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2v.config.bases import read_yaml
from d2v.config.differences import changes
from d2v.config.loading import save_yaml
from d2v.files import filled

MADE = "made.yaml"


def make(folder: Path, kind: str, settings: Any, fill: Callable[[Path, Any], list[str]]) -> list[str]:
    """Has `fill` write data of a kind by `settings` into a folder; returns what it says, or that all was there before.

    ValueError: the folder holds something else, or data of other settings; or as `fill`.
    """
    wanted = {kind: dataclasses.asdict(settings)}
    if (folder / MADE).is_file():
        changed = changes(read_yaml(folder / MADE), wanted)
        if not changed:
            return [f"{folder} is as this command makes it: nothing was changed"]
        raise ValueError(f"{folder} was made by other settings ({'; '.join(changed)}); choose another place")
    with filled(folder) as draft:
        said = fill(draft, settings)
        save_yaml(wanted, draft / MADE)
    return said


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as csv; the first one's keys are the columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
