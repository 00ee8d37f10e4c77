"""Says what is found in data: how many samples can be used, which cannot and why, how many there are of each class.

d2v data CONFIG data.path=PATH [key=value ...]

CONFIG names the modality and how the data is read; one of fine-tuning also opens labels. Nothing is trained or written.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path

from d2v import plugins
from d2v.config.cli import run_cli
from d2v.config.find import find_config
from d2v.config.joint import load_parts
from d2v.config.loading import load_values
from d2v.finetuning.config import KINDS, load
from d2v.objectives.common.parts import names_of
from d2v.shown import printable
from d2v.training.pretraining import advice, uses_of_splits


def main(argv: list[str]) -> None:
    """`argv`: CONFIG and overrides. ValueError: whatever the user can mend."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v data CONFIG data.path=PATH [key=value ...]")
    overrides = [argument for argument in argv[1:] if not argument.startswith("model=")]
    with tempfile.TemporaryDirectory() as folder:  # for what is prepared: a tokenizer
        is_labelled = {"task", KINDS} & {*load_values(argv[0], overrides)}
        (_labelled if is_labelled else _unlabelled)(argv, Path(folder))


def _unlabelled(argv: list[str], folder: Path) -> None:
    """What pretraining would read."""
    for part, config in load_parts(find_config(argv[0]), argv[1:]).items():
        modality = plugins.load("d2v.modalities", config.modality)
        with names_of(part) if part else nullcontext():
            modality.prepare(config.data, config.frontend, folder, config.train.seed)
            samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
        lines = [*samples.report.lines(), uses_of_splits(config, samples.report.splits), *advice(samples.report)]
        print("\n".join([*([f"{part}:"] if part else []), *lines]))


def _labelled(argv: list[str], folder: Path) -> None:
    """What fine-tuning would read, which says it itself."""
    config, task = load(argv)
    if task.said:
        print(printable(task.said))
    task.open(config, folder, lambda name, why: print(printable(f"{name}: {why}")), print)


if __name__ == "__main__":
    run_cli(main)
