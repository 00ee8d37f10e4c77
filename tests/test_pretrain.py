"""scripts/pretrain.py: what a run leaves, and what it says when something is wrong with the command or the data."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from PIL import Image
from tiny import MODALITIES, ROOT, RUNS
from transformers import AutoModel

from d2v.models.encoder import D2vModel
from d2v.training.checkpoint import checkpoints_in
from scripts import pretrain

QUICK = ("train.steps=2", "train.warmup_steps=0", "run.save_every=1", "run.health_samples=8")


# What a run leaves.


# What does not depend on the method, fast for one of each kind: with a teacher, without one, with a state of its own.
OFTEN = {("speech", "data2vec2"), ("image", "moco"), ("text", "mlm"), ("speech", "mae")}
OFTEN |= {(modality, "data2vec") for modality in MODALITIES}
KINDS = [run if run.values in OFTEN else pytest.param(*run.values, marks=pytest.mark.slow) for run in RUNS]


@pytest.mark.parametrize(("modality", "objective"), KINDS)
def test_a_run_folder_is_complete(modality, objective):
    folder = tiny.finished(modality, objective)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "export", "report.html"} <= names
    for picture in ("curves.png", "spectrum.png") if objective == "data2vec" else ():
        assert Image.open(folder / picture).width > 300
    assert [path.name for path in checkpoints_in(folder / "checkpoints")] == ["00000010", "00000020"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {key for record in records for key in record}
    of_masks = set() if tiny.compares_views(objective) else {"hidden_share"}
    of_masks |= {"target_std", "prediction_std"} if tiny.averages_layers(objective) else set()
    assert {"loss", "grad_norm", "lr", "skipped", "samples_per_second"} | of_masks <= logged
    assert ("ema_decay" in logged) == ("teacher" in tiny.sides(folder))
    assert {"student_rank", "teacher_rank", "local_rank", "student_knn", "health_samples"} <= logged
    assert sorted(tiny.losses(folder)) == list(range(1, 21)) and records[0]["step"] == 0
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


@pytest.mark.parametrize(("modality", "objective"), KINDS)
def test_the_export_is_student_or_teacher_to_the_bit_and_the_other_lies_beside_it(modality, objective):
    export = tiny.finished(modality, objective) / "export"
    assert {"config.json", "model.safetensors", "README.md", "pretraining.yaml"} <= {
        path.name for path in export.iterdir()
    }
    card = (export / "README.md").read_text()
    assert (
        modality in card
        and "from_pretrained" in card
        and "student_rank" in card
        and "Verdict" in card
        and "samples usable" in card
    )
    views, _ = tiny.batches_of(tiny.config_of(modality, export.parent, tiny.using(objective)))(0, 0, 1)
    state = tiny.checkpoint_tensors(export.parent, 20)
    places = tiny.sides(export.parent)
    assert ("teacher" in places) == any(key.startswith("teacher.") for key in state)
    seen = []
    for side, place in places.items():
        model = D2vModel.from_pretrained(place)
        assert not model.training and f"encoder ({side})" in (place / "README.md").read_text()
        expected = {
            key.removeprefix(f"{side}.encoder."): value
            for key, value in state.items()
            if key.startswith(f"{side}.encoder.")
        }
        tiny.assert_same(model.state_dict(), expected)
        # a model that never was on disk, with the checkpoint's weights
        made = D2vModel(model.config).eval()
        made.load_state_dict(expected)
        with torch.no_grad():
            features = [m(views[0], layers="block") for m in (model, made, AutoModel.from_pretrained(place))]
        for other in features[1:]:
            assert torch.equal(features[0].x, other.x) and all(map(torch.equal, features[0].layers, other.layers))
        seen.append(features[0].x)
    assert len(seen) == 1 or not torch.equal(*seen)


@pytest.mark.parametrize(("modality", "objective"), KINDS)
def test_the_export_reads_raw_inputs_by_hugging_faces_tools(modality, objective):
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    export = tiny.finished(modality, objective) / "export"
    tools = {  # by the name of what the model reads
        "pixel_values": (
            AutoImageProcessor,
            lambda tool: tool(np.zeros((20, 20, 3), dtype=np.uint8), return_tensors="pt"),
        ),
        "input_values": (
            AutoFeatureExtractor,
            lambda tool: tool(np.random.randn(8000), sampling_rate=tool.sampling_rate, return_tensors="pt"),
        ),
        "input_ids": (AutoTokenizer, lambda tool: tool(["def f(x): return x"], return_tensors="pt")),
    }
    model = AutoModel.from_pretrained(export)
    reader, call = tools[next(iter(model.frontends.values())).main_input]
    try:
        inputs = call(reader.from_pretrained(export))
    except ValueError:  # grey images have one channel
        inputs = reader.from_pretrained(export)(
            np.zeros((20, 20), dtype=np.uint8), return_tensors="pt", input_data_format="none"
        )
    if "pixel_values" in inputs:
        channels = model.config.frontends[modality]["channels"]
        inputs = {"pixel_values": inputs["pixel_values"][:, :channels]}
    with torch.no_grad():
        assert model(**inputs).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(("modality", "objective"), KINDS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(modality, objective, tmp_path):
    """20 steps at once, and 13 of which 10 were saved, SIGKILL, then the rest: equal to the bit, dropout and all.

    But for the first an exception takes the signal's place, which spares two processes.
    """
    command_line = tiny.arguments(modality, tmp_path, tiny.using(objective), *tiny.dropout(objective))
    whole = tiny.finished(modality, objective)
    if (modality, objective) == (MODALITIES[0], "data2vec"):
        assert tiny.wait(tiny.start(tiny.run_until_killed, command_line, 13)) == [-signal.SIGKILL]
    else:
        with pytest.raises(KeyboardInterrupt):
            tiny.run_until_interrupted(command_line, 13)
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["00000010"]
    assert max(tiny.losses(tmp_path)) >= 12 and not (tmp_path / "export").exists()
    if objective == "data2vec" and modality == MODALITIES[0]:
        assert tiny.wait(tiny.start(tiny.run, command_line)) == [0]
    else:
        pretrain.main(command_line)
    tiny.assert_same(tiny.checkpoint_tensors(tmp_path, 20), tiny.checkpoint_tensors(whole, 20))
    assert tiny.losses(tmp_path) == tiny.losses(whole)
    assert sorted(tiny.losses(tmp_path)) == list(range(1, 21))
    tiny.assert_same(
        tiny.load(tmp_path / "export" / "model.safetensors"), tiny.load(whole / "export" / "model.safetensors")
    )


# What is wrong with a command.


def test_errors_of_a_command(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    modality = MODALITIES[0]
    command = tiny.arguments(modality, tmp_path / "run", *QUICK)
    for arguments, message in (
        ([], "usage: .*CONFIG key=value"),
        (["nowhere.yaml"], "no config file .*nowhere.yaml"),
        ([*command, "run.dir=''"], "run.dir is required"),
        ([*command, "train.stepz=1"], "unknown key 'train.stepz'.*'steps'"),
        ([*command, "train.steps=abc"], "train.steps.*'abc'"),
        ([*command, "data.path="], "data.path is required"),
        ([*command, f"data.path={tmp_path}/nowhere"], "data.path .*/nowhere' does not exist"),
        ([*command, f"data.path={tmp_path}/empty"], "empty is an empty folder"),
        (
            [*command, f"evaluate.path={tmp_path}/empty"],
            "evaluate.path is .*/empty, for the health checks .*empty folder",
        ),
        ([*command, "data.split=tset"], "data.split 'tset': the demo has the splits train, test"),
        ([*command, "train.batch_size=100000"], "fewer than one batch: train.batch_size is 100000"),
        ([*command, "evaluate.group=nobody"], "evaluate.group is 'nobody': .*no column 'nobody'; its columns are"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            pretrain.main(arguments)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_exit_code_and_one_line(tmp_path):
    """The script as a user starts it."""
    demo, twice = ROOT / "configs" / MODALITIES[0] / "demo.yaml", tmp_path / "twice.yaml"
    twice.write_text(demo.read_text() + "\nrun: {dir: elsewhere}\n")
    stderr = tmp_path / "stderr"
    assert tiny.wait(tiny.start(tiny.run_script, [str(twice), "data.path=demo"], stderr)) == [2]
    (line,) = (line for line in stderr.read_text().splitlines() if line.startswith("error: "))
    assert "twice.yaml cannot be read" in line and "duplicate key" in line
    assert "Traceback" not in stderr.read_text()


MEDIA = {"image": "png", "speech": "wav", "text": "txt"}


def write(kind: str, path: Path, seed: int) -> None:
    """A small, good file: an image, a clip of a second, or forty lines of words."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        Image.fromarray(generator.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)).save(path)
    elif kind == "wav":
        soundfile.write(path, generator.normal(size=8000).clip(-4, 4) * 0.1, 8000)
    else:
        words = [[f"word{n}" for n in generator.integers(0, 60, size=12)] for _ in range(40)]
        path.write_text("\n".join(map(" ".join, words)) + "\n")


@pytest.mark.parametrize("modality", MODALITIES)
def test_data_of_another_modality_is_refused(modality, tmp_path):
    """Said is what was found and what is needed."""
    for other, extension in MEDIA.items():
        if other == modality or modality not in MEDIA:
            continue
        write(extension, tmp_path / other / f"a.{extension}", 0)
        with pytest.raises(ValueError, match=rf"1 \.{extension}") as caught:
            pretrain.main(tiny.arguments(modality, tmp_path / "run", *QUICK, f"data.path={tmp_path / other}"))
        assert f".{MEDIA[modality]}" in str(caught.value)


# What is wrong with data.

CORRUPT = {  # files by name, and which list of the report they are in
    "image": {"not_an_image.png": b"no image", "empty.png": b""},
    "speech": {"not_audio.wav": b"no audio at all", "empty.wav": b""},
}


def spoil(modality: str, folder: Path) -> list[str]:
    """Forty good samples and a few bad ones; the names of the bad ones."""
    if modality == "text":
        write("txt", folder / "a.txt", 0)
        with (folder / "a.txt").open("ab") as file:
            file.write(b"w\n\xff\xfe broken bytes here\n")
        return ["train:40", "train:41"]
    for number in range(40):
        write(MEDIA[modality], folder / f"{number:02}.{MEDIA[modality]}", number)
    for name, content in CORRUPT[modality].items():
        (folder / name).write_bytes(content)
    names = [*CORRUPT[modality]]
    if modality == "image":
        whole = (folder / "01.png").read_bytes()
        (folder / "00_cut.png").write_bytes(whole[: len(whole) // 2])
        names.append("00_cut.png")
    else:
        soundfile.write(folder / "zero_length.wav", np.zeros(0), 8000)
        names.append("zero_length.wav")
    return names


@pytest.mark.parametrize("modality", [name for name in MODALITIES if name in MEDIA])
def test_bad_samples_are_skipped_counted_and_named(modality, tmp_path, capsys):
    bad = spoil(modality, tmp_path / "data")
    command = tiny.arguments(modality, tmp_path / "run", *QUICK, f"data.path={tmp_path / 'data'}")
    command += {"text": ["data.vocab_size=300"], "speech": ["evaluate.group=''"]}.get(modality, [])
    pretrain.main(command)
    printed = capsys.readouterr().out
    assert f"40 of {40 + len(bad)} samples usable" in printed
    assert all(name in printed for name in bad), printed
    assert all(name in (tmp_path / "run" / "export" / "README.md").read_text() for name in bad)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"bad, data.max_bad_share is 1.0%") as caught:
        pretrain.main([*command, "data.max_bad_share=0.01", f"run.dir={tmp_path / 'strict'}"])
    assert "\n" not in str(caught.value) and bad[0] in str(caught.value)


# Folders of runs.


def test_a_run_folder_belongs_to_one_config(tmp_path, capsys):
    """Another config is refused by its keys; settings under run may change.

    A damaged checkpoint is passed over; `never` is kept.
    """
    command = tiny.arguments(MODALITIES[0], tmp_path, *QUICK)
    pretrain.main(command)
    for change, message in (
        ("train.lr=0.123", r"train.lr: .* -> 0.123"),
        ("model.trunk.depth=3", r"model.trunk.depth: 2 -> 3"),
        ("data.split=test", "data.split"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain.main([*command, change])
    with pytest.raises(ValueError, match=r"has checkpoints and run.resume is never"):
        pretrain.main([*command, "run.resume=never"])
    newest = tmp_path / "checkpoints" / "00000002"
    before = tiny.checkpoint_tensors(tmp_path, 2)
    (newest / "model.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    pretrain.main([*command, "run.log_every=2", "evaluate.batch_size=8"])
    printed = capsys.readouterr().out
    assert "00000002 is damaged (model.safetensors has 7 bytes" in printed and "resuming from step 1" in printed
    tiny.assert_same(tiny.checkpoint_tensors(tmp_path, 2), before)
    for path in checkpoints_in(tmp_path / "checkpoints"):
        (path / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"are damaged: 00000001, 00000002; choose another run.dir"):
        pretrain.main(command)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_that_a_run_writes_can_be_read_by_whom_the_umask_lets(umask, tmp_path):
    before = os.umask(umask)
    try:
        pretrain.main(tiny.arguments(MODALITIES[0], tmp_path, *QUICK))
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} > {".safetensors", ".json", ".yaml"}
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~umask)}


def test_a_run_starts_in_any_thread(tmp_path):
    """Where Python hears no signals."""
    thread = threading.Thread(target=pretrain.main, args=[tiny.arguments(MODALITIES[0], tmp_path, *QUICK)])
    thread.start()
    thread.join()
    assert (tmp_path / "report.html").is_file()


def test_a_finished_run_ends_at_once_and_exports_again(tmp_path, capsys):
    command = tiny.arguments(MODALITIES[0], tmp_path, *QUICK)
    pretrain.main(command)
    export = tiny.load(tmp_path / "export" / "model.safetensors")
    (tmp_path / "export" / "model.safetensors").unlink()
    pretrain.main(command)
    assert "resuming from step 2" in capsys.readouterr().out
    tiny.assert_same(tiny.load(tmp_path / "export" / "model.safetensors"), export)


def test_a_finished_run_that_is_started_again_keeps_its_verdict(tmp_path, capsys):
    command = tiny.arguments(MODALITIES[0], tmp_path, *QUICK)
    pretrain.main(command)
    before, card = capsys.readouterr().out, (tmp_path / "export" / "README.md").read_text()
    pretrain.main(command)
    verdict = before[before.index("verdict: ") :]
    assert "no step yet" not in verdict and verdict in capsys.readouterr().out
    assert (tmp_path / "export" / "README.md").read_text() == card
