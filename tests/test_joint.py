"""What all methods that compare views stand on.

Projectors, one vector per view, one pass per shape, the teacher's batch norms, checks.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import small
import torch
from torch import nn

from d2v.evaluation.features import frozen
from d2v.models.batch_norm import GroupedBatchNorm
from d2v.models.heads import projector
from d2v.objectives.common.multi_view import MultiView, by_shape, each, embedding, joined, summary
from d2v.objectives.common.objective import Objective, freeze
from d2v.types import View

LINEAR, BIASED, NORM, BARE_NORM, NO_BIAS_NORM, RELU = (
    "linear",
    "linear+bias",
    "norm",
    "norm without weights",
    "norm without bias",
    "relu",
)


def parts(head: nn.Sequential) -> list[str]:
    """What a head is made of, in words."""
    found = []
    for part in head:
        if isinstance(part, nn.Linear):
            found.append(LINEAR if part.bias is None else BIASED)
        elif isinstance(part, GroupedBatchNorm):
            found.append(BARE_NORM if not part.affine else NORM if part.bias is not None else NO_BIAS_NORM)
        elif isinstance(part, nn.ReLU):
            found.append(RELU)
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [LINEAR, NORM, RELU, LINEAR, NORM, RELU, BIASED]),  # SimSiam's predictor
        ({"bias": True, "last": "bare"}, [BIASED, NORM, RELU, BIASED, NORM, RELU, LINEAR]),  # BYOL
        ({"last": "norm"}, [LINEAR, NORM, RELU, LINEAR, NORM, RELU, LINEAR, BARE_NORM]),  # MoCo v3, SimSiam
        ({"last": "scale"}, [LINEAR, NORM, RELU, LINEAR, NORM, RELU, LINEAR, NO_BIAS_NORM]),  # SimCLR
        ({"norm": False, "bias": True}, [BIASED, RELU, BIASED, RELU, BIASED]),  # MoCo v2, Contrastive Clustering
    ],
)
def test_projectors_have_the_layers_that_were_published(settings, expected):
    head = projector([5, 7, 6, 3], groups=2, **settings)
    assert parts(head) == expected
    assert [tuple(part.weight.shape) for part in head if isinstance(part, nn.Linear)] == [(7, 5), (6, 7), (3, 6)]
    assert {part.groups for part in head if isinstance(part, GroupedBatchNorm)} <= {2}
    x = torch.randn(8, 5)
    assert head(x).shape == (8, 3) and head.eval()(x).shape == (8, 3)


def test_one_layer_is_a_linear_layer():
    assert parts(projector([5, 3])) == [BIASED] and parts(projector([5, 3], last="norm")) == [LINEAR, BARE_NORM]


def test_a_norm_without_bias_scales_and_does_not_shift():
    head = projector([5, 3], last="scale")
    nn.init.constant_(head[1].weight, 2.0)
    out = head(torch.randn(64, 5))
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std(dim=0, unbiased=False), torch.full((3,), 2.0), rtol=1e-3, atol=1e-3)


@dataclass
class Config:
    """What MultiView reads of a method's."""

    num_views: ClassVar[int] = 2
    name: str = "pairs"


class Pairs(MultiView):
    """As little of a method as there can be."""

    def __init__(self, encoder, **settings):
        super().__init__(encoder, **settings, projector=projector([small.DIM, 8, 4], last="norm"))
        self.config = Config()


class ExactPairs(Pairs):
    exact_views = True


def test_views_are_counted_before_the_first_step():
    views = [small.view(seed=seed) for seed in range(3)]
    Pairs(small.encoder()).check(views)
    ExactPairs(small.encoder()).check(views[:2])
    for kind in (Pairs, ExactPairs):
        with pytest.raises(ValueError, match=r"pairs compares 2 views of a sample; data.views makes 1"):
            kind(small.encoder()).check(views[:1])
    with pytest.raises(ValueError, match=r"pairs compares 2 views of a sample; data.views makes 1: name as many"):
        Pairs(small.encoder()).check([views[0], views[1]._replace(local=True), views[2]._replace(local=True)])
    with pytest.raises(ValueError, match=r"pairs compares 2 views of a sample; data.views and data.local_views make 3"):
        ExactPairs(small.encoder()).check(views)


def test_batches_are_checked_before_the_first_step(monkeypatch):
    plain, grouped = Pairs(small.encoder()), Pairs(small.encoder(), groups=4)
    plain.check_batch(2, 1)
    grouped.check_batch(8, 1)
    for objective, batch_size, parts_, message in (
        (plain, 8, 2, "train.accumulate is 2; pairs compares the samples of a whole batch: it must be 1"),
        (plain, 1, 1, "train.batch_size is 1: at least two samples must be together"),
        (
            grouped,
            4,
            1,
            r"train.batch_size is 4, of which batch norm takes 4 equal groups \(objective.norm_groups\): at least two",
        ),
        (grouped, 10, 1, "train.batch_size is 10, of which batch norm takes 4"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.check_batch(batch_size, parts_)
    monkeypatch.setattr("d2v.objectives.common.multi_view.world_size", lambda: 3)
    plain.check_batch(9, 3)
    for objective, batch_size, message in (
        (plain, 8, "train.batch_size 8 must be a multiple of the number of processes, 3"),
        (grouped, 24, "objective.norm_groups is 4; it must be 1 or a multiple of the number of processes, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.check_batch(batch_size, 3)
    with pytest.raises(ValueError, match=r"train.accumulate is 2"):
        plain.check_batch(12, 6)


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_mask_tokens_are_trained_by_methods_that_hide_only(modality):
    for hides in (False, True):
        student = Pairs(small.encoder(modality), hides=hides).student["encoder"]
        assert student.frontends[modality].mask_token.requires_grad == hides
        others = [
            name for name, p in student.named_parameters() if not p.requires_grad and not name.endswith("mask_token")
        ]
        assert not others


def test_one_vector_of_a_sample_is_its_class_token_or_the_mean_of_what_is_no_padding():
    image, text, view = small.encoder(), small.encoder("text"), small.view("text")
    features = image(small.view())
    assert torch.equal(summary(image, small.view()), features.extra[:, 0])
    tokens = text(view).x
    slow = torch.stack([tokens[i, ~view.padding[i]].mean(dim=0) for i in range(len(tokens))])
    torch.testing.assert_close(summary(text, view), slow)
    other = small.encoder(class_token=False)
    torch.testing.assert_close(summary(other, small.view()), other(small.view()).x.mean(dim=1))
    side = nn.ModuleDict({"encoder": text, "projector": nn.Linear(small.DIM, 3)})
    torch.testing.assert_close(embedding(side, view), side["projector"](slow))


def test_each_resolution_is_one_pass():
    """Two views of one shape, then three of another, then the first again."""
    sizes = [4, 4, 2, 2, 2, 4]
    views = [View("image", {"pixel_values": torch.randn(3, 1, size, size)}) for size in sizes]
    passes = []

    def function(view: View) -> torch.Tensor:
        passes.append(tuple(view.inputs["pixel_values"].shape))
        return view.inputs["pixel_values"].mean(dim=(2, 3))

    found = each(views, function)
    assert passes == [(6, 1, 4, 4), (9, 1, 2, 2), (3, 1, 4, 4)]
    for view, values in zip(views, found, strict=True):
        assert torch.equal(values, view.inputs["pixel_values"].mean(dim=(2, 3)))
    assert list(by_shape(views))[2] is views[5]


def test_views_are_joined_with_their_padding():
    views = [small.view("text", seed=seed) for seed in (0, 1)]
    both = joined(views)
    assert torch.equal(both.padding, torch.cat([view.padding for view in views])) and both.inputs[
        "input_ids"
    ].shape == (16, 12)
    encoder = small.encoder("text")
    for view, found in zip(views, each(views, lambda view: summary(encoder, view)), strict=True):
        torch.testing.assert_close(found, summary(encoder, view))
    padded, whole = views[0], views[1]._replace(padding=None)
    assert len(list(by_shape([padded, whole, whole]))) == 2


def test_the_teachers_batch_norms_see_the_batch_and_keep_statistics_of_their_own():
    objective = Pairs(small.encoder()).train()
    student, teacher = objective.student["projector"][1], objective.teacher["projector"][1]
    assert teacher.training and not any(module.training for module in objective.teacher["encoder"].modules())
    view, other = small.view(seed=0), small.view(seed=1)
    embedding(objective.student, view)
    with torch.no_grad():
        hidden = objective.teacher["projector"][0](summary(objective.teacher["encoder"], other))
        for _ in range(2):
            embedding(objective.teacher, other)
    own = teacher.running_mean.clone()
    torch.testing.assert_close(own, (1 - 0.9**2) * hidden.mean(dim=0))
    assert (
        student.num_batches_tracked == 1
        and teacher.num_batches_tracked == 2
        and not torch.equal(student.running_mean, own)
    )
    with torch.no_grad():
        student.weight += 1.0
    objective.update_teacher(0.9)
    assert (
        torch.equal(teacher.running_mean, own)
        and teacher.num_batches_tracked == 2
        and teacher.num_batches_tracked.dtype == torch.int64
    )
    torch.testing.assert_close(teacher.weight, torch.full_like(teacher.weight, 1.1))  # weights are averaged
    objective.eval()
    assert not teacher.training and not student.training
    objective.train()
    assert teacher.training and student.training and not objective.teacher["encoder"].training


def test_a_health_check_leaves_every_mode_and_statistic_as_it_was():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.BatchNorm1d(3)

    objective = Objective(encoder=Normed()).train()
    for encoder in objective.encoders:
        modes = {name: module.training for name, module in encoder.named_modules()}
        before = encoder.norm.running_mean.clone()
        with frozen(encoder):
            assert not any(module.training for module in encoder.modules()) and not torch.is_grad_enabled()
            encoder.norm(torch.randn(8, 3))
        assert {name: module.training for name, module in encoder.named_modules()} == modes and torch.is_grad_enabled()
        assert torch.equal(encoder.norm.running_mean, before)
    assert objective.teacher["encoder"].norm.training and not objective.teacher["encoder"].inner.training


def test_without_a_teacher_there_is_nothing_to_update():
    objective = Pairs(small.encoder(), teacher=False)
    assert len(objective.teacher) == 0 and objective.encoders == (objective.student["encoder"],) * 2
    assert objective.ema_decay(3, 10) == 1.0
    objective.update_teacher(0.5)
    assert not any(name.startswith("teacher") for name in objective.state_dict())


def test_parts_are_frozen_by_their_names():
    encoder = small.encoder()
    freeze(["frontends.image.patch_embed", "trunk.blocks.0.mlp"], encoder)
    still = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert {name.rpartition(".")[0] for name in still} == {
        "frontends.image.patch_embed",
        "trunk.blocks.0.mlp.fc1",
        "trunk.blocks.0.mlp.fc2",
    }
    with pytest.raises(
        ValueError, match=r"no parameter of the encoder begins with 'patch'; they begin with .*frontends.image"
    ):
        freeze(["patch"], encoder)
