"""CLIP and SigLIP: against slow loops, at the published start, with several right partners, over processes, refused."""

import math
import os
from pathlib import Path

import paired
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from d2v.objectives.common.objective import Objective
from d2v.training import distributed as dist
from d2v.training.optim import parameter_groups
from d2v.types import Mask

METHODS = ("clip", "siglip")
LABELS = {"rows": None, "classes": [0, 1, 0, 2, 1, 0], "one class": [3] * 6}


def is_right(labels: list[int] | None, i: int, j: int) -> bool:
    return i == j if labels is None else labels[i] == labels[j]


def clip_of(first: Tensor, second: Tensor, labels: list[int] | None, log_scale: Tensor, _: Tensor) -> Tensor:
    """Row by row, in both directions."""
    count, total = len(first), torch.zeros((), dtype=first.dtype)
    for one, other in ((first, second), (second, first)):
        for i in range(count):
            exponentials = [(log_scale.exp() * (one[i] * other[j]).sum()).exp() for j in range(count)]
            everything = sum(exponentials)
            logs = [(exponentials[j] / everything).log() for j in range(count) if is_right(labels, i, j)]
            total = total - sum(logs) / len(logs) / 2
    return total / count


def siglip_of(first: Tensor, second: Tensor, labels: list[int] | None, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Cell by cell."""
    count, total = len(first), torch.zeros((), dtype=first.dtype)
    for i in range(count):
        for j in range(count):
            z = 1 if is_right(labels, i, j) else -1
            logit = log_scale.exp() * (first[i] * second[j]).sum() + bias
            total = total - torch.log(1 / (1 + torch.exp(-z * logit)))
    return total / count


ORACLES = {"clip": clip_of, "siglip": siglip_of}


def with_vectors(name: str, first: Tensor, second: Tensor, **settings) -> Objective:
    """An objective whose encoder says these."""
    objective = paired.objective(name, **settings)
    objective.vectors = lambda views: (first, second)  # type: ignore[method-assign]
    return objective


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_those_of_a_slow_loop(name, labels):
    objective = paired.objective(name)
    views = paired.noise(labels=LABELS[labels])
    loss = objective(views)
    assert int(loss.count) == 6 and loss.total.dtype == torch.float32
    trained = {key: p for key, p in objective.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss.total / loss.count, list(trained.values()))
    vectors = []
    for view in views:
        x, projection = objective.student["encoder"](view).x, objective.student["projections"][view.modality]
        rows = []
        for row, tokens in enumerate(x):
            real = tokens if view.padding is None else tokens[~view.padding[row]]
            vector = projection(sum(real) / len(real))
            rows.append(vector / vector.square().sum().sqrt())
        vectors.append(torch.stack(rows))
    bias = objective.bias if name == "siglip" else torch.zeros(())
    expected = ORACLES[name](*vectors, LABELS[labels], objective.log_scale, bias)
    torch.testing.assert_close(loss.total / loss.count, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, list(trained.values()))
    for key, one, other in zip(trained, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    moved = {key for key, gradient in zip(trained, found, strict=True) if gradient.abs().max() > 1e-6}
    assert {"log_scale", "student.projections.image.weight", "student.projections.text.weight"} <= moved


def test_the_published_start():
    """At 256 random rows: CLIP ln 256 and the spread of s cos, SigLIP its bias at the right ones."""
    torch.manual_seed(3)
    first, second = (F.normalize(torch.randn(256, 128), dim=1) for _ in range(2))
    views = paired.noise(1)
    clip, siglip = with_vectors("clip", first, second), with_vectors("siglip", first, second)
    assert clip.log_scale.exp().item() == pytest.approx(1 / 0.07) and siglip.log_scale.exp().item() == pytest.approx(10)
    assert float(siglip.bias.detach()) == -10
    for objective, start in ((clip, 6.26), (siglip, 9.96)):
        loss = objective(views)
        assert float(loss.total.detach() / loss.count) == pytest.approx(start, abs=0.1)
        assert float(loss.metrics["accuracy"]) < 0.05
    same = with_vectors("clip", first[:1].expand(256, -1), first[:1].expand(256, -1))(views)
    assert float(same.total.detach() / same.count) == pytest.approx(math.log(256), rel=1e-5)
    assert float(same.metrics["accuracy"]) == 0


def test_equal_labels_are_right_for_one_another():
    """Two classes whose vectors lie apart: all is well by class, and not by row."""
    axes = F.one_hot(torch.tensor([0, 1, 0, 1]), 8).float()
    views, by_class = paired.noise(4), paired.noise(4, labels=[7, 9, 7, 9])
    clip = with_vectors("clip", axes, axes)
    with torch.no_grad():
        clip.log_scale.fill_(math.log(100))
    right, alone = clip(by_class), clip(views)
    assert float(right.total.detach() / 4) == pytest.approx(math.log(2), rel=1e-4)
    assert float(right.metrics["accuracy"]) == 1 and float(right.metrics["positives"]) == 2
    assert float(alone.metrics["accuracy"]) == 0 and float(alone.metrics["positives"]) == 1
    siglip = with_vectors("siglip", axes, axes)
    with torch.no_grad():
        siglip.log_scale.fill_(math.log(40))
        siglip.bias.fill_(-20.0)
    assert float(siglip(by_class).total.detach()) < 1e-5 < 10 < float(siglip(views).total.detach())


def test_the_scale_is_cut_back_before_a_step_and_falls_again():
    objective = paired.objective("clip")
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
    objective.begin_step(0, 2)
    assert objective.log_scale.item() == pytest.approx(math.log(100))
    objective(paired.noise()).total.backward()
    assert objective.log_scale.grad.abs() > 0
    with torch.no_grad():
        objective.log_scale.fill_(-1.0)
    objective.begin_step(1, 2)
    assert objective.log_scale.item() == 0
    other = paired.objective("siglip")
    with torch.no_grad():
        other.log_scale.fill_(9.0)
    other.begin_step(0, 2)
    assert other.log_scale.item() == 9


@pytest.mark.parametrize("name", METHODS)
def test_scale_and_bias_do_not_decay(name):
    objective = paired.objective(name)
    still = {
        id(p): group["weight_decay"] for group in parameter_groups(objective, 0.1) for p in group["params"]
    }  # of what is trained
    assert still[id(objective.log_scale)] == 0 and still[id(objective.student["projections"]["image"].weight)] == 0.1
    assert name == "clip" or still[id(objective.bias)] == 0


def test_what_is_frozen_stays_and_reads_as_in_evaluation():
    objective = paired.objective("siglip", freeze=["trunk", "frontends.image"])
    encoder = objective.student["encoder"]
    assert not encoder.trunk.training and not encoder.frontends["image"].training
    assert encoder.frontends["text"].training
    objective(paired.noise()).total.backward()
    got = {key for key, p in objective.named_parameters() if p.grad is not None}
    assert not any("trunk" in key or "frontends.image" in key for key in got)
    assert any("frontends.text" in key for key in got) and {"bias", "log_scale"} <= got
    objective.eval()
    assert not encoder.frontends["text"].training
    with pytest.raises(ValueError, match="no parameter of the encoder begins with 'nothing'"):
        paired.objective("clip", freeze=["nothing"])


def test_half_precision_changes_no_loss_but_by_rounding_of_the_encoder():
    views, objective = paired.noise(), paired.objective("clip")
    expected = objective(views).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(views)
    assert loss.total.dtype == torch.float32 and {v.dtype for v in loss.metrics.values()} == {torch.float32}
    torch.testing.assert_close(loss.total, expected, rtol=0.02, atol=0.05)


# Refused.


def test_views_that_are_no_pairs():
    image, text = paired.noise(labels=[0, 1, 2, 3, 4, 5])
    for name in METHODS:
        objective = paired.objective(name)
        objective.check([image, text])
        for views, message in (
            ([image], rf"{name} compares two modalities .* have 1 views, of image: it is of parts that pair two"),
            ([image, image], f"{name} compares two modalities .* 2 views, of image: it is of parts"),
            ([image, *paired.some([text], slice(0, 4))], "there are 6 of image and 4 of text"),
            ([image, text._replace(labels=None)], "rows of equal labels for pairs; those of text have none"),
            ([image._replace(labels=image.labels.view(6, 1)), text], r"those of image have the shape \(6, 1\)"),
            ([image, text._replace(labels=text.labels.flip(0))], "the labels of both views differ"),
        ):
            with pytest.raises(ValueError, match=message):
                objective.check(views)
        hidden = Mask(torch.zeros(6, 4, dtype=torch.bool))
        objective.check_masks([image, text])
        with pytest.raises(ValueError, match=f"{name} reads views whole; those of image have masks"):
            objective.check_masks([image._replace(mask=hidden), text])


def test_batches_that_cannot_be_compared():
    for name in METHODS:
        objective = paired.objective(name)
        objective.check_batch(2, 1)
        with pytest.raises(ValueError, match=rf"train.batch_size is 1; {name} compares .* at least 2"):
            objective.check_batch(1, 1)
        with pytest.raises(ValueError, match=rf"train.accumulate is 2; {name} compares the samples of a whole batch"):
            objective.check_batch(8, 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip", {"temperature": 0.001}, "objective.temperature is 0.001; it must be at least 0.01 and at most 1"),
        ("clip", {"temperature": 2.0}, "objective.temperature is 2.0"),
        ("siglip", {"temperature": 0.0}, "objective.temperature is 0.0"),
        ("siglip", {"projection_dim": 0}, "objective.projection_dim is 0"),
        ("siglip", {"bias": math.inf}, "objective.bias is inf"),
    ],
)
def test_settings_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        paired.objective(name, **settings)


# Two processes.


def stepped(name: str, labels: list[int] | None, rank: int, world: int) -> dict[str, Tensor]:
    """Losses, gradients and metrics of two steps on batches of six, as the loop takes them; and the weights then."""
    objective = paired.objective(name)
    model = DistributedDataParallel(objective) if world > 1 else objective
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.02)
    found = {}
    for step in range(2):
        loss = model(paired.some(paired.noise(labels=labels, seed=step), slice(rank, None, world)))
        loss.total.backward()
        total, count = dist.all_sum(torch.stack([loss.total.detach(), loss.count.float()]))
        found[f"loss.{step}"] = total / count
        found[f"accuracy.{step}"] = dist.all_mean(loss.metrics["accuracy"])
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= world / count
                found[f"gradient.{step}.{key}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
    return found | {key: value.clone() for key, value in objective.state_dict().items()}


CASES = [(name, labels) for name in METHODS for labels in ("rows", "classes")]


def two_processes(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    found = {f"{name} {labels}": stepped(name, LABELS[labels], rank, 2) for name, labels in CASES}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def said(what: str):
    return lambda text: f"{what}: {text}"


def test_two_processes_are_one(tmp_path):
    assert tiny.wait(tiny.start(two_processes, tmp_path, world=2)) == [0, 0]
    for name, labels in CASES:
        expected = stepped(name, LABELS[labels], 0, 1)
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt")[f"{name} {labels}"]
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=said(f"{name} {labels} {key}"))
