"""scripts/convert.py: exported folders work in transformers' pipelines where d2v is not installed, and come back.

Bad folders are refused by name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from test_huggingface import IMAGE, LABELS, PRE_NORM, TEXT, TRUNK, VISION, VIT, assert_same_state, ours_of

from d2v.interop.pretrained import load_ours
from d2v.modalities import image, speech
from d2v.modalities.text import tokenizer as tokenizers
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification
from scripts import convert

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
SENTENCE = "the cat sat on the mat"
RATE = 8000
SPEECH = {"conv_kernels": [10, 8], "conv_strides": [5, 4]}  # fewer layers, more tokens
MASK = 263  # of the tokenizer beside the models of text, whose table has more rows
UTTERANCES = {"pooled_norm": False, "dense_dim": 8, "activation": "none"}
SENTENCES = {"pooling": "first", "pooled_norm": False, "dense_dim": 32}
# pipeline's task -> ours
PIPELINES = {
    "image-classification": lambda: ours_of("image", VISION, {}, D2vForImageClassification, LABELS),
    "image-feature-extraction": lambda: ours_of("image", PRE_NORM, positions="sincos", **VIT),
    "automatic-speech-recognition": lambda: ours_of(
        "speech", TRUNK, {}, D2vForCTC, {"num_labels": len(LETTERS)}, **SPEECH
    ),
    "audio-classification": lambda: ours_of(
        "speech", TRUNK, UTTERANCES, D2vForSequenceClassification, LABELS, **SPEECH
    ),
    "text-classification": lambda: ours_of(
        "text", TRUNK, SENTENCES, D2vForSequenceClassification, LABELS, vocab_size=300, mask_token_id=MASK
    ),
    "feature-extraction": lambda: ours_of("text", TRUNK, vocab_size=300, mask_token_id=MASK),
}
# run where d2v cannot be imported
ELSEWHERE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("d2v", "modalities", "scripts"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import d2v
    raise SystemExit("d2v can be imported")
except ModuleNotFoundError:
    pass
import numpy as np
from PIL import Image
from transformers import pipeline

inputs = {
    "image": Image.open("picture.png"),
    "audio": {"raw": np.load("wave.npy"), "sampling_rate": 8000},
    "text": open("sentence.txt").read(),
}
found = {}
for task in sys.argv[1:]:
    kind = "image" if "image" in task else "audio" if "audio" in task or "speech" in task else "text"
    pipe = pipeline(task, model=task)
    assert type(pipe.model).__module__.startswith("transformers."), type(pipe.model)
    arguments = {"top_k": None} if task == "text-classification" else {}
    given = dict(inputs[kind]) if kind == "audio" else inputs[kind]
    found[task] = [type(pipe.model).__name__, pipe(given, **arguments)]
json.dump(found, open("found.json", "w"))
"""


def save(task: str, folder: Path) -> torch.nn.Module:
    """A folder as pretraining or fine-tuning writes it."""
    model = PIPELINES[task]()
    model.save_pretrained(folder)
    (name,) = model.config.frontends
    frontend = (model if isinstance(model, D2vModel) else model.encoder).frontend(name).config
    if name == "text":
        tokenizers.train([SENTENCE], 300).save_pretrained(folder)
    else:
        module = {"image": image, "speech": speech}[name]
        module.save_preprocessor(folder, folder, module.DataConfig(), frontend)
    if "recognition" in task:
        (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
        hf.Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    return model


def prepared(folder: Path, picture: Image.Image, wave: np.ndarray) -> dict[str, torch.Tensor]:
    """What the folder's preprocessor or tokenizer makes of the inputs."""
    if (folder / "preprocessor_config.json").is_file():
        if "image" in folder.name:
            return dict(hf.AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt"))
        return dict(hf.AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=RATE, return_tensors="pt"))
    return dict(tokenizers.read(folder)(SENTENCE, return_tensors="pt"))


@torch.no_grad()
def answer(task: str, model: torch.nn.Module, folder: Path, inputs: dict[str, torch.Tensor]):
    """What the pipeline should say."""
    found = model(**inputs)
    if isinstance(model, D2vModel):
        return found.x
    if "recognition" in task:
        return hf.Wav2Vec2CTCTokenizer.from_pretrained(folder).decode(found.logits[0].argmax(-1))
    return {LABELS["id2label"][n]: float(share) for n, share in enumerate(found.logits[0].softmax(-1))}


@pytest.mark.slow
def test_pipelines_without_d2v_say_the_same_and_folders_come_back(tmp_path):
    picture, wave = (
        Image.fromarray(np.random.randint(0, 255, (40, 30, 3), np.uint8)),
        np.random.randn(6000).astype(np.float32),
    )
    away = tmp_path / "away"
    away.mkdir()
    picture.save(away / "picture.png")
    np.save(away / "wave.npy", wave)
    (away / "sentence.txt").write_text(SENTENCE)
    expected = {}
    for task in PIPELINES:
        ours, folder = save(task, tmp_path / task), tmp_path / task
        expected[task] = answer(task, ours, folder, prepared(folder, picture, wave))
        convert.main([str(folder), str(away / task)])
        convert.main([str(away / task), str(tmp_path / "back" / task)])
        back = load_ours(tmp_path / "back" / task)
        assert (
            type(back) is type(ours)
            and back.config.frontends == ours.config.frontends
            and back.config.trunk == ours.config.trunk
        )
        assert_same_state(back, ours)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *PIPELINES], cwd=away, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    missing = [line for line in done.stderr.splitlines() if "| MISSING" in line]
    assert missing and all(line.startswith("pooler.") for line in missing)  # the bare classes make one of their own
    for task, (name, found) in json.loads((away / "found.json").read_text()).items():
        assert name.startswith(("Data2Vec", "ViT"))
        if "classification" in task:
            assert {row["label"]: row["score"] for row in found} == pytest.approx(expected[task], abs=1e-5)
        elif "recognition" in task:
            assert found["text"] == expected[task] and len(set(expected[task])) > 2
        else:
            content = torch.tensor(found)[:, -expected[task].shape[1] :]  # after the class token, if there is one
            torch.testing.assert_close(content, expected[task], rtol=1e-5, atol=1e-5)


@pytest.fixture
def theirs(tmp_path) -> Path:
    hf.Data2VecTextModel(hf.Data2VecTextConfig(**TEXT), add_pooling_layer=False).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def change(folder: Path, weights=None, **settings) -> None:
    """Edits a folder's weights and config."""
    state = load_file(folder / "model.safetensors")
    save_file(
        weights({key: value.clone() for key, value in state.items()}) if weights else state,
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


KEY = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            r"theirs has no config.json: it is not the folder of a model",
        ),
        (lambda folder: change(folder, model_type="bert"), r"of the architecture 'bert'; this reads data2vec-audio"),
        (lambda folder: change(folder, model_type="nonsense"), r"theirs is no folder of a model that can be read"),
        (
            lambda folder: change(folder, lambda s: {k: v for k, v in s.items() if k != KEY}),
            rf"theirs lacks the weight {KEY} \(1 in all\)",
        ),
        (
            lambda folder: change(folder, lambda s: s | {"more": torch.zeros(1)}),
            r"theirs has, and the model does not, the weight more \(1 in all\)",
        ),
        (
            lambda folder: change(folder, lambda s: s | {KEY: s[KEY][1:]}),
            rf"theirs has {KEY} of shape \(31, 64\); its config asks for \(32, 64\)",
        ),
        (
            lambda folder: change(folder, architectures=["D2vForNothing"], model_type="d2v"),
            r"holds a D2vForNothing; this reads D2vModel, D2vForAlignment, D2vForCTC",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), r"theirs cannot be loaded"),
    ],
    ids=range(8),
)
def test_one_message_names_what_is_wrong_with_a_folder(theirs, tmp_path, spoil, message):
    spoil(theirs)
    with pytest.raises(ValueError, match=message) as error:
        convert.main([str(theirs), str(tmp_path / "ours")])
    assert "\n" not in str(error.value) and not (tmp_path / "ours").exists()


def test_buffers_that_older_files_hold_are_no_left_overs(theirs, tmp_path):
    change(theirs, lambda s: s | {"embeddings.position_ids": torch.arange(34)[None]})
    hf.Data2VecVisionModel(hf.Data2VecVisionConfig(**IMAGE, use_shared_relative_position_bias=True)).save_pretrained(
        tmp_path / "vision"
    )
    change(
        tmp_path / "vision",
        lambda s: s | {"encoder.relative_position_bias.relative_position_index": torch.zeros(37, 37)},
    )
    for name in ("theirs", "vision"):
        convert.main([str(tmp_path / name), str(tmp_path / f"ours_{name}")])
        assert type(load_ours(tmp_path / f"ours_{name}")) is D2vModel


def test_names_that_are_no_models_and_wrong_arguments(theirs, tmp_path):
    with pytest.raises(
        ValueError, match=r"no/such is no folder of a model that can be read, nor to be had from the Hub"
    ):
        convert.main(["no/such", str(tmp_path / "ours")])
    for arguments in ([], [str(theirs)], [str(theirs), str(tmp_path / "ours"), "run.overwritten=true"]):
        with pytest.raises(ValueError, match=r"usage: d2v convert SOURCE TARGET"):
            convert.main(arguments)


def test_nothing_is_overwritten_unasked_and_a_head_without_counterpart_is_left_out(theirs, tmp_path, capsys, caplog):
    target = tmp_path / "ours"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    for overwrite, message in (
        (False, "ours exists; run.overwrite=true replaces it"),
        (True, r"ours exists, and d2v has no record of having written it"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.main([str(theirs), str(target), f"run.overwrite={str(overwrite).lower()}"])
    with pytest.raises(ValueError, match=r"theirs holds SOURCE, .*theirs; run.overwrite does not remove it"):
        convert.main([str(theirs), str(theirs), "run.overwrite=true"])
    with pytest.raises(ValueError, match=r"holds SOURCE"):
        convert.main([str(theirs), str(tmp_path), "run.overwrite=true"])
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(ValueError, match=r"x.onnx is not what would be written there"):
        convert.main([str(theirs), str(tmp_path / "x.onnx"), "run.overwrite=true"])
    (tmp_path / "x.onnx").rmdir()
    assert [path.name for path in target.iterdir()] == ["precious.txt"]
    (target / "config.json").write_text("{}")  # a model's, but not of d2v's writing
    with pytest.raises(ValueError, match=r"ours exists, and d2v has no record"):
        convert.main([str(theirs), str(target), "run.overwrite=true"])
    for path in target.iterdir():
        path.unlink()
    hf.Data2VecTextForMaskedLM(hf.Data2VecTextConfig(**TEXT)).save_pretrained(theirs)
    convert.main([str(theirs), str(target), "run.overwrite=true"])
    (target / "precious.txt").write_text("mine")
    convert.main([str(theirs), str(target), "run.overwrite=true"])
    assert type(load_ours(target)) is D2vModel and (target / "precious.txt").read_text() == "mine"
    assert "D2vModel, with no preprocessor or tokenizer: SOURCE has none" in capsys.readouterr().out
    assert "is a Data2VecTextForMaskedLM, a head without a counterpart" in caplog.text
    assert "LOAD REPORT" not in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]  # no leftovers


def test_a_runs_folder_is_its_export(theirs, tmp_path):
    run = tmp_path / "run"
    ours = ours_of("text", TRUNK)
    ours.save_pretrained(run / "export")
    convert.main([str(run), str(tmp_path / "stock")])
    assert type(hf.AutoModel.from_pretrained(tmp_path / "stock")) is hf.Data2VecTextModel
