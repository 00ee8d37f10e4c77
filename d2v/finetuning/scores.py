"""Scores of predictions: GLUE's of classes and numbers, error rates of transcripts; which way each is better; a table over runs.

N samples, C classes.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
from scipy.special import log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

LOWER_IS_BETTER = ("loss", "wer", "cer")


def better(metric: str, value: float, best: float) -> bool:
    """Whether a score beats the best so far; nan never does."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Logits (N, C) and classes (N,) -> accuracy, top-5 of more than five classes, F1 (of class 1, or the mean over classes), Matthews, loss."""
    found, num_classes = logits.argmax(axis=1), logits.shape[1]
    scores = {"accuracy": float(accuracy_score(labels, found))}
    if num_classes > 5:
        scores["top5"] = float(
            (np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels[:, None]).any(axis=1).mean()
        )
    scores["f1"] = float(f1_score(labels, found, average="binary" if num_classes == 2 else "macro", zero_division=0))
    scores["matthews"] = float(matthews_corrcoef(labels, found))
    return scores | {
        "loss": float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())
    }


def regression(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Predicted and true numbers (N,) -> Pearson's and Spearman's correlation (0 where one side is constant) and the mean squared error, "loss"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input, as in the first steps
        correlations = {"pearson": pearsonr(values, labels)[0], "spearman": spearmanr(values, labels)[0]}
    return {name: float(np.nan_to_num(value)) for name, value in correlations.items()} | {
        "loss": float(np.mean((values - labels) ** 2))
    }


def transcription(wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Word and character error rate: substitutions, insertions and deletions as a share of what is wanted, over all texts together."""
    return {"wer": jiwer.wer(list(wanted), list(found)), "cer": jiwer.cer(list(wanted), list(found))}


def table(folder: Path, results: str) -> str:
    """Markdown: the test scores (or else those of validation) of every finished run in a folder, one line each; "" if there is none."""
    rows = {}
    for path in sorted(folder.glob(f"*/{results}")):
        splits = json.loads(path.read_text())["scores"]
        rows[path.parent.name] = splits.get("test") or splits.get("validation") or {}
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    if not names:
        return ""
    lines = ["| run | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for run, scores in rows.items():
        cells = (f"{scores[name]:.4g}" if name in scores else "" for name in names)
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
