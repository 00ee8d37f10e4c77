"""Pretrains an encoder.

d2v pretrain CONFIG key=value ...
accelerate launch -m d2v pretrain CONFIG key=value ...      (on several processes)

CONFIG is a YAML file, or one of `d2v configs` such as image/data2vec_tiny; any of its settings can be given another
value, e.g. data.path=photos/ run.dir=runs/photos. The encoder is written to the run's export/; the
same command goes on after a kill.
"""

from pathlib import Path

from d2v.config.cli import run_cli
from d2v.config.joint import is_joint, load_joint
from d2v.config.loading import load_config, load_values
from d2v.training.joint_run import pretrain_joint
from d2v.training.pretraining import pretrain


def main(arguments: list[str]) -> Path:
    """One run, from files to export/, whose path is returned. ValueError: whatever the user can mend."""
    if not arguments:
        raise ValueError("usage: d2v pretrain CONFIG key=value ...")
    if is_joint(load_values(arguments[0], arguments[1:])):
        joint = load_joint(arguments[0], arguments[1:])
        pretrain_joint(joint)
        return Path(joint.run.dir) / "export"
    config = load_config(arguments[0], arguments[1:])
    pretrain(config)
    return Path(config.run.dir) / "export"


if __name__ == "__main__":
    run_cli(main)
