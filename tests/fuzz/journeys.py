"""Plain folders and tiny models to be attacked, and one script's journey: what it printed, and what is wrong with that.

A journey may end well or in one line, `error: ...`. Everything else is a fault: a traceback, an error of several lines,
a number that is not finite, a good sample that is lost.
"""

import contextlib
import csv
import io
import json
import math
import shutil
import sys
import traceback
import wave
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import tiny
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from d2v.config.cli import run_cli
from d2v.training.loop import Loop
from scripts import embed, evaluate, finetune, pretrain

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = {"pretrain": pretrain.main, "finetune": finetune.main, "evaluate": evaluate.main, "embed": embed.main}
MODALITIES = ("image", "speech", "text")
STEPS = 2  # longer runs are cut to so many, once their settings have been checked
TRUNK = ["model.trunk.dim=16", "model.trunk.depth=1", "model.trunk.num_heads=2", "model.trunk.mlp_dim=32"]
SHORT = [
    f"train.steps={STEPS}",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "run.log_every=1",
    "run.save_every=1",
    "run.health_samples=8",
]
SMALL = {
    "image": ["model.frontends.image.channels=3", "data.mean=[0.5]", "data.std=[0.5]"],
    "speech": [],
    "text": ["data.block_size=32"],
}


class Outcome(NamedTuple):
    """How a journey ended."""

    kind: str  # "ran", "refused", or what is wrong
    text: str  # the error's line, or what shows the fault


class Template(NamedTuple):
    """A folder of good files of each modality, and a model of each."""

    folder: Path

    def data(self, modality: str) -> Path:
        """Files in two class folders, or a file of lines."""
        return self.folder / "data" / modality

    def run(self, modality: str) -> Path:
        """A finished run."""
        return self.folder / "runs" / modality


def build(folder: Path) -> Template:
    """Makes the files and trains the models, a few seconds each."""
    template = Template(folder)
    generator = np.random.default_rng(0)
    for number in range(12):
        image, sound = (template.data(name) / "ab"[number % 2] for name in ("image", "speech"))
        for place in (image, sound):
            place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image / f"{number}.{('png', 'jpg')[number % 3 == 2]}")
        write_wave(sound / f"{number}.wav", generator.normal(scale=3000, size=8000))
    template.data("text").mkdir(parents=True)
    with (template.data("text") / "lines.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(60):
            words = generator.choice(["one", "two", "three", "four", "five", "six"], size=8)
            rows.writerow([" ".join(words), "ab"[number % 2]])
    for modality in MODALITIES:
        outcome = journey("pretrain", pretraining(template, modality, template.run(modality)))
        if outcome.kind != "ran":
            raise RuntimeError(f"the run of {modality} that others start from {outcome.kind}: {outcome.text}")
    return template


def write_wave(path: Path, samples: np.ndarray) -> None:
    """16 bits, 8 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())


def pretraining(template: Template, modality: str, folder: Path, objective: str = "data2vec", *more: str) -> list[str]:
    """The command line of a run of two steps on the template's files."""
    return [
        *tiny.arguments(modality, folder, tiny.using(objective)),
        *TRUNK,
        *SHORT,
        *SMALL[modality],
        *(["objective.top_k=1"] if objective.startswith("data2vec") else []),
        "evaluate.group=''",
        f"data.path={template.data(modality)}",
        *more,
    ]


def finetuning(template: Template, modality: str, folder: Path, *more: str) -> list[str]:
    """The command line of a fine-tuning of two steps from the template's model."""
    return [
        str(ROOT / "configs" / modality / "finetune_tiny.yaml"),
        f"model={template.run(modality) / 'export'}",
        *[setting for setting in SHORT if "health" not in setting],
        "data.split=train",
        "data.validation_share=0.25",
        "data.test_split=''",
        *(["data.group=''"] if modality == "speech" else []),
        f"data.path={template.data(modality)}",
        f"run.dir={folder}",
        *more,
    ]


def embedding(template: Template, modality: str, data: Path, out: Path, *more: str) -> list[str]:
    """The command line that embeds a folder by the template's model."""
    config = str(ROOT / "configs" / modality / "demo.yaml")
    model = template.run(modality) / "export"
    return [config, *SMALL[modality], f"model={model}", f"data.path={data}", f"out={out}", *more]


def evaluation(template: Template, modality: str, folder: Path, *more: str) -> list[str]:
    """The command line that scores the template's model on the template's files."""
    return [
        str(ROOT / "configs" / modality / "demo.yaml"),
        *SMALL[modality],
        f"model={template.run(modality) / 'export'}",
        f"evaluate.path={template.data(modality)}",
        "evaluate.group=''",
        "evaluate.test_split=''",
        "evaluate.random_seeds=1",
        "evaluate.probe_steps=2",
        "evaluate.k=[3]",
        f"run.dir={folder}",
        *more,
    ]


def journey(script: str, arguments: list[str], check: Callable[[str], str | None] | None = None) -> Outcome:
    """Runs a script as its command line does. `check`: of what it printed, what is wrong; None: nothing."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.argv = [f"{script}.py", *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_cli(SCRIPTS[script])
    except SystemExit:
        lines = [line for line in err.getvalue().splitlines() if line.strip()]
        at = next((place for place, line in enumerate(lines) if line.startswith("error: ")), None)
        if at is None or at != len(lines) - 1 or len(lines[at]) > 2000:
            return Outcome("an error that is not one line", err.getvalue()[-2000:])
        return Outcome("refused", lines[at])
    except BaseException:
        return Outcome("traceback", traceback.format_exc()[-3000:])
    wrong = check(out.getvalue()) if check else None
    return Outcome("silent nonsense", f"{wrong}\n{out.getvalue()[-1000:]}") if wrong else Outcome("ran", "")


def wrong_run(folder: Path, printed: str, *, whole: bool = True) -> str | None:
    """What is wrong with a run of pretraining or fine-tuning that ended well; `whole`: its records were not damaged."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    if not losses and whole:
        return "a run without a loss"
    if not all(map(math.isfinite, losses)):
        return f"a run that ended well with the losses {losses}"
    if "verdict: healthy" in printed:
        return "healthy after two steps"
    return None


def wrong_table(path: Path, good: set[str]) -> str | None:
    """What is wrong with a table of features in which each of the samples `good` must be."""
    table = pyarrow.parquet.read_table(path).to_pydict()
    if len(set(table["id"])) != len(table["id"]):
        return "ids that repeat"
    if not np.isfinite(np.array(table["features"], dtype=np.float64)).all():
        return "features that are not finite"
    lost = good - set(table["id"])
    return f"good samples are lost: {sorted(lost)[:3]}" if lost else None


def cut_runs_short() -> None:
    """From here on this process trains two steps at most and draws no curves."""
    whole = Loop.__init__

    def short(self: Loop, *args, train, **options) -> None:
        train.steps = min(train.steps, STEPS)
        whole(self, *args, train=train, **options)

    Loop.__init__ = short  # type: ignore[method-assign]
    Loop.plot = lambda self: None  # type: ignore[method-assign]


def emptied(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
