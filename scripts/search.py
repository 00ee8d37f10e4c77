"""Finds the samples that are nearest to words, a picture, a sound or another sample, in a table of `d2v embed`.

d2v search TABLE.parquet query="a red square"|photo.png|clip.wav [k=10] [out=hits.png]
d2v search TABLE.parquet id=NAME [k=10] [out=hits.png]

What a query is shows its file's ending; what names no file is words. It is read by the model that made the table,
wherever that aligns what the query is with what the table holds; model=PATH and data.path=PATH say where model and
files are now, if they have moved. NAME is an id of the table. Printed are the cosine and the id of each; out, beside
the table if it is not given, is a picture of the query and of what was found.
"""

from pathlib import Path
from typing import Any

import torch

from d2v import files
from d2v.config.cli import run_cli, take_arguments
from d2v.config.written import in_home
from d2v.evaluation.figures import Tile, hits_figure
from d2v.evaluation.index import Index, read_index
from d2v.evaluation.queries import Query, embedded, readers
from d2v.modalities.common.behind import pictures
from d2v.modalities.common.kinds import extension, is_of
from d2v.pictures import write_png
from d2v.shown import printable

USAGE = "usage: d2v search TABLE.parquet query=WORDS|FILE, or TABLE.parquet id=NAME [k=10] [out=FILE.png]"
DRAWN = 10  # hits in a picture


def main(argv: list[str]) -> None:
    """`argv`: see above. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "id", "query", "model", "k", "out", "data.path")
    if len(rest) != 1 or not rest[0].endswith(".parquet") or bool(given["id"]) == bool(given["query"]):
        raise ValueError(USAGE)
    number = given["k"] or "10"
    if not number.isdecimal() or not int(number):
        raise ValueError(f"k is {number!r}; it must be at least 1")
    place = Path(in_home(rest[0]))
    out = Path(given["out"]) if given["out"] else place.with_name(f"{place.stem}_search.png")
    if out.suffix != ".png":
        raise ValueError(f"out={out} must end in .png")
    files.check_place(out)
    files.check_file(out)
    index = read_index(place)
    if given["id"]:
        if given["id"] not in index.ids:
            raise ValueError(f"id={given['id']}: {place} has no such id; its first is {index.ids[0]}")
        query = Query(index.features[index.ids.index(given["id"])], None)
    else:
        query = embed_query(index, given["query"], given["model"])
    found = [(cosine, index.ids[row]) for cosine, row in index.nearest(query.vector, int(number))]
    seen, why = see(index, {name for _, name in found} | {given["id"]}, given["data.path"])
    for cosine, name in found:
        words = f"  {seen[name][:80]}" if isinstance(seen.get(name), str) else ""
        print(printable(f"{cosine:6.3f}  {name}{words}"))
    if why:
        print(printable(why))
    sought = given["query"] or given["id"]
    first = Tile(seen.get(sought, sought) if query.picture is None else query.picture, sought)
    draw(first, [Tile(seen.get(name, name), f"{cosine:.2f}  {name}") for cosine, name in found[:DRAWN]], out)


def embed_query(index: Index, query: str, model: str) -> Query:
    """Words or a file as the table's model reads them. ValueError: it cannot."""
    modality, given = kind_of(query, index.about.get("modality", ""))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return embedded(index, modality, given, model, device)


def kind_of(query: str, own: str = "") -> tuple[str, str]:
    """Which modality reads a query, and the words or the file's path that it is; `own`: that of the table.

    ValueError: a file of no kind that is read, or what looks like the name of one that is not there.
    """
    path = Path(in_home(query))
    kinds = {name: module.QUERIES for name, module in readers((own,) if own else ()).items()}
    words = next(name for name, endings in kinds.items() if not endings)
    known = set().union(*kinds.values())
    if path.is_file():
        for name, endings in kinds.items():
            if endings and is_of(path, endings):
                return name, str(path.absolute())
        if path.suffix == ".txt":
            return words, path.read_text("utf-8", errors="replace")
        if extension(path):
            raise ValueError(f"query={query} is a file, but neither a picture nor a sound that is read, nor .txt")
    if extension(path) in known or (path.parent.name and path.parent.is_dir() and " " not in query):
        raise ValueError(f"query={query} looks like a file, and there is none (looked for {path.absolute()})")
    return words, query


def see(index: Index, ids: set[str], path: str) -> tuple[dict[str, Any], str]:
    """What rows look like, by id, and why they cannot be seen, or an empty string."""
    if not index.about:
        return {}, ""
    try:
        return pictures(index.about, ids, path), ""
    except ValueError as error:
        return {}, f"the picture has names only: {error}; data.path=PATH says where the files are now"


def draw(query: Tile, hits: list[Tile], out: Path) -> None:
    """The picture, in rows of five hits behind the query."""
    rows: list[list[Tile | None]] = [[query, *hits[:5]]]
    if hits[5:]:
        rows.append([None, *hits[5:]])
    files.record_results([out])
    write_png(hits_figure(rows, f"nearest to {query.caption}"), out)
    print(f"picture: {out}")


if __name__ == "__main__":
    run_cli(main)
