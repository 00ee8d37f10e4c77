"""ONNX files compute what torch does, at batch sizes and lengths that were not traced; a wrong one is not written."""

import sys

import numpy as np
import pytest
import torch
from test_huggingface import LABELS, TRUNK, VISION, ours_of

from d2v.interop import onnx
from d2v.models.task_models import D2vForCTC, D2vForSequenceClassification
from scripts import convert

SMALL = {**TRUNK, "depth": 1}
SPEECH = {"conv_kernels": [10, 8], "conv_strides": [5, 8], "pos_depth": 1}
MODELS = {
    "image": lambda: ours_of("image", {**VISION, "depth": 1}),
    "speech": lambda: ours_of("speech", SMALL, **SPEECH),
    "spectrogram": lambda: ours_of("speech", SMALL, kind="mel", alibi="head", **SPEECH),
    "text": lambda: ours_of("text", SMALL, alibi="head"),
    "sentences": lambda: ours_of(
        "text", SMALL, {"pooling": "first", "pooled_norm": False}, D2vForSequenceClassification, LABELS
    ),
}
SLOW = ("image", "speech", "spectrogram", "sentences")


def inputs_of(modality: str, rows: int, length: int) -> dict[str, torch.Tensor]:
    if modality == "image":
        return {"pixel_values": torch.randn(rows, 3, 24, 24)}
    real = (torch.arange(length) < torch.linspace(length, length // 2, rows).long()[:, None]).long()
    if modality == "text":
        return {"input_ids": torch.randint(4, 50, (rows, length)), "attention_mask": real}
    return {"input_values": torch.randn(rows, length), "attention_mask": real}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_onnx_equals_torch_at_two_lengths(name, tmp_path, capsys):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'd2v[onnx]'")
    import onnxruntime

    model = MODELS[name]()
    if name == "text":
        model.save_pretrained(tmp_path / "folder")
        convert.main([str(tmp_path / "folder"), str(tmp_path / "model.onnx")])
        assert "model.onnx: onnxruntime and torch differ by at most" in capsys.readouterr().out
    else:
        assert onnx.export_onnx(model, tmp_path / "model.onnx") < 1e-4
    assert {path.name for path in tmp_path.iterdir()} <= {".d2v-results", "model.onnx", "folder"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (modality,) = model.config.frontends
    for rows, length in ((1, 9), (4, 31)):
        inputs = inputs_of(modality, rows, length * 100 if modality == "speech" else length)
        with torch.no_grad():
            wanted = model(**inputs)
        named = (
            {"logits": wanted.logits} if name == "sentences" else {"last_hidden_state": wanted.x, "extra": wanted.extra}
        )
        found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        assert [output.name for output in session.get_outputs()] == [
            key for key, value in named.items() if value is not None
        ]
        for x, y in zip(found, [value for value in named.values() if value is not None], strict=True):
            assert y.std() > 1e-3
            np.testing.assert_allclose(x, y.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    (tmp_path / "old.onnx").write_text("old")
    with pytest.raises(ValueError, match=r"old.onnx is not written: onnxruntime's features differ from torch's by"):
        onnx.export_onnx(MODELS["text"](), tmp_path / "old.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"] and (tmp_path / "old.onnx").read_text() == "old"


class WrongSession:
    """onnxruntime's session, whose first output is changed."""

    def __init__(self, session, wrong):
        self.session, self.wrong = session, wrong

    def run(self, names, inputs):
        first, *others = self.session.run(names, inputs)
        return [self.wrong(first), *others]


def blanks(logits):
    """The highest number in padding, where torch has the lowest."""
    return np.where(logits < -1e30, np.float32(1e30), logits)


def nan_once(logits):
    logits = logits.copy()
    logits.flat[-1] = np.nan
    return logits


WRONG = {
    "shifted": lambda x: x + 1000,
    "letters in another order": lambda x: np.roll(x, 1, axis=-1),
    "letters in padding": blanks,
    "one is no number": nan_once,
    "fewer rows": lambda x: x[:1],
}


@pytest.mark.slow
def test_a_wrong_file_of_letters_is_not_written(tmp_path, monkeypatch):
    """In padding its logits are the lowest number there is, beside which 1000 was nothing."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = ours_of("speech", SMALL, {"blank": 1}, D2vForCTC, {"num_labels": 4}, **SPEECH)
    export, program = torch.onnx.export, []  # which takes eight seconds: once is enough
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: program[0])
    session = onnxruntime.InferenceSession
    with monkeypatch.context() as once:
        once.setattr(
            torch.onnx, "export", lambda *args, **kwargs: program.append(export(*args, **kwargs)) or program[0]
        )
        assert onnx.export_onnx(model, tmp_path / "right.onnx") < 1e-4
    for wrong in WRONG.values():
        monkeypatch.setattr(
            onnxruntime, "InferenceSession", lambda path, wrong=wrong: WrongSession(session(path), wrong)
        )
        with pytest.raises(
            ValueError, match=r"wrong.onnx is not written: onnxruntime's features differ from torch's by"
        ):
            onnx.export_onnx(model, tmp_path / "wrong.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_absent_packages_are_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf"ONNX needs the package (onnxruntime|{package}), .*pip install 'd2v\[onnx\]'"
    ):
        onnx.export_onnx(MODELS["text"](), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_script_overwrites_nothing_unasked(tmp_path):
    MODELS["text"]().save_pretrained(tmp_path / "model")
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ValueError, match=r"model.onnx exists; run.overwrite=true replaces it"):
        convert.main([str(tmp_path / "model"), str(tmp_path / "model.onnx")])
    assert (tmp_path / "model.onnx").read_text() == "mine"
