"""Pretrains tiny encoders on data that d2v draws, and scores them beside their random init and the raw input.

d2v demo [image] [speech] [text] [joint] [runs=FOLDER]

All of them without a name; one to two minutes each on two CPU cores, without network. Folders are runs/demo_<name>.
joint: one encoder for written, spoken and described digits, by which each finds the others.
"""

import json
import os
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

from d2v.config.cli import run_cli, take_arguments
from d2v.config.joint import load_joint
from d2v.objectives.common.parts import BETWEEN
from d2v.scripts import data, evaluate, pretrain
from d2v.training.explained import EXPLAINED
from d2v.training.verdict import Verdict, judge

CONFIGS = {"image": "image/demo_patterns", "speech": "speech/demo_anagrams", "text": "text/demo_topics"}
JOINT, CONFIG = "joint", "joint/demo_digits"
CLASSES = 10  # of each
CHANCE = 100 / CLASSES
SHOWN = {
    "image": "ten patterns on balls of any place, size, angle and colour; data2vec 2.0",
    "speech": "ten words of the same four vowels in ten orders, by unseen voices; data2vec 2.0",
    "text": "stories of ten topics, 50 of them with a label; SimCLR, two parts of a story compared",
    JOINT: "written, spoken and described digits in one space; CLIP between each two, on one trunk",
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
    """`argv`: names of modalities, or joint. ValueError: another name, or a run that ends in an error."""
    start = time.perf_counter()
    given, names = take_arguments(argv, "runs")
    known = [*CONFIGS, JOINT]
    for name in names:
        if name not in known:
            raise ValueError(f"no demo of {name!r}; there are those of {', '.join(known)}")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    runs, outcomes, found = Path(given["runs"] or "runs"), {}, dict[str, float]()
    for name in names or known:
        print(f"== {name}: {SHOWN[name]}", flush=True)
        if name == JOINT:
            found = _run_joint(runs)
        else:
            outcomes[name] = _run(CONFIGS[name], runs / f"demo_{name}")
    print("\n" + "\n".join(screen(outcomes, found, runs, time.perf_counter() - start)))


def _run(config: str, run: Path) -> Outcome:
    pretrain.main([config, f"run.dir={run}"])
    result = evaluate.main([config, f"model={run / 'export'}", f"run.dir={run}", "run.overwrite=true"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Outcome(
        run, dict(zip(FEATURES, map(_scores, result["rows"]), strict=True)), judge(records), records[-1]["step"]
    )


def _run_joint(runs: Path) -> dict[str, float]:
    """Recall of the first hit in percent, by direction."""
    digits, run = runs / "demo_digits", runs / f"demo_{JOINT}"
    data.main(["digits", str(digits)])
    settings = []
    for part in load_joint(CONFIG, [f"run.dir={run}"]).data:
        settings += [f"data.{part}.{name}.path={digits / name}" for name in part.split(BETWEEN)]
    common = [CONFIG, *settings, f"run.dir={run}"]
    pretrain.main(common)
    result = evaluate.main([*common, f"model={run / 'export'}", "run.overwrite=true"])
    found = {}
    for part in result.values():
        for direction, numbers in part["scores"][part["model"]].items():
            if direction != "gap":
                found[direction] = numbers["recall@1"]
    return found


def _scores(row: dict[str, Any]) -> tuple[float, float]:
    """k-NN and linear probe of an evaluation's row."""
    (knn,) = (value for name, value in row["scores"].items() if name.startswith("k-NN"))
    return knn, row["scores"]["linear"]


def screen(outcomes: dict[str, Outcome], found: dict[str, float], runs: Path, seconds: float) -> list[str]:
    """The last screen: the tables, a sentence for each number, and where to go on.

    `found`: recall of the first hit in percent, by direction.
    """
    lines = _table(outcomes, seconds) if outcomes else []
    lines += _joint_table(found, runs / f"demo_{JOINT}") if found else []
    lines.append("Your own files (d2v configs lists more; speech/ and text/ are the same):")
    lines.append("  d2v pretrain image/data2vec_tiny data.path=photos/ run.dir=runs/first")
    return lines


def _table(outcomes: dict[str, Outcome], seconds: float) -> list[str]:
    """What features are worth."""
    head, under = f"{'':8}", f"{'':8}"
    for name in FEATURES:
        head += f" | {name:>13}"
        under += " |  k-NN  probe"
    lines = [f"Percent of held-out samples that are given their class, after {seconds:.0f} seconds:", ""]
    lines += [f"{head} | chance", under + " |"]
    for name, outcome in outcomes.items():
        cells = "".join(f" | {knn:5.1f}  {probe:5.1f}" for knn, probe in outcome.scores.values())
        lines.append(f"{name:8}{cells} | {CHANCE:6.1f}")
    lines.append("")
    for name in ("chance", *FEATURES, "k-NN", "probe", "verdict"):
        lines += _hanging(f"{name:13}", EXPLAINED[name])
    lines.append("")
    for name, outcome in outcomes.items():
        lines.append(f"{name:13}{outcome.run / 'report.html'}, verdict {outcome.verdict.state}")
        lines += _hanging(" " * 13, SHOWN[name] + _behind(outcome))
    return [*lines, ""]


def _joint_table(found: dict[str, float], run: Path) -> list[str]:
    """How often the first hit is the digit sought."""
    lines = ["One encoder of written, spoken and described digits: percent of first hits that are the digit sought"]
    lines.append(f"{'':8} | {'  '.join(f'by {name:6}' for name in CONFIGS)} | chance")
    for name in CONFIGS:
        cells = "  ".join(f"{found[f'{by} to {name}']:9.1f}" if by != name else f"{'':9}" for by in CONFIGS)
        lines.append(f"{name:8} | {cells} | {CHANCE:6.1f}")
    picture = run / "evaluation" / f"image{BETWEEN}speech" / "retrieval.png"
    return [*lines, f"{picture} and beside it: queries and their hits", ""]


def _behind(outcome: Outcome) -> str:
    """What is said where training did not win."""
    others = [outcome.scores[name] for name in FEATURES[:-1]]
    lost = []
    for name, score, *before in zip(("k-NN", "probe"), outcome.scores["pretrained"], *others, strict=True):
        if max(before) >= score:
            lost.append(name)
    return f"; not ahead by {' and '.join(lost)} after {outcome.steps} steps: give it more" if lost else ""


def _hanging(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=name, subsequent_indent=" " * len(name))


if __name__ == "__main__":
    run_cli(main)
