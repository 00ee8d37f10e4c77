"""A run's folder: nothing in it that d2v did not write is removed or replaced."""

import multiprocessing
import os
import random
import re
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tiny

from d2v import files
from d2v.training import checkpoint
from d2v.training.run_folder import check_apart, new_run
from scripts import pretrain

NAMES = ("config.yaml", "metrics.jsonl", "curves.png")


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quick(folder, *more):
    return tiny.arguments(tiny.MODALITIES[0], folder, "train.steps=2", *more)


def test_pretraining_starts_anew_if_asked_for(tmp_path):
    command = quick(tmp_path / "run")
    pretrain.main(command)
    with pytest.raises(ValueError, match="holds a run of another config"):
        pretrain.main([*command, "train.lr=0.5"])
    pretrain.main([*command, "train.lr=0.5", "run.overwrite=true"])
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]
    assert not (tmp_path / "run" / ".former.d2v-tmp").exists()


def test_a_mistake_in_the_command_does_not_cost_the_former_run(tmp_path):
    pretrain.main(quick(tmp_path / "run"))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="top_k"):
        pretrain.main([*quick(tmp_path / "run"), "objective.top_k=99", "run.overwrite=true"])
    assert snapshot(tmp_path) == before


def test_what_the_user_put_into_a_run_outlives_a_new_one(tmp_path):
    run = tmp_path / "run"
    pretrain.main(quick(run))
    mine = {
        "notes.txt": b"mine",
        "export/model.onnx": b"x" * 9,
        "checkpoints/4_best/model.bin": b"best",
        "checkpoints/00000002/why.txt": b"so",
    }
    for name, content in mine.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    pretrain.main(quick(run, "train.lr=0.5", "run.overwrite=true"))
    left = snapshot(run)
    assert {name: left.get(name) for name in mine if "00000002" not in name} == {
        n: c for n, c in mine.items() if "00000002" not in n
    }
    assert b"so" in left.values()
    assert sorted(tiny.losses(run)) == [1, 2]


def test_a_folder_with_a_config_of_the_users_is_no_run(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "project" / "thesis.txt").write_text("all of it")
    before = snapshot(tmp_path)
    with pytest.raises(
        ValueError, match=r"project is no run's folder \(it has no .d2v\); run.overwrite does not remove it"
    ):
        pretrain.main(quick(tmp_path / "project", "run.overwrite=true"))
    with pytest.raises(ValueError, match=r"config.yaml exists, and d2v has no record of having written it"):
        pretrain.main(quick(tmp_path / "project"))
    assert snapshot(tmp_path) == before


def test_a_file_of_the_users_where_a_tokenizer_comes_stays(tmp_path):
    command = tiny.arguments("text", tmp_path / "run", "train.steps=2")
    with pytest.raises(ValueError, match="does not exist"):
        pretrain.main([*command, f"data.path={tmp_path}/nowhere"])
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").write_text("mine")
    pretrain.main([*command, "run.overwrite=true"])
    assert b"mine" in snapshot(tmp_path / "run" / "tokenizer").values()
    assert (tmp_path / "run" / "export" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("name", ["export/cat.jpg", "curves.png", "metrics.jsonl", "tokenizer/notes.md"])
def test_a_file_of_the_users_is_not_replaced(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match=r"exists, and d2v has no record of having written it"):
        pretrain.main(tiny.arguments("text", tmp_path / "run", "train.steps=2"))
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_a_run_keeps_apart_from_what_it_reads(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    (run / "export").mkdir(parents=True)
    for folder, sources, message in (
        (photos, {"data.path": str(photos)}, f"run.dir={photos} holds data.path={photos}"),
        (tmp_path, {"data.path": [str(photos)]}, f"run.dir={tmp_path} holds data.path={photos}"),
        (photos / "runs", {"data.path": str(photos)}, f"lies in data.path={photos}"),
        (run, {"train.init_from": str(run / "export")}, f"run.dir={run} holds train.init_from"),
        (photos / "r", {"run.probe.path": f"{photos}/../photos"}, "lies in run.probe.path"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_apart(folder, sources)
    check_apart(run, {"data.path": str(photos), "evaluate.path": "", "train.init_from": "", "data.tokenizer": None})
    check_apart(run / "second", {"data.path": "demo", "train.init_from": str(run / "export")})


def test_a_kill_while_a_run_is_replaced_brings_the_former_back(tmp_path):
    run = tmp_path / "run"
    with new_run(run, NAMES, ("tokenizer",), overwrite=False):
        (run / "config.yaml").write_text("old")
    context = new_run(run, NAMES, ("tokenizer",), overwrite=True)
    context.__enter__()
    assert not (run / "config.yaml").exists()  # and here the process is killed
    with new_run(run, NAMES, ("tokenizer",), overwrite=False):
        assert (run / "config.yaml").read_text() == "old"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_in_a_folder_stays(tmp_path, seed):
    draw, run = random.Random(seed), tmp_path / "run"
    own = {}
    if draw.random() < 0.7:
        with new_run(run, NAMES, ("tokenizer",), overwrite=False):
            for name in NAMES:
                (run / name).write_text("d2v's")
        with files.replaced(run / "export") as draft:
            (draft / "config.json").write_text("d2v's")
    names = ["notes.txt", "metrics.jsonl", "config.yaml", "export/a.onnx", "export/config.json", "checkpoints/7/x",
             "checkpoints/00000001/manifest.json", "tokenizer/t.json", "data/photo.jpg", "checkpoints/.00000001.tmp/x",
             ".former/x"]  # fmt: skip
    for name in draw.sample(names, 5):
        if not (run / name).exists():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(own.setdefault(name, f"mine {name}"))
    try:
        with new_run(run, NAMES, ("tokenizer",), overwrite=draw.random() < 0.5):
            if draw.random() < 0.3:
                raise KeyboardInterrupt
            (run / "config.yaml").write_text("new")
        with files.replaced(run / "export") as draft:
            (draft / "config.json").write_text("new")
    except (ValueError, KeyboardInterrupt):
        pass
    left = {content.decode() for content in snapshot(run).values()}
    assert left.issuperset(own.values())


def test_a_record_that_points_elsewhere_removes_nothing_there(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.RECORD).write_text(f'{{"files": ["../precious.txt", "{tmp_path}/precious.txt", 3]}}')
    files.remove_folder(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["precious.txt"]


class Kill(BaseException):
    """A process that ends: after so many changes on disk it makes none."""


@pytest.fixture
def killed_after(monkeypatch):
    """`killed_after(n)`: a context in which the first n renames and removals happen, and no later one."""

    @contextmanager
    def dying(count: int):
        left = [count]

        def limited(change):
            def once(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Kill
                return change(*arguments, **options)

            return once

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "rmdir"):
                patch.setattr(os, name, limited(getattr(os, name)))
                patch.setattr(Path, name, limited(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", limited(shutil.rmtree))
            with suppress(Kill):
                yield

    return dying


def make_run(run: Path, content: str) -> None:
    """What is left of a run, but for its name."""
    for name in NAMES:
        (run / name).write_text(content)
    with files.replaced(run / "export") as draft:
        (draft / "config.json").write_text(content)
    place = run / "checkpoints" / "00000002"
    place.mkdir(parents=True)
    (place / "model.bin").write_text(content)
    (place / "manifest.json").write_text('{"model.bin": [3, 7]}')


OF_A_RUN = (*NAMES, "export/config.json", "checkpoints/00000002/model.bin")


@pytest.mark.parametrize("count", range(40))
@pytest.mark.parametrize("fails", [True, False])
def test_a_kill_at_any_time_costs_neither_the_former_run_nor_the_users_files(tmp_path, killed_after, count, fails):
    run = tmp_path / "run"
    with new_run(run, NAMES, ("tokenizer",), overwrite=False):
        pass
    make_run(run, "old")
    mine = {"notes.txt": "a", "export/model.onnx": "b", "checkpoints/00000002/why.txt": "c", "checkpoints/best/x": "d"}
    for name, content in mine.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    with killed_after(count), suppress(KeyError), new_run(run, NAMES, ("tokenizer",), overwrite=True):
        if fails:
            raise KeyError
        (run / "config.yaml").write_text("new")
    with new_run(run, NAMES, ("tokenizer",), overwrite=False):
        pass
    left = snapshot(run)
    assert {content.decode() for content in left.values()}.issuperset(mine.values())
    if left["config.yaml"] == b"old":
        assert {left.get(name) for name in OF_A_RUN} == {b"old"}
    else:
        assert not fails and not {content for name, content in left.items() if content == b"old"}


@pytest.mark.parametrize("count", range(12))
def test_a_kill_while_an_export_is_replaced_costs_no_file_of_the_users(tmp_path, killed_after, count):
    export = tmp_path / "export"
    with files.replaced(export) as draft:
        (draft / "config.json").write_text("old")
    for name in ("a.onnx", "model.txt", "model.txt.kept", "sub/b.onnx"):
        (export / name).parent.mkdir(exist_ok=True)
        (export / name).write_text(f"mine {name}")
    with killed_after(count), files.replaced(export) as draft:
        (draft / "model.txt").write_text("new")
    with files.replaced(export) as draft:
        (draft / "model.txt").write_text("newer")
    left = {content.decode() for content in snapshot(export).values()}
    assert left.issuperset({"mine a.onnx", "mine model.txt", "mine model.txt.kept", "mine sub/b.onnx", "newer"})


def test_a_link_of_the_users_is_not_followed_and_stays(tmp_path):
    elsewhere, export = tmp_path / "elsewhere", tmp_path / "export"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("mine")
    with files.replaced(export) as draft:
        (draft / "student").mkdir()
        (draft / "student" / "config.json").write_text("d2v's")
    shutil.rmtree(export / "student")
    (export / "student").symlink_to(elsewhere)
    with files.replaced(export) as draft:
        (draft / "config.json").write_text("new")
    assert (export / "student").is_symlink() and (elsewhere / "config.json").read_text() == "mine"
    files.record(export, ["student/config.json"])
    files.remove_folder(export)
    assert (export / "student").is_symlink() and (elsewhere / "config.json").read_text() == "mine"


def test_a_manifest_that_points_elsewhere_removes_nothing_there(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "00000001").mkdir()
    (tmp_path / "00000001" / "manifest.json").write_text('{"../precious.txt": [4, 0], "a.bin": [1, 0]}')
    assert checkpoint.files_of(tmp_path / "00000001") == ["a.bin", "manifest.json"]


def hold(folder, ready):
    with files.locked(folder):
        ready.set()
        time.sleep(60)


def test_one_process_at_a_time_writes_to_a_folder_and_a_kill_frees_it(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, run = context.Event(), tmp_path / "run"
    other = context.Process(target=hold, args=(run, ready))
    other.start()
    assert ready.wait(30)
    with pytest.raises(ValueError, match=rf"another process is writing to {run}; wait for it, or choose another place"):
        pretrain.main(quick(run))
    other.kill()
    other.join()
    pretrain.main(quick(run))
    assert sorted(tiny.losses(run)) == [1, 2] and not (run / files.LOCK).exists()


def test_a_run_that_is_refused_says_so_in_one_line_and_replaces_no_file(tmp_path):
    with pytest.raises(ValueError, match="top_k"):
        pretrain.main(quick(tmp_path / "run", "objective.top_k=99", "data.path=demo"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file is a file; a folder would be written there"):
        pretrain.main(quick(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_result_in_a_run_or_an_export_may_be_made_again_and_outlives_a_new_run(tmp_path):
    run = tmp_path / "run"
    pretrain.main(quick(run))
    results = (run / "features.parquet", run / "export" / "made.onnx")
    files.record_results(results)
    for path in results:
        path.write_text("made")
    pretrain.main(quick(run))  # writes export/ again
    pretrain.main(quick(run, "train.lr=0.5", "run.overwrite=true"))
    for path in results:
        assert path.read_text() == "made"
        files.check_new(path, overwrite=True)
        with pytest.raises(ValueError, match=r"run.overwrite=true replaces it"):
            files.check_new(path, overwrite=False)
