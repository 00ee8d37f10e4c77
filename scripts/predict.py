"""Writes what a fine-tuned model says of your files, recordings or texts: classes, numbers, transcripts or boxes.

d2v predict MODEL data.path=FOLDER out=predictions.csv [probabilities=true] [columns=NAME,NAME] [data.split=test ...]

MODEL is the folder of a run of `d2v finetune`, or its export/, which says how data is found and read; all splits are
read unless data.split names some. Columns are those of the run's own predictions: id (the path below data.path, or
split and row), columns of the data that columns= names, prediction and probability (with probabilities=true that of
each class too); of boxes there is a row each. Recordings above data.max_seconds are transcribed whole. Where the data
has labels (the column that was learnt, boxes) predictions are scored by them, and they are a column. Parts are kept in
out.parts/ until the end: the same command goes on from them. Samples that cannot be read are left out, counted and
named.
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
from d2v.finetuning.predicting import FORMATS, Predictions, predict_all, scores
from d2v.modalities.common.noted import notes, splits
from d2v.modalities.common.part_inputs import PartInputs
from d2v.modalities.common.tables import cells_of, column_names
from d2v.protocols import Known, Rows
from d2v.settings import places_in
from d2v.shown import printable
from d2v.split_names import uses

OWN = ("id", "prediction", "probability", "beam", "score")  # names of columns that predictions have


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
    model, config, reading, folder = finished
    check_new(out, config.run.overwrite)
    says, data = reading.says(model.config, config.data, every), config.data
    rows = finished.rows()
    columns = columns_of(rows, given["columns"])
    known = labels_of(finished, rows)
    print(
        *notes(rows), uses(splits(rows), {data.split: "read"}, ["data.split=NAME, or several as NAME+NAME"]), sep="\n"
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def part(start: int, stop: int) -> Any:
        chosen = Rows(rows.select(range(start, stop)), start)
        samples = reading.samples(data, config.frontend, split=data.split, folder=folder, rows=chosen)
        more = [note for note in samples.report.notes if note not in notes(rows)]
        print(*more if start == 0 else [], sep="\n", end="\n" if more and start == 0 else "")
        return samples

    settings = {"weights": fingerprint(model), "probabilities": every, "data": finished.read()}
    with locked(out.with_name(f"{out.name}.parts")):
        places = places_in({"data": data})
        predictions = Predictions(out, settings, places=places, overwrite=config.run.overwrite)
        predict_all(model, says, part, PartInputs(rows, data.path), len(rows), predictions)
        finish(predictions, len(rows), data, known, columns)


def columns_of(rows: datasets.Dataset, names: str) -> dict[str, list[Any]]:
    """Columns of the data that go into the table. ValueError: there is none of a name, or it holds files."""
    found = {}
    for name in filter(None, names.split(",")):
        if name not in rows.column_names or not isinstance(rows.features[name], datasets.Value | datasets.ClassLabel):
            raise ValueError(
                f"columns={names}: {name!r} is no column of words or numbers; {', '.join(column_names(rows))}"
            )
        if name in OWN:
            raise ValueError(f"columns={names}: predictions have a column {name!r} of their own")
        feature = rows.features[name]
        cells = cells_of(rows, name)
        if isinstance(feature, datasets.ClassLabel):
            cells = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
        found[name] = cells
    return found


def labels_of(finished: Finished, rows: datasets.Dataset) -> Known | None:
    """Labels that the data has all the same, or why it is not scored by them."""
    try:
        return finished.known(rows)
    except ValueError as error:
        print(printable(f"not scored: {error}"))
        return None


def finish(predictions: Predictions, total: int, data: Any, known: Known | None, columns: dict[str, list[Any]]) -> None:
    """Joins the parts, and says how many samples there are and what they score. ValueError: too many are bad."""
    bad, read = predictions.bad(), len(predictions)
    names = "; ".join(f"{name}: {why}" for name, why in bad[:5]) + ("; ..." if len(bad) > 5 else "")
    if not read:
        raise ValueError(f"{data.path} has nothing that can be read{f': {names}' if bad else ''}")
    if len(bad) > data.max_bad_share * total:
        raise ValueError(
            f"{len(bad)} of {total} samples of {data.path} cannot be read ({names}); "
            f"data.max_bad_share is {data.max_bad_share}; the others are kept in {predictions.folder}"
        )
    said, scored = scores(known, predictions) if known else ({}, 0)
    cut = sum(one.cut for one in predictions)
    labels = {known.column: known.values} if known and known.column else {}
    predictions.join({**columns, **labels})
    print(f"samples in {predictions.out}: {read}{printable(f'; left out {len(bad)}: {names}') if bad else ''}")
    if cut:
        print(f"longer than what is read at once: {cut}, of which a part is read, as in training")
    if known and known.note:
        print(printable(known.note))
    if said:
        print(f"by the labels of {scored} of them: {', '.join(f'{name} {value:.4f}' for name, value in said.items())}")


if __name__ == "__main__":
    run_cli(main)
