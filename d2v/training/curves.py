"""Pictures of a run: its curves as small multiples, the singular-value spectrum of features, and a confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # matplotlib takes a second to import and training does not need it
    from matplotlib.figure import Figure

COLOURS = {"student": "#0072b2", "teacher": "#d55e00", "local": "#777777", "target": "#d55e00", "prediction": "#0072b2"}

# title, label of the y axis, scale, names of the metrics and how the legend calls them
PANELS = (
    ("Loss (no progress signal by itself)", "loss", "linear", {"loss": "loss"}),
    ("Spread of targets and predictions", "std", "linear", {"target_std": "target", "prediction_std": "prediction"}),
    (
        "Effective rank of pooled features",
        "effective rank",
        "linear",
        {"student_rank": "student", "teacher_rank": "teacher", "local_rank": "local"},
    ),
    ("k-NN of pooled features", "accuracy (%)", "linear", {"student_knn": "student", "teacher_knn": "teacher"}),
    ("k-NN on run.probe", "accuracy (%)", "linear", {"probe_student_knn": "student", "probe_teacher_knn": "teacher"}),
    (
        "Scores of the validation split",
        "score",
        "linear",
        {
            f"validation_{name}": name
            for name in ("accuracy", "top5", "f1", "matthews", "pearson", "spearman", "wer", "cer")
        },
    ),
    ("Loss of the validation split", "loss", "linear", {"validation_loss": "validation loss"}),
    ("Gradient norm", "norm before clipping", "log", {"grad_norm": "gradient norm"}),
    ("Learning rate", "learning rate", "linear", {"lr": "learning rate"}),
    ("EMA decay of the teacher", "decay", "linear", {"ema_decay": "EMA decay"}),
)


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Writes the curves of a metrics.jsonl's records (dicts with "step") as a picture. ValueError: there is nothing to draw."""
    curves_figure(history, title).savefig(path, dpi=120)


def plot_spectrum(
    spectra: Mapping[str, Any], path: str | Path, title: str = "Singular values of the features' covariance"
) -> None:
    """Writes {name: singular values, largest first} on a log scale; a cliff is dimensional collapse. ValueError: there is nothing to draw."""
    spectrum_figure(spectra, title).savefig(path, dpi=120)


def plot_confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Writes the confusion matrix of classes (N,) and predictions (N,); shades are shares of a true class, counts are written into small ones."""
    confusion_figure(labels, predicted, classes).savefig(path, dpi=120)


def confusion_figure(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> "Figure":
    """True classes down, predicted ones across."""
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))  # (C, C)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(16, max(4, 0.35 * len(classes) + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes)) if len(classes) <= 80 else []
    axes.set(title="Confusion matrix", xlabel="predicted", ylabel="true class", xticks=places, yticks=places)
    axes.set_xticklabels([classes[place] for place in places], rotation=90, fontsize=7)
    axes.set_yticklabels([classes[place] for place in places], fontsize=7)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    return figure


def curves_figure(history: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """One panel for each group of metrics that the records hold; dotted: the random init's reading. ValueError: they hold none."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(len(_series(history, name)[0]) for name in panel[3])]
    if not panels:
        raise ValueError(
            f"nothing to plot: {len(history)} records and no metric among {', '.join(name for p in PANELS for name in p[3])}"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for number, (heading, label, scale, names) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for name, legend in names.items():
            _curve(axes, history, name, legend)
        axes.set(title=heading, xlabel="step", ylabel=label, yscale=scale)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _curve(axes, history: Sequence[Mapping[str, Any]], name: str, legend: str) -> None:
    steps, values = _series(history, name)
    if not len(steps):
        return
    if name.endswith("_knn"):
        values = 100 * values
    colour = COLOURS.get(legend, f"C{len(axes.lines)}" if axes.lines else "#0072b2")
    axes.plot(
        steps, values, color=colour, linewidth=1.4, label=legend, marker="o" if len(steps) < 30 else None, markersize=3
    )
    if name in ("student_rank", "student_knn", "probe_student_knn") and steps[0] == 0:
        axes.axhline(values[0], color=colour, linewidth=1, linestyle=":", label="student at init")


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that hold a finite value of `name`."""
    points = [(r["step"], float(r[name])) for r in history if r.get(name) is not None and np.isfinite(r[name])]
    steps, values = np.array(points).reshape(-1, 2).T
    return steps, values


def spectrum_figure(spectra: Mapping[str, Any], title: str) -> "Figure":
    """log10 of each spectrum over its index. ValueError: no spectrum, or one without a positive value."""
    from matplotlib.figure import Figure

    if not spectra:
        raise ValueError("nothing to plot: no spectrum was given")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in spectra.items():
        values = np.asarray(values, dtype=np.float64)
        positive = values[values > 0]  # a collapsed direction is exactly 0: its log has no place, the line ends there
        if not len(positive):
            raise ValueError(f"spectrum {name!r} has no positive value: these features are constant")
        axes.plot(
            np.arange(1, len(positive) + 1), np.log10(positive), linewidth=1.5, label=name, color=COLOURS.get(name)
        )
    axes.set(title=title, xlabel="index, largest first", ylabel="log10 of the singular value")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
