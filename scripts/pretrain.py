"""Pretrains an encoder.

d2v pretrain CONFIG key=value ...
accelerate launch -m d2v pretrain CONFIG key=value ...      (on several processes)

CONFIG is a YAML file, or one of `d2v configs` such as image/data2vec_tiny; any of its settings can be given another
value, e.g. data.path=photos/ run.dir=runs/photos. The encoder is written to the run's export/; the
same command goes on after a kill.
"""

from pathlib import Path

from d2v.config.cli import run_cli
from d2v.config.loading import load_config
from d2v.training.pretraining import pretrain


def main(arguments: list[str]) -> Path:
    """One run, from files to export/, whose path is returned. ValueError: whatever the user can mend."""
    if not arguments:
        raise ValueError("usage: d2v pretrain CONFIG key=value ...")
    config = load_config(arguments[0], arguments[1:])
    pretrain(config)
    return Path(config.run.dir) / "export"


if __name__ == "__main__":
    run_cli(main)
