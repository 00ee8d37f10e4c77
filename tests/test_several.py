"""Whatever loads an encoder reads one of several modalities as that of one, and as that one was fed."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import several
import soundfile
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import MODALITIES, assert_same

from d2v import plugins
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.slices import one_modality
from d2v.training import checkpoint
from d2v.training.loop import Loop
from scripts import embed, evaluate, finetune

# None of these is a default: what is fed otherwise gives other features.
FED = {
    "image": {"mean": [0.2], "std": [0.6], "eval_crop": 0.77, "min_block": 2},
    "speech": {"normalize": False},
    "text": {"vocab_size": 300, "block_size": 16},
}
FRONTENDS = {
    "image": {"image_size": 16, "patch_size": 4, "channels": 1},
    "speech": {
        "kind": "mel",
        "sample_rate": 8000,
        "mel_bins": 8,
        "conv_dim": 8,
        "mel_high": 3900.0,
        "pos_kernel": 3,
        "pos_depth": 1,
        "pos_groups": 2,
    },
    "text": {"max_positions": 16},
}
STOCK = {"speech": "d2v", "text": "Data2VecTextModel", "image": "d2v"}  # what a modality becomes that is taken out
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
        more = ["evaluate.random_seeds=1", "evaluate.raw=false", f"run.dir={tmp_path / source}"]
        result = evaluate.main([config, f"model={exports[source]}", *more])
        scores.append([{**row, "model": ""} for row in result["rows"]])
    assert scores[0] == scores[1] and len(scores[0]) > 1


@pytest.mark.parametrize("task", [*MODALITIES, "boxes"])
def test_fine_tuning_is_that_of_the_modality_alone(task, data, exports, tmp_path):
    modality = "image" if task == "boxes" else task
    config = bare(tmp_path, modality, data[modality], train={"lr": 0.1})
    more = ["data.validation_share=0.25"]
    if task == "boxes":
        more += ["data.boxes=boxes.csv", "task.pyramid_dim=32", "task.scales=[1.0]"]
    states = []
    for source in (modality, "all"):
        finetune.main([config, f"model={exports[source]}", *more, *short(tmp_path / source)])
        states.append(load_file(tmp_path / source / "export" / "model.safetensors"))
    assert_same(*states)
    assert not any(f".{other}." in name for name in states[1] for other in MODALITIES if other != modality)
