"""Fine-tunes an encoder of speech: accelerate launch scripts/finetune_speech.py CONFIG [model=PATH] key=value ...

On the letters of transcripts by CTC where data.transcript names their column, else on the class or number that data.label names.
"""

from d2v.config.cli import run_cli
from d2v.finetuning.config import load, read_values
from d2v.finetuning.run import finetune
from d2v.modalities.speech import MODALITY, labelled, transcribed
from d2v.models.task_models import D2vForCTC, D2vForSequenceClassification


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    transcribes = bool((read_values(argv).get("data") or {}).get("transcript"))
    data, model = (transcribed, D2vForCTC) if transcribes else (labelled, D2vForSequenceClassification)
    return finetune(load(argv, MODALITY, data, model), data, model)


if __name__ == "__main__":
    run_cli(main)
