"""Fine-tunes an encoder of text: as scripts/finetune.py, and refuses a config of another modality."""

from d2v.config.cli import run_cli
from d2v.finetuning.run import finetune, load


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    return finetune(*load(argv, "text"))


if __name__ == "__main__":
    run_cli(main)
