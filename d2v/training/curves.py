"""Pictures of a run: its curves as small multiples, the singular-value spectrum of features, and a confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2v.pictures import tidy, write_png
from d2v.shown import in_figure

if TYPE_CHECKING:  # matplotlib takes a second to import, and training does not need it
    from matplotlib.figure import Figure

COLOURS = {
    "student": "#0072b2",
    "teacher": "#d55e00",
    "local": "#777777",
    "target": "#d55e00",
    "prediction": "#0072b2",
    "random init": "#bbbbbb",
}


class Panel(NamedTuple):
    """One small picture: which metrics it shows, and what the legend calls them."""

    title: str
    label: str  # of the y axis
    names: dict[str, str]
    scale: str = "linear"


SCORES = ("accuracy", "top5", "f1", "matthews", "pearson", "spearman", "wer", "cer", "ap50", "ap")
PANELS = (
    Panel("Loss (no progress signal by itself)", "loss", {"loss": "loss"}),
    Panel("Spread of targets and predictions", "std", {"target_std": "target", "prediction_std": "prediction"}),
    Panel(
        "How many prototypes or codes the targets use",
        "perplexity",
        {"prototype_perplexity": "prototypes", "target_perplexity": "codes"},
        "log",
    ),
    Panel(
        "Effective rank of pooled features",
        "effective rank",
        {"student_rank": "student", "teacher_rank": "teacher", "local_rank": "local"},
    ),
    Panel("k-NN of pooled features", "accuracy (%)", {"student_knn": "student", "teacher_knn": "teacher"}),
    Panel("k-NN on run.probe", "accuracy (%)", {"probe_student_knn": "student", "probe_teacher_knn": "teacher"}),
    Panel("Scores of the validation split", "score", {f"validation_{name}": name for name in SCORES}),
    Panel("Loss of the validation split", "loss", {"validation_loss": "validation loss"}),
    Panel("Gradient norm", "norm before clipping", {"grad_norm": "gradient norm"}, "log"),
    Panel("Learning rate", "learning rate", {"lr": "learning rate"}),
    Panel("EMA decay of the teacher", "decay", {"ema_decay": "EMA decay"}),
)


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Writes the curves of a metrics.jsonl's records (dicts with "step") as a picture.

    ValueError: there is nothing to draw.
    """
    write_png(curves_figure(history, title), Path(path))


def plot_spectrum(
    spectra: Mapping[str, Any], path: str | Path, title: str = "Singular values of the features' covariance"
) -> None:
    """Writes {name: singular values, largest first} on a log scale; a cliff is dimensional collapse.

    ValueError: there is nothing to draw.
    """
    write_png(spectrum_figure(spectra, title), Path(path))


def plot_confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Writes the confusion matrix of classes (N,) and predictions (N,).

    Shades are shares of a true class; counts are written into small ones.
    """
    write_png(confusion_figure(labels, predicted, classes), Path(path))


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
    names = [in_figure(classes[place]) for place in places]
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    return figure


def curves_figure(history: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """One panel for each group of metrics that the records hold; dotted: the random init's reading.

    ValueError: they hold none.
    """
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if _is_measured(panel, history)]
    if not panels:
        names = ", ".join(", ".join(panel.names) for panel in PANELS)
        raise ValueError(f"nothing to plot: {len(history)} records and no metric among {names}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for name, legend in panel.names.items():
            _curve(axes, history, name, legend)
        axes.set(title=panel.title, xlabel="step", ylabel=panel.label, yscale=panel.scale)
        axes.title.set_fontsize(10)
        tidy(axes)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(in_figure(title), fontsize=12)
    return figure


def _is_measured(panel: Panel, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the records hold a value of one of the panel's metrics."""
    return any(len(_series(history, name)[0]) for name in panel.names)


def _curve(axes, history: Sequence[Mapping[str, Any]], name: str, legend: str) -> None:
    steps, values = _series(history, name)
    if not len(steps):
        return
    if name.endswith("_knn"):
        values = 100 * values
    colour = COLOURS.get(legend, f"C{len(axes.lines)}" if axes.lines else "#0072b2")
    marker = "o" if len(steps) < 30 else None
    axes.plot(steps, values, color=colour, linewidth=1.4, label=legend, marker=marker, markersize=3)
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
        places = np.arange(1, len(positive) + 1)
        axes.plot(places, np.log10(positive), linewidth=1.5, label=in_figure(name), color=COLOURS.get(name))
    axes.set(title=in_figure(title), xlabel="index, largest first", ylabel="log10 of the singular value")
    tidy(axes)
    axes.legend(frameon=False)
    return figure
