"""A run's folder: whose it is, what may be replaced in it, and the list of bad samples."""

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from d2v.checkpoint import found
from d2v.config import RESULT_SECTIONS, differences


def check_folder(folder: Path, config: dict, resume: str, sections: tuple[str, ...] = RESULT_SECTIONS) -> None:
    """ValueError: the folder holds a run of another config, or checkpoints that run.resume=never forbids to go on from."""
    path = folder / "config.yaml"
    if path.is_file():
        changed = differences(OmegaConf.to_container(OmegaConf.load(path)), config, sections)  # type: ignore[arg-type]
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config ({'; '.join(changed[:8])}); choose another run.dir, or the old settings to resume"
            )
    if resume == "never" and found(folder / "checkpoints"):
        raise ValueError(f"{folder} has checkpoints and run.resume is never; choose another run.dir, or run.resume=auto to go on")


def clear(folder: Path) -> None:
    """Removes a run's folder, as run.overwrite=true asks for. ValueError: it is no run's."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder} is no run's folder (it has no config.yaml); run.overwrite does not remove it")
        shutil.rmtree(folder)


class BadSamples:
    """Appends samples that could not be read during training to a file; picklable, for data loading processes."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, sample: str, reason: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"sample": sample, "reason": reason}) + "\n")
