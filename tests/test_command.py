"""`d2v COMMAND`, configs by their names, the commands as Python functions, and the wheel that holds them all."""

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image

import d2v
from d2v import __main__ as command
from d2v.config.find import CONFIGS, config_names, find_config
from d2v.config.joint import load_joint
from d2v.config.loading import load_config
from d2v.evaluation.index import Index
from d2v.finetuning.config import load
from d2v.functions import arguments
from scripts import completion, configs, data, demo, search, show


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """Exit code of `d2v ...` in this process."""
    monkeypatch.setattr(sys, "argv", ["d2v", *argv])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_without_a_command_all_are_listed(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in command.COMMANDS)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_each_command_says_how_it_is_used(name: str, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    assert f"d2v {name}" in capsys.readouterr().out


def test_a_misspelt_command_is_one_line(monkeypatch, capsys):
    assert call(monkeypatch, "pretrian") == 2
    assert capsys.readouterr().err == "error: no command 'pretrian'; did you mean 'pretrain'?\n"


@pytest.mark.parametrize(
    "name", ["pretrain", "finetune", "evaluate", "embed", "convert", "search", "show", "data", "codes"]
)
def test_a_command_without_arguments_says_its_usage_in_one_line(name: str, monkeypatch, capsys):
    assert call(monkeypatch, name) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: usage: ") and error.count("\n") == 1


def test_a_config_is_found_by_its_name_and_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    for name in ("image/demo", "image/demo.yaml", "configs/image/demo.yaml"):
        monkeypatch.chdir(tmp_path)
        assert find_config(name) == CONFIGS / "image/demo.yaml"
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "demo.yaml").write_text("train: {steps: 3}")
    assert find_config("image/demo.yaml") == Path("image/demo.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("image/dem", "did you mean image/demo"),
        ("demo", "image/demo or joint/demo or speech/demo or text/demo"),
        ("x7", "d2v configs"),
    ],
)
def test_a_config_that_is_not_there_is_named_with_those_that_are_close(name: str, said: str):
    with pytest.raises(ValueError, match="no config file") as error:
        find_config(name)
    assert said in str(error.value)


def test_every_config_is_listed_with_what_it_is_for(capsys):
    configs.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names() and all(len(line.split()) > 4 for line in lines)
    configs.main(["MoCo", "speech"])
    assert capsys.readouterr().out.startswith("speech/moco_tiny ")
    with pytest.raises(ValueError, match="no config has the words unicorn"):
        configs.main(["unicorn"])


def test_show_gives_every_setting_with_its_value_and_sentence(capsys):
    show.main(["image/data2vec_tiny", "train.lr=0.25", "train.lr"])
    assert "* train.lr=0.25  # The full learning rate." in capsys.readouterr().out
    show.main(["image/finetune_tiny"])
    assert "task.pooling=mean" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no setting of image/demo has the words unicorn"):
        show.main(["image/demo", "unicorn"])
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        show.main(["image/demo", "train.stesp=1"])


def test_the_shells_completion_knows_commands_and_configs():
    script = completion.SHELLS["bash"].format(configs="image/demo text/demo", commands="pretrain embed")
    ask = "COMP_WORDS=(d2v {}); COMP_CWORD={}; _d2v; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    for words, place, expected in (("em", 1, "embed"), ("pretrain text/d", 2, "text/demo")):
        done = subprocess.run(["bash", "-c", f"{script}\n{ask.format(words, place)}"], capture_output=True, text=True)
        assert done.stdout.split() == [expected]
    with pytest.raises(ValueError, match="usage: d2v completion"):
        completion.main(["fish"])


def test_settings_as_dictionaries_become_what_a_command_line_holds():
    given = {
        "data": {"path": Path("a b"), "views": []},
        "train.lr": 0.1,
        "run": {"overwrite": True},
        "x": {"y": "null"},
    }
    assert arguments(given) == ["data.path=a b", "data.views=[]", "train.lr=0.1", "run.overwrite=true", "x.y=null"]
    given = {"train": {"steps": np.int64(12), "lr": np.float32(0.5)}, "data": {"path": [Path("a"), Path("b")]}}
    assert arguments(given) == ["train.steps=12", "train.lr=0.5", 'data.path=["a", "b"]']
    assert arguments({"data.mean": np.array([0.5, 0.25]), "x": np.bool_(True)}) == ["data.mean=[0.5, 0.25]", "x=true"]
    with pytest.raises(ValueError, match=r"run\.dir is None: leave it out"):
        arguments({"run": {"dir": None}})
    with pytest.raises(ValueError, match=r"model is a Linear; it must be the path of a folder"):
        d2v.finetune("image/finetune_tiny", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"data\.path is <object"):
        arguments({"data": {"path": object()}})


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve images, light ones and dark ones."""
    place, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(12):
        low = 160 * (number % 2)
        pixels = generator.integers(low, low + 90, (12, 12), dtype=np.uint8)
        (place / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / "ab"[number % 2] / f"{number}.png")
    return place


def test_functions_do_what_the_commands_do(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiny.Loop, "plot", lambda self: None)
    path, *overrides = tiny.arguments("image", tmp_path / "run", f"data.path={photos}", "train.steps=2")
    settings = dict(override.split("=", 1) for override in overrides)
    export = d2v.pretrain(path, **settings)
    assert export == tmp_path / "run" / "export" and d2v.D2vModel.from_pretrained(export).config.trunk["dim"] == 32
    read = {"data": {"path": photos, "mean": [0.3], "std": [0.38]}}
    out = d2v.embed("image/demo", export, tmp_path / "f.parquet", **read)
    assert len(pq.read_table(out)) == 12
    scored = d2v.evaluate(
        "image/demo",
        export,
        data=read["data"],
        evaluate={"test_split": "", "random_seeds": 0, "probe": False, "k": [3]},
        run={"dir": tmp_path},
    )
    assert scored["train_samples"] == 12 and json.loads(
        (tmp_path / "evaluation" / "export_layer-last.json").read_text()
    )
    capsys.readouterr()
    search.main([str(out), "id=a/0.png", "k=5"])
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (
        len(found) == 6
        and found[0] == ["1.000", "a/0.png"]
        and found[5] == ["picture:", str(tmp_path / "f_search.png")]
    )
    search.main([str(out), f"query={photos / 'a' / '0.png'}", "k=1"])
    assert capsys.readouterr().out.splitlines()[0].split() == ["1.000", "a/0.png"]
    data.main(["image/demo", f"data.path={photos}"])
    assert "image: 12 of 12 samples usable" in capsys.readouterr().out


def test_nearest_is_by_the_cosine_of_what_is_left_without_the_mean():
    features = np.array([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.2]])
    found = Index(Path("t.parquet"), list("abcd"), features, {}).nearest(features[1], 4)
    centred = features - features.mean(axis=0)
    for cosine, row in found:
        one = centred[row]
        assert cosine == pytest.approx(one @ centred[1] / np.linalg.norm(one) / np.linalg.norm(centred[1]))
    assert found[0][1] == 1 and [cosine for cosine, _ in found] == sorted((c for c, _ in found), reverse=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["t.parquet", "id=z"], "has no such id; its first is a"),
        (["none.parquet", "id=a"], "none.parquet does not exist: `d2v embed CONFIG model=PATH out=none.parquet`"),
        (["t.parquet", "id=a", "k=0"], "k is '0'; it must be at least 1"),
        (["t.parquet", "id=a", "query=b"], "usage: d2v search"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(argv: list[str], said: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"id": ["a"], "features": [[1.0, 2.0]]}), "t.parquet")
    with pytest.raises(ValueError, match=said):
        search.main(argv)


def test_the_demo_names_what_it_has():
    with pytest.raises(ValueError, match="no demo of 'video'; there are those of image, speech, text"):
        demo.main(["video"])


@pytest.mark.slow
def test_the_wheel_is_one_package_with_configs_and_commands(root: Path, tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    tops = {name.split("/")[0] for name in names}
    assert tops == {"d2v", next(top for top in tops if top.endswith(".dist-info"))}
    sources = {path.relative_to(root / "configs").as_posix() for path in (root / "configs").rglob("*.yaml")}
    assert {f"d2v/configs/{name}" for name in sources} <= set(names)
    away = tmp_path / "away"
    away.mkdir()
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin", "HOME": str(away)}
    done = subprocess.run(
        [sys.executable, "-m", "d2v", "show", "image/data2vec_tiny", "train.steps"],
        cwd=away, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "train.steps=" in done.stdout, done.stderr


def commands_in_headers() -> list[tuple[str, str]]:
    """The name of each config, and the command of its header."""
    found = []
    for name in config_names():
        header = (CONFIGS / f"{name}.yaml").read_text("utf-8")
        (line,) = [line for line in header.splitlines() if line.startswith("# command: ")]
        found.append((name, line.removeprefix("# command: ").strip()))
    return found


@pytest.mark.parametrize(("name", "line"), commands_in_headers(), ids=lambda value: value.split(" ")[0])
def test_the_command_of_a_header_is_read(name: str, line: str, tmp_path: Path):
    words = shlex.split(line.partition("   ")[0])
    start = words.index("d2v")
    if words[:start]:
        assert words[:start] == ["accelerate", "launch", "-m"]
    script, *rest = words[start + 1 :]
    assert name in rest
    if script == "finetune":
        loaded = load([*rest, f"run.dir={tmp_path}"])[0]
    elif name.startswith("joint/"):
        assert script == "pretrain" and load_joint(rest[0], [*rest[1:], f"run.dir={tmp_path}"]).data
        return
    else:
        assert script == "pretrain"
        loaded = load_config(rest[0], [*rest[1:], f"run.dir={tmp_path}"])
    assert loaded.modality == rest[0].split("/")[0]


def test_another_objective_takes_what_the_command_line_says_of_it_and_nothing_of_the_recipes(tmp_path: Path):
    def objective(*overrides: str) -> dict:
        return load_config("image/data2vec_tiny", [*overrides, f"run.dir={tmp_path}"]).as_dict()["objective"]

    own = objective()
    assert own["top_k"] == 4 and objective("objective.name='data2vec'") == own
    assert objective("objective.name=mae", "objective.name=data2vec") == own
    assert objective("objective.name=mae", "objective.name=mae") == objective("objective.name=mae") != own
    masked = objective("objective.norm_target=false", "objective.name=mae")
    assert masked["name"] == "mae" and masked["norm_target"] is False
    assert masked == objective("objective.name=mae", "objective.norm_target=false")
    with pytest.raises(ValueError, match=r"unknown key 'objective.top_k'"):
        objective("objective.name=mae", "objective.top_k=2")


def test_a_further_config_goes_over_the_first_and_settings_over_both(tmp_path: Path):
    config = load_config("image/data2vec_tiny", ["data/cifar10_small", "evaluate.max_test=5", f"run.dir={tmp_path}"])
    assert (config.data.path, config.data.split) == ("uoft-cs/cifar10", "train[:10000]")
    assert (config.evaluate.train_split, config.evaluate.max_test) == ("train[:10000]", 5)
    assert load_config("image/data2vec_tiny").data.split == "train"
    with pytest.raises(
        ValueError, match=r"argument 'data/cifar' is neither key=value nor a config: .*did you mean data/cifar10 "
    ):
        load_config("image/data2vec_tiny", ["data/cifar"])
