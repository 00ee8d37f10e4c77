"""Whatever loads an encoder reads one of several modalities as that of one, and as that one was fed."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import several
import small
import soundfile
import torch
import transformers as hf
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import MODALITIES, assert_same

from d2v import plugins
from d2v.interop.pretrained import load_ours
from d2v.modalities.text import tokenizer as tokenizers
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.slices import one_modality
from d2v.training import checkpoint
from d2v.training.loop import Loop
from d2v.training.preparation import data_of, preparation_of
from d2v.training.start_many import start_many
from d2v.training.weights import read_weights
from scripts import convert, embed, evaluate, finetune, pretrain

# None of these is a default: what is fed otherwise gives other features.
FED = {
    "image": {"mean": [0.2], "std": [0.6], "eval_crop": 0.77, "min_block": 2},
    "speech": {"normalize": False},
    "text": {"vocab_size": 300, "block_size": 16},
}
FRONTENDS = {
    "image": {"image_size": 16, "patch_size": 4, "channels": 1},
    "speech": small.FRONTENDS["speech"],
    "text": {"max_positions": 16},
}
WORDS = ["a", "run", "of", "words", "that", "say", "nothing", "is", "read", "as", "it", "was", "written", "before"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Curves take four seconds a run."""
    monkeypatch.setattr(Loop, "plot", lambda self: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Twelve samples of two classes of each modality, and boxes in the images."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("image/train/a", "image/train/b", "speech/train", "text"):
        (root / folder).mkdir(parents=True)
    clips, lines, boxes = (
        [["file_name", "label"]],
        [["text", "label"]],
        [["file", "label", "xmin", "ymin", "xmax", "ymax"]],
    )
    for number in range(12):
        kind = "ab"[number % 2]
        pixels = draw.integers(0, 200, (20, 24, 3), dtype=np.uint8) // (1 + number % 2)
        Image.fromarray(pixels).save(root / "image" / "train" / kind / f"{number}.png")
        boxes.append([f"train/{kind}/{number}.png", kind, 2, 2, 12, 14])
        wave = 0.1 + 0.05 * draw.standard_normal(3000 + 100 * number)
        soundfile.write(root / "speech" / "train" / f"{number}.wav", wave, 8000)
        clips.append([f"{number}.wav", kind])
        lines.append([" ".join(draw.permutation(WORDS)[: 4 + number % 8]), kind])
    tables = {"speech/train/metadata.csv": clips, "text/train.csv": lines, "image/boxes.csv": boxes}
    for place, rows in tables.items():
        with (root / place).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return {name: root / name for name in MODALITIES}


@pytest.fixture(scope="module")
def exports(data, tmp_path_factory) -> dict[str, Path]:
    """A run of all modalities, and for each an export that never knew the others: of the same weights, fed alike."""
    root = tmp_path_factory.mktemp("exports")
    run, frontends, settings = root / "run", {}, {}
    for name in MODALITIES:
        package = plugins.load("d2v.modalities", name)
        settings[name] = package.DataConfig(path=str(data[name]), **FED[name])
        frontends[name] = package.FrontendConfig(**FRONTENDS[name])
        package.prepare(settings[name], frontends[name], run, 0)
    model = several.trained(D2vModel(D2vConfig(frontends, several.POST | several.OWN))).eval()
    model.save_pretrained(run / "export")
    for name in MODALITIES:
        one_modality(model, name).save_pretrained(root / name)
        for place in (run / "export" / name, root / name):
            place.mkdir(exist_ok=True)
            save = plugins.load("d2v.modalities", name).save_preprocessor
            save(place, run, settings[name], frontends[name])
    values = {"model": model.config.to_dict(), "data": {name: FED[name] | {"tokenizer": None} for name in MODALITIES}}
    values["objective"] = {"name": "joint"}
    for place in (run / "config.yaml", run / "export" / "pretraining.yaml"):
        place.write_text(yaml.safe_dump(values))
    early = saved_early(root / "early", values, model)
    shutil.copytree(run / "tokenizer", root / "early" / "tokenizer")
    return {"run": run, "all": run / "export", "early": early, **{name: root / name for name in MODALITIES}}


def saved_early(run: Path, settings: dict[str, Any], teacher: D2vModel) -> Path:
    """A checkpoint of a run that has no export yet."""
    place = run / "checkpoints" / "00000007"
    place.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    state = {f"teacher.encoder.{name}": value for name, value in teacher.state_dict().items()}
    state |= {name.replace("teacher", "student"): value + 1 for name, value in state.items()}
    save_file(state, place / "model.safetensors")
    for name in ("optimizer.bin", "progress.json", "random_states_0.pkl"):
        (place / name).write_text('{"step": 7, "processes": 1}')
    manifest = {path.name: checkpoint._fingerprint(path) for path in place.iterdir()}
    (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    return place


def bare(folder: Path, modality: str, data: Path, **sections: Any) -> str:
    """A config that says nothing of the model but its modality."""
    path = folder / f"bare_{modality}.yaml"
    values = {"model": {"frontends": {modality: {}}}, "data": {"path": str(data)}, **sections}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def short(folder: Path) -> list[str]:
    settings = ("train.steps=1", "train.batch_size=4", "run.log_every=1", "run.save_every=1")
    return [*settings, f"run.dir={folder}"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_features_are_those_of_the_modality_alone(modality, data, exports, tmp_path):
    config, found = bare(tmp_path, modality, data[modality]), []
    for source in (modality, "all", "run", "early"):
        out = tmp_path / f"{source}.parquet"
        embed.main([config, f"model={exports[source]}", f"out={out}"])
        found.append({row["id"]: row["features"] for row in pq.read_table(out).to_pylist()})
    assert len(found[0]) == 12 and all(one == found[0] for one in found)
    scores = []
    for source in (modality, "all"):
        more = ["evaluate.random_seeds=1", "evaluate.raw=false", "evaluate.probe=false", f"run.dir={tmp_path / source}"]
        result = evaluate.main([config, f"model={exports[source]}", *more])
        scores.append([{**row, "model": ""} for row in result["rows"]])
    assert scores[0] == scores[1] and len(scores[0]) > 1


@pytest.mark.parametrize("task", [*MODALITIES, "boxes"])
def test_fine_tuning_is_that_of_the_modality_alone(task, data, exports, tmp_path):
    modality = "image" if task == "boxes" else task
    config = bare(tmp_path, modality, data[modality], train={"lr": 0.1})
    more = ["data.validation_share=0.25"]
    if task == "boxes":
        more += ["data.boxes=table", "task.pyramid_dim=32", "task.scales=[1.0]"]
    states = []
    for source in (modality, "all"):
        finetune.main([config, f"model={exports[source]}", *more, *short(tmp_path / source)])
        states.append(load_file(tmp_path / source / "export" / "model.safetensors"))
    assert_same(*states)
    assert not any(f".{other}." in name for name in states[1] for other in MODALITIES if other != modality)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_run_of_one_modality_starts_with_its_part(modality, data, exports, tmp_path):
    config = bare(tmp_path, modality, data[modality], objective={"top_k": 2})
    more = ["run.health_samples=4", "run.health_every=1", "evaluate.group=''"]
    more += {"image": ["data.min_block=2"], "text": ["data.block_size=8"]}.get(modality, [])
    states = []
    for source in (modality, "all"):
        pretrain.main([config, f"train.init_from={exports[source]}", *more, *short(tmp_path / source)])
        states.append(load_file(tmp_path / source / "export" / "model.safetensors"))
    assert_same(*states)
    if modality != "text":
        return
    pretrain.main([config, f"train.init_from={exports['early']}", *more, *short(tmp_path / "early")])
    assert list(load_ours(tmp_path / "early" / "export").config.frontends) == [modality]


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_checkpoint_gives_both_sides_of_a_modality(modality, exports):
    weights = read_weights(exports["early"]).of(modality)
    alone = load_file(exports[modality] / "model.safetensors")
    assert_same(weights.encoder.state_dict(), alone)
    sides = {f"teacher.encoder.{name}": value for name, value in alone.items()}
    sides |= {f"student.encoder.{name}": value + 1 for name, value in alone.items()}
    assert_same(weights.state, sides)


@torch.no_grad()
def test_auto_classes_read_each_modality(exports, data):
    folder, model = exports["all"], hf.AutoModel.from_pretrained(exports["all"])
    picture, wave = next(data["image"].rglob("*.png")), next(data["speech"].rglob("*.wav"))
    grey = np.array(Image.open(picture).convert("L"))[..., None]
    image = hf.AutoImageProcessor.from_pretrained(folder, subfolder="image")
    speech = hf.AutoFeatureExtractor.from_pretrained(folder, subfolder="speech")
    text = hf.AutoTokenizer.from_pretrained(folder, subfolder="text")
    inputs = {
        "image": image(grey, return_tensors="pt", input_data_format="channels_last"),
        "speech": speech(soundfile.read(wave)[0], sampling_rate=8000, return_tensors="pt"),
        "text": text(["a run of words", "read"], padding=True, return_tensors="pt"),
    }
    for name, given in inputs.items():
        alone = hf.AutoModel.from_pretrained(exports[name])
        assert torch.equal(model(**given).last_hidden_state, alone(**given).last_hidden_state)
    pipe = hf.pipeline("feature-extraction", model=str(folder), tokenizer=str(folder / "text"))
    alone = hf.pipeline("feature-extraction", model=str(exports["text"]))
    assert pipe("a run of words") == alone("a run of words")


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_a_modality_is_converted_as_it_would_be_alone(modality, exports, tmp_path, capsys):
    convert.main([str(exports["run"]), str(tmp_path / "out"), f"modality={modality}"])
    said = capsys.readouterr().out
    alone = exports[modality]
    if modality == "text":
        convert.main([str(exports["text"]), str(tmp_path / "alone")])
        alone = tmp_path / "alone"
        assert type(hf.AutoModel.from_pretrained(tmp_path / "out")) is hf.Data2VecTextModel and "stays" not in said
    else:
        assert re.search(rf"out: D2vModel, with preprocessor_config.json; it stays a model of d2v: .*{modality}", said)
    assert_same(*(load_file(place / "model.safetensors") for place in (tmp_path / "out", alone)))
    names = {path.name for path in exports[modality].iterdir() if "model" not in path.name}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_modality_becomes_a_file_of_onnx(modality, exports, tmp_path, capsys):
    convert.main([str(exports["all"]), str(tmp_path / "out.onnx"), f"modality={modality}"])
    assert "onnxruntime and torch differ by at most" in capsys.readouterr().out and (tmp_path / "out.onnx").is_file()


def test_convert_says_which_modalities_there_are(exports, tmp_path):
    for source in ("run", "all"):
        with pytest.raises(
            ValueError, match=r"reads image, speech, text: say which one is taken out of it, e.g. modal"
        ):
            convert.main([str(exports[source]), str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"modality is smell; .* reads image, speech, text"):
        convert.main([str(exports["all"]), str(tmp_path / "out"), "modality=smell"])
    with pytest.raises(ValueError, match=r"modality is speech; .* reads text"):
        convert.main([str(exports["text"]), str(tmp_path / "out.onnx"), "modality=speech"])
    assert not list(tmp_path.iterdir())


def test_a_modality_that_is_not_there_is_one_line(exports, data, tmp_path):
    model = one_modality(D2vModel.from_pretrained(exports["all"]), "image")
    two = several.encoder("image", "speech", **several.OWN)
    for folder, encoder, reads in (("one", model, "image"), ("two", two, "image, speech")):
        encoder.save_pretrained(tmp_path / folder)
        config, source = bare(tmp_path, "text", data["text"]), f"={tmp_path / folder}"
        for command, more in ((embed, [f"out={tmp_path / 'x.parquet'}"]), (evaluate, [])):
            with pytest.raises(ValueError, match=rf"^model{source}: reads {reads}, but the config is for text$"):
                command.main([config, f"model{source}", *more])
        with pytest.raises(ValueError, match=rf"^model{source} reads {reads}; this script fine-tunes text$"):
            finetune.main([config, f"model{source}", *short(tmp_path / "tuned")])
        with pytest.raises(ValueError, match=rf"^train.init_from{source} reads {reads}; this config trains text$"):
            pretrain.main([config, f"train.init_from{source}", *short(tmp_path / "run")])
        with pytest.raises(ValueError, match=f"this model reads {reads}, not 'text'"):
            one_modality(encoder, "text")


@torch.no_grad()
def test_an_encoder_of_several_starts_with_others():
    """With what is own, each modality is as in its own encoder but for attention; without, the trunk is one's."""
    sources = {name: several.trained(several.encoder(name)) for name in ("speech", "image")}
    for parameter in sources["image"].parameters():
        parameter.mul_(1.5)
    for own in (several.OWN, {}):
        model = several.encoder(**own)
        new = {name: value.clone() for name, value in model.frontend("text").state_dict().items()}
        said = start_many(model, sources, "speech")
        assert_same(model.frontend("text").state_dict(), new)
        speech, image = (one_modality(model, name).state_dict() for name in ("speech", "image"))
        assert_same(speech, sources["speech"].state_dict())
        for name, value in image.items():
            ours = (bool(own) and ("norm" in name or "blocks.1.mlp" in name)) or name.startswith("frontends.")
            assert torch.equal(value, sources["image" if ours else "speech"].state_dict()[name]), name
        assert said[0].startswith("frontends of speech, image: from train.init_from; the trunk: from speech's")
        assert ("have for themselves" in said[0]) == bool(own) and said[1] == "starts anew: the frontend of text"
    whole, again = several.trained(several.encoder(**several.OWN)), several.encoder(**several.OWN)
    start_many(again, dict.fromkeys(MODALITIES, whole), "text")  # one encoder of all
    assert_same(again.state_dict(), whole.state_dict())


def test_encoders_that_do_not_fit_are_refused_before_anything_is_filled():
    model, source = several.encoder(**several.OWN), several.trained(several.encoder("speech"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cases = (
        ("text", several.encoder("text", dim=32), "text: the encoder is 32 wide, and model.trunk.dim is 16: one trunk"),
        ("text", several.encoder("text", depth=1), r"trunk.depth is 2; the encoder of train.init_from.text was .* 1$"),
        ("text", several.encoder("image"), "^train.init_from.text: this model reads image, not 'text'"),
        ("image", other_patches(), r"frontends.image.patch_size is 8; .* of train.init_from.image was trained with 4"),
    )
    for name, other, message in cases:
        with pytest.raises(ValueError, match=message):
            start_many(model, {"speech": source, name: other}, "speech")
    with pytest.raises(ValueError, match=r"the trunk is to be text's, of which train.init_from names no encoder"):
        start_many(model, {"speech": source}, "text")
    assert_same(model.state_dict(), before)


def other_patches() -> D2vModel:
    return D2vModel(D2vConfig({"image": {"image_size": 16, "patch_size": 4}}, several.POST))


def test_the_section_data_of_a_modality():
    own, pairs = {"path": "a", "text": "column"}, {"path": "b", "by": "row", "text": {"block_size": 8}, "image": {}}
    assert data_of({"data": own}, "text") is own and data_of({}, "text") == {}
    assert data_of({"data": {"image": own, "image+text": pairs}}, "image") is own
    assert data_of({"data": {"image": own, "image+text": pairs}}, "text") == {"block_size": 8}


def test_where_a_model_says_how_it_was_fed(tmp_path, monkeypatch):
    export, hub = tmp_path / "run" / "export", tmp_path / "hub" / "models--somebody--joint"
    revision = hub / "snapshots" / ("0" * 40)
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    for folder in (export, revision):
        (folder / "image").mkdir(parents=True)
        (folder / "text").mkdir()
        (folder / "text" / "tokenizer.json").write_text("{}")
        (folder / "image" / "0.png").write_text("")  # a folder of images, not of a preprocessor
    assert preparation_of(tmp_path / "run", "text") == preparation_of(export, "text") == export / "text"
    assert preparation_of(export, "image") == export and preparation_of(tmp_path / "no", "text") == tmp_path / "no"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert preparation_of(Path("somebody/joint"), "text") == revision / "text"
    assert preparation_of(Path("somebody/joint"), "image") == Path("somebody/joint")
    assert preparation_of(Path("somebody/else"), "text") == Path("somebody/else")


def test_a_tokenizer_is_known_by_its_name(exports, monkeypatch):
    """What the run was given, which may not be at hand any more."""
    settings = yaml.safe_load((exports["run"] / "config.yaml").read_text())
    settings["data"]["text"]["tokenizer"] = "gone/away"
    for place in ("export/pretraining.yaml", "config.yaml"):
        (exports["run"] / place).write_text(yaml.safe_dump(settings))
    assert tokenizers.same("gone/away", str(exports["all"] / "text"))
    assert tokenizers.same("gone/away", str(exports["run"] / "tokenizer"))
    with pytest.raises(ValueError, match="gone/other"):
        tokenizers.same("gone/other", str(exports["all"] / "text"))
