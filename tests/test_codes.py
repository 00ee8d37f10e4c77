"""Codes that d2v codes makes of one's own data: a file, what reads it, and what refuses it."""

import shutil

import numpy as np
import pytest
import small
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from slowly import in_place, same_as_slow, shaken
from torch import Tensor

from d2v.objectives import beit
from d2v.objectives.common.codes import NearestCenter, load_centers
from d2v.objectives.common.regression import instance_norm
from scripts import codes, pretrain

QUICK = ("train.steps=2", "train.warmup_steps=0", "train.batch_size=4", "run.log_every=1", "run.health_samples=8")
SMALL = ("model.trunk.dim=32", "model.trunk.depth=1", "model.trunk.num_heads=2", "model.trunk.mlp_dim=64")


@pytest.fixture
def photos(tmp_path):
    """Thirty images of one colour a quarter: patches of few kinds."""
    draw, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        quarters = draw.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(quarters.repeat(16, 0).repeat(16, 1)).save(folder / f"{number}.png")
    return folder


def command(photos, *more: str) -> list[str]:
    return ["configs/image/beit_tiny.yaml", f"data.path={photos}", "objective.num_codes=8", *SMALL, *more]


@pytest.fixture
def made(photos, tmp_path, root, monkeypatch):
    """A file of codes."""
    monkeypatch.chdir(root)
    codes.main(command(photos, f"objective.codes={tmp_path / 'photos.codes'}"))
    return tmp_path / "photos.codes"


def test_codes_are_k_means_of_the_content_of_tokens(made, photos, capsys):
    centers, about = load_centers(made)
    assert centers.shape == (8, 48) and about["norm"] == "instance" and about["path"] == str(photos)
    assert centers.std(dim=0).min() > 0 and len({tuple(row) for row in centers.tolist()}) == 8


def test_a_run_predicts_the_codes_of_its_data(made, photos, tmp_path):
    run = f"run.dir={tmp_path / 'run'}"
    pretrain.main([*command(photos, f"objective.codes={made}", run), *QUICK])
    state = load_file(tmp_path / "run" / "checkpoints" / "00000002" / "model.safetensors")
    assert torch.equal(state["quantizer.centers"], load_centers(made)[0])
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    pretrain.main([*command(moved, f"objective.codes={made}", f"run.dir={tmp_path / 'other'}"), *QUICK])


def test_codes_of_other_data_are_refused_in_one_line_before_the_first_step(made, photos, tmp_path):
    Image.new("RGB", (32, 32)).save(photos / "new.png")
    with pytest.raises(ValueError, match=r"photos.codes, made of other data than data.path holds") as caught:
        pretrain.main([*command(photos, f"objective.codes={made}", f"run.dir={tmp_path / 'run'}"), *QUICK])
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_codes_of_another_kind_are_refused(made, photos, tmp_path):
    save_file({"centers": torch.zeros(8, 48)}, tmp_path / "else.codes")
    (tmp_path / "text.codes").write_text("no codes")
    for change, message in (
        ("objective.num_codes=16", r"of 8; objective.num_codes is 16"),
        ("objective.norm=layer", r"of instance; objective.norm is layer"),
        ("model.frontends.image.patch_size=8", r"of 48; the numbers of a token is 192"),
        (f"objective.codes={tmp_path / 'none.codes'}", r"none.codes, which cannot be read"),
        (f"objective.codes={tmp_path / 'text.codes'}", r"text.codes, which cannot be read"),
        (f"objective.codes={tmp_path / 'else.codes'}", r"else.codes, which d2v codes did not write"),
        ("objective.code_dim=3", r"objective.code_dim is 3, .*objective.codes"),
    ):
        argv = [*command(photos, f"objective.codes={made}", f"run.dir={tmp_path / 'run'}"), *QUICK, change]
        with pytest.raises(ValueError, match=message) as caught:
            pretrain.main(argv)
        assert "\n" not in str(caught.value)


def test_what_codes_cannot_be_made_of_is_said(made, photos, tmp_path, root):
    there = f"objective.codes={tmp_path / 'new.codes'}"
    for argv, message in (
        ([], "usage: d2v codes CONFIG"),
        (command(photos), "objective.codes is empty: name the file"),
        (command(photos, f"objective.codes={made}"), r"photos.codes exists; run.overwrite=true replaces it"),
        (command(photos, there, "objective.num_codes=5000"), r"has 1920 tokens, fewer than objective.num_codes, 5000"),
        (
            [f"{root}/configs/image/mae_tiny.yaml", f"data.path={photos}"],
            r"objective.name is mae, which reads no codes",
        ),
        (
            [f"{root}/configs/text/mlm_tiny.yaml", "data.path=demo", "objective={name: beit}", there],
            "objective.name may be mlm",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            codes.main(argv)
        assert "\n" not in str(caught.value)
    codes.main(command(photos, f"objective.codes={made}", "run.overwrite=true"))


def test_speech_has_codes_too(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    draw, folder = np.random.default_rng(0), tmp_path / "clips"
    folder.mkdir()
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", 0.1 * draw.standard_normal(8000), 8000)
    argv = ["configs/speech/beit_tiny.yaml", f"data.path={folder}", "objective.num_codes=8", *SMALL]
    argv += [f"objective.codes={tmp_path / 'clips.codes'}"]
    codes.main(argv)
    pretrain.main([*argv, f"run.dir={tmp_path / 'run'}", *QUICK])
    assert (tmp_path / "run" / "export").is_dir()


# The loss.


def slow_beit(objective: beit.BEiT, view, nearest) -> Tensor:
    """Cross entropy of each hidden token's code, one after another; `nearest` gives the code of a normed token."""
    encoder, slow = objective.student["encoder"], torch.zeros(())
    normed = instance_norm(encoder.frontends[view.modality].content(**view.inputs), view.padding)
    features = encoder(view, view.mask).x
    for row, place in view.mask.hidden.nonzero().tolist():
        logits = objective.head.weight @ features[row, place] + objective.head.bias
        slow = slow + logits.exp().sum().log() - logits[nearest(normed[row, place])]
    return slow


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_beit_is_the_slow_way(modality):
    torch.manual_seed(0)
    objective, view = beit.build(small.encoder(modality), beit.Config(num_codes=16)), small.view(modality, samples=4)
    view = in_place(view)
    objective.quantizer = NearestCenter(torch.randn(16, objective.quantizer.projection.shape[0]))
    shaken(objective)
    centers = objective.quantizer.centers
    slow = slow_beit(objective, view, lambda x: int((centers - x).square().sum(dim=1).argmin()))
    loss = objective([view])
    assert int(loss.count) == int(view.mask.hidden.sum())
    same_as_slow(objective, loss, slow)


def test_beit_starts_at_ln_of_the_codes():
    objective = beit.build(small.encoder("image"), beit.Config()).train()
    loss = objective([in_place(small.view("image", samples=32))])
    assert float(loss.total.detach() / loss.count) == pytest.approx(9.01, abs=0.02)
