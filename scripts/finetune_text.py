"""Fine-tunes an encoder of text on labels: accelerate launch scripts/finetune_text.py CONFIG [model=PATH] key=value ..."""

from d2v.config import run_cli
from d2v.finetune import finetune, load
from d2v.tasks import D2vForSequenceClassification
from modalities.text import labelled
from modalities.text.data import NAME


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    return finetune(load(argv, NAME, labelled, D2vForSequenceClassification), labelled, D2vForSequenceClassification)


if __name__ == "__main__":
    run_cli(main)
