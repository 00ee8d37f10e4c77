"""Finds the samples that are nearest to one, by the features that `d2v embed` wrote.

d2v search TABLE.parquet id=NAME [k=10]
d2v search TABLE.parquet CONFIG model=PATH file=PATH [k=10] [key=value ...]

NAME is an id of the table. With `file` the query is a file that need not be in it; model and CONFIG are those that
made the table. Printed are the cosine, after the table's mean is taken off, and the id of each.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet

from d2v.config.cli import run_cli, take_arguments
from d2v.config.written import in_home
from d2v.evaluation.nearest import cosines
from d2v.scripts import embed


def main(argv: list[str]) -> None:
    """`argv`: see above. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "id", "file", "model", "k")
    if not rest or not rest[0].endswith(".parquet") or bool(given["id"]) == bool(given["file"]):
        raise ValueError("usage: d2v search TABLE.parquet id=NAME, or TABLE.parquet CONFIG model=PATH file=PATH")
    number = given["k"] or "10"
    if not number.isdecimal() or not int(number):
        raise ValueError(f"k is {number!r}; it must be at least 1")
    ids, features = read(Path(in_home(rest[0])))
    if given["id"]:
        if given["id"] not in ids:
            raise ValueError(f"id={given['id']}: {rest[0]} has no such id; its first is {ids[0]}")
        query = features[ids.index(given["id"])]
    else:
        query = embedded(rest[1:], given["model"], given["file"])
    if len(query) != features.shape[1]:
        raise ValueError(f"model={given['model']} gives {len(query)} numbers, {rest[0]} has {features.shape[1]} a row")
    for cosine, name in nearest(query, features, ids, int(number)):
        print(f"{cosine:6.3f}  {name}")


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and features (N, D) of a table. ValueError: there is none."""
    try:
        table = pyarrow.parquet.read_table(path, columns=["id", "features"])
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no table of d2v embed: {str(error).splitlines()[0]}") from None
    if not len(table):
        raise ValueError(f"{path} has no rows")
    return table["id"].to_pylist(), np.stack(table["features"].to_numpy())


def embedded(arguments: list[str], model: str, file: str) -> np.ndarray:
    """Features of one file, (D,). ValueError: as embed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "query.parquet"
        embed.main([*arguments, f"model={model}", f"data.path={file}", f"out={out}"])
        return read(out)[1][0]


def nearest(query: np.ndarray, features: np.ndarray, ids: list[str], number: int) -> list[tuple[float, str]]:
    """Cosine and id of the `number` rows that are nearest, the nearest first."""
    (near,) = cosines(query[None], features)
    order = np.argsort(-near, kind="stable")[:number]
    return [(float(near[row]), ids[row]) for row in order]


if __name__ == "__main__":
    run_cli(main)
