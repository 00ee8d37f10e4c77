"""Writes what a fine-tuned model says of your files, recordings or texts: classes, numbers, transcripts or boxes.

d2v predict MODEL data.path=FOLDER out=predictions.csv [probabilities=true] [data.split=test ...]

MODEL is the folder of a run of `d2v finetune`, or its export/, which says how data is found and read. Columns are those
of the run's own predictions without the label: id (the path below data.path, or split and row), prediction and
probability (with probabilities=true that of each class too); of boxes a row each. Recordings above data.max_seconds are
transcribed whole. Where the data has labels (the column that was learnt) these are a column too, and predictions are
scored by them. Parts are kept in out.parts/ until the end: the same command goes on from them. Samples that cannot
be read are left out, counted and named.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from d2v.config.cli import run_cli, take_arguments
from d2v.config.written import in_home
from d2v.evaluation.embedding import fingerprint
from d2v.files import check_new, locked
from d2v.finetuning.finished import open_finished
from d2v.finetuning.predicting import Predictions, predict_all, scores
from d2v.modalities.common.part_inputs import PartInputs
from d2v.protocols import Known, Rows, Unlabelled
from d2v.settings import places_in
from d2v.shown import printable
from d2v.split_names import uses


def main(argv: list[str]) -> None:
    """`argv`: MODEL data.path=FOLDER out=FILE.csv [key=value ...]. ValueError: whatever the user can mend."""
    given, rest = take_arguments(argv, "out", "probabilities")
    if not rest or "=" in rest[0] or not given["out"]:
        raise ValueError("usage: d2v predict MODEL data.path=FOLDER out=FILE.csv [probabilities=true] [key=value ...]")
    every, out = {"true": True, "false": False, "": False}.get(given["probabilities"].lower()), Path(given["out"])
    if every is None:
        raise ValueError(f"probabilities={given['probabilities']} must be true or false")
    if out.suffix != ".csv":
        raise ValueError(f"out={out} must end in .csv")
    model, config, reading, folder = open_finished(in_home(rest[0]), rest[1:])
    check_new(out, config.run.overwrite)
    says, data = reading.says(model.config, config.data, every), config.data
    rows = reading.samples.open(data, data.split)
    known = labels_of(reading, model.config, data, rows)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    settings = {
        "weights": fingerprint(model),
        "rows": len(rows),
        "labels": known.name if known else "",
        "probabilities": every,
        "data": {name: getattr(data, name) for name in reading.settings if name != "max_bad_share"},
    }

    def part(start: int, stop: int):
        chosen = Rows(rows.select(range(start, stop)), start)
        samples = reading.samples(data, config.frontend, split=data.split, folder=folder, rows=chosen)
        if start == 0:
            more = ["data.split=NAME, or several as NAME+NAME"]
            print(*samples.report.notes, uses(samples.report.splits, {data.split: "is read"}, more), sep="\n")
        return samples

    with locked(out.with_name(f"{out.name}.parts")):
        places = places_in({"data": data})
        predictions = Predictions(out, _plain(settings), places=places, overwrite=config.run.overwrite)
        predict_all(model, says, part, PartInputs(rows, data.path), len(rows), predictions, known)
        finish(predictions, len(rows), data, known)


def finish(predictions: Predictions, total: int, data: Any, known: Known | None) -> None:
    """Joins the parts, and says how many samples there are and what they score. ValueError: too many are bad."""
    bad = predictions.bad()
    names = "; ".join(f"{name}: {why}" for name, why in bad[:5]) + ("; ..." if len(bad) > 5 else "")
    if len(bad) > data.max_bad_share * total or not len(predictions):
        raise ValueError(
            f"{len(bad)} of {total} samples of {data.path} cannot be read ({names}); "
            f"data.max_bad_share is {data.max_bad_share}; the others are kept in {predictions.folder}"
        )
    said, labelled = scores(known, predictions.rows()) if known else ({}, 0)
    read = predictions.join()
    print(f"{read} samples in {predictions.out}{printable(f'; left out {len(bad)}: {names}') if bad else ''}")
    if said:
        values = ", ".join(f"{name} {value:.4f}" for name, value in said.items())
        print(f"by the labels of {labelled} of them: {values}")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """With dictionaries in place of sections."""
    data = {name: vars(one) if dataclasses.is_dataclass(one) else one for name, one in settings["data"].items()}
    return {**settings, "data": data}


def labels_of(reading: Unlabelled, config: Any, data: Any, rows: Any) -> Known | None:
    """Labels that the data has all the same; why it is not scored by a column that holds something else."""
    try:
        return reading.known(config, data, rows)
    except ValueError as error:
        print(printable(f"not scored: the column {data.label!r} (data.label) {error}"))
        return None


if __name__ == "__main__":
    run_cli(main)
