"""Writes what a fine-tuned model says of your files, recordings or texts: classes, numbers, transcripts or boxes.

d2v predict MODEL data.path=FOLDER out=predictions.csv [probabilities=true] [columns=NAME,NAME] [data.split=test ...]

MODEL is the folder of a run of `d2v finetune`, or its export/, which says how data is found and read; all splits are
read unless data.split names some. Columns are those of the run's own predictions: id (the path below data.path, or
split and row), columns of the data that columns= names, prediction and probability (with probabilities=true that of
each class too); of boxes there is a row each. out= may end in .parquet too. Recordings above data.max_seconds are
transcribed whole. Where the data has labels (the column that was learnt, boxes) predictions are scored by them, and
they are a column. Parts are kept in out.parts/ until the end: the same command goes on from them. Samples that cannot
be read are left out, counted and named.
"""

from pathlib import Path
from typing import Any

import datasets
import torch

from d2v.config.cli import run_cli, take_arguments
from d2v.config.written import in_home
from d2v.evaluation.embedding import fingerprint
from d2v.files import check_new, locked
from d2v.finetuning.finished import Finished, open_finished
from d2v.finetuning.predicting import FORMATS, Predictions, predict_split, scores
from d2v.modalities.common.noted import notes, splits
from d2v.modalities.common.part_inputs import PartInputs
from d2v.modalities.common.tables import cells_of, column_names
from d2v.protocols import Known, NoSplitError, Rows, Says
from d2v.reading import named
from d2v.settings import places_in
from d2v.shown import printable
from d2v.split_names import uses

# Names of columns that predictions may have.
OWN = ("id", "prediction", "probability", "beam", "label", "transcript", "score", "xmin", "ymin", "xmax", "ymax")


def main(argv: list[str]) -> None:
    """`argv`: MODEL data.path=FOLDER out=FILE.csv [key=value ...]. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "out", "probabilities", "columns")
    if not rest or "=" in rest[0] or not given["out"]:
        raise ValueError("usage: d2v predict MODEL data.path=FOLDER out=FILE.csv [probabilities=true] [key=value ...]")
    every, out = {"true": True, "false": False, "": False}.get(given["probabilities"].lower()), Path(given["out"])
    if every is None:
        raise ValueError(f"probabilities={given['probabilities']} must be true or false")
    if out.suffix not in FORMATS:
        raise ValueError(f"out={out} must end in {' or '.join(FORMATS)}")
    finished = open_finished(in_home(rest[0]), rest[1:])
    model, config, reading, _ = finished
    check_new(out, config.run.overwrite)
    says = reading.says(model.config, config.data, every)
    opened = splits_of(finished)
    columns = columns_of([rows for _, rows in opened], given["columns"])
    known = labels_of(finished, opened)
    said: dict[str, None] = {}  # each once, in the order of their coming
    for _, rows in opened:
        said |= dict.fromkeys(notes(rows))
    names = "+".join(split for split, _ in opened)
    more = ["data.split=NAME, or several as NAME+NAME"]
    print(*map(printable, said), printable(uses(splits(opened[0][1]), {names: "is read"}, more)), sep="\n")
    finished = finished._replace(model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval())
    settings = {"weights": fingerprint(model), "probabilities": every, "data": finished.settings()}
    with locked(out.with_name(f"{out.name}.parts")):
        places = places_in({"data": config.data})
        predictions = Predictions(out, settings, places=places, overwrite=config.run.overwrite)
        total = predict(finished, says, opened, predictions)
        finish(predictions, total, config.data, known, columns)


def splits_of(finished: Finished) -> list[tuple[str, Any]]:
    """The splits of the data and their rows, unread: those that data.split names, else all.

    ValueError: there are none.
    """
    data, open_rows = finished.config.data, finished.reading.samples.open
    if finished.is_typed("split"):
        return [(data.split, open_rows(data, data.split))]
    try:
        rows = open_rows(data, data.split)
        names = splits(rows)
    except NoSplitError as error:
        if not error.splits:
            raise
        rows, names = None, error.splits
    if rows is not None and len(names) < 2:
        return [(data.split, rows)]
    return _once([(name, open_rows(data, name)) for name in names])


def _once(opened: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Splits of images with boxes without images of a split before, as trainval holds those of train."""
    seen, found = set[str](), []
    for split, rows in opened:
        if "boxes" in rows.column_names:
            files = rows["file"]
            rows = rows.select([row for row, file in enumerate(files) if file not in seen])
            seen.update(files)
        if len(rows):
            found.append((split, rows))
    return found


def predict(finished: Finished, says: Says, opened: list[tuple[str, Any]], predictions: Predictions) -> int:
    """Fills `predictions` with what is said of the splits; of how many rows."""
    model, config, reading, folder = finished
    number = total = 0
    for split, rows in opened:

        def part(start: int, stop: int, split: str = split, rows: Any = rows) -> Any:
            chosen = Rows(rows.select(range(start, stop)), start)
            samples = reading.samples(config.data, config.frontend, split=split, folder=folder, rows=chosen)
            if start == 0:
                more = [printable(note) for note in samples.report.notes if note not in notes(rows)]
                print("\n".join(more), end="\n" if more else "")
            return samples

        inputs = PartInputs(rows, config.data.path)
        number = predict_split(model, says, part, inputs, len(rows), predictions, first=number, before=total)
        total += len(rows)
    predictions.cut(number)
    return total


def columns_of(sources: list[datasets.Dataset], names: str) -> dict[str, list[Any]]:
    """Columns of the data that go into the table. ValueError: there is none of a name, or it holds files."""
    found: dict[str, list[Any]] = {}
    for name in filter(None, names.split(",")):
        if name in OWN or name.startswith("p_"):
            raise ValueError(f"columns={names}: predictions may have a column {name!r} of their own")
        found[name] = []
        for rows in sources:
            feature = rows.features.get(name)
            if not isinstance(feature, datasets.Value | datasets.ClassLabel):
                there = ", ".join(column_names(rows))
                raise ValueError(f"columns={names}: {name!r} is no column of words or numbers; there are {there}")
            cells = cells_of(rows, name)
            if isinstance(feature, datasets.ClassLabel):
                cells = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
            found[name] += cells
    return found


def labels_of(finished: Finished, opened: list[tuple[str, Any]]) -> Known | None:
    """Labels that the data has all the same; why it is not scored by them, if they are of no use.

    ValueError: a column that was typed is not there.
    """
    found = []
    for split, rows in opened:
        finished.check_labels(rows)
        try:
            found.append(finished.known(split, rows))
        except ValueError as error:
            print(printable(f"not scored: {error}"))
            return None
    labels = next((one for one in found if one is not None), None)
    if labels is None:
        return None
    values, wanted = list[Any](), list[Any]()
    for one, (_, rows) in zip(found, opened, strict=True):
        values += [None] * len(rows) if one is None else one.values
        wanted += [None] * len(rows) if one is None else one.wanted
    note = "; ".join(one.note for one in found if one is not None and one.note)
    return labels._replace(values=values, wanted=wanted, note=note)


def finish(predictions: Predictions, total: int, data: Any, known: Known | None, columns: dict[str, list[Any]]) -> None:
    """Joins the parts, and says how many samples there are and what they score. ValueError: too many are bad."""
    predictions.check(data.max_bad_share, data.path)
    bad, read = dict(predictions.bad()), len(predictions)
    said, scored = scores(known, predictions) if known else ({}, 0)
    cut = sum(one.cut for one in predictions)
    labels = {known.column: known.values} if known and known.column else {}
    predictions.join({**columns, **labels})
    print(f"samples in {predictions.out}: {read}{printable(f'; left out {len(bad)}: {named(bad)}') if bad else ''}")
    if total > read + len(bad):
        print(f"rows without a word, left out: {total - read - len(bad)}")
    if cut:
        print(f"longer than what is read at once: {cut}, of which a part is read, as in training")
    if known and known.note:
        print(printable(known.note))
    if said:
        print(f"by the labels of {scored} of them: {', '.join(f'{name} {value:.4f}' for name, value in said.items())}")


if __name__ == "__main__":
    run_cli(main)
