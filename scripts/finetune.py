"""Fine-tunes an encoder on labels, of whatever modality CONFIG names.

d2v finetune CONFIG [model=PATH] key=value ...
accelerate launch -m d2v finetune CONFIG ...      (on several processes)

`model` is an export of pretraining, without it training is from scratch. Images and text learn the class or number that
data.label names; speech learns these or, by CTC, the letters of transcripts, by what the data has, or as data.label= or
data.transcript= say.
"""

from d2v.config.cli import run_cli
from d2v.finetuning.config import load
from d2v.finetuning.run import finetune


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    """One run; the scores by split. ValueError: whatever the user can mend."""
    return finetune(*load(argv))


if __name__ == "__main__":
    run_cli(main)
