"""What answers of a model say: the class that is likeliest, or a number; and the labels that data has all the same.

L classes.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from d2v.evaluation.class_names import in_order, names_of, numbered
from d2v.finetuning.scores import agreement, regression
from d2v.modalities.common import tables
from d2v.protocols import Known, Says

REGRESSION = "regression"


def says(config: Any, data: Any, every: bool) -> Says:
    """Of a classifier's config its classes, `every`: with the probability of each; else its numbers.

    ValueError: `every`, of numbers.
    """
    if config.problem_type == REGRESSION:
        if every:
            raise ValueError("probabilities=true asks for those of classes, and this model gives numbers: leave it out")
        return lambda samples, index, answer: [of_number(answer)]
    names = [config.id2label[number] for number in range(config.num_labels)]
    return lambda samples, index, answer: [of_class(names, answer, every=every)]


def known(config: Any, settings: Any, folder: Path, source: datasets.Dataset) -> Known | None:
    """The classes or numbers in the column of data.label.

    What is no class of the model is shown and not scored, and told. ValueError: nothing is, or a cell is no number.
    """
    column = settings.data.label
    if column not in source.column_names:
        return None
    cells = tables.cells(source, column, np.arange(len(source)))
    if config.problem_type == REGRESSION:
        numbers = [_number(cell, column) for cell in cells.tolist()]
        return Known("label", numbers, numbers, _score_numbers)
    classes = [config.id2label[number] for number in range(config.num_labels)]
    names = names_of(cells, tables.classes(source, column), column, classes)
    forms = {_form(name): name for name in classes}
    meant = {name: name if name in classes else forms.get(_form(name)) for name in {*names} - {None}}
    others = in_order(name for name, one in meant.items() if one is None)
    said = f"{', '.join(map(repr, others[:3]))}{', ...' if len(others) > 3 else ''}"
    if others and len(others) == len(meant):
        raise ValueError(f"the column {column!r} holds {said}; the classes are {', '.join(classes[:20])}")
    wanted = [None if name is None else meant[name] for name in names]
    left = sum(name is not None for name in names) - sum(one is not None for one in wanted)
    note = f"{left} labels are no classes of the model and not scored: {said}" if left else ""
    return Known("label", names, wanted, partial(_score_classes, classes), note)


def _form(name: str | None) -> str | float | None:
    """What two ways to write a class have in common: True and true, 7.0 and 7."""
    value = tables.number(name)
    if value == value:
        return value
    return str(name).lower() if str(name).lower() in ("true", "false") else name


def _number(cell: Any, column: str) -> float | None:
    """None: an empty cell. ValueError: no number."""
    if cell is None or cell != cell or str(cell).strip().lower() in ("", "nan"):
        return None
    if not np.isfinite(tables.number(cell)):
        raise ValueError(f"the column {column!r} holds {cell!r}, which is no number")
    return tables.number(cell)


def _score_classes(classes: Sequence[str], labels: Sequence[str], rows: list[list[dict]]) -> dict[str, float]:
    predicted = numbered([row["prediction"] for (row,) in rows], classes)
    return agreement(numbered(labels, classes), predicted, len(classes))


def _score_numbers(labels: Sequence[float], rows: list[list[dict]]) -> dict[str, float]:
    return regression(np.array([row["prediction"] for (row,) in rows]), np.array(labels))


def of_class(names: Sequence[str], logits: np.ndarray, *, every: bool = False) -> dict[str, Any]:
    """The likeliest class by logits (L,), its probability, and with `every` that of each class."""
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares = (shares / shares.sum()).round(6).tolist()
    best = int(logits.argmax())
    each = {f"p_{name}": share for name, share in zip(names, shares, strict=True)} if every else {}
    return {"prediction": names[best], "probability": shares[best], **each}


def of_number(answer: np.ndarray) -> dict[str, float]:
    """The one number of an answer (1,)."""
    return {"prediction": decimal(answer[0])}


def decimal(value: np.floating) -> float:
    """As short as its precision allows: 0.3 of a float32 is not 0.30000001192092896."""
    return float(str(value))
