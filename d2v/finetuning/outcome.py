"""What a finished run of fine-tuning leaves: scores, predictions and confusion matrices of its exported model."""

import json
from pathlib import Path

import numpy as np
import torch

from d2v.config.bases import read_yaml
from d2v.config.loading import modality_of
from d2v.files import written
from d2v.finetuning.rows import write_rows
from d2v.finetuning.validation import BATCH_SIZE, outputs
from d2v.models.task_models import TaskModel
from d2v.protocols import Labelled, ScoredSplit
from d2v.reading import Reader
from d2v.shown import in_markdown
from d2v.training.curves import plot_confusion
from d2v.training.run_folder import CONFIG

RESULTS = "results.json"
FILES = (
    RESULTS,
    "predictions_validation.csv",
    "predictions_test.csv",
    "confusion_validation.png",
    "confusion_test.png",
    "boxes_validation.png",
    "boxes_test.png",
    "report.html",
)


def write_outcome(
    folder: Path, model_class: type[TaskModel], data: Labelled, step: int, reader: Reader, device: torch.device
) -> dict[str, dict[str, float]]:
    """Scores of the exported model by split, written and printed.

    Beside them predictions as csv and, as PNG, the confusion matrix of classes, or images with their boxes.
    """
    model = model_class.from_pretrained(folder / "export").to(device)
    scores = {}
    for name, whole in data.splits.items():
        split, logits = outputs(model, whole, BATCH_SIZE, reader, device)
        rows = data.rows(split, logits)
        scores[name] = data.score(logits, split.labels)
        if data.row_scores:
            scores[name] |= data.row_scores(rows)
        write_rows(folder / f"predictions_{name}.csv", rows)
        if data.classes:
            _plot_confusion(split, logits, data.classes, folder / f"confusion_{name}.png")
        if data.draw:
            data.draw(split, logits, folder / f"boxes_{name}.png")
    with written(folder / RESULTS) as draft:
        draft.write_text(json.dumps({"steps": step, "scores": scores}, indent=1) + "\n")
    if data.classes and len(data.classes) == 2:
        print(f"f1 is that of {data.classes[1]!r}, the second of two classes")
    say_scores(folder, scores)
    return scores


def kept_scores(folder: Path) -> dict[str, dict[str, float]]:
    """The scores by split that a finished run's folder holds."""
    return json.loads((folder / RESULTS).read_text())["scores"]


def say_scores(folder: Path, scores: dict[str, dict[str, float]]) -> None:
    """Prints the scores by split, beside those of the runs in the folder around."""
    for name, values in scores.items():
        print(f"{name}: {', '.join(f'{score} {value:.4f}' for score, value in values.items())}")
    print(f"model in {folder / 'export'}; runs beside this one:\n{table_of_runs(folder.parent, of=folder)}")


def _modality(folder: Path) -> str | None:
    """That of a run's folder; None: its config cannot be read."""
    try:
        return modality_of(read_yaml(folder / CONFIG), CONFIG)
    except (ValueError, OSError):
        return None


def _plot_confusion(split: ScoredSplit, logits: list[np.ndarray], classes: list[str], path: Path) -> None:
    predicted = np.array([x.argmax() for x in logits])
    plot_confusion(np.asarray(split.labels), predicted, classes, path)


def table_of_runs(folder: Path, of: Path | None = None) -> str:
    """Markdown: the test scores (else those of validation) of every finished run in a folder, with the split that they
    are of; "" if there is none.

    `of`: a run's folder; those of other modalities are left out.
    """
    scores_of, split_of, modality = {}, {}, of and _modality(of)
    for path in sorted(folder.glob(f"*/{RESULTS}")):
        if modality and _modality(path.parent) not in (modality, None):
            continue
        splits = json.loads(path.read_text())["scores"]
        split = "test" if splits.get("test") else "validation"
        scores_of[path.parent.name], split_of[path.parent.name] = splits.get(split) or {}, split
    names: dict[str, None] = {}  # a set that keeps its order
    for scores in scores_of.values():
        names.update(dict.fromkeys(scores))
    if not names:
        return ""
    lines = [f"| run | of | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for run, scores in scores_of.items():
        cells = [f"{scores[name]:.4g}" if name in scores else "" for name in names]
        lines.append(f"| {in_markdown(run)} | {split_of[run]} | {' | '.join(cells)} |")
    return "\n".join(lines)
