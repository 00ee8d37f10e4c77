"""What comes from others is data: no code of it runs, no message advises to run it, and names in it are no markup."""

import csv
import io
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import tiny
import torch
import transformers
import yaml
from matplotlib.text import Text
from transformers import AutoModel

from d2v.config.cli import run_cli
from d2v.config.loading import from_dict
from d2v.evaluation.figures import Curve, lines_figure, tiles_figure
from d2v.evaluation.table import Row, markdown_table
from d2v.finetuning.outcome import table_of_runs
from d2v.finetuning.rows import write_rows
from d2v.interop.fairseq import load_fairseq
from d2v.interop.huggingface import from_transformers
from d2v.interop.pretrained import load_ours, read_config
from d2v.modalities.common.data_report import Report
from d2v.modalities.text import tokenizer
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForImageClassification
from d2v.shown import in_cell, in_figure, in_markdown, printable
from d2v.training.curves import confusion_figure, spectrum_figure
from d2v.training.export import model_card
from d2v.training.init_from import read_weights
from d2v.training.verdict import Verdict
from scripts import convert, embed, evaluate, pretrain

ADVICE = re.compile("weights_only|trust|unpickl|arbitrary|allow_pickle|safe_globals", re.IGNORECASE)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The name of a module that can be imported, reads images, and says in a file that it ran."""
    name = f"theirs_{tmp_path.name}"
    (tmp_path / "lib" / name).mkdir(parents=True)
    (tmp_path / "lib" / name / "__init__.py").write_text("")
    (tmp_path / "lib" / name / "image.py").write_text(
        "from d2v.modalities.image import *\n"
        "from d2v.objectives.data2vec import Config, build\n"
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield f"{name}.image"
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def renamed(folder: Path, name: str) -> Path:
    """An export of images whose config.json names another modality's module."""
    small.encoder("image").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["frontends"] = {name: config["frontends"]["image"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(call, *arguments, **named) -> str:
    """The one line of the ValueError of a call."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **named)
    text = str(caught.value)
    assert "\n" not in text and not ADVICE.search(text.replace(str(arguments[0]), "") if arguments else text), text
    return text


# Modules.


def test_a_model_imports_no_module_that_its_config_names(theirs, tmp_path):
    export = renamed(tmp_path / "export", theirs)
    recipe = str(tiny.ROOT / "configs" / "image" / "data2vec_tiny.yaml")
    data = [f"data.path={tmp_path}", f"run.dir={tmp_path / 'run'}"]
    attempts = [
        (D2vModel.from_pretrained, [export], {}),
        (AutoModel.from_pretrained, [export], {"trust_remote_code": True}),
        (D2vForImageClassification.from_pretrained, [export], {"num_labels": 2}),
        (load_ours, [export], {}),
        (read_weights, [export], {}),
        (convert.main, [[str(export), str(tmp_path / "stock")]], {}),
    ]
    for call, arguments, named in attempts:
        assert f"the model names '{theirs}', which is not d2v's" in refusal(call, *arguments, **named)
    for main, more in ((embed, [f"out={tmp_path / 'out.parquet'}"]), (evaluate, [])):
        assert theirs in refusal(main.main, [recipe, f"model={export}", *data, *more])
    refusal(pretrain.main, [recipe, *data, f"train.init_from={export}"])
    assert not (tmp_path / "ran").exists() and theirs not in sys.modules
    # one line of the user's own program says that it may run
    __import__(theirs)
    model = AutoModel.from_pretrained(export)
    assert torch.equal(
        model.frontend(theirs).patch_embed.weight, small.encoder("image").frontend("image").patch_embed.weight
    )


@pytest.mark.parametrize("name", ["os.path", "..secret", ".evil", "a/b", "evil.", "image\nx", "json.tool"])
def test_names_that_are_no_modality_are_one_line(name, tmp_path):
    refusal(D2vModel.from_pretrained, renamed(tmp_path, name))


def test_d2vs_own_modules_are_trusted_by_their_whole_name(tmp_path):
    assert D2vModel.from_pretrained(renamed(tmp_path, "d2v.modalities.image")).frontend("image") is not None


def test_a_runs_folder_imports_no_objective_or_report_that_it_names(theirs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(tiny.finished("image"), run)
    for path in (run / "config.yaml", run / "export" / "pretraining.yaml"):
        values = yaml.safe_load(path.read_text())
        values["objective"]["name"], values["evaluate"]["reports"] = theirs, [theirs]
        path.write_text(yaml.safe_dump(values))
    read_weights(run)
    config, *more = tiny.arguments("image", tmp_path / "next")
    out = tmp_path / "out" / "features.parquet"
    embed.main([config, *more, f"model={run}/export", f"out={out}"])
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    try:
        read_weights(checkpoint)
    except ValueError as error:
        assert not ADVICE.search(str(error))
    assert out.is_file() and not (tmp_path / "ran").exists()
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["evaluate"]["reports"] = []
    assert f"names '{theirs}', which is not d2v's" in refusal(from_dict, values, ours=False)
    assert not (tmp_path / "ran").exists()
    assert (
        from_dict(values).objective.name == theirs and (tmp_path / "ran").exists()
    )  # a file that the user has written


# Pickles, and code beside a model.


class Payload:
    """What a pickle calls when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def pickled(path: Path, mark: Path, how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "torch":
        torch.save({"cfg": Payload(mark), "model": {}}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Payload(mark)}))
    return path


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_no_pickle_runs_and_no_line_advises_to_run_it(how, tmp_path):
    mark = tmp_path / "ran"
    checkpoint = pickled(tmp_path / "checkpoint.pt", mark, how)
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    config = transformers.Data2VecTextConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.save_pretrained(stock)
    small.encoder("text").save_pretrained(ours)
    (ours / "model.safetensors").unlink()
    for folder in (stock, ours):
        pickled(folder / "pytorch_model.bin", mark, how)
    lines = [
        refusal(load_fairseq, checkpoint),
        refusal(read_weights, checkpoint),
        refusal(from_transformers, stock),
        refusal(load_ours, ours),
        refusal(read_weights, ours),
        refusal(convert.main, [str(stock), str(tmp_path / "out")]),
    ]
    assert not mark.exists()
    if how == "torch":
        assert all("open" in line for line in lines), lines


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_beside_a_model_is_not_run_and_nobody_is_asked(kind, tmp_path, monkeypatch):
    """At a terminal transformers asks, and whoever says y runs it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    mark, folder = tmp_path / "ran", tmp_path / "custom"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": [None, "evil.Tokenizer"]}
    values = {"model_type": "evil", "auto_map": names, "tokenizer_class": "EvilTokenizer"}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(values))
    if kind == "model":
        for call in (read_config, from_transformers, load_ours, read_weights):
            assert "its config.json names code of its own (auto_map), which is not run" in refusal(call, folder)
    else:
        assert "names code of its own (auto_map), which is not run" in refusal(tokenizer.load, str(folder))
    assert not mark.exists()


# Names.

NAMES = [
    "<img src=x onerror=alert(1)>",
    "a\nb\x1b[31m",
    "{which}",
    "x|y",
    "[z](http://w)",
    '"q"',
    "$x$",
    r"$\frac$",
    "_u_",
]


def test_names_are_shown_as_they_are_and_are_no_markup():
    assert printable("a\nb\x1b[31m\u202ec\udcff é　日") == r"a\nb\x1b[31m\u202ec\udcff é　日"
    assert in_markdown("<b>|[x](y)`$_z_ a_b") == r"\<b\>\|\[x\](y)\`\$\_z\_ a_b"
    assert in_figure("$x$ {a") == r"\$x\$ {a"
    for text in ("=1+1", "+cmd", "-x.wav", "@SUM(A1)", "\tx", "\r=1"):
        assert in_cell(text) == f"'{text}"
    for value in (-1.5, 3, "-1", "+2.5e3", "cat", "", "a=b", None):
        assert in_cell(value) == value


def test_a_model_card_holds_names_as_text():
    report = Report("image", found=9, usable=9, classes=dict.fromkeys(NAMES, 1))
    report.unreadable.append(("<script>.png", "it is\nbroken"))
    config = tiny.config_of("image", "")
    card = model_card(config, [{"step": 1}], Verdict("healthy", "fine"), report.lines(), 1000)
    lines = card.splitlines()
    (classes,) = [line for line in lines if line.startswith("- classes")]
    (bad,) = [line for line in lines if line.startswith("- unreadable")]
    assert not re.search(r"(?<!\\)[<>|\[\]$`*{}]", classes + bad) and "\x1b" not in card
    assert (
        r"\<img src=x onerror=alert(1)\> 1, a\\nb\\x1b\[31m 1" in classes and r"\<script\>.png (it is\\nbroken)" in bad
    )
    assert r"\{which\}" in card.replace("{which}", "teacher")


def test_tables_have_as_many_columns_as_they_say(tmp_path):
    text = markdown_table([Row("runs/a|b\nc", "last", 8, {"knn": 50.0}), Row("plain", "last", 8, {"knn": 1.0})])
    assert len(text.splitlines()) == 4 and {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {5}
    folder = tmp_path / "runs" / "x|y"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"scores": {"test": {"accuracy": 0.5}}}))
    assert table_of_runs(tmp_path / "runs").splitlines()[-1] == r"| x\|y | test | 0.5 |"


def drawn(figure) -> set[str]:
    """What a figure shows, after it was drawn: no text of it is read as mathematics."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    texts = {text for text in figure.findobj(Text) if text.get_text()}
    return {text._preprocess_math(text.get_text()) for text in texts}


def test_pictures_show_names_and_read_no_mathematics_in_them():
    labels = np.arange(len(NAMES))
    curve = Curve([1, 2], [1.0, 2.0])
    figures = [
        confusion_figure(labels, labels, NAMES),
        lines_figure(dict.fromkeys(NAMES, curve), title=NAMES[6], xlabel="x", ylabel="y"),
        tiles_figure([[np.zeros((2, 2))] * len(NAMES)], NAMES, NAMES[7]),
        spectrum_figure(dict.fromkeys(NAMES, (2.0, 1.0)), NAMES[7]),
    ]
    for figure in figures:
        found = drawn(figure)
        assert all((printable(name), False) in found for name in NAMES if not name.startswith("_")), found


def test_a_spreadsheet_executes_no_cell(tmp_path):
    rows = [
        {"id": '=HYPERLINK("http://x")', "label": -1.5, "prediction": "@a", "=key": "-2"},
        {"id": "b", "label": 2.0, "prediction": "c", "=key": "d"},
    ]
    write_rows(tmp_path / "predictions_test.csv", rows)
    with (tmp_path / "predictions_test.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "label", "prediction", "'=key"],
            ['\'=HYPERLINK("http://x")', "-1.5", "'@a", "-2"],
            ["b", "2.0", "c", "d"],
        ]


def test_an_error_is_one_line_of_a_terminal(capsys, monkeypatch):
    def main(argv):
        raise ValueError("no class \x1b[2Ja\nb")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        run_cli(main)
    assert capsys.readouterr().err == "error: no class \\x1b[2Ja\\nb\n"
