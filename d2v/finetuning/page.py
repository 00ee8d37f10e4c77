"""report.html of a run of fine-tuning: its scores, curves, confusion, samples, settings, and how to use the model."""

from pathlib import Path

from d2v.config.written import dumped
from d2v.finetuning.config import FinetuneConfig
from d2v.protocols import Labelled
from d2v.training.page import Shown, Summary, write_page


def write_finetuned(
    folder: Path, config: FinetuneConfig, data: Labelled, scores: dict[str, dict[str, float]], task: str, step: int
) -> None:
    """`scores`: by split, as `write_outcome` gives them; `task`: the name of the task model's class."""
    names: dict[str, None] = {}  # a set that keeps its order
    for values in scores.values():
        names.update(dict.fromkeys(values))
    rows = []
    for name in names:
        rows.append((name, *(f"{values[name]:.4f}" if name in values else "" for values in scores.values())))
    auto = task.replace("D2vFor", "AutoModelFor")  # of transformers
    chosen = f"; {config.train.metric or data.metric} of validation chose the model" if "validation" in scores else ""
    summary = Summary(
        title=f"{config.modality} fine-tuned: {folder.name}, {step} of {config.train.steps} steps",
        state="finished",
        reason=f"from {config.train.init_from or 'scratch'}{chosen}",
        advice="",
        headings=("score", *scores),
        numbers=rows,
        report=data.training.samples.report.lines(),
        settings=dumped(config.as_dict()),
        commands=[
            f"d2v convert {folder}/export model.onnx",
            "python",
            f">>> import d2v; from transformers import {auto}",
            f">>> model = {auto}.from_pretrained({str(folder / 'export')!r})",
        ],
    )
    write_page(folder, summary, [Shown(data.training.samples, data.training.indices, None)])
