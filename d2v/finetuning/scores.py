"""Scores of predictions: GLUE's of classes and numbers, error rates of transcripts; which way each is better.

N samples, C classes.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
from scipy.special import log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

LOWER_IS_BETTER = ("loss", "wer", "cer")


def better(metric: str, value: float, best: float) -> bool:
    """Whether a score beats the best so far; nan never does."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def among_equals(metric: str, scores: dict[str, float]) -> float:
    """What chooses between models of one score, the lower the better: the loss, or of error rates the other one."""
    return next((scores[name] for name in LOWER_IS_BETTER if name in scores and name != metric), 0.0)


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Logits (N, C) and classes (N,) -> accuracy, top-5, F1, Matthews and the loss.

    Top-5 is of more than five classes; F1 of class 1 if there are two, else the mean over classes.
    """
    num_classes = logits.shape[1]
    scores = agreement(labels, logits.argmax(axis=1), num_classes)
    if num_classes > 5:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        top5 = float((best == labels[:, None]).any(axis=1).mean())
        scores = {"accuracy": scores.pop("accuracy"), "top5": top5, **scores}
    log_shares = log_softmax(logits.astype(np.float64), axis=1)
    scores["loss"] = float(-log_shares[np.arange(len(labels)), labels].mean())
    return scores


def agreement(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """Classes (N,) and those predicted -> accuracy, F1 (of class 1 if there are two, else the mean) and Matthews."""
    kind = "binary" if num_classes == 2 else "macro"
    scores = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average=kind, zero_division=0)),  # type: ignore[arg-type]
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")  # then it is 0
        scores["matthews"] = float(matthews_corrcoef(labels, predicted))
    return scores


def regression(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Predicted and true numbers (N,) -> Pearson's and Spearman's correlation and the mean squared error, "loss".

    A correlation is 0 where one side is constant.
    """
    values, labels = values.astype(np.float64), labels.astype(np.float64)  # of a large offset little is left in float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input, as in the first steps
        found: tuple[Any, Any] = pearsonr(values, labels)[0], spearmanr(values, labels)[0]
    scores = {name: float(np.nan_to_num(value)) for name, value in zip(("pearson", "spearman"), found, strict=True)}
    scores["loss"] = float(np.mean((values - labels) ** 2))
    return scores


def transcription(wanted: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """Word and character error rate, over all texts together.

    Substitutions, insertions and deletions, as a share of what is wanted.
    """
    return {"wer": jiwer.wer(list(wanted), list(written)), "cer": jiwer.cer(list(wanted), list(written))}
