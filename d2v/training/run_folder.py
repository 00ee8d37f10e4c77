"""A run's folder: whose it is, what d2v wrote in it, and how a new run takes an old one's place."""

import json
import platform
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from d2v import files
from d2v.config.bases import merged, read_yaml
from d2v.config.loading import differences
from d2v.config.schema import RESULT_SECTIONS, AnyRun
from d2v.settings import defaults_of, places_in
from d2v.training.checkpoint import MANIFEST, checkpoints_in, files_of
from d2v.training.distributed import of_all, together
from d2v.training.same_data import is_compared

CONFIG, PAGE = "config.yaml", "report.html"
LOOP_FILES = (
    CONFIG,
    "samples.json",
    "metrics.jsonl",
    "bad_steps.jsonl",
    "bad_samples.jsonl",
    "curves.png",
)  # of every run
EXPORT = "export"
# How a step's work is divided, which may change: see another_split in d2v/training/checkpoint.py.
DIVISION = ("train.accumulate", "train.sharding")
LENGTH = ("train.steps", "train.validate_every")  # see d2v/training/length.py
# Where a run that is being replaced waits, whole, until the new one stands; MOVING: part of it, on its way.
ASIDE, MOVING = ".former.d2v-tmp", ".former-part.d2v-tmp"
# What an export holds, for those that were written before there were records.
EXPORTED = {
    "README.md",
    "config.json",
    "finetuning.yaml",
    "model.safetensors",
    "preprocessor_config.json",
    "pretraining.yaml",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


def former(folder: Path, config: AnyRun) -> dict[str, Any]:
    """The settings of the run that a folder holds, with today's defaults below them; {}: there is none."""
    path = folder / CONFIG
    return merged(defaults_of(config), read_yaml(path)) if path.is_file() else {}


def check_settings(
    folder: Path,
    config: AnyRun,
    resume: str,
    sections: tuple[str, ...] = RESULT_SECTIONS,
    free: tuple[str, ...] = DIVISION,
) -> None:
    """A setting that did not exist when the run began had the value that is its default now.

    Not asked of settings that are `free`, of the length of a run (see d2v/training/length.py), and of where data lies
    whose samples are compared with those of the run.

    ValueError: the folder holds a run of another config, or checkpoints that run.resume=never forbids to use.
    """
    if before := former(folder, config):
        changed = differences(before, config.as_dict(), sections, places_in(config))
        allowed = {*LENGTH, *free, *_moved(folder, config)}
        changed = [one for one in changed if one.partition(":")[0] not in allowed]
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config ({'; '.join(changed[:8])}); choose another run.dir, "
                "or the old settings to resume"
            )
    if resume == "never" and checkpoints_in(folder / "checkpoints"):
        raise ValueError(
            f"{folder} has checkpoints and run.resume is never; choose another run.dir, or run.resume=auto to go on"
        )


def _moved(folder: Path, config: AnyRun) -> list[str]:
    """The settings that say where data lies, of data that may lie elsewhere than when the run began."""
    data = config.as_dict()["data"]
    if config.run.resume == "changed" or data.get("test_split"):  # whatever comes is taken; scores are of the old one
        return []
    moved = ["data.path"] if is_compared(folder, "", data.get("path")) else []
    for name, part in data.items():
        if isinstance(part, dict) and is_compared(folder, name, part.get("path")):
            moved.append(f"data.{name}.path")
    return moved


def check_shared(folder: Path, accelerator: Accelerator) -> None:
    """ValueError, on all processes: one does not see what the main process writes in a run's folder."""
    main = accelerator.is_main_process
    mark = folder / f".shared-{uuid.uuid4().hex}.d2v-tmp"  # of a name that no file system has looked up before
    if main:
        mark.touch()
    name = of_all(mark.name)[0]

    def look() -> None:
        if not (folder / name).is_file():
            raise ValueError(
                f"run.dir is {folder}, and process {accelerator.process_index} ({platform.node()}) does not see there "
                "what process 0 writes: it must be a folder that all processes share"
            )

    try:
        together(look)
    finally:
        if main:
            mark.unlink()


def check_apart(folder: Path, sources: dict[str, Any]) -> None:
    """`sources`: what a run reads, by the setting that names it.

    ValueError: run.dir is one of these places, holds it, or lies in it.
    """
    run = folder.expanduser().resolve()
    for setting, value in sources.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            source = Path(str(one)).expanduser()
            if not one or not source.exists():  # nothing, "demo" or a name on the Hub
                continue
            source = source.resolve()
            if source.is_relative_to(run):
                raise ValueError(f"run.dir={folder} holds {setting}={one}, which the run reads; choose another run.dir")
            if run.is_relative_to(source) and setting.startswith(("data.", "evaluate.", "run.")):
                raise ValueError(
                    f"run.dir={folder} lies in {setting}={one}: what the run writes would be read as data; "
                    "choose another run.dir"
                )


@contextmanager
def new_run(folder: Path, names: Iterable[str], prepared: Sequence[str], *, overwrite: bool) -> Iterator[None]:
    """Within it a run is set up that will write files `names`, export/ and the folders `prepared` by its modality.

    If `overwrite`, a run that is there waits aside. It is removed once the new run stands, and comes back after an
    error. Nothing that d2v did not write is touched. ValueError: something that would be written
    is there, and d2v did not write it.
    """
    folders = (EXPORT, *prepared)  # each has a record of its own
    _recover(folder, folders)
    _adopt_unrecorded(folder, names, folders)
    if overwrite:
        if folder.is_dir() and files.files_in(folder) and not files.recorded(folder):
            raise ValueError(
                f"{folder} is no run's folder (it has no {files.RECORD}); run.overwrite does not remove it"
            )
        _set_aside(folder, folders)
    before = files.files_in(folder) if folder.is_dir() else set()
    try:
        for name in names:
            files.check_file(folder / name)
        for name in folders:
            files.check_folder(folder / name)
        files.record(folder, names)
        yield
    except BaseException:
        if (folder / ASIDE).is_dir():
            files.remove(folder, set(_owned(folder, folders)) - before)
            _put_back(folder)
        raise
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def record_trackers(folder: Path, before: set[str]) -> None:
    """Records the files that trackers have made in a run's folder, where `before` were the files there."""
    new = files.files_in(folder) - before
    files.record(folder, {name for name in new if "tfevents" in name or name.endswith("hparams.yml")})


def _owned(folder: Path, folders: Sequence[str]) -> list[str]:
    """The files that d2v wrote in a run's folder, as paths relative to it."""
    if not (folder / files.RECORD).is_file():
        return []
    names = [*files.recorded(folder), files.RECORD]
    for inner in folders:
        if (folder / inner / files.RECORD).is_file():
            names += [f"{inner}/{name}" for name in (*files.recorded(folder / inner), files.RECORD)]
    for checkpoint in checkpoints_in(folder / "checkpoints"):
        names += [f"checkpoints/{checkpoint.name}/{name}" for name in files_of(checkpoint)]
    return sorted(files.lying_in(folder, names))


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    """Moves files, as paths relative to a folder, to another; folders that are empty without them go."""
    names = list(names)
    for name in names:
        if (source / name).is_file():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.name != files.RECORD:  # a record may be replaced
                place = files.unused(place)
            (source / name).rename(place)
    files.remove_empty_folders(source, names)


def _set_aside(folder: Path, folders: Sequence[str]) -> None:
    """Moves what d2v wrote.

    Files of the user in its folders stay: in an export that d2v may still fill, in folders that are no checkpoints.
    """
    owned = _owned(folder, folders)
    if not owned:
        return
    _move(owned, folder, folder / MOVING)
    (folder / MOVING).rename(folder / ASIDE)
    for inner in folders:
        if (folder / inner).is_dir():
            files.record(folder / inner, [])
    for checkpoint in checkpoints_in(folder / "checkpoints"):
        checkpoint.rename(files.unused(checkpoint))


def _put_back(folder: Path) -> None:
    """Moves the former run back, in one step on disk from `whole and aside` to `on the way`."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / MOVING)
    _move([*sorted(files.files_in(folder / MOVING)), files.RECORD], folder / MOVING, folder)


def _recover(folder: Path, folders: Sequence[str]) -> None:
    """After a kill while a run was being replaced: the new one stands, or the old one comes back."""
    if (folder / MOVING).is_dir():
        _put_back(folder)
    elif (folder / ASIDE).is_dir() and (folder / CONFIG).is_file():
        shutil.rmtree(folder / ASIDE)
    elif (folder / ASIDE).is_dir():
        files.remove(folder, _owned(folder, folders))
        _put_back(folder)


def _adopt_unrecorded(folder: Path, names: Iterable[str], folders: Sequence[str]) -> None:
    """Records what a run of version 0.1, which kept no record, wrote: it has our config, and a checkpoint or export."""
    if (folder / files.RECORD).is_file() or not _is_a_run(folder):
        return
    files.record(folder, [name for name in names if (folder / name).is_file()])
    for inner in folders:
        place = folder / inner
        if place.is_dir() and not (place / files.RECORD).is_file():
            names = files.files_in(place)
            files.record(place, [name for name in names if name.removeprefix("student/") in EXPORTED])


def _is_a_run(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    try:
        config = read_yaml(folder / CONFIG)
    except (ValueError, OSError):
        return False
    if not {"model", "data", "train", "run"} <= config.keys():
        return False
    checkpoints = any((path / MANIFEST).is_file() for path in checkpoints_in(folder / "checkpoints"))
    exported = any((folder / "export" / name).is_file() for name in ("pretraining.yaml", "finetuning.yaml"))
    return checkpoints or exported


class BadSamples:
    """Appends samples that could not be read during training to a file; picklable, for data loading processes."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, sample: str, reason: str) -> None:
        files.append(self.path, json.dumps({"sample": sample, "reason": reason}))
