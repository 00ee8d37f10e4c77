"""Fine-tunes an encoder of images on labels: accelerate launch scripts/finetune_image.py CONFIG [model=PATH] key=value ..."""

from d2v.config.cli import run_cli
from d2v.finetuning.config import load
from d2v.finetuning.run import finetune
from d2v.modalities.image import MODALITY, labelled
from d2v.models.task_models import D2vForImageClassification


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    return finetune(load(argv, MODALITY, labelled, D2vForImageClassification), labelled, D2vForImageClassification)


if __name__ == "__main__":
    run_cli(main)
