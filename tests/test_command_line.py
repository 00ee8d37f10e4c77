"""What is written on the command line and in YAML is taken by the type of its setting: a text as it is written."""

import random
from pathlib import Path

import pytest
import tiny

from d2v.config.cli import take_arguments
from d2v.config.loading import from_dict, load_config, load_values, save_yaml
from d2v.finetuning import config as finetuning
from scripts import convert, embed, evaluate, finetune, pretrain

DEMO = str(tiny.ROOT / "configs" / "image" / "demo.yaml")
SPEECH = str(tiny.ROOT / "configs" / "speech" / "data2vec_tiny.yaml")
TUNING = str(tiny.ROOT / "configs" / "speech" / "finetune_tiny.yaml")
LITERAL = (
    "runs/exp #2",
    "0123",
    "2024",
    "1e3",
    "1_000",
    "1:30",
    "0x1f",
    "on",
    "no",
    "true",
    "null",
    "2024-01-01",
    "a: b",
    "{a: b}",
    "{a}",
    "- a",
    "&a",
    "*a",
    "!!int 3",
    "%x",
    "@x",
    "`x`",
    "it's",
    'a "b" c',
    "${oc.env:HOME}",
    "${",
    "???",
    "a=b",
    " a ",
    "é✓",
    "x" * 5000,
)


@pytest.mark.parametrize("text", LITERAL, ids=lambda text: text[:10])
def test_a_text_is_taken_as_it_is_written(text, tmp_path):
    config = load_config(DEMO, [f"run.dir={text}", f"data.label={text}", f"data.path={text}", f"evaluate.path={text}"])
    assert config.run.dir == config.data.label == config.data.path == config.evaluate.path == text
    save_yaml(config.as_dict(), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").as_dict() == config.as_dict()


def test_quotes_around_the_whole_are_not_part_of_it_and_a_bracket_begins_a_list_of_paths():
    config = load_config(DEMO, ["data.path=[a, 007, b c]", "run.dir='a: b'", 'data.label="007"', "data.split=''"])
    assert config.data.path == ["a", "007", "b c"]
    with pytest.raises(ValueError, match="it must be text: write it in quotes"):
        load_config(DEMO, ["data.path=[a, on]"])
    assert (config.run.dir, config.data.label, config.data.split) == ("a: b", "007", "")
    assert load_config(DEMO, ["data.path=[x"]).data.path == "[x"
    assert load_config(SPEECH, ["evaluate.group=null"]).evaluate.group == "null"
    text = str(tiny.ROOT / "configs" / "text" / "demo.yaml")
    assert load_config(text, ["data.tokenizer=null"]).data.tokenizer is None
    assert load_config(text, ["data.tokenizer=0123"]).data.tokenizer == "0123"


def test_numbers_bools_and_lists_are_read_as_yaml():
    config = load_config(
        DEMO,
        [
            "train.lr=5e-4",
            "train.steps=120",
            "train.decay_all=on",
            "train.betas=[0.5, .9]",
            "evaluate.k=[1,2]",
            "train.end_weight_decay=null",
            "embed.layers=[1, last]",
            "run.trackers=[]",
            "evaluate.layer=4",
        ],
    )
    train = config.train
    assert (train.lr, train.steps, train.decay_all, train.betas, train.end_weight_decay) == (
        5e-4,
        120,
        True,
        [0.5, 0.9],
        None,
    )
    assert (config.evaluate.k, config.embed.layers, config.run.trackers, config.evaluate.layer) == (
        [1, 2],
        ["1", "last"],
        [],
        "4",
    )


def test_a_section_may_be_given_whole_and_in_parts():
    config = load_config(
        DEMO, ["train={steps: 90, lr: 0.1}", "train.steps=110", "objective.name=data2vec", "run.probe={path: x, k: 3}"]
    )
    assert (config.train.steps, config.train.lr, config.run.probe.k) == (110, 0.1, 3)


def test_yaml_keeps_how_a_name_is_written(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        f"base: {DEMO}\nrun: {{dir: 0123}}\ndata: {{path: 2024, label: 1.50, split: 1e3}}\nevaluate: {{layer: 2}}\n"
    )
    config = load_config(path)
    assert (config.run.dir, config.data.path, config.data.label, config.data.split, config.evaluate.layer) == (
        "0123",
        "2024",
        "1.50",
        "1e3",
        "2",
    )
    path.write_text(f"base: {DEMO}\ndata: {{path: [007, x]}}\n")
    assert load_config(path).data.path == ["007", "x"]
    path.write_text(f"base: {DEMO}\ntrain: {{mixed_precision: no}}\n")
    assert load_config(path).train.mixed_precision == "no"
    for text, message in (
        ("on", "data.label: it is True"),
        ("null", "data.label: it is None"),
        ("[a]", r"it is \['a'\]"),
    ):
        path.write_text(f"base: {DEMO}\ndata: {{label: {text}}}\n")
        with pytest.raises(ValueError, match=f"own.yaml: .*{message}; it must be text: write it in quotes"):
            load_config(path)


def test_the_home_folder_is_where_a_tilde_points(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["run.dir=~/runs/x", "data.path=[~/a,b]", "evaluate.path=~", "train.init_from=~/m", "data.label=~"]
    config = load_config(DEMO, given)
    assert (config.run.dir, config.data.path) == ("/home/me/runs/x", ["/home/me/a", "b"])
    assert (config.evaluate.path, config.train.init_from, config.data.label) == ("/home/me", "/home/me/m", "~")
    assert take_arguments(["model=~/m", "out=~/o", "x"], "model", "out") == (
        {"model": "/home/me/m", "out": "/home/me/o"},
        ["x"],
    )
    config, _ = finetuning.load([TUNING, "model=~/m", "data.path=~/d", "run.dir=~/r"])
    assert (config.train.init_from, config.data.path, config.run.dir) == ("/home/me/m", "/home/me/d", "/home/me/r")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("objective=dino", "objective must hold keys of Config; it is 'dino'|objective is 'dino'"),
        ("objective=[dino]", "objective must hold keys of Config"),
        ("objective.name=3", "d2v.objectives has no '3'"),
        ("objective.name=", "d2v.objectives has no ''"),
        ("objective.name=../x", "d2v.objectives has no '../x'"),
        ("objective.name=.x", "d2v.objectives has no '.x'"),
        ("objective.name.x=3", "objective.name is 'data2vec', which has no keys"),
        ("model=x", "model.frontends must name one modality"),
        ("model.frontends=x", "model.frontends must name one modality"),
        ("model.frontends.image=x", "model.frontends.image must hold keys of FrontendConfig; it is 'x'"),
        ("model.frontends={3: {}}", "model.frontends must name one modality"),
        ("train.steps={a: 1}", "train.steps: it is '{a: 1}'; it must be a whole number"),
        ("train.steps.x=1", "train.steps is .*, which has no keys"),
        ("train.betas=0.9", r"train.betas: it is '0.9'; it must be a list of numbers, such as \[0.9\]"),
        ("train.betas=[a, b]", "train.betas: it is '.*'; it must be a number"),
        ("train.betas=[[1], 2]", "train.betas: it is '.*'; it must be a number"),
        ("train.lr=" + "9" * 500, "train.lr"),
        ("train.lr=1e400", "train.lr is inf"),
        ("train.lr=", "train.lr: it is ''; it must be a number"),
        ("train.lr=" + "[" * 5000, "train.lr: it is .*; it has more than 1000 brackets"),
        ("run.probe=3", "run.probe must hold keys of ProbeConfig"),
        ("run.x.y=3", "unknown key 'run.x'"),
        ("é=3", "unknown key 'é'"),
        (".=3", "unknown key ''"),
    ],
)
def test_what_is_no_setting_is_said_in_one_line(argument, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(DEMO, [argument])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


VALUES = ["", "~", "0", "-1", "1e400", ".nan", "9" * 5000, "on", "[1", "[null]", "{}", "{a: 1}", "{name: x}", "&a [*a]"]
VALUES += ["*a", "!!python/object:os.system x", "\x00", "'", "- a", "${", "a\nb", "..", "torch.nn", "x" * 10000, "é"]
THINGS = [None, True, -1, 1.5, 10**30, float("nan"), "", [], [[1]], {}, {"a": 1}, {1: 2}, {None: None}, b"x", object()]


@pytest.mark.parametrize("path", [DEMO, SPEECH, TUNING], ids=["image", "speech", "tuning"])
def test_no_key_with_any_value_is_a_traceback(path):
    draw = random.Random(7)
    keys = [*_keys(load_values(path), ""), "", ".", "model.trunk.", "run.probe", "data.augment", "x" * 500, "a[0]"]
    for _ in range(150):
        arguments = [f"{draw.choice(keys)}={draw.choice(VALUES)}" for _ in range(draw.choice((1, 1, 2)))]
        _one_line(lambda: _load(path, arguments))  # noqa: B023
        values, key = load_values(path), draw.choice(keys)
        _put(values, key.split("."), draw.choice(THINGS))
        if path != TUNING:
            _one_line(lambda: from_dict(values))  # noqa: B023


def _load(path: str, arguments: list[str]) -> object:
    if path == TUNING:
        return finetuning.load([path, "run.dir=x", "data.path=y", *arguments])
    return load_config(path, arguments)


def _keys(values: dict, where: str) -> list[str]:
    found = []
    for name, value in values.items():
        key = f"{where}.{name}".lstrip(".")
        found += [key, *(_keys(value, key) if isinstance(value, dict) else [])]
    return found


def _put(values: dict, names: list[str], value) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            return
    values[names[-1]] = value


def _one_line(function) -> None:
    try:
        function()
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 3000


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (pretrain.main, [DEMO, "objective=dino"], "objective must hold keys"),
        (pretrain.main, [DEMO, "run.dir="], "run.dir is required"),
        (finetune.main, [TUNING, "task=3", "run.dir=x"], "task must hold keys of CTCConfig"),
        (finetune.main, [TUNING, "data=3", "run.dir=x"], "data must hold keys"),
        (embed.main, [DEMO, "model=x", "out=y.parquet", "embed.layers=last"], "embed.layers: .* such as"),
        (embed.main, [DEMO, "model=x", "out=y.parquet", "embed=3"], "embed must hold keys of EmbedConfig"),
        (evaluate.main, [DEMO, "model=x", "evaluate.k=3"], "evaluate.k: it is '3'; it must be a list of whole numbers"),
        (evaluate.main, [DEMO, "model=x", "evaluate.temperature=0"], "evaluate.temperature is 0.0"),
        (convert.main, ["~nobody/x"], "usage: d2v convert"),
    ],
)
def test_every_script_says_what_is_wrong_with_its_settings(main, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(arguments)
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "3", "\x00"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_damaged_tokenizer_is_said_in_one_line(name, damage, tmp_path):
    from d2v.modalities.text import tokenizer

    (tmp_path / name).write_text(damage)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"data.tokenizer '.*' ") as caught:
        tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)
