"""A model brings how it was fed and its architecture: what loads it takes them; another given value is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
import torch
import transformers as hf
import yaml
from omegaconf import OmegaConf
from PIL import Image
from test_other_sizes import encoder_of
from tiny import MODALITIES, ROOT

from d2v import plugins
from d2v.config.loading import load_config
from d2v.evaluation.features import pooled_features
from d2v.finetuning.config import load as load_tuning
from d2v.interop.fairseq import load_fairseq, save_fairseq
from d2v.modalities.text import tokenizer as tokenizers
from d2v.models.encoder import D2vModel, with_frontend
from d2v.training.loop import Loop
from scripts import convert, embed, evaluate, finetune, pretrain

# What each run is fed with, none of which is a default, and another value of one of them.
FED = {
    "image": {"mean": [0.2], "std": [0.6], "eval_crop": 0.77},
    "speech": {"normalize": False},
    "text": {"block_size": 24},
}
OTHER = {"image": ("mean", [0.5], [0.2]), "speech": ("normalize", True, False), "text": ("tokenizer", "TOKENIZER", "")}
COMMAND_LINE = "the command line"
TRUNK = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
WORDS = ["a", "run", "of", "words", "that", "say", "nothing", "is", "read", "as", "it", "was", "written", "before"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Curves take four seconds a run."""
    monkeypatch.setattr(Loop, "plot", lambda self: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Sixteen samples of two classes of each modality, no two of one size."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for kind in "ab":
        (root / "image" / "train" / kind).mkdir(parents=True)
    (root / "speech" / "train").mkdir(parents=True)
    rows, lines = [["file_name", "label"]], [["text", "label"]]
    for number in range(16):
        kind = "ab"[number % 2]
        pixels = draw.integers(0, 200, (20 + number, 30, 3), dtype=np.uint8) // (1 + number % 2)
        Image.fromarray(pixels).save(root / "image" / "train" / kind / f"{number}.png")
        wave = 0.1 + 0.05 * draw.standard_normal(4000 + 100 * number)
        soundfile.write(root / "speech" / "train" / f"{number}.wav", wave, 8000)
        rows.append([f"{number}.wav", kind])
        lines.append([" ".join(draw.permutation(WORDS)[: 4 + number % 8]), kind])
    (root / "text").mkdir()
    for place, table in ((root / "speech" / "train" / "metadata.csv", rows), (root / "text" / "train.csv", lines)):
        with place.open("w", newline="") as file:
            csv.writer(file).writerows(table)
    return {name: root / name for name in MODALITIES}


def written(path: Path, modality: str, **sections) -> str:
    """A config that says nothing of the model but its modality."""
    values = {"model": {"frontends": {modality: {}}}, **sections}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def short(folder: Path) -> list[str]:
    settings = ("train.steps=2", "train.batch_size=4", "run.log_every=1", "run.save_every=1", "run.keep=9")
    return [*settings, f"run.dir={folder}"]


RUN = ["objective.top_k=2", "run.health_samples=8", "run.health_every=2", "evaluate.group=''"]
TUNE = ["data.validation_share=0.25", "train.layers=frozen", "train.lr=0.01"]
STILL = ["train.lr=1e-12", "train.weight_decay=0", "train.update_teacher=false"]


def pretrained(modality: str, folder: Path, path: Path, *more: str) -> Path:
    fed = [f"data.{name}={json.dumps(value)}" for name, value in FED[modality].items()]
    arguments = tiny.arguments(modality, folder, *fed, f"data.path={path}", *RUN, *short(folder), *more)
    pretrain.main(arguments)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """A finished run of two steps of each modality."""
    root = tmp_path_factory.mktemp("runs")
    text = ["data.vocab_size=300", "model.frontends.text.max_positions=24"]
    return {name: pretrained(name, root / name, data[name], *(text if name == "text" else ())) for name in MODALITIES}


def samples_of(modality: str, run: Path, path: Path):
    """The run's own preprocessing of its own data."""
    config = load_config(run / "config.yaml")
    module = plugins.load("d2v.modalities", modality)
    return module.Samples(config.data, config.frontend, split="train", folder=run)


def expected(modality: str, run: Path, encoder: D2vModel) -> dict[str, np.ndarray]:
    """Features of each sample alone, as the run itself reads it."""
    samples, found = samples_of(modality, run, run), {}
    with torch.no_grad():
        for index, name in enumerate(samples.ids):
            found[name] = encoder(samples.view([index])).x[0].mean(dim=0).numpy()
    return found


def check_same(table: Path, wanted: dict[str, np.ndarray], atol: float = 1e-6) -> None:
    rows = pq.read_table(table).to_pylist()
    assert {row["id"] for row in rows} == wanted.keys() and len(rows) == 16
    for row in rows:
        np.testing.assert_allclose(row["features"], wanted[row["id"]], atol=atol, rtol=1e-5)


def embedded(modality: str, model: Path, path: Path, out: Path, *more: str) -> Path:
    config = written(out.with_suffix(".yaml"), modality, data={"path": str(path)})
    embed.main([config, f"model={model}", f"out={out}", *more])
    return out


def places(run: Path) -> dict[str, tuple[Path, str]]:
    """What may be named, and the weights that it holds."""
    return {
        "run folder": (run, "export"),
        "export": (run / "export", "export"),
        "student": (run / "export" / "student", "export/student"),
        "checkpoint": (run / "checkpoints" / "00000002", "export"),
    }


# Nothing is given.


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("place", ["run folder", "export", "student", "checkpoint"])
def test_embedding_reads_as_pretraining_did(modality, place, runs, data, tmp_path):
    model, weights = places(runs[modality])[place]
    wanted = expected(modality, runs[modality], D2vModel.from_pretrained(runs[modality] / weights))
    check_same(embedded(modality, model, data[modality], tmp_path / "features.parquet"), wanted)


@pytest.mark.parametrize("modality", tiny.first(MODALITIES))
@pytest.mark.parametrize("place", ["run folder", "student", "checkpoint"])
def test_evaluation_reads_as_pretraining_did(modality, place, runs, data, tmp_path):
    model, weights = places(runs[modality])[place]
    from d2v.evaluation.load_encoder import open_model
    from d2v.evaluation.run import open_splits

    path = written(tmp_path / "bare.yaml", modality, data={"path": str(data[modality])}, evaluate={"test_split": ""})
    config, encoder = load_config(path), D2vModel.from_pretrained(runs[modality] / weights)
    opened = open_model(config, str(model), print)
    assert config.data == load_config(path).data  # another model may have been fed otherwise
    train = open_splits(opened, config).train
    found = pooled_features(opened.encoder, train.samples, 1)["last"]
    for name, features in zip(train.samples.ids, found, strict=True):
        np.testing.assert_allclose(features, expected_once(modality, runs, encoder)[name], atol=1e-6, rtol=1e-5)
    settings = ["evaluate.k=[2]", "evaluate.probe=false", "evaluate.random_seeds=1", f"run.dir={tmp_path / 'table'}"]
    evaluate.main([path, f"model={model}", *settings])
    (table,) = (tmp_path / "table" / "evaluation").glob("*.json")
    assert json.loads(table.read_text())["rows"]


def test_a_table_lies_beside_the_model(runs, data, tmp_path):
    shutil.copytree(runs["image"], tmp_path / "run")
    path = written(tmp_path / "bare.yaml", "image", data={"path": str(data["image"])}, evaluate={"test_split": ""})
    settings = ["evaluate.k=[2]", "evaluate.probe=false", "evaluate.random_seeds=0", "evaluate.raw=false"]
    for model in ("run", "run/checkpoints/00000001"):
        evaluate.main([path, f"model={tmp_path / model}", *settings])
    found = {file.name for file in (tmp_path / "run" / "evaluation").glob("*.json")}
    assert found == {"export_layer-last.json", "00000001_layer-last.json"}
    with pytest.raises(ValueError, match=r"export_layer-last.json exists; run.overwrite=true replaces it"):
        evaluate.main([path, f"model={tmp_path / 'run' / 'export'}", *settings])


def expected_once(modality, runs, encoder):
    if encoder not in _known:
        _known[encoder] = expected(modality, runs[modality], encoder)
    return _known[encoder]


_known: dict = {}


@pytest.mark.parametrize("modality", tiny.first(MODALITIES))
@pytest.mark.parametrize("place", ["run folder", "checkpoint"])
def test_fine_tuning_reads_as_pretraining_did_and_hands_it_on(modality, place, runs, data, tmp_path):
    model, weights = places(runs[modality])[place]
    wanted = expected(modality, runs[modality], D2vModel.from_pretrained(runs[modality] / weights))
    path = written(tmp_path / "bare.yaml", modality, data={"path": str(data[modality])})
    finetune.main([path, f"model={model}", *short(tmp_path / "tuned"), *TUNE])
    saved = OmegaConf.load(tmp_path / "tuned" / "config.yaml")
    assert {name: saved.data[name] for name in FED[modality]} == FED[modality]
    # its encoder did not move
    check_same(embedded(modality, tmp_path / "tuned" / "export", data[modality], tmp_path / "a.parquet"), wanted)


@pytest.mark.parametrize("modality", tiny.first(MODALITIES))
@pytest.mark.parametrize("place", tiny.first(["run folder", "student", "checkpoint"]))
def test_going_on_reads_as_pretraining_did_and_resumes_without_its_source(modality, place, runs, data, tmp_path):
    shutil.copytree(runs[modality], tmp_path / "source")
    model, weights = places(tmp_path / "source")[place]
    wanted = expected(modality, runs[modality], D2vModel.from_pretrained(runs[modality] / weights))
    path = written(tmp_path / "bare.yaml", modality, data={"path": str(data[modality])})
    line = [path, f"train.init_from={model}", *RUN, *STILL, *short(tmp_path / "second")]
    line += ["data.color_jitter=0", "data.min_block=2"] if modality == "image" else []
    pretrain.main(line)
    saved = OmegaConf.load(tmp_path / "second" / "config.yaml")
    assert {name: saved.data[name] for name in FED[modality]} == FED[modality] and saved.model.trunk.dim == 32
    before = tiny.load(tmp_path / "second" / "export" / "model.safetensors")
    check_same(embedded(modality, tmp_path / "second", data[modality], tmp_path / "a.parquet"), wanted)
    shutil.rmtree(tmp_path / "source")
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "00000002")
    pretrain.main(line)
    tiny.assert_same(tiny.load(tmp_path / "second" / "export" / "model.safetensors"), before)
    assert OmegaConf.load(tmp_path / "second" / "config.yaml") == saved


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_probe_of_a_run_reads_as_the_model_was_fed(modality, runs, data, tmp_path):
    from d2v.reading import Reader
    from d2v.training.init_from import adopt, bring_preparation
    from d2v.training.pretraining import online_probe

    probe = {"probe": {"path": str(data[modality])}}
    path = written(tmp_path / "bare.yaml", modality, data={"path": str(data[modality])}, run=probe)
    more = ["data.min_block=2"] if modality == "image" else []
    config = load_config(path, [f"train.init_from={runs[modality]}", *short(tmp_path / "run"), *more])
    module = plugins.load("d2v.modalities", modality)
    adopt(config, config.train.init_from, tmp_path, print, setting="train.init_from", resizable=False)
    bring_preparation(config, tmp_path)
    module.prepare(config.data, config.frontend, tmp_path, 0)
    found = online_probe(config, module, tmp_path, Reader(0.0)).train.samples.view(range(4))
    wanted = samples_of(modality, runs[modality], data[modality]).view(range(4))
    for name, values in wanted.inputs.items():
        torch.testing.assert_close(found.inputs[name], values, rtol=0, atol=0)


# Something else is given.


def other_of(modality: str, tmp_path: Path) -> tuple[str, object, object]:
    """A setting, a value that the model was not fed by, and a part of the one that it was."""
    name, value, own = OTHER[modality]
    if value == "TOKENIZER":
        tokenizers.train(["other words"], 300).save_pretrained(tmp_path / "other")
        return name, str(tmp_path / "other"), "export"
    return name, value, own


def commands(modality: str, run: Path, tmp_path: Path) -> dict[str, tuple]:
    tuned, more = short(tmp_path / "tuned"), short(tmp_path / "more")
    return {
        "embed": (embed.main, f"model={run}", [f"out={tmp_path / 'a.parquet'}"]),
        "evaluate": (evaluate.main, f"model={run}", ["evaluate.test_split=''"]),
        "finetune": (finetune.main, f"model={run}", [*tuned, *TUNE]),
        "init_from": (pretrain.main, f"train.init_from={run}", [*more, *RUN]),
    }


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("command", ["embed", "evaluate", "finetune", "init_from"])
def test_another_value_is_refused_and_both_are_named(modality, command, runs, data, tmp_path):
    main, source, more = commands(modality, runs[modality], tmp_path)[command]
    name, value, own = other_of(modality, tmp_path)
    bare = written(tmp_path / "bare.yaml", modality, data={"path": str(data[modality])})
    base = written(tmp_path / "base.yaml", modality, data={"path": str(data[modality]), name: value})
    (tmp_path / "own.yaml").write_text("base: base.yaml\n")
    for path, given, where in (
        (str(tmp_path / "own.yaml"), [], base),
        (bare, [f"data.{name}={json.dumps(value)}"], COMMAND_LINE),
    ):
        with pytest.raises(ValueError, match=rf"data\.{name} is ") as error:
            main([path, source, *more, *given])
        said = str(error.value)
        assert f"data.{name} is {value}; the encoder of {runs[modality]} was trained with" in said
        assert f"the first is from {where}, the second from {source}; leave it out, or give data.{name}=" in said
        assert str(own) in said and "\n" not in said
    assert not (tmp_path / "a.parquet").exists() and not (tmp_path / "tuned" / "config.yaml").exists()


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_value_that_it_was_fed_by_may_be_given(modality, runs, data, tmp_path):
    fed = [f"data.{name}={json.dumps(value)}" for name, value in FED[modality].items()]
    if modality == "text":  # the same by another name
        shutil.copytree(runs["text"] / "tokenizer", tmp_path / "copy")
        fed.append(f"data.tokenizer={tmp_path / 'copy'}")
    wanted = expected(modality, runs[modality], D2vModel.from_pretrained(runs[modality] / "export"))
    check_same(embedded(modality, runs[modality], data[modality], tmp_path / "a.parquet", *fed), wanted)


def test_a_resumed_run_compares_with_what_it_was_fed_by(runs, data, tmp_path):
    path = written(
        tmp_path / "bare.yaml", "image", data={"path": str(data["image"]), "color_jitter": 0, "min_block": 2}
    )
    line = [path, f"train.init_from={runs['image']}", *RUN, *short(tmp_path / "second")]
    pretrain.main(line)
    with pytest.raises(ValueError, match=r"another config \(data.mean: \[0.2\] -> \[0.5\]\)"):
        pretrain.main([*line, "data.mean=[0.5]"])
    with pytest.raises(ValueError, match=r"another config \(model.trunk.depth: 2 -> 3\)"):
        pretrain.main([*line, "model.trunk.depth=3"])


def test_one_value_for_all_channels_is_the_same_as_one_each(runs, data, tmp_path):
    wanted = expected("image", runs["image"], D2vModel.from_pretrained(runs["image"] / "export"))
    folder = tmp_path / "export"
    shutil.copytree(runs["image"] / "export", folder)
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(values | {"image_mean": [0.2], "image_std": [0.6]}))
    check_same(embedded("image", folder, data["image"], tmp_path / "a.parquet", "data.std=[0.6]"), wanted)


# Architecture.


def test_the_file_s_architecture_yields_in_one_line(runs, data, tmp_path, capsys):
    path = str(ROOT / "configs" / "image" / "finetune_tiny.yaml")
    line = [path, f"model={runs['image']}", f"data.path={data['image']}", "data.split=train", "data.test_split=''"]
    line += ["data.eval_crop=0.77", *short(tmp_path / "tuned"), "train.warmup_steps=0", "run.save_every=1"]
    finetune.main(line)
    said = capsys.readouterr().out
    (one,) = [text for text in said.splitlines() if text.startswith("architecture of")]
    assert "trunk.depth=2 instead of 4" in one and "frontends.image.channels=1 instead of 3" in one
    assert "drop_path" not in one  # it is free
    saved = OmegaConf.load(tmp_path / "tuned" / "config.yaml")
    assert (saved.model.trunk.depth, saved.model.trunk.drop_path, saved.data.mean) == (2, 0.1, [0.2])


@pytest.mark.parametrize("command", ["embed", "evaluate", "finetune", "init_from"])
def test_the_command_line_s_architecture_does_not(command, runs, data, tmp_path):
    main, source, more = commands("image", runs["image"], tmp_path)[command]
    path = written(tmp_path / "bare.yaml", "image", data={"path": str(data["image"])})
    with pytest.raises(ValueError, match=r"model.trunk.num_heads is 4; .* was trained with 2") as error:
        main([path, source, *more, "model.trunk.num_heads=4"])
    assert f"from {COMMAND_LINE}, the second from {source}" in str(error.value)
    with pytest.raises(ValueError, match=r"model.frontends.image.channels is 3; .* was trained with 1"):
        main([path, source, *more, "model.frontends.image={channels: 3}"])


# transformers' folders.


def vit(folder: Path, kind=hf.ViTModel, channels: int = 3, **processor) -> Path:
    """A ViT of 16 pixels, deep enough for the tiny configs, with a preprocessor."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.ViTConfig(
        **sizes, image_size=16, patch_size=4, num_channels=channels, num_labels=2, initializer_range=0.3
    )
    model = kind(config, add_pooling_layer=False) if kind is hf.ViTModel else kind(config)
    model.save_pretrained(folder)
    settings = {"size": {"height": 16, "width": 16}, "resample": 3} | processor
    hf.ViTImageProcessor(**settings).save_pretrained(folder)
    return folder


@pytest.fixture
def squares(tmp_path) -> Path:
    """Sixteen images of the ViT's size: no filter counts."""
    for number in range(16):
        place = tmp_path / "squares" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "squares"


SCALES = {
    "mean and deviation": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    "not normalised": {"do_normalize": False},
    "rescaled to -1 to 1": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "not rescaled": {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3},
}


@pytest.mark.parametrize("scale", SCALES)
@torch.no_grad()
def test_a_stock_vit_is_fed_as_its_preprocessor_does(scale, squares, tmp_path):
    folder = vit(tmp_path / "vit", **SCALES[scale])
    model, processor = hf.ViTModel.from_pretrained(folder), hf.AutoImageProcessor.from_pretrained(folder)
    wanted = {}
    for file in sorted(squares.rglob("*.png")):
        pixels = processor(Image.open(file), return_tensors="pt")
        name = file.relative_to(squares).as_posix()
        wanted[name] = model(**pixels).last_hidden_state[0, 1:].mean(dim=0).numpy()
    found = pq.read_table(embedded("image", folder, squares, tmp_path / "a.parquet")).to_pylist()
    assert len(found) == 16
    for row in found:
        (name,) = [name for name in wanted if name.endswith(row["id"])]
        np.testing.assert_allclose(row["features"], wanted[name], atol=3e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"data.mean is \[0.485, 0.456, 0.406\]; .* from the command line"):
        embedded("image", folder, squares, tmp_path / "b.parquet", "data.mean=[0.485,0.456,0.406]")


def test_what_a_stock_preprocessor_does_otherwise_is_said(data, tmp_path, caplog):
    folder = vit(tmp_path / "vit", resample=2)
    embedded("image", folder, data["image"], tmp_path / "a.parquet")
    assert "squeezes images that are no squares" in caplog.text and "resizes by bilinear" in caplog.text
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"model: .*preprocessor_config.json cannot be read"):
        embedded("image", folder, data["image"], tmp_path / "b.parquet")
    (folder / "preprocessor_config.json").unlink()
    embedded("image", folder, data["image"], tmp_path / "c.parquet")
    assert "does not say how the model was fed" in caplog.text


@torch.no_grad()
def test_a_stock_model_of_speech_is_fed_at_its_rate_unnormalised(data, tmp_path):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [5, 16]}
    places = {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3, "num_conv_pos_embedding_groups": 4}
    model = hf.Data2VecAudioModel(hf.Data2VecAudioConfig(**sizes, **convolutions, **places)).eval()
    model.save_pretrained(tmp_path / "audio")
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=False, return_attention_mask=True)
    extractor.save_pretrained(tmp_path / "audio")
    wanted = {}
    for file in (data["speech"] / "train").glob("*.wav"):
        wave = soundfile.read(file, dtype="float32")[0]
        inputs = extractor(wave, sampling_rate=8000, return_tensors="pt")
        wanted[file.name] = model(**inputs).last_hidden_state[0].mean(dim=0).numpy()
    rows = pq.read_table(embedded("speech", tmp_path / "audio", data["speech"], tmp_path / "a.parquet")).to_pylist()
    assert len(rows) == 16
    for row in rows:
        np.testing.assert_allclose(row["features"], wanted[Path(row["id"]).name], atol=3e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"speech.sample_rate is 16000; .* was trained with 8000"):
        rate = "model.frontends.speech.sample_rate=16000"
        embedded("speech", tmp_path / "audio", data["speech"], tmp_path / "b.parquet", rate)


@torch.no_grad()
def test_a_stock_model_of_text_is_fed_by_its_tokenizer(data, tmp_path):
    torch.manual_seed(1)
    tokenizer = tokenizers.train([*WORDS, " ".join(WORDS)] * 3, 300)
    tokenizer.model_max_length = 30
    tokenizer.save_pretrained(tmp_path / "text")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.Data2VecTextConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=32)
    model = hf.Data2VecTextModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "text")
    with (data["text"] / "train.csv").open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    rows = pq.read_table(embedded("text", tmp_path / "text", data["text"], tmp_path / "a.parquet")).to_pylist()
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        wanted = model(**inputs).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(row["features"], wanted, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["stock", "converted"])
@pytest.mark.parametrize("kind", [hf.ViTModel, hf.ViTForImageClassification])
def test_going_on_from_a_vit_is_one_setting(form, kind, squares, tmp_path, capsys):
    folder = vit(tmp_path / "vit", kind, **SCALES["mean and deviation"])
    if form == "converted":
        convert.main([str(folder), str(tmp_path / "ours")])
        folder = tmp_path / "ours"
    here = [f"data.path={squares}", "data.split=train", "train.warmup_steps=0"]
    path = str(ROOT / "configs" / "image" / "finetune_tiny.yaml")
    finetune.main([path, f"model={folder}", *here, "data.test_split=''", *short(tmp_path / "tuned")])
    path = str(ROOT / "configs" / "image" / "data2vec_tiny.yaml")
    pretrain.main([path, f"train.init_from={folder}", *here, "evaluate.path=''", *short(tmp_path / "second")])
    assert capsys.readouterr().out.count(f"architecture of {folder}: ") == 2
    for run in ("tuned", "second"):
        saved = OmegaConf.load(tmp_path / run / "config.yaml")
        assert saved.model.frontends.image.positions == "learned" and saved.model.trunk.dim == 32
        assert saved.data.mean == [0.1, 0.2, 0.3] and saved.data.std == [0.5, 0.6, 0.7]


# Channels, rates, other files.


def test_four_channels(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for number in range(16):
        place = tmp_path / "arrays" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", draw.integers(0, 255, (4, 18 + number, 20), dtype=np.uint8))
    path, four = tmp_path / "arrays", ["model.frontends.image.channels=4", "data.mean=[0.1,0.2,0.3,0.4]"]
    run = pretrained("image", tmp_path / "run", path, *four, "data.std=[0.5,0.6,0.7,0.8]")
    wanted = expected("image", run, D2vModel.from_pretrained(run / "export"))
    check_same(embedded("image", run / "export", path, tmp_path / "a.parquet"), wanted)
    bare = written(tmp_path / "bare.yaml", "image", data={"path": str(path), "color_jitter": 0})
    settings = ["evaluate.k=[2]", "evaluate.probe=false", "evaluate.random_seeds=1", "evaluate.test_split=''"]
    evaluate.main([bare, f"model={run}", *settings])
    finetune.main([bare, f"model={run}", *short(tmp_path / "tuned"), *TUNE])
    check_same(embedded("image", tmp_path / "tuned" / "export", path, tmp_path / "b.parquet"), wanted)
    samples = samples_of("image", run, path)
    array = np.load(path / "train" / samples.ids[0].split("train/")[-1])
    for folder in (run / "export", tmp_path / "tuned" / "export"):
        processor = hf.AutoImageProcessor.from_pretrained(folder)
        assert list(processor.image_mean) == [0.1, 0.2, 0.3, 0.4]
        pixels = processor(array, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, samples.view([0]).inputs["pixel_values"], atol=0.02, rtol=0)
        last = processor(array.transpose(1, 2, 0), input_data_format="channels_last", return_tensors="pt").pixel_values
        torch.testing.assert_close(last, pixels, atol=1e-6, rtol=0)


def test_three_channels(data, tmp_path):
    colours = ["model.frontends.image.channels=3", "data.mean=[0.1,0.2,0.3]", "data.std=[0.5,0.6,0.7]"]
    run = pretrained("image", tmp_path / "run", data["image"], *colours)
    wanted = expected("image", run, D2vModel.from_pretrained(run / "export"))
    check_same(embedded("image", run / "export", data["image"], tmp_path / "a.parquet"), wanted)


def test_a_fairseq_checkpoint_keeps_its_rate_and_says_whether_waves_are_normalised(data, tmp_path):
    published = ["alibi=none", "kind=waveform", "sample_rate=8000", "mel_bins=80", "mel_high=null"]
    published += ["conv_kernels=[10,8]", "conv_strides=[5,16]"]
    config = tiny.config_of("speech", tmp_path, *[f"model.frontends.speech.{one}" for one in published])
    save_fairseq(tiny.objective_of(config), tmp_path / "checkpoint.pt")
    for side in ("student", "teacher"):
        encoder = getattr(load_fairseq(tmp_path / "checkpoint.pt"), side)["encoder"]
        assert (
            encoder.frontend("speech").config.sample_rate == encoder.config.frontends["speech"]["sample_rate"] == 8000
        )
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["cfg"]["task"]["normalize"] = False
    torch.save(checkpoint, tmp_path / "other.pt")
    bare = written(tmp_path / "bare.yaml", "speech", data={"path": str(data["speech"])})
    pretrain.main([bare, f"train.init_from={tmp_path / 'other.pt'}", *RUN, *short(tmp_path / "run")])
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert saved.data.normalize is False and saved.model.frontends.speech.sample_rate == 8000
    with pytest.raises(ValueError, match=r"data.normalize is True; the encoder of .* was trained with False"):
        pretrain.main(
            [bare, f"train.init_from={tmp_path / 'other.pt'}", *RUN, *short(tmp_path / "b"), "data.normalize=true"]
        )


def test_a_method_without_a_teacher_goes_on_from_an_export(runs, data, tmp_path, capsys):
    views = {"path": str(data["image"]), "views": ["simclr", "simclr"], "crop_scale": [0.08, 1.0]}
    path = written(tmp_path / "bare.yaml", "image", data=views, objective={"name": "simclr"})
    settings = ["run.health_samples=8", "objective.hidden_dim=16", "objective.out_dim=8", *short(tmp_path / "run")]
    pretrain.main([path, f"train.init_from={runs['image']}", *settings])
    said = capsys.readouterr().out
    assert f"starts from {runs['image']}: student\nstarts anew: projector, optimizer" in said
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").data.mean == [0.2]


def test_an_unfinished_run_names_its_checkpoint(runs, data, tmp_path):
    shutil.copytree(runs["image"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "export")
    with pytest.raises(ValueError, match=r"no folder with a config.json; .* checkpoint: .*00000002"):
        embedded("image", tmp_path / "run", data["image"], tmp_path / "a.parquet")
    weights = tmp_path / "run" / "checkpoints" / "00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00000002 is damaged: model.safetensors has"):
        embedded("image", weights.parent, data["image"], tmp_path / "a.parquet")


# Images of another size.


@pytest.mark.parametrize("positions", ["sincos", "learned", "none"])
def test_evaluation_and_fine_tuning_read_images_of_another_size(positions, squares, tmp_path, capsys):
    model, path = tmp_path / "model", squares
    settings = {"channels": 3, "positions": positions, "relative_bias": positions == "none"}
    encoder = encoder_of(16, **settings)
    encoder.save_pretrained(model)
    module = plugins.load("d2v.modalities", "image")
    frontend = module.FrontendConfig(**encoder.config.frontends["image"])
    module.save_preprocessor(model, model, module.DataConfig(**FED["image"]), frontend)
    larger = "model.frontends.image.image_size=24"
    rows = pq.read_table(embedded("image", model, path, tmp_path / "a.parquet", larger)).to_pylist()
    assert "image_size 24 in place of 16: positions are resized" in capsys.readouterr().out
    frontend.image_size = 24
    samples = module.Samples(module.DataConfig(**FED["image"], path=str(path)), frontend, split="train", folder=model)
    wanted = with_frontend(encoder, "image", {"image_size": 24})
    with torch.no_grad():
        for row in rows:
            features = wanted(samples.view([samples.ids.index(row["id"])])).x[0].mean(dim=0)
            np.testing.assert_allclose(row["features"], features, atol=1e-6, rtol=1e-5)
    bare = written(tmp_path / "bare.yaml", "image", data={"path": str(path)})
    finetune.main([bare, f"model={model}", *short(tmp_path / "tuned"), *TUNE, larger])
    tuned = tmp_path / "tuned" / "export"
    assert json.loads((tuned / "config.json").read_text())["frontends"]["image"]["image_size"] == 24
    again = pq.read_table(embedded("image", tuned, path, tmp_path / "b.parquet")).to_pylist()
    np.testing.assert_allclose([row["features"] for row in again], [row["features"] for row in rows], atol=1e-6)
    with pytest.raises(ValueError, match=r"image_size is 24; .* was trained with 16"):  # pretraining has one size
        pretrain.main([bare, f"train.init_from={model}", *RUN, *short(tmp_path / "second"), larger])


# What was given, and where.


def test_where_a_setting_was_given(tmp_path):
    written(tmp_path / "base.yaml", "image", data={"mean": [0.1], "std": [0.2]}, train={"lr": 1})
    (tmp_path / "own.yaml").write_text("base: base.yaml\ndata: {std: [0.3]}\n")
    config = load_config(tmp_path / "own.yaml", ["train.lr=2", "data={flip: 0.1}", "model.trunk.dim=24"])
    base, own = str(tmp_path / "base.yaml"), str(tmp_path / "own.yaml")
    assert config.given["data.mean"] == base and config.given["data.std"] == own
    assert [config.given[name] for name in ("train.lr", "data.flip", "model.trunk.dim")] == [COMMAND_LINE] * 3
    assert "data.eval_crop" not in config.given and "given" not in config.as_dict()
    tuned, _ = load_tuning([own, "model=somewhere", f"run.dir={tmp_path}"])
    assert tuned.given["train.init_from"] == COMMAND_LINE and tuned.given["data.mean"] == base


def test_the_processor_of_an_export_of_letters_says_how_waves_were_scaled(tmp_path):
    from d2v.modalities.common import feeding

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "<unk>": 2, "a": 3}))
    letters = hf.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=False)
    hf.Wav2Vec2Processor(extractor, letters).save_pretrained(tmp_path / "export")
    assert feeding.preprocessor(hf.AutoFeatureExtractor, tmp_path / "export").do_normalize is False
    data = plugins.load("d2v.modalities", "speech").DataConfig()
    plugins.load("d2v.modalities", "speech").inherit(data, tmp_path / "export", None)
    assert data.normalize is False


def test_a_run_s_own_config_says_how_it_was_fed(runs):
    from d2v.modalities.common import feeding

    assert (
        feeding.of_run(runs["image"], "image")["mean"] == [0.2]
        and feeding.of_run(runs["image"] / "export", "image") == {}
    )
