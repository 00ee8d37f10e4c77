"""Writes what `from_pretrained` loads: the better of student and teacher, the other beside it, and a card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2v.config.loading import save_yaml
from d2v.config.schema import AnyRun
from d2v.files import replaced
from d2v.objectives.common.objective import Objective
from d2v.shown import in_markdown
from d2v.training.verdict import Verdict


def export(
    objective: Objective, folder: Path, config: AnyRun, save_preprocessor: Callable[[Path], None], card: str, best: str
) -> None:
    """Replaces `folder` by a new export, whole or not at all: the `best` of student and teacher.

    The other one lies beside it, in a folder of its name; without a teacher there is none.
    """
    with replaced(folder) as draft:
        encoders = dict(zip(("student", "teacher"), objective.encoders, strict=True))
        if not len(objective.teacher):
            del encoders["teacher"]
        for name, encoder in encoders.items():
            place = draft if name == best else draft / name
            objective.exported(encoder).save_pretrained(place)
            save_preprocessor(place)
            (place / "README.md").write_text(card.replace("{which}", name))
        save_yaml(config.as_dict(), draft / "pretraining.yaml")


def model_card(config: Any, records: list[dict], verdict: Verdict, report: list[str], parameters: int) -> str:
    """Markdown, of a Config or a JointConfig: how to load it, what it was trained on, and the numbers of the run."""
    steps = records[-1]["step"] if records else 0
    text = [
        "---",
        "library_name: d2v",
        "tags: [self-supervised, data2vec]",
        "---",
        f"# {config.modality} encoder ({{which}}), {config.objective.name}",
        "",
        f"{parameters / 1e6:.1f} M parameters, {steps} steps of {config.train.samples()}.",
        f"Verdict: {verdict.state}; {in_markdown(verdict.reason)}",
        "",
        "```python",
        "import d2v",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("THIS FOLDER")  # features: model(...).last_hidden_state',
        "```",
        "",
        "Data:",
        "",
        *[f"- {in_markdown(line)}" for line in report],
        "",
        "| measured | random init | end |",
        "|---|---|---|",
        *[f"| {' | '.join(row)} |" for row in measured(records)],
        "",
    ]
    return "\n".join(text)


def measured(records: list[dict]) -> list[tuple[str, str, str]]:
    """What a run measured: name, at the random init, at the end."""
    last: dict[str, float] = {}
    for record in records:
        last |= record
    init = next((record for record in records if record["step"] == 0), {})
    rows = []
    for name in sorted(last):
        if name.rpartition("/")[2].startswith(("student", "teacher", "local")):
            rows.append((name, _number(init.get(name)), _number(last[name])))
    for name in ("loss", "target_std", "prediction_std", "hidden_share", "trunk_norm", "grad_norm"):
        for key in sorted(key for key in last if key.rpartition("/")[2] == name):
            rows.append((key, "", _number(last[key])))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
