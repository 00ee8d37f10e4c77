"""One picture of several runs: k-NN of the health checks against minutes of training.

    python benchmarks/compare_runs.py OUT.png "NAME[@SECONDS]=RUN_DIR[,RUN_DIR...]" ... [of=student] [against=minutes]

of=teacher and against=step are the other choices. Runs of one name (seeds) share a colour. Minutes are steps times
SECONDS, as benchmarks/config_steps.py measures them side by side; without it they are added up from the logged samples
per second: the seconds of health checks and of saving are in them, those of a pause between a kill and its resume are
not. RUN_DIR is a folder of scripts/pretrain.py.
"""

import json
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#777777")
CHOICES = {"of": ("student", "teacher"), "against": ("minutes", "step")}


def curve(folder: Path, of: str, seconds: float = 0.0) -> dict[str, list[float]]:
    """Steps, minutes (by `seconds` a step, or by the log if 0) and accuracies (percent) of the checks of a run.

    SystemExit: there are none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise SystemExit(f"{folder} is no run folder: it has no metrics.jsonl")
    batch_size = yaml.safe_load((folder / "config.yaml").read_text())["train"]["batch_size"]
    points: dict[str, list[float]] = {"step": [], "minutes": [], "accuracy": []}
    minutes, last = 0.0, 0
    for record in map(json.loads, path.read_text().splitlines()):
        if "samples_per_second" in record:
            minutes += (record["step"] - last) * batch_size / record["samples_per_second"] / 60
            last = record["step"]
        if f"{of}_knn" in record:
            points["step"].append(record["step"])
            points["minutes"].append(record["step"] * seconds / 60 if seconds else minutes)
            points["accuracy"].append(100 * record[f"{of}_knn"])
    if not points["step"]:
        raise SystemExit(f"{path} has no health check with k-NN: the data had no labels")
    return points


def main(arguments: list[str]) -> None:
    """Draws the picture."""
    options = {name: choices[0] for name, choices in CHOICES.items()}
    out, *rest = arguments or [""]
    runs = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals or (name in CHOICES and value not in CHOICES[name]):
            raise SystemExit(
                f"{argument!r}: give NAME=RUN_DIR, of={'|'.join(CHOICES['of'])} "
                f"or against={'|'.join(CHOICES['against'])}"
            )
        if name in CHOICES:
            options[name] = value
        else:
            name, _, seconds = name.partition("@")
            runs.append((name, float(seconds or 0), [Path(folder) for folder in value.split(",")]))
    if not out.endswith(".png") or not runs:
        raise SystemExit(__doc__)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, seconds, folders) in enumerate(runs):
        for folder in folders:
            points, colour = curve(folder, options["of"], seconds), COLOURS[number % len(COLOURS)]
            label = name if folder is folders[0] else None
            axes.plot(points[options["against"]], points["accuracy"], "o-", markersize=3, color=colour, label=label)
    axes.set(xlabel=options["against"], ylabel=f"k-NN of the {options['of']}'s features (%)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1:])
