"""Pretrains an encoder.

accelerate launch scripts/pretrain.py CONFIG key=value ...

CONFIG is a YAML file such as those in configs/<modality>/, whose header says what it is for; any of its settings can
be given another value, e.g. data.path=photos/ run.dir=runs/photos. The encoder is written to the run's export/; the
same command goes on after a kill.
"""

from d2v.config.cli import run_cli
from d2v.config.loading import load_config
from d2v.training.pretraining import pretrain


def main(arguments: list[str]) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not arguments:
        raise ValueError("usage: accelerate launch scripts/pretrain.py CONFIG key=value ...")
    pretrain(load_config(arguments[0], arguments[1:]))


if __name__ == "__main__":
    run_cli(main)
