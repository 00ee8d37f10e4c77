"""Pretrains a tiny encoder on data that d2v draws, and scores it beside its random init and the raw input.

d2v demo [image] [speech] [text] [runs=FOLDER]

All three without a name; about a minute each on two CPU cores, without network. Folders are runs/demo_<modality>.
"""

import json
import os
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

from d2v.config.cli import run_cli, take_arguments
from d2v.scripts import evaluate, pretrain
from d2v.training.explained import EXPLAINED
from d2v.training.verdict import Verdict, judge

CONFIGS = {"image": "image/demo_patterns", "speech": "speech/demo_anagrams", "text": "text/demo_topics"}
CLASSES = 10  # of each
SHOWN = {
    "image": "ten patterns on balls of any place, size, angle and colour; data2vec 2.0",
    "speech": "ten words of the same four vowels in ten orders, by unseen voices; data2vec 2.0",
    "text": "stories of ten topics, 50 of them with a label; SimCLR, two parts of a story compared",
}
FEATURES = ("raw input", "random init", "pretrained")
WIDTH = 100


class Outcome(NamedTuple):
    """What one modality's run gave."""

    run: Path
    scores: dict[str, tuple[float, float]]  # k-NN and probe in percent, by FEATURES
    verdict: Verdict
    steps: int


def main(argv: list[str]) -> None:
    """`argv`: names of modalities. ValueError: another name, or a run that ends in an error."""
    start = time.perf_counter()
    given, names = take_arguments(argv, "runs")
    for name in names:
        if name not in CONFIGS:
            raise ValueError(f"no demo of {name!r}; there are those of {', '.join(CONFIGS)}")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    outcomes = {}
    for name in names or CONFIGS:
        print(f"== {name}: {SHOWN[name]}", flush=True)
        outcomes[name] = _run(CONFIGS[name], Path(given["runs"] or "runs") / f"demo_{name}")
    print("\n" + "\n".join(screen(outcomes, time.perf_counter() - start)))


def _run(config: str, run: Path) -> Outcome:
    pretrain.main([config, f"run.dir={run}"])
    result = evaluate.main([config, f"model={run / 'export'}", f"run.dir={run}", "run.overwrite=true"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Outcome(
        run, dict(zip(FEATURES, map(_scores, result["rows"]), strict=True)), judge(records), records[-1]["step"]
    )


def _scores(row: dict[str, Any]) -> tuple[float, float]:
    """k-NN and linear probe of an evaluation's row."""
    (knn,) = (value for name, value in row["scores"].items() if name.startswith("k-NN"))
    return knn, row["scores"]["linear"]


def screen(outcomes: dict[str, Outcome], seconds: float) -> list[str]:
    """The last screen: the table, a sentence for each number, and where to go on."""
    head, under = f"{'':8}", f"{'':8}"
    for name in FEATURES:
        head += f" | {name:>13}"
        under += " |  k-NN  probe"
    lines = [f"Percent of held-out samples that are given their class, after {seconds:.0f} seconds:", ""]
    lines += [f"{head} | chance", under + " |"]
    for name, outcome in outcomes.items():
        cells = "".join(f" | {knn:5.1f}  {probe:5.1f}" for knn, probe in outcome.scores.values())
        lines.append(f"{name:8}{cells} | {100 / CLASSES:6.1f}")
    lines.append("")
    for name in ("chance", *FEATURES, "k-NN", "probe", "verdict"):
        lines += _hanging(f"{name:13}", EXPLAINED[name])
    lines.append("")
    for name, outcome in outcomes.items():
        lines.append(f"{name:13}{outcome.run / 'report.html'}, verdict {outcome.verdict.state}")
        lines += _hanging(" " * 13, SHOWN[name] + _behind(outcome))
    lines.append("")
    lines.append("Your own files (d2v configs lists more; speech/ and text/ are the same):")
    lines.append("  d2v pretrain image/data2vec_tiny data.path=photos/ run.dir=runs/first")
    return lines


def _behind(outcome: Outcome) -> str:
    """What is said where training did not win."""
    best = outcome.scores["pretrained"]
    others = [outcome.scores[name] for name in FEATURES[:-1]]
    lost = [name for place, name in enumerate(("k-NN", "probe")) if max(o[place] for o in others) >= best[place]]
    return f"; not ahead by {' and '.join(lost)} after {outcome.steps} steps: give it more" if lost else ""


def _hanging(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=name, subsequent_indent=" " * len(name))


if __name__ == "__main__":
    run_cli(main)
