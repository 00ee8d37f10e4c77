"""Says what is found in data: how many samples can be used, which cannot and why, how many there are of each class.

d2v data CONFIG data.path=PATH [key=value ...]

CONFIG names the modality and how the data is read. Nothing is trained or written.
"""

import tempfile
from pathlib import Path

from d2v import plugins
from d2v.config.cli import run_cli
from d2v.config.find import find_config
from d2v.config.loading import load_config


def main(argv: list[str]) -> None:
    """`argv`: CONFIG and overrides. ValueError: whatever the user can mend."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v data CONFIG data.path=PATH [key=value ...]")
    config = load_config(find_config(argv[0]), argv[1:])
    modality = plugins.load("d2v.modalities", config.modality)
    with tempfile.TemporaryDirectory() as folder:  # for what is prepared: a tokenizer
        modality.prepare(config.data, config.frontend, Path(folder), config.train.seed)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=Path(folder))
    print("\n".join(samples.report.lines()))


if __name__ == "__main__":
    run_cli(main)
