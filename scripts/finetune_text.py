"""Fine-tunes an encoder of text on labels: accelerate launch scripts/finetune_text.py CONFIG [model=PATH] key=value ..."""

from d2v.config.cli import run_cli
from d2v.finetuning.config import load
from d2v.finetuning.run import finetune
from d2v.modalities.text import labelled
from d2v.modalities.text.data import NAME
from d2v.models.task_models import D2vForSequenceClassification


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    return finetune(load(argv, NAME, labelled, D2vForSequenceClassification), labelled, D2vForSequenceClassification)


if __name__ == "__main__":
    run_cli(main)
