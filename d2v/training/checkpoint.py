"""Checkpoints that are whole or not there: written aside, sealed with a manifest, then renamed.

Nothing in them is unpickled but tensors, numbers and the state of numpy's generator: whoever can write to a run's
folder could otherwise run code.
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.utils import load as load_plain  # tensors, numbers, numpy arrays; all else is an error
from accelerate.utils import save as save_plain
from safetensors.torch import load_file
from torch import Tensor, nn

from d2v import files
from d2v.training.distributed import first_error, is_sharded, of_all, together
from d2v.training.shards import OPTIMIZER, load_shares, load_whole, read_shares, save_shares, shard_files

MANIFEST, PROGRESS, WEIGHTS = "manifest.json", "progress.json", "model.safetensors"
FORMER_PROGRESS = "custom_checkpoint_0.pkl"  # of runs that were made before PROGRESS was
DIGITS = "[0-9]" * 8  # of a checkpoint's name


@dataclass
class Progress:
    """The number of completed optimizer steps."""

    step: int = 0


def save(accelerator: Accelerator, folder: Path, step: int, keep: int, *, accumulate: int = 1) -> None:
    """Writes folder/<step> and removes all but the last `keep`; every process calls it.

    `accumulate`: micro-batches of a step and process, which are noted.

    ValueError: a disk does not take it; the former ones stay.
    """
    temporary = _begun(accelerator, folder, step)
    _together(partial(_write, accelerator, temporary), temporary, accelerator)
    _together(partial(_seal, accelerator, temporary, step, accumulate), temporary, accelerator)
    _publish(accelerator, temporary, step, keep)
    accelerator.wait_for_everyone()


def copied(
    accelerator: Accelerator, folder: Path, step: int, keep: int, *, accumulate: int = 1
) -> Callable[[], None] | None:
    """Takes a copy of what `save` would write, in memory; every process calls it.

    Returns what writes the copy, on the main process, without the others; it has the ValueError of `save`.
    """
    temporary = _begun(accelerator, folder, step)
    _together(partial(_write_states, accelerator, temporary), temporary, accelerator)
    if not accelerator.is_main_process:
        return None
    model = accelerator.get_state_dict(accelerator._models[0], unwrap=False)
    optimizer = accelerator._optimizers[0].state_dict()
    known: dict[tuple, Tensor] = {}
    trained = {WEIGHTS: _in_memory(model, known), OPTIMIZER: _in_memory(optimizer, known)}

    def write() -> None:
        try:
            with files.writing(temporary):
                for name, state in trained.items():
                    save_plain(state, temporary / name, safe_serialization=name == WEIGHTS)
                _seal(accelerator, temporary, step, accumulate)
        except ValueError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _publish(accelerator, temporary, step, keep)

    return write


def _in_memory(state: Any, known: dict[tuple, Tensor]) -> Any:
    """A copy that no step changes, on the CPU; what was one tensor is one, by `known`."""
    if isinstance(state, Tensor):
        key = (state.data_ptr(), state.dtype, state.shape, state.stride())
        if key not in known or not state.numel():
            known[key] = state.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(state, dict):
        return type(state)((name, _in_memory(value, known)) for name, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(_in_memory(value, known) for value in state)
    return state


def _begun(accelerator: Accelerator, folder: Path, step: int) -> Path:
    """Where a checkpoint is written, as yet no checkpoint. ValueError: a disk does not take it."""
    if accelerator.is_main_process:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{DIGITS}.tmp"):  # of a run that was killed while it saved
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    return folder / f".{step:08d}.tmp"


def _publish(accelerator: Accelerator, temporary: Path, step: int, keep: int) -> None:
    """Makes what was written the last checkpoint, and removes the oldest."""
    if accelerator.is_main_process:
        folder, final = temporary.parent, temporary.parent / f"{step:08d}"
        _remove(final)
        temporary.rename(final)
        for old in checkpoints_in(folder)[:-keep]:
            _remove(old)


def _write(accelerator: Accelerator, temporary: Path) -> None:
    """What is trained, and random states: by accelerate, or what is trained as a share of each process."""
    if not is_sharded(accelerator.unwrap_model(accelerator._models[0])):
        accelerator.save_state(str(temporary))
        return
    temporary.mkdir(exist_ok=True)
    save_shares(*_trained(accelerator), temporary)
    _write_states(accelerator, temporary)


def _write_states(accelerator: Accelerator, temporary: Path) -> None:
    """Random states, of each process, and that of the gradients' scale."""
    temporary.mkdir(exist_ok=True)
    nothing: list = []
    process, scaler = accelerator.process_index, accelerator.scaler
    save_accelerator_state(str(temporary), nothing, nothing, nothing, nothing, process, accelerator.step, scaler)


def _trained(accelerator: Accelerator) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and the optimizer that accelerate was given."""
    return accelerator.unwrap_model(accelerator._models[0]), accelerator._optimizers[0].optimizer


def _together(write: Callable[[], Any], temporary: Path, accelerator: Accelerator) -> None:
    """Calls `write` on every process. ValueError, on all: a disk did not take it; what was written of it is gone."""

    def written() -> None:
        with files.writing(temporary):
            write()

    try:
        together(written)
    except ValueError:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _seal(accelerator: Accelerator, temporary: Path, step: int, accumulate: int) -> None:
    """Adds the step and the manifest."""
    if accelerator.is_main_process:
        parts = {"processes": accelerator.num_processes, "accumulate": accumulate}
        progress = {"step": step, **parts, "shards": shard_files(temporary)}
        (temporary / PROGRESS).write_text(json.dumps(progress))
        files.open_to_others(temporary)
        manifest = {name: _fingerprint(temporary / name) for name in sorted(files.files_in(temporary))}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))


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
    """Loads the newest whole checkpoint and returns it; None if there is none. The main process alone verifies it.

    ValueError: there are some, and all are damaged, or of a model of another shape; processes see different ones.
    """
    checkpoints = checkpoints_in(folder)
    seen = of_all([path.name for path in checkpoints])
    for process, names in enumerate(seen):
        if names != seen[0]:
            raise ValueError(
                f"process {process} sees other checkpoints in {folder} ({', '.join(names) or 'none'}) than process 0 "
                f"({', '.join(seen[0]) or 'none'}): run.dir must be a folder that all processes share"
            )
    for checkpoint in reversed(checkpoints):
        fault = first_error(damage(checkpoint) if accelerator.is_main_process else None)
        if fault is None:
            fault = first_error(_load(accelerator, checkpoint))
        if fault is None:
            return checkpoint
        say(f"checkpoint {checkpoint} is damaged ({fault}); trying the one before")
    if checkpoints:
        raise ValueError(
            f"all checkpoints in {folder} are damaged: {', '.join(path.name for path in checkpoints)}; "
            "choose another run.dir to start anew"
        )
    return None


def _load(accelerator: Accelerator, checkpoint: Path) -> str | None:
    """Fills what is trained, and all random states; what is wrong with a file, if one cannot be read.

    ValueError: the weights are of a model of another shape.
    """
    random_states = checkpoint / f"random_states_{accelerator.process_index}.pkl"
    try:
        step_of(checkpoint)
        if random_states.is_file():  # a process more than the run had so far keeps its own
            load_plain(random_states)  # accelerate passes over one that cannot be read
        model, optimizer = _trained(accelerator)
        by_accelerate = False
        if shard_files(checkpoint):
            load_shares(model, optimizer, checkpoint)
        elif is_sharded(model):
            load_whole(model, optimizer, checkpoint)
        else:
            by_accelerate = True
        # What accelerator.load_state does, but that unpickles whatever FORMER_PROGRESS holds.
        load_accelerator_state(
            str(checkpoint),
            accelerator._models if by_accelerate else [],
            accelerator._optimizers if by_accelerate else [],
            schedulers=[],
            dataloaders=[],
            process_index=accelerator.process_index,
            scaler=accelerator.scaler,
            map_location="on_device" if accelerator.multi_device else "cpu",
        )
    except OSError:
        raise
    except Exception as error:  # pickle, zip, torch and safetensors each have their own
        mismatch = re.search("size mismatch for .*", str(error))
        if mismatch:
            raise ValueError(f"{checkpoint} is of another model ({mismatch[0]}); choose another run.dir") from None
        # Of torch's message only the kind: it advises to unpickle whatever the file holds.
        return f"a file is not what was written: {type(error).__name__}"
    return None


def read_model(checkpoint: Path) -> dict[str, Tensor]:
    """All that was trained, and buffers, by its names, of a sharded run too."""
    return read_shares(checkpoint) if shard_files(checkpoint) else load_file(checkpoint / WEIGHTS)


def step_of(checkpoint: Path) -> int:
    """How many optimizer steps a checkpoint is after. Any error: its file holds something else."""
    if (checkpoint / PROGRESS).is_file():
        return int(json.loads((checkpoint / PROGRESS).read_text())["step"])
    return int(load_plain(checkpoint / FORMER_PROGRESS)["step"])


def another_split(checkpoint: Path, processes: int, accumulate: int) -> str:
    """A line that says what else is other in a run that goes on with batches cut into other parts; "": they are not."""
    if not (checkpoint / PROGRESS).is_file():
        return ""
    saved = json.loads((checkpoint / PROGRESS).read_text())
    before = (saved["processes"], saved.get("accumulate", accumulate))
    if before == (processes, accumulate):
        return ""
    return (
        f"{checkpoint.name} was saved by {before[0]} processes with train.accumulate={before[1]}, and goes on with "
        f"{processes} and {accumulate}: batches, masks and augmentations stay the same, what dropout and a "
        "decoder's noise draw does not"
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are those that were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or cannot be read"
    if not _is_manifest(manifest):
        return f"{MANIFEST} does not say of each file its size and checksum"
    for name, (size, checksum) in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _fingerprint(path)[1] != checksum:
            return f"{name} has changed since it was written"
    try:
        unnamed = [name for name in _required(checkpoint, manifest) if name not in manifest]
    except (ValueError, TypeError, KeyError):
        return f"{PROGRESS} cannot be read"
    return f"{MANIFEST} does not name {', '.join(unnamed)}" if unnamed else None


def _required(checkpoint: Path, manifest: dict) -> list[str]:
    """The files that a checkpoint has whatever is trained. Any error: its progress cannot be read."""
    progress: dict[str, Any] = {"processes": 1}
    if PROGRESS in manifest:
        progress = json.loads((checkpoint / PROGRESS).read_text())
    states = [f"random_states_{process}.pkl" for process in range(progress["processes"])]
    trained = progress.get("shards") or [WEIGHTS, OPTIMIZER]
    return [*trained, FORMER_PROGRESS if FORMER_PROGRESS in manifest else PROGRESS, *states]


def _is_manifest(content: Any) -> bool:
    """Whether it is a dict from names to pairs."""
    return isinstance(content, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in content.values())


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]
