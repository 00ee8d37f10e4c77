"""A run that goes on notices that its data is no longer what it began with, names what changed, and asks."""

import base64
import hashlib
import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from d2v.files import recorded
from d2v.protocols import ScoredSplit
from d2v.training import same_data
from d2v.training.same_data import table_marks
from scripts import finetune_image, pretrain

QUICK = ("train.steps=2", "train.warmup_steps=0", "run.save_every=1", "run.health_samples=8")


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(place: Path, count: int = 12) -> Path:
    for number in range(count):
        image(place / f"{number:03}.png", number)
    return place


def command(tmp_path: Path, *more: str, modality: str = "image") -> list[str]:
    return tiny.arguments(modality, tmp_path / "run", *QUICK, f"data.path={tmp_path / 'data'}", *more)


def add_thirty(data: Path) -> None:
    for number in range(30):
        image(data / f"new{number:02}.png", 100 + number)


def swap_one(data: Path) -> None:
    (data / "003.png").unlink()
    image(data / "new.png", 100)


def another_of_equal_size(data: Path) -> None:
    content = bytearray((data / "003.png").read_bytes())
    image(data / "other.png", 100)
    other = (data / "other.png").read_bytes()
    (data / "other.png").unlink()
    size = min(len(content), len(other))
    content[:] = other[:size] + bytes(len(content) - size)  # bytes behind a PNG's end are not read
    (data / "003.png").write_bytes(content)


def another(data: Path) -> None:
    Image.fromarray(np.full((8, 8), 9, dtype=np.uint8)).save(data / "003.png")


CHANGES = [
    (add_thirty, "30 of 12 samples changed: added new00.png, added new01.png, added new02.png, ..."),
    (swap_one, "2 of 12 samples changed: added new.png, removed 003.png"),
    (another, "1 of 12 samples changed: changed 003.png"),
    (another_of_equal_size, "1 of 12 samples changed: changed 003.png"),
    (lambda data: (data / "004.png").unlink(), "1 of 12 samples changed: removed 004.png"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run on twelve images, made once."""
    place = tmp_path_factory.mktemp("begun")
    folder(place / "data")
    pretrain.main(command(place))
    return place


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_run_is_not_continued_on_other_data(change, message, begun, tmp_path, capsys):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(tmp_path)))
    pretrain.main(command(tmp_path))  # a copy of the same is the same, though its files are newer
    change(tmp_path / "data")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError) as raised:
        pretrain.main(command(tmp_path))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(tmp_path / "run") in str(raised.value) and "run.resume=changed" in str(raised.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()
    pretrain.main(command(tmp_path, "run.resume=changed"))
    assert f"{message}; the run goes on with them" in (printed := capsys.readouterr().out)
    assert "resuming from step 2" in printed
    pretrain.main(command(tmp_path))  # which is what it now goes on with


def test_data_may_lie_elsewhere_when_a_run_goes_on(begun, tmp_path, capsys, monkeypatch):
    """As on clusters, where a job copies it to the disk of its own machine."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    line = ["data.path=elsewhere" if one.startswith("data.path=") else one for one in command(tmp_path)]
    pretrain.main(line)
    assert "finished: nothing is changed" in capsys.readouterr().out
    swap_one(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"began with other data: 2 of 12 samples changed: added new.png"):
        tiny.run(line)
    for unknown in ("some/hub_data", "nowhere", "[elsewhere]"):
        with pytest.raises(ValueError, match=r"holds a run of another config \(data.path: elsewhere -> "):
            tiny.run([*line, f"data.path={unknown}"])
    (tmp_path / "run" / "samples.json").unlink()  # as of a former version, which cannot tell
    (tmp_path / "elsewhere").rename(tmp_path / "third")
    with pytest.raises(ValueError, match=r"holds a run of another config \(data.path: elsewhere -> third\)"):
        tiny.run([*line, "data.path=third"])


def test_where_too_little_is_compared_data_stays_in_its_place(begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    rows = "\n".join(f"data/{number:03}.png" for number in range(12))
    (tmp_path / "list.csv").write_text(f"file\n{rows}\n")
    for place in (tmp_path / "list.csv", tmp_path / "*" / "*.png"):  # a table that names files; a pattern
        with pytest.raises(ValueError, match="holds a run of another config"):
            tiny.run(command(tmp_path, f"data.path={place}"))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds a run of another config"):
        tiny.run(command(tmp_path, f"data.path={tmp_path / 'elsewhere'}", "run.resume=changed"))


def test_a_table_of_text_may_lie_elsewhere_too(tmp_path):
    lines = "\n".join(f"the {number} words of a line that is long enough to be read" for number in range(40))
    (tmp_path / "lines.txt").write_text(lines + "\n")
    place = tmp_path / "lines.txt"
    line = tiny.arguments("text", tmp_path / "run", *QUICK, "data.vocab_size=300")
    tiny.run([*line, f"data.path={place}"])
    (tmp_path / "elsewhere").mkdir()
    place = place.rename(tmp_path / "elsewhere" / "lines.txt")
    tiny.run([*line, f"data.path={place}"])
    place.write_text(lines.replace("39", "40") + "\n")
    with pytest.raises(ValueError, match=r"run.resume=changed"):
        tiny.run([*line, f"data.path={place}"])


def test_what_tells_is_a_small_file_of_the_runs_own(begun):
    assert "samples.json" in recorded(begun / "run")
    kept = json.loads((begun / "run" / "samples.json").read_text())
    assert kept["count"] == 12 and len((begun / "run" / "samples.json").read_bytes()) < 1000


def test_a_run_of_a_former_version_goes_on_and_is_held_to_its_data_from_then_on(begun, tmp_path):
    shutil.copytree(begun / "run", tmp_path / "run")
    folder(tmp_path / "data")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(tmp_path)))
    (tmp_path / "run" / "samples.json").unlink()
    pretrain.main(command(tmp_path))
    swap_one(tmp_path / "data")
    with pytest.raises(ValueError, match=r"added new.png, removed 003.png"):
        pretrain.main(command(tmp_path))
    (tmp_path / "run" / "samples.json").write_text("{}")
    with pytest.raises(ValueError, match=r"samples.json cannot be read \(KeyError\)"):
        pretrain.main(command(tmp_path))


def test_a_method_that_remembers_samples_by_number_never_goes_on_with_others(tmp_path):
    folder(tmp_path / "data")
    line = command(tmp_path, tiny.using("instdisc"), "objective.negatives=8")
    pretrain.main(line)
    add_thirty(tmp_path / "data")
    for more in ((), ("run.resume=changed",)):
        with pytest.raises(ValueError, match=r"30 of 12 samples changed.*instdisc remembers each sample") as raised:
            pretrain.main([*line, *more])
        assert "\n" not in str(raised.value)
    (tmp_path / "run" / "samples.json").unlink()  # as of a former version
    with pytest.raises(ValueError, match=r"is of another model \(size mismatch for bank.rows.*choose another run.dir"):
        tiny.run(line)


def test_clips_of_equal_length_and_lines_of_a_table_are_told_apart(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(8):
        soundfile.write(tmp_path / "data" / f"{number}.wav", 0.1 * generator.normal(size=8000).clip(-4, 4), 8000)
    line = command(tmp_path, "evaluate.group=''", modality="speech")
    pretrain.main(line)
    soundfile.write(tmp_path / "data" / "5.wav", 0.1 * generator.normal(size=8000).clip(-4, 4), 8000)
    with pytest.raises(ValueError, match=r"1 of 8 samples changed: changed 5.wav"):
        tiny.run(line)

    def write_lines(seed: int) -> None:
        drawn = np.random.default_rng(seed)
        lines = [" ".join(f"word{n}" for n in drawn.integers(0, 10, size=12)) for _ in range(40)]
        (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")

    write_lines(0)
    line = tiny.arguments(
        "text", tmp_path / "text", *QUICK, f"data.path={tmp_path / 'lines.txt'}", "data.vocab_size=300"
    )
    pretrain.main(line)
    write_lines(1)
    with pytest.raises(ValueError, match=r"run.resume=changed") as raised:
        tiny.run(line)
    assert "samples changed: changed train:" in str(raised.value) or "lines.txt" in str(raised.value)


def finetuning(tmp_path: Path, *more: str) -> list[str]:
    trunk = ("model.trunk.dim=32", "model.trunk.depth=2", "model.trunk.num_heads=2", "model.trunk.mlp_dim=64")
    frontend = (f"model.frontends.image.{setting}" for setting in ("image_size=8", "patch_size=2", "channels=1"))
    data = ("split=train", "test_split=''", "validation_share=0.25", "mean=[0.3]", "std=[0.38]", "flip=0")
    train = ("train.steps=2", "train.warmup_steps=0", "train.batch_size=4", "run.save_every=1")
    config = str(tiny.ROOT / "configs" / "image" / "finetune_tiny.yaml")
    places = (f"run.dir={tmp_path / 'run'}", f"data.path={tmp_path / 'data'}")
    return [config, *trunk, *frontend, *(f"data.{setting}" for setting in data), *train, *places, *more]


@pytest.mark.parametrize("what", ["a file", "a label"])
def test_finetuning_notices_too(what, tmp_path, capsys):
    for name in ("cat", "dog"):
        folder(tmp_path / "data" / name)
    finetune_image.main(finetuning(tmp_path))
    (tmp_path / "run" / "results.json").unlink()  # as if it had been killed before its end
    if what == "a file":
        image(tmp_path / "data" / "cat" / "004.png", 77)
        message = "1 of 24 samples changed: changed cat/004.png"
    else:
        (tmp_path / "data" / "cat" / "004.png").rename(tmp_path / "data" / "dog" / "104.png")
        message = "2 of 24 samples changed: added dog/104.png, removed cat/004.png"
    with pytest.raises(ValueError, match=message):
        finetune_image.main(finetuning(tmp_path))
    capsys.readouterr()
    assert finetune_image.main(finetuning(tmp_path, "run.resume=changed"))
    assert message in capsys.readouterr().out


def refused(line: list[str]) -> None:
    """One of two processes, which must both come to the same end."""
    try:
        tiny.run(line)
    except ValueError as error:
        raise SystemExit(7 if "added new.png, removed 003.png" in str(error) else 1) from None


@pytest.mark.slow
def test_two_processes_refuse_together(begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(tmp_path)))
    swap_one(tmp_path / "data")
    assert tiny.wait(tiny.start(refused, command(tmp_path), world=2), timeout=60) == [7, 7]


def test_tables_are_marked_wherever_a_path_leads(tmp_path):
    for name in ("a.csv", "b.csv", "notes.md"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    places = (
        tmp_path / "data",
        tmp_path / "data" / "*.csv",
        [tmp_path / "data" / "a.csv", tmp_path / "data" / "b.csv"],
    )
    before = [table_marks(place) for place in places]
    assert [len(marks) for marks in before] == [2, 2, 2] and table_marks("demo") == {}
    (tmp_path / "data" / "b.csv").write_text("c.csv")  # of the same size
    assert all(table_marks(place) != marks for place, marks in zip(places, before, strict=True))


def slow_marks(root: Path, splits: list[ScoredSplit]) -> tuple[list, str]:
    """All at once: the id of each sample with its class, then size and checksum of its file, or else its length."""
    marks, tables = [], {}
    for samples, indices, labels in splits:
        files = [root / samples.ids[index] for index in indices]
        if not any(file.is_file() for file in files):
            tables = table_marks(root)
        for place, (index, file) in enumerate(zip(indices, files, strict=True)):
            mark = str(samples.lengths[index]) if samples.lengths is not None else ""
            if file.is_file():
                mark = f"{file.stat().st_size} {zlib.crc32(file.read_bytes()):08x}"
            label = f"{zlib.crc32(str(labels[place]).encode()):08x} " if len(labels) else ""
            marks.append([samples.ids[index], label + mark])
    return marks, hashlib.sha256((json.dumps(marks) + json.dumps(tables)).encode()).hexdigest()


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_marks_are_those_of_all_samples_at_once(together, tmp_path, monkeypatch):
    monkeypatch.setattr(same_data, "TOGETHER", together)
    for number in range(20):
        (tmp_path / f"{number} é.bin").write_bytes(bytes(number))
    (tmp_path / "rows.csv").write_text("text\nwords\n")
    files = SimpleNamespace(ids=[f"{number} é.bin" for number in range(20)], lengths=None)
    rows = SimpleNamespace(ids=[f"train:{number}" for number in range(15)], lengths=np.arange(15))
    of_files, of_rows = ScoredSplit(files, np.array([3, 0, 19]), ("a", "b", "a")), ScoredSplit(rows, np.arange(15), ())
    for splits in ([of_files], [of_rows], [of_files, of_rows], [ScoredSplit(rows, np.arange(0), ()), of_files], []):
        marks, digest = slow_marks(tmp_path, splits)
        found = same_data.marks_of(str(tmp_path), splits)
        assert found["digest"] == digest and found["count"] == len(marks)
        assert json.loads(zlib.decompress(base64.b85decode(found["samples"]))) == marks


def test_of_very_many_samples_a_digest_is_kept(tmp_path, monkeypatch):
    split = ScoredSplit(SimpleNamespace(ids=["a", "b"], lengths=np.arange(2)), np.arange(2), ())
    named = same_data.marks_of(str(tmp_path), [split])
    monkeypatch.setattr(same_data, "MOST_NAMED", 1)
    assert same_data.marks_of(str(tmp_path), [split]) == named | {"samples": None}
