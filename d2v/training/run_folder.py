"""A run's folder: whose it is, what d2v wrote in it, how a new run takes an old one's place, and the list of bad samples."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from d2v import files
from d2v.config.loading import differences
from d2v.config.schema import RESULT_SECTIONS
from d2v.training.checkpoint import MANIFEST, files_of, found

CONFIG = "config.yaml"
FOLDERS = ("export", "tokenizer")  # each has a record of its own
ASIDE = ".former.d2v-tmp"  # where a run that is being replaced waits until the new one stands
# what an export holds, for those that were written before there were records
EXPORTED = {"config.json", "model.safetensors", "README.md", "pretraining.yaml", "finetuning.yaml", "preprocessor_config.json", "tokenizer.json",
            "tokenizer_config.json", "special_tokens_map.json", "vocab.json"}  # fmt: skip


def check_settings(folder: Path, config: dict, resume: str, sections: tuple[str, ...] = RESULT_SECTIONS) -> None:
    """ValueError: the folder holds a run of another config, or checkpoints that run.resume=never forbids to go on from."""
    path = folder / CONFIG
    if path.is_file():
        changed = differences(OmegaConf.to_container(OmegaConf.load(path)), config, sections)  # type: ignore[arg-type]
        if changed:
            raise ValueError(
                f"{folder} holds a run of another config ({'; '.join(changed[:8])}); choose another run.dir, or the old settings to resume"
            )
    if resume == "never" and found(folder / "checkpoints"):
        raise ValueError(
            f"{folder} has checkpoints and run.resume is never; choose another run.dir, or run.resume=auto to go on"
        )


def check_apart(folder: Path, sources: dict[str, Any]) -> None:
    """`sources`: what a run reads, by the setting that names it. ValueError: run.dir is one of these places, holds it, or lies in it."""
    own = folder.expanduser().resolve()
    for setting, value in sources.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            source = Path(str(one)).expanduser()
            if not one or not source.exists():  # nothing, "demo" or a name on the Hub
                continue
            source = source.resolve()
            if source == own or source.is_relative_to(own):
                raise ValueError(f"run.dir={folder} holds {setting}={one}, which the run reads; choose another run.dir")
            if own.is_relative_to(source) and setting.startswith(("data.", "evaluate.", "run.")):
                raise ValueError(
                    f"run.dir={folder} lies in {setting}={one}: what the run writes would be read as data; choose another run.dir"
                )


@contextmanager
def new_run(folder: Path, names: Iterable[str], *, overwrite: bool) -> Iterator[None]:
    """Within it a run is set up that will write files `names` and FOLDERS; a run that is there waits aside if `overwrite`.

    It is removed once the new run stands, and comes back after an error. Nothing that d2v did not write is touched.
    ValueError: something that would be written is there, and d2v did not write it.
    """
    _recover(folder)
    _adopt_unrecorded(folder, names)
    if overwrite and folder.is_dir() and any(folder.iterdir()) and not files.recorded(folder):
        raise ValueError(f"{folder} is no run's folder (it has no {files.RECORD}); run.overwrite does not remove it")
    if overwrite:
        _set_aside(folder)
    before = files.files_in(folder) if folder.is_dir() else set()
    try:
        for name in names:
            files.check_file(folder / name)
        for name in FOLDERS:
            files.check_folder(folder / name)
        files.record(folder, names)
        yield
    except BaseException:
        if (folder / ASIDE).is_dir():
            files.remove(folder, [name for name in _owned(folder) if name not in before])
            _put_back(folder)
        raise
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def record_trackers(folder: Path, before: set[str]) -> None:
    """Records the files that trackers have made in a run's folder, where `before` were the files there."""
    files.record(
        folder, {name for name in files.files_in(folder) - before if "tfevents" in name or name.endswith("hparams.yml")}
    )


def _owned(folder: Path) -> list[str]:
    """The files that d2v wrote in a run's folder, as paths relative to it."""
    if not (folder / files.RECORD).is_file():
        return []
    names = [name for name in files.recorded(folder) if (folder / name).is_file()] + [files.RECORD]
    for inner in FOLDERS:
        if (folder / inner / files.RECORD).is_file():
            names += [f"{inner}/{name}" for name in (*files.recorded(folder / inner), files.RECORD)]
    for step in found(folder / "checkpoints"):
        names += [f"checkpoints/{step.name}/{name}" for name in files_of(step)]
    return names


def _move(names: list[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)
    if source.is_dir():
        files.remove_empty_folders(source)


def _set_aside(folder: Path) -> None:
    """Moves what d2v wrote; the user's files in its folders stay, in an export that d2v may still fill, in folders that are no checkpoints."""
    _move(_owned(folder), folder, folder / ASIDE)
    for inner in FOLDERS:
        if (folder / inner).is_dir():
            files.record(folder / inner, [])
    for step in found(folder / "checkpoints"):
        step.rename(step.with_name(f"{step.name}.kept"))


def _put_back(folder: Path) -> None:
    _move([*sorted(files.files_in(folder / ASIDE)), files.RECORD], folder / ASIDE, folder)


def _recover(folder: Path) -> None:
    """After a kill while a run was being replaced: the new one stands, or the old one comes back."""
    if (folder / ASIDE).is_dir():
        if (folder / CONFIG).is_file():
            shutil.rmtree(folder / ASIDE)
        else:
            files.remove(folder, _owned(folder))
            _put_back(folder)


def _adopt_unrecorded(folder: Path, names: Iterable[str]) -> None:
    """Records what a run of version 0.1, which kept no record, wrote: it has a config of ours and a checkpoint or an export."""
    if (folder / files.RECORD).is_file() or not _is_a_run(folder):
        return
    files.record(folder, [name for name in names if (folder / name).is_file()])
    for inner in FOLDERS:
        place = folder / inner
        if place.is_dir() and not (place / files.RECORD).is_file():
            files.record(place, [name for name in files.files_in(place) if re.sub("^student/", "", name) in EXPORTED])


def _is_a_run(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (YAMLError, ValueError, OSError):
        return False
    ours = isinstance(config, dict) and {"model", "data", "train", "run"} <= config.keys()
    checkpoints = any((step / MANIFEST).is_file() for step in found(folder / "checkpoints"))
    exported = any((folder / "export" / name).is_file() for name in ("pretraining.yaml", "finetuning.yaml"))
    return ours and (checkpoints or exported)


class BadSamples:
    """Appends samples that could not be read during training to a file; picklable, for data loading processes."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, sample: str, reason: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"sample": sample, "reason": reason}) + "\n")
