"""Checkpoints that are whole or not there: written aside, sealed with a manifest, then renamed."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from d2v import files
from d2v.training.distributed import first_error

MANIFEST = "manifest.json"
DIGITS = "[0-9]" * 8  # of a checkpoint's name


class Progress:
    """The number of completed optimizer steps, saved with the rest."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict:
        """For accelerate."""
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """For accelerate."""
        self.step = state["step"]


def save(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Writes folder/<step> and removes all but the last `keep`; every process calls it."""
    final, temporary = folder / f"{step:08d}", folder / f".{step:08d}.tmp"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{DIGITS}.tmp"):  # of a run that was killed while it saved
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = {name: _fingerprint(temporary / name) for name in sorted(files.files_in(temporary))}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _remove(final)
        temporary.rename(final)
        for old in checkpoints_in(folder)[:-keep]:
            _remove(old)
    accelerator.wait_for_everyone()


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first: those named by eight digits; what else is there is not d2v's."""
    return sorted(path for path in folder.glob(DIGITS) if path.is_dir())


def files_of(checkpoint: Path) -> list[str]:
    """The files that a checkpoint's manifest names, and the manifest; none if it cannot be read."""
    try:
        names = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return []
    return [*files.lying_in(checkpoint, names), MANIFEST] if isinstance(names, dict) else []


def _remove(checkpoint: Path) -> None:
    """Removes the files of a checkpoint; what else lies there stays, under a name that is no checkpoint's."""
    files.remove(checkpoint, files_of(checkpoint))
    if checkpoint.exists():
        checkpoint.rename(files.unused(checkpoint))


def restore(accelerator: Accelerator, folder: Path, say: Callable[[str], None]) -> Path | None:
    """Loads the newest whole checkpoint and returns it; None if there is none.

    ValueError: there are some, and all are damaged.
    """
    checkpoints = checkpoints_in(folder)
    for checkpoint in reversed(checkpoints):
        fault = first_error(damage(checkpoint))
        if fault is None:
            accelerator.load_state(str(checkpoint))
            return checkpoint
        say(f"checkpoint {checkpoint} is damaged ({fault}); trying the one before")
    if checkpoints:
        raise ValueError(
            f"all checkpoints in {folder} are damaged: {', '.join(path.name for path in checkpoints)}; "
            "choose another run.dir to start anew"
        )
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are those that were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, (size, checksum) in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _fingerprint(path)[1] != checksum:
            return f"{name} has changed since it was written"
    return None


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]
