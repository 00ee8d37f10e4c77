"""Whether the data of a run that goes on is the data that it began with; the run's folder keeps what tells.

Of each sample its id, the size of its file and a checksum from the file's middle; where it has no file, its length.
"""

import base64
import hashlib
import itertools
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from d2v import cache
from d2v.config.schema import RunConfig
from d2v.files import written
from d2v.protocols import ScoredSplit
from d2v.training.checkpoint import checkpoints_in
from d2v.training.distributed import together

FILE = "samples.json"
MOST_READ = 100_000  # samples whose files are looked into; of more, sizes must do
MOST_NAMED = 1_000_000  # samples whose names are kept; of more, a digest must do
PART = 1000  # samples that a thread is given at a time
TOGETHER = 16 * PART  # samples whose marks are in memory at once
MIDDLE = 1 << 16  # bytes of a file that its checksum is of
LETTERS = 1 << 16  # bytes that become letters at a time; a multiple of four
TABLES = (".parquet", ".tar", ".csv", ".tsv", ".jsonl", ".json", ".txt", ".arrow")


class DataCheck:
    """What a run's samples are, beside what they were when it began."""

    def __init__(self, accelerator: Accelerator, folder: Path, run: RunConfig, *, remembers: str = "", part: str = ""):
        """`remembers`: the method, if it keeps something of each sample by its number. `part`: of a joint run."""
        self.accelerator, self.folder, self.run, self.remembers = accelerator, folder, run, remembers
        self.file = _file(folder, part)
        self.marks: dict[str, Any] = {}

    def __call__(self, path: Any, splits: Iterable[ScoredSplit]) -> None:
        """Compares the samples of `path`, on the main process. ValueError, on all: they have changed, and may not."""

        def compare() -> None:
            splits_read = list(splits)
            origin = origin_of(path, splits_read)
            before = self._before()
            if origin and before and before.get("origin") == origin:
                self.marks = before
                return
            self.marks = known_marks(path, splits_read, origin)
            if error := self._error():
                raise ValueError(error)

        self._on_main(compare)

    def ask(self, check: Callable[[str], None]) -> None:
        """Has the fingerprint of the data checked, on the main process. ValueError, on all: as of `check`."""
        self._on_main(lambda: check(self.marks["digest"]))

    def _on_main(self, check: Callable[[], None]) -> None:
        """Calls it on the main process. ValueError, on all processes: as there."""
        together(lambda: check() if self.accelerator.is_main_process else None)

    def _before(self) -> dict[str, Any] | None:
        """What was written down when the run began, if it can be read."""
        try:
            before = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return None
        return before if isinstance(before, dict) and {"digest", "tables", "samples"} <= {*before} else None

    def _error(self) -> str | None:
        file = self.file
        if not checkpoints_in(self.folder / "checkpoints") or not file.is_file():  # new, or of a former version
            return None
        try:
            changed = difference(json.loads(file.read_text()), self.marks)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            changed = f"{file} cannot be read ({type(error).__name__}), so that nobody knows what the data was"
        if not changed:
            return None
        if self.remembers:
            return (
                f"{self.folder}: {changed}, and {self.remembers} remembers each sample by its number: its run can only "
                "go on with the data that it began with; bring that back, or choose another run.dir"
            )
        if self.run.resume == "changed":
            self.accelerator.print(f"{changed}; the run goes on with them (run.resume=changed)")
            return None
        return (
            f"{self.folder} holds a run that began with other data: {changed}; bring that back, choose another "
            "run.dir, or go on with what is there now by run.resume=changed"
        )

    def save(self) -> None:
        """Writes down what the samples are."""
        with written(self.file) as draft:
            draft.write_text(json.dumps(self.marks, indent=1) + "\n")


def is_compared(folder: Path, part: str, path: Any) -> bool:
    """Whether DataCheck finds out if the files of `path` are those that the run of `folder` began with.

    It does where it wrote down what those were, of a folder or a file of text. Of a list or a pattern, of what a table
    names and of what is not on this machine, such as Hub data, it knows too little.
    """
    begun = bool(checkpoints_in(folder / "checkpoints")) and _file(folder, part).is_file()
    place = _root(path) if isinstance(path, str) and path else None
    return begun and place is not None and (place.is_dir() or (place.is_file() and place.suffix.lower() == ".txt"))


def _file(folder: Path, part: str) -> Path:
    return folder / (f"samples_{part}.json" if part else FILE)


def origin_of(path: Any, splits: Sequence[ScoredSplit]) -> str | None:
    """What is another one if a sample, or the size or time of its file, is; None: nobody knows that without a look."""
    origins = []
    for samples, indices, labels in splits:
        origin = vars(samples).get("origin")
        if origin is None:
            return None
        chosen = str(indices) if isinstance(indices, range) else indices
        origins += [origin, chosen, [str(label) for label in labels]]
    return cache.digest_of(path, *origins)


def known_marks(path: Any, splits: Sequence[ScoredSplit], origin: str | None) -> dict[str, Any]:
    """The marks of the same files, kept from another start, or what `marks_of` finds; and what tells that they are."""
    if origin is None:
        return marks_of(path, splits)
    entry = cache.Entry("marks", origin, origin)
    folder = cache.find(entry)
    if folder is not None:
        return json.loads((folder / FILE).read_text())
    marks = {"origin": origin, **marks_of(path, splits)}
    cache.keep(entry, lambda folder: (folder / FILE).write_text(json.dumps(marks)))
    return marks


def marks_of(path: Any, splits: Sequence[ScoredSplit]) -> dict[str, Any]:
    """How many samples there are, a digest, the marks of each by its id, packed, and of the tables that hold them.

    Some thousand samples at a time: of millions no list is made.
    """
    count = sum(len(indices) for _, indices, _ in splits)
    digest, packer, packed = hashlib.sha256(), zlib.compressobj(), b""
    tables: dict[str, str] = {}
    between = b"["
    for split in splits:
        has_files = False
        for marks, are_files in _marked(_root(path), split):
            has_files |= are_files
            plain = between + json.dumps(marks)[1:-1].encode()
            digest.update(plain)
            packed += packer.compress(plain) if count <= MOST_NAMED else b""
            between = b", "
        if not has_files:
            tables = table_marks(path)
    end = b"]" if count else b"[]"
    digest.update(end + json.dumps(tables).encode())
    packed += packer.compress(end) + packer.flush()
    samples = _in_letters(packed) if count <= MOST_NAMED else None
    return {"count": count, "digest": digest.hexdigest(), "tables": tables, "samples": samples}


def _in_letters(packed: bytes) -> str:
    """Base 85, a part at a time: Python makes an object of every four bytes that it is given at once."""
    return "".join(
        base64.b85encode(packed[start : start + LETTERS]).decode() for start in range(0, len(packed), LETTERS)
    )


def _marked(root: Path, split: ScoredSplit) -> Iterator[tuple[list[tuple[str, str]], bool]]:
    """The id and mark of each sample, some at a time; and whether there are files among them."""
    samples, indices, labels = split
    mark_some = partial(_marks, root, looks_inside=len(samples.ids) <= MOST_READ)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), TOGETHER):
            places = range(start, min(start + TOGETHER, len(indices)))
            chosen = [samples.ids[indices[place]] for place in places]
            parts = [chosen[first : first + PART] for first in range(0, len(chosen), PART)]
            of_files = list(itertools.chain.from_iterable(pool.map(mark_some, parts)))
            marks = []
            for place, name, mark in zip(places, chosen, of_files, strict=True):
                if not mark and samples.lengths is not None:
                    mark = str(samples.lengths[indices[place]])
                label = f"{zlib.crc32(str(labels[place]).encode()):08x} " if len(labels) else ""
                marks.append((name, label + mark))
            yield marks, any(of_files)


def _marks(root: Path, names: Sequence[str], *, looks_inside: bool) -> list[str]:
    return [_mark(root, name, looks_inside=looks_inside) for name in names]


def _mark(root: Path, name: str, *, looks_inside: bool) -> str:
    """The size of a file below `root`, and, if wanted, a checksum of its middle; "" if there is no such file."""
    file = os.path.join(root, name)  # noqa: PTH118 - a Path for each of a million takes longer than the rest
    try:
        status = os.stat(file)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            return ""
        size = status.st_size
        if not looks_inside:
            return str(size)
        with Path(file).open("rb") as content:
            content.seek(max(0, (size - MIDDLE) // 2))
            return f"{size} {zlib.crc32(content.read(MIDDLE)):08x}"
    except (OSError, ValueError):  # a name that no file can have
        return ""


def _root(path: Any) -> Path:
    return Path(path).expanduser().absolute() if isinstance(path, str | os.PathLike) else Path()


def table_marks(path: Any) -> dict[str, str]:
    """Marks of the files that may hold samples which are no files themselves, by name; `path`: as data.path."""
    if not isinstance(path, str | os.PathLike):
        marks = {}
        for number, one in enumerate(path):
            marks |= {f"{number}:{name}": mark for name, mark in table_marks(one).items()}
        return marks
    root = _root(path)
    if not root.is_dir():
        found = [root] if root.exists() else sorted(Path(root.anchor).glob(str(root.relative_to(root.anchor))))
        return {file.name: _mark(root, str(file), looks_inside=True) for file in found}
    marks = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in TABLES and file.is_file():
            marks[file.relative_to(root).as_posix()] = _mark(root, str(file), looks_inside=True)
    return marks


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What has changed between two results of `marks_of`, with the first names; "" if nothing has."""
    if old["digest"] == new["digest"]:
        return ""
    if old["samples"] is None or new["samples"] is None:
        return f"its {old['count']} samples changed: there are {new['count']} now, or some are others"
    before, after = _unpacked(old), _unpacked(new)
    kinds = {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and not _alike(before[name], after[name])],
    }
    number = sum(map(len, kinds.values()))
    if number:
        return f"{number} of {old['count']} samples changed: {_listed(kinds)}"
    tables = {**old["tables"], **new["tables"]}
    names = [name for name in tables if old["tables"].get(name) != new["tables"].get(name)]
    if names:
        return f"the data changed: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    return "" if list(before) == list(after) else "the order of the samples changed"


def _unpacked(marks: dict[str, Any]) -> dict[str, str]:
    return dict(json.loads(zlib.decompress(base64.b85decode(marks["samples"]))))


def _alike(one: str, other: str) -> bool:
    """Sizes alone tell where one of two marks has no checksum."""
    return all(a == b for a, b in zip(one.split(), other.split(), strict=False))


def _listed(kinds: dict[str, list[str]]) -> str:
    """The first three names of each kind."""
    named, total = [], 0
    for kind, names in kinds.items():
        named += [f"{kind} {name}" for name in names[:3]]
        total += len(names)
    return ", ".join(named) + (", ..." if total > len(named) else "")
