"""Two modalities side by side: which rows are pairs, their batches, and the methods that bring them to one space."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

from d2v import plugins
from d2v.config.loading import typed
from d2v.modalities.common import pairs
from d2v.models.alignment import D2vForAlignment
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.paired import clip, siglip
from d2v.types import View

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230), "yellow": (230, 220, 40)}
TONES = dict(zip(COLOURS, (300, 700, 1300, 2300), strict=True))  # Hz
FRONTENDS = {
    "image": {"image_size": 8, "patch_size": 4, "relative_bias": False, "class_token": False, "positions": "sincos"},
    "speech": {"kind": "mel", "sample_rate": 8000, "mel_bins": 20, "conv_dim": 16, "pos_groups": 4, "pos_kernel": 3},
    "text": {"max_positions": 32},
}
SIDES = {"image": {"color_jitter": 0.0}, "speech": {}, "text": {"vocab_size": 280, "block_size": 32}}
TRUNK = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}


def world(folder: Path, count: int = 3) -> Path:
    """table.csv with the columns image, audio, text and label, `count` rows of each colour; and its files."""
    generator = np.random.default_rng(0)
    (folder / "files").mkdir(parents=True)
    lines = ["image,audio,text,label"]
    for number in range(count):
        for name, colour in COLOURS.items():
            pixels = np.clip(np.array(colour) + generator.normal(0, 12, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "files" / f"{name}{number}.png")
            wave = np.sin(2 * np.pi * TONES[name] * np.arange(4000 + 200 * number) / 8000)
            soundfile.write(folder / "files" / f"{name}{number}.wav", 0.3 * wave, 8000)
            lines.append(f"files/{name}{number}.png,files/{name}{number}.wav,a {name} square,{name}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def opened(part: str, path: Path, **settings):
    """Settings, frontends and samples of a part."""
    loaded = {name: plugins.load("d2v.modalities", name) for name in part.split("+")}
    given = {name: {**SIDES[name], **settings.pop(name, {})} for name in loaded}
    values = {"path": str(path), "max_bad_share": 0.5, **settings, **given}
    config = typed(pairs.data_config(loaded), values, "data", "config.yaml")
    frontends = {name: loaded[name].FrontendConfig(**FRONTENDS[name]) for name in loaded}
    prepared = path.parent / "prepared"
    prepared.mkdir(exist_ok=True)
    for name in loaded:
        pairs.prepare(config, name, frontends[name], prepared, 0)
    return config, frontends, pairs.Samples(config, frontends, split=config.split, folder=prepared)


# Methods.


def encoder_of(part: str = "image+text") -> D2vModel:
    torch.manual_seed(0)
    frontends = {
        name: {**FRONTENDS[name], **({"vocab_size": 280, "mask_token_id": 4} if name == "text" else {})}
        for name in part.split("+")
    }
    return D2vModel(D2vConfig(frontends, TRUNK))


def views(rows: int = 6, labels: list[int] | None = None) -> list[View]:
    """An image and a text a row."""
    generator = torch.Generator().manual_seed(rows)
    made = None if labels is None else torch.tensor(labels)
    pixels = torch.randn(rows, 3, 8, 8, generator=generator)
    words = torch.randint(5, 280, (rows, 7), generator=generator)
    padding = torch.arange(7).expand(rows, 7) > torch.randint(2, 7, (rows, 1), generator=generator)
    return [
        View("image", {"pixel_values": pixels}, labels=made),
        View("text", {"input_ids": words}, padding, labels=made),
    ]


def oracle(objective, given: list[View], kind: str) -> torch.Tensor:
    """The loss, a row and a candidate at a time, from unit vectors."""
    first, second = objective.vectors(given)
    labels = given[0].labels if given[0].labels is not None else torch.arange(len(first))
    total = torch.zeros(())
    for row in range(len(first)):
        if kind == "siglip":
            for other in range(len(second)):
                logit = objective.log_scale.exp() * (first[row] * second[other]).sum() + objective.bias
                total = total + F.softplus(-logit if labels[row] == labels[other] else logit)
            continue
        for mine, theirs in ((first, second), (second, first)):
            logits = torch.stack([objective.log_scale.exp() * (mine[row] * x).sum() for x in theirs])
            own = [logits[n] - logits.exp().sum().log() for n in range(len(theirs)) if labels[row] == labels[n]]
            total = total - sum(own) / len(own) / 2
    return total


@pytest.mark.parametrize("labels", [None, [0, 1, 0, 2, 2, 2]])
@pytest.mark.parametrize("method", [clip, siglip])
def test_losses_and_gradients_are_those_of_a_loop(method, labels):
    objective = method.build(encoder_of(), method.Config(projection_dim=8))
    given = views(labels=labels)
    loss = objective(given)
    wanted = oracle(objective, given, method.Config().name)
    torch.testing.assert_close(loss.total, wanted)
    assert loss.count == 6
    trained = [p for p in objective.parameters() if p.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad(loss.total, trained, allow_unused=True),
        torch.autograd.grad(wanted, trained, allow_unused=True),
        strict=True,
    ):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "value"), [(clip, 6.26), (siglip, 9.96)])
def test_the_published_start(method, value, monkeypatch):
    """256 rows of random unit vectors, 512 wide."""
    objective = method.build(encoder_of(), method.Config())
    drawn = [F.normalize(torch.randn(256, 64, generator=torch.Generator().manual_seed(n)), dim=1) for n in range(2)]
    monkeypatch.setattr(objective, "vectors", lambda _: drawn)
    loss = objective(views())
    assert abs(float(loss.total / loss.count) - value) < (1.2 if method is clip else 0.1)


def of_rank(root: Path) -> None:
    """What each of two processes does: every other row; gradients are summed."""
    rank = torch.distributed.get_rank()
    for method in (clip, siglip):
        for labels in (None, [0, 1, 0, 2, 2, 2]):
            objective = method.build(encoder_of(), method.Config(projection_dim=8))
            given = [rows_of(view, slice(rank, None, 2)) for view in views(labels=labels)]
            loss = objective(given)
            loss.total.backward()
            found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
            for gradient in found.values():
                torch.distributed.all_reduce(gradient)
            total = loss.total.detach().clone()
            torch.distributed.all_reduce(total)
            if rank == 0:
                torch.save((total, found), root / f"{method.Config().name}_{labels is None}.pt")


def rows_of(view: View, rows: slice) -> View:
    inputs = {name: value[rows] for name, value in view.inputs.items()}
    padding, labels = (None if x is None else x[rows] for x in (view.padding, view.labels))
    return view._replace(inputs=inputs, padding=padding, labels=labels)


def test_two_processes_are_one(tmp_path):
    assert tiny.wait(tiny.start(in_group, tmp_path, world=2)) == [0, 0]
    for method in (clip, siglip):
        for labels in (None, [0, 1, 0, 2, 2, 2]):
            objective = method.build(encoder_of(), method.Config(projection_dim=8))
            loss = objective(views(labels=labels))
            loss.total.backward()
            total, found = torch.load(tmp_path / f"{method.Config().name}_{labels is None}.pt")
            torch.testing.assert_close(total, loss.total.detach(), rtol=1e-6, atol=1e-5)
            for name, p in objective.named_parameters():
                if p.grad is not None:
                    torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


def in_group(root: Path) -> None:
    torch.distributed.init_process_group("gloo")
    of_rank(root)
    torch.distributed.destroy_process_group()


def test_what_is_frozen_stays_and_the_scale_has_a_ceiling():
    objective = clip.build(encoder_of(), clip.Config(frozen=["trunk", "frontends.image"]))
    names = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert not any("trunk" in name or "frontends.image" in name for name in names)
    assert {"log_scale", "student.projections.image.weight"} <= names
    objective.log_scale.data.fill_(9.0)
    assert objective(views()).metrics["scale"] == pytest.approx(100, rel=1e-5)
    assert math.exp(clip.build(encoder_of(), clip.Config()).log_scale.item()) == pytest.approx(1 / 0.07)


def test_sixty_steps_find_the_words_of_a_picture(tmp_path):
    config, frontends, samples = opened("image+text", world(tmp_path / "w", 8))
    torch.manual_seed(0)
    model = D2vModel(D2vConfig({name: vars(one) for name, one in frontends.items()}, TRUNK))
    objective = siglip.build(model, siglip.Config(projection_dim=16))
    batches = pairs.batches(samples, config, frontends, 16, 0)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    found = []
    for step in range(60):
        loss = objective(batches(step, 0, 1)[0])
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.metrics["found"]))
    assert np.mean(found[-5:]) > 0.8 > np.mean(found[:3])  # by chance 0.25


# The model that is exported.


def test_the_model_comes_back_to_the_bit_and_its_encoder_too(tmp_path):
    model = D2vForAlignment(D2vConfig({**encoder_of().config.frontends}, TRUNK, {"projection_dim": 8})).eval()
    model.save_pretrained(tmp_path / "m")
    image, text = views()
    again = D2vForAlignment.from_pretrained(tmp_path / "m")
    assert torch.equal(again.project(image), model.project(image))
    vectors = again(pixel_values=image.inputs["pixel_values"])
    assert torch.equal(vectors, model.project(image)) and torch.allclose(vectors.norm(dim=1), torch.ones(6))
    alone = D2vModel.from_pretrained(tmp_path / "m")
    assert torch.equal(alone(text).x, model.encoder(text).x)


# One line for what cannot be.


def test_methods_say_what_they_need():
    with pytest.raises(ValueError, match="siglip compares two modalities; this part reads image"):
        siglip.build(encoder_of("image"), siglip.Config())
    objective = clip.build(encoder_of(), clip.Config())
    with pytest.raises(ValueError, match=r"train.batch_size is 1; clip tells a row's partner"):
        objective.check_batch(1, 1)
    with pytest.raises(ValueError, match=r"train.accumulate is 2; clip compares the samples of a whole batch"):
        objective.check_batch(8, 2)
    with pytest.raises(ValueError, match="compares one view of each of two modalities; there are image, image"):
        objective.check([views()[0]] * 2)
    with pytest.raises(ValueError, match="no parameter of the encoder begins with 'tronk'"):
        clip.build(encoder_of(), clip.Config(frozen=["tronk"]))
