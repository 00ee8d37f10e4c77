"""I-JEPA against slow loops: blocks, the context alone, predictions that do not see each other, the loss."""

import math

import latent
import numpy as np
import pytest
import tiny
import torch
from tiny import MODALITIES
from torch import Tensor

from d2v.modalities.common import masking
from d2v.modalities.image import masks
from d2v.models import positions
from d2v.objectives.ijepa import IJEPA
from d2v.types import Mask, View


def build(modality: str, folder, *more: str) -> tuple[IJEPA, View]:
    """I-JEPA and a batch."""
    unpacked = ("data.min_context=3",) if modality == "speech" else ()
    return latent.build("ijepa", modality, folder, *unpacked, *more)


def places(modality: str, size: int, width: int) -> Tensor:
    """Positions of the predictor, one number after another."""
    table = torch.zeros(size, width)
    side = math.isqrt(size)
    for t in range(size):
        axes = [t % side, t // side] if modality == "image" else [t]
        share = width // (2 * len(axes))
        values = []
        for axis in axes:
            angles = [axis / 10000 ** (i / share) for i in range(share)]
            values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        table[t] = torch.tensor(values)
    return table


def slow(objective: IJEPA, view: View, modality: str) -> tuple[Tensor, int]:
    """The loss, one sample and one target after another, each alone, without padding."""
    student, predictor = objective.student["encoder"], objective.predictor
    hidden, keep = view.mask.hidden, view.mask.keep
    samples = len(next(iter(view.inputs.values())))
    frontend, total = student.frontend(modality), torch.zeros(())
    tokens = student.embed(view)
    with torch.no_grad():
        teacher = objective.teacher["encoder"](view).x
        targets = (teacher - teacher.mean(dim=2, keepdim=True)) / (
            teacher.var(dim=2, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    where = places(modality, hidden.shape[1], predictor.mask_token.numel())
    for n in range(len(hidden)):
        b = n * samples // len(hidden)
        real = hidden.shape[1] if view.padding is None else int((~view.padding[b]).sum())
        read = [t for t in keep[n * len(keep) // len(hidden)].tolist() if t < real]
        shown = torch.zeros(1, real, dtype=torch.bool)
        shown[0, read] = True
        x = torch.where(shown[..., None], tokens[b : b + 1, :real], torch.zeros(()))
        added = frontend.positions(x, None)
        x = (x if added is None else x + added)[:, read]
        bias = frontend.bias(real)
        x = student.trunk(x, None if bias is None else bias[..., read, :][..., read])[0]
        wanted = [t for t in range(real) if hidden[n, t]]
        context = predictor.inputs(x[0]) + where[read]
        sequence = torch.cat([context, predictor.mask_token + where[wanted]])[None]
        out = predictor.outputs(predictor.trunk(sequence)[0][0, len(read) :])
        for value, t in zip(out, wanted, strict=True):
            error = (value - targets[b, t]).abs()
            total = total + torch.where(error < 1, error**2 / 2, error - 0.5).mean()
    return total, int(hidden.sum())


@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_and_gradients_are_the_slow_loop(modality, tmp_path):
    objective, view = build(modality, tmp_path, "data.masks=3")
    assert len(view.mask.hidden) == 3 * len(next(iter(view.inputs.values())))
    expected, count = slow(objective, view, modality)
    expected.backward()
    gradients = {key: p.grad.clone() for key, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    loss = objective([view])
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-5, atol=1e-4)
    assert int(loss.count) == count
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-3, atol=1e-4, msg=key)


def test_what_is_neither_read_nor_predicted_is_not_seen_by_positions(tmp_path):
    """Positions of speech are computed from tokens; the mask of one row of targets would leave the others in."""
    objective, view = build("speech", tmp_path)
    student, mask = objective.student["encoder"], view.mask
    tokens = student.embed(view)
    unread = torch.ones(tokens.shape[:2], dtype=torch.bool).scatter(1, mask.keep, False)
    other = torch.where(unread[..., None], tokens + 1, tokens)
    heard = []
    objective.predictor.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    embed = student.frontends["speech"].embed
    for seen in (tokens, other):
        student.frontends["speech"].embed = lambda seen=seen, **_: seen
        objective([view])
    student.frontends["speech"].embed = embed
    assert torch.equal(*heard)
    naive = Mask(mask.hidden[::4], mask.keep)
    assert not torch.equal(*(student(view, naive, tokens=seen).x for seen in (tokens, other)))


def config_of(folder, *more: str):
    image = ("model.frontends.image.image_size=28", "model.frontends.image.patch_size=2")
    return tiny.config_of("image", folder, tiny.using("ijepa"), *image, "train.batch_size=8", "data.masks=4", *more)


def test_blocks_are_as_published(tmp_path):
    """Of 14 x 14 patches: targets of one size in a batch, .15 to .2 of all; a context without them, of one count."""
    config = config_of(tmp_path)
    touched = np.zeros((14, 14))
    for step in range(30):
        mask = masks.multi_block(0, step, 8, range(8), config.data, (14, 14))
        hidden, keep = mask.hidden.numpy().reshape(8, 4, 14, 14), mask.keep.numpy()
        sides = set()
        for target in hidden.reshape(-1, 14, 14):
            rows, columns = np.flatnonzero(target.any(axis=1)), np.flatnonzero(target.any(axis=0))
            sides.add((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
            assert target.sum() == len(rows) * len(columns)  # a full rectangle
            touched += target
        ((height, width),) = sides
        assert 0.13 < height * width / 196 < 0.23 and 0.7 < height / width < 1.6
        assert keep.shape[0] == 8 and keep.shape[1] >= 10
        for of_sample, read in zip(hidden, keep, strict=True):
            assert not of_sample.any(axis=0).reshape(-1)[read].any() and len(set(read)) == len(read)
    assert touched[-1].any() and touched[:, -1].any()  # the reference never takes the last row and column


def test_a_context_too_small_takes_targets_back():
    generator = np.random.default_rng(0)
    everything = masking.Blocks((4, 4), (4, 4))
    targets, context = masking.blocks(generator, (4, 4), everything, 2, 3)
    assert all(target.all() for target in targets) and context.all()
    targets, context = masking.blocks(generator, (4, 4), masking.Blocks((2, 2), (4, 4)), 1, 3)
    assert targets[0].sum() == 4 and context.sum() == 12 and not (targets[0] & context).any()
    assert masking.block_sides(0.2, 1.0, (3,)) == (1,) and masking.block_sides(1.0, 1.5, (4, 4)) == (4, 3)


def test_contexts_are_thinned_to_the_smallest_share():
    rows = [np.arange(20) < 10, np.arange(20) < 5, np.arange(8) < 8, np.arange(3) < 1]
    thin = masking.thinned(np.random.default_rng(0), rows)
    assert [int(row.sum()) for row in thin] == [5, 5, 2, 1]
    assert all(not (after & ~before).any() for before, after in zip(rows, thin, strict=True))


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_masks_do_not_depend_on_how_a_batch_is_cut(modality, tmp_path):
    more = ("data.pack_seconds=0",) if modality == "speech" else ()
    batches = tiny.batches_of(tiny.config_of(modality, tmp_path, tiny.using("ijepa"), *more))
    whole = batches(3, 0, 1)[0][0]
    parts = [batches(3, part, 2)[0][0] for part in range(2)]
    for part, view in enumerate(parts):
        assert torch.equal(view.mask.keep, whole.mask.keep[part::2])
        hidden = whole.mask.hidden.unflatten(0, (-1, 4))[part::2].flatten(0, 1)
        assert torch.equal(view.mask.hidden, hidden)
        for name, value in view.inputs.items():
            assert torch.equal(value, whole.inputs[name][part::2])


def test_positions_are_fixed_and_of_a_grid_or_a_sequence():
    found = positions.fixed(12, None, 8, torch.device("cpu"))
    torch.testing.assert_close(found, places("text", 12, 8), rtol=1e-5, atol=1e-5)
    found = positions.fixed(9, (3, 3), 8, torch.device("cpu"))
    torch.testing.assert_close(found, places("image", 9, 8), rtol=1e-5, atol=1e-5)


def test_the_teachers_decay_is_as_published(tmp_path):
    objective = build("image", tmp_path)[0]
    assert [objective.ema_decay(t, 1000) for t in (0, 625, 1000)] == pytest.approx([0.996, 0.998, 0.9992])


def test_a_start_without_a_clue_and_a_collapse(tmp_path):
    """A prediction of 0 of unit targets: E smooth L1 of a normal number; the same target everywhere has no spread."""
    objective, view = build("image", tmp_path)
    with torch.no_grad():
        objective.predictor.outputs.weight.zero_()
        objective.predictor.outputs.bias.zero_()
    loss = objective([view])
    assert float(loss.total.detach() / loss.count) == pytest.approx(0.4246, abs=0.02)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.zero_()
    assert float(objective([view]).metrics["target_std"]) < 0.01


def test_what_cannot_be_trained_is_said(tmp_path):
    objective, view = build("image", tmp_path)
    for views, message in (
        ([view, view], "make 2: leave them out"),
        ([view._replace(mask=Mask(view.mask.hidden))], "ijepa encodes what is visible: its masks need `keep`"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            objective(views)
        assert "\n" not in str(error.value)
    for wrong, message in (
        ("model.frontends.image.mask_token=true", r"set model.frontends.image.mask_token=false"),
        (
            "objective.predictor.dim=18",
            r"objective.predictor.dim is 18; it must be a multiple of .*num_heads, 2, and of",
        ),
        (
            "data.min_context=65",
            r"data.min_context is 65, but a square of 0.85 of the 8 x 8 patches .* has 49: lower it",
        ),
        ("data.target_scale=[0.5,0.1]", r"data.target_scale is \[0.5, 0.1\]; it must be \[least, most\]"),
        ("data.mask_ratio=0.5", "mask_ratio is 0.5, which data.mask_kind=multi_block does not read"),
    ):
        with pytest.raises(ValueError, match=message):
            build("image", tmp_path, wrong)
    second = tiny.objective_of(tiny.config_of("image", tmp_path, tiny.using("data2vec2")))
    with pytest.raises(ValueError, match=r"data\.mask_kind=multi_block is for ijepa"):
        second([view])


def test_a_step_on_images_waits_for_no_device(tmp_path, monkeypatch):
    """On meta tensors, which hold no values, whatever has to know one is an error."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which knows nothing of meta
    objective, view = latent.build("ijepa", "image", tmp_path)
    there = view.located().to("meta")
    loss = objective.to("meta")([there])
    loss.total.backward()
    assert loss.total.is_meta and there.mask.hidden_at.shape == (int(view.mask.hidden.sum()),)
