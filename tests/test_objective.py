"""Every objective with every modality that is on disk: gradients, the teacher, and its update against a slow loop."""

import pytest
import tiny
import torch
from tiny import MODALITIES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2v.objectives.common.objective import Objective


def build(modality: str, name: str, folder, *more: str):
    """A tiny objective in training mode, and a batch."""
    config = tiny.config_of(modality, folder)
    settings = more if name == config.objective.name else (f"objective={{name: {name}}}", *more)
    config = tiny.config_of(modality, folder, *settings)
    objective = tiny.objective_of(config)
    views, _ = tiny.batches_of(config)(0, 0, 1)
    return objective.train(), views


@pytest.mark.parametrize(("modality", "name"), tiny.PAIRS)
def test_contract(modality, name, tmp_path):
    objective, views = build(modality, name, tmp_path)
    loss = objective(views)
    assert loss.total.isfinite() and loss.total != 0 and loss.total.dtype == torch.float32  # SimSiam's falls from 0
    assert loss.total.ndim == loss.count.ndim == 0 and loss.count > 0
    assert all(value.ndim == 0 and value.isfinite() for value in loss.metrics.values())
    loss.total.backward()
    without = [
        key
        for key, p in objective.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not without
    still = [key for key, p in objective.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not still, "parameters whose gradient is zero everywhere"
    assert not [key for key, p in objective.teacher.named_parameters() if p.requires_grad or p.grad is not None]
    resting = [
        module for module in objective.teacher.modules() if not isinstance(module, _BatchNorm)
    ]  # those normalise by the batch
    assert not any(module.training for module in resting) and objective.student.training
    objective.eval()
    assert not objective.student.training
    objective.train()
    assert not objective.teacher.training and objective.student["encoder"].training


@pytest.mark.parametrize("modality", MODALITIES)
def test_teacher_is_deterministic_and_the_student_is_not(modality, tmp_path):
    objective, (view,) = build(modality, "data2vec", tmp_path, *tiny.DROPOUT, "objective.feed_tokens=false")
    tokens = objective.student["encoder"].embed(view)
    targets = [objective.target(view, tokens) for _ in range(2)]
    assert torch.equal(*targets) and not targets[0].requires_grad
    assert not torch.equal(*(objective.student["encoder"](view, view.mask).x for _ in range(2)))


@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_is_over_hidden_tokens_only_and_the_teacher_sees_all(modality, tmp_path):
    """The slow way: one token after another."""
    objective, (view,) = build(modality, "data2vec", tmp_path)
    encoder, config = objective.student["encoder"], objective.config
    loss = objective([view])
    hidden = view.mask.hidden
    target = objective.target(view._replace(mask=None), encoder.embed(view))
    prediction = objective.predictor(encoder(view, view.mask).x)
    total = 0.0
    for row, token in hidden.nonzero().tolist():
        error = (prediction[row, token] - target[row, token]).detach().abs().double()
        beta = config.loss_beta
        each = error**2 if beta == 0 else torch.where(error < beta, error**2 / (2 * beta), error - beta / 2)
        total += float(each.sum()) / {"sqrt": 32**0.5, "mean": 32, "sum": 1}[config.loss_scale]
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5) and int(loss.count) == int(hidden.sum())
    real = hidden.numel() if view.padding is None else int((~view.padding).sum())
    assert float(loss.metrics["hidden_share"]) == pytest.approx(int(hidden.sum()) / real)
    assert float(loss.metrics["target_std"]) == pytest.approx(
        float((target[hidden].var(dim=0) + 1e-6).sqrt().mean()), rel=1e-4
    )


def test_a_teacher_fed_with_tokens_reads_the_students(tmp_path):
    modality = MODALITIES[0]
    objective, (view,) = build(modality, "data2vec", tmp_path)
    tokens = torch.randn_like(objective.student["encoder"].embed(view))
    own = objective.target(view, tokens)
    objective.config.feed_tokens = True
    fed = objective.target(view, tokens)
    assert not torch.allclose(own, fed)
    torch.testing.assert_close(
        objective.target(view, objective.student["encoder"].embed(view).detach()), own
    )  # at the start both are one


def test_a_second_view_is_the_teachers(tmp_path):
    objective, (view,) = build(MODALITIES[0], "data2vec", tmp_path)
    whole = view._replace(mask=None, indices=None)  # of the same tokens; those of a mask or a number are other crops
    alone, twice = objective([view]).total, objective([view, whole]).total
    other = whole._replace(inputs={name: torch.flip(value, [0]) for name, value in view.inputs.items()})
    assert torch.equal(alone, twice) and not torch.equal(objective([view, other]).total, alone)


class Counting(nn.Module):
    """One matrix, one part to be shared, and a buffer of integers."""

    def __init__(self):
        super().__init__()
        self.deep, self.shallow = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("count", torch.tensor([1, 2]))
        self.register_buffer("mean", torch.zeros(3))


def test_update_is_the_slow_rule_and_buffers_are_copied():
    objective = Objective(("encoder.shallow",), encoder=Counting())
    slow = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    for step in range(5):
        decay = 0.5 + 0.1 * step
        with torch.no_grad():
            for parameter in objective.student.parameters():
                parameter += torch.randn_like(parameter)
            objective.student["encoder"].count += 7
            objective.student["encoder"].mean += 1.5
        objective.update_teacher(decay)
        for name, value in objective.student.named_parameters():
            slow[name] = value.clone() if "shallow" in name else decay * slow[name] + (1 - decay) * value
    for name, value in objective.teacher.named_parameters():
        torch.testing.assert_close(value, slow[name], rtol=0, atol=1e-6)
        assert torch.equal(value, dict(objective.student.named_parameters())[name]) == ("shallow" in name)
    assert (
        objective.teacher["encoder"].count.tolist() == [36, 37]
        and objective.teacher["encoder"].count.dtype == torch.int64
    )
    assert objective.teacher["encoder"].mean.tolist() == [7.5] * 3
    addresses = {tensor.data_ptr() for tensor in objective.student.state_dict().values()}
    assert not addresses & {tensor.data_ptr() for tensor in objective.teacher.state_dict().values()}


@pytest.mark.parametrize("modality", MODALITIES)
def test_shared_parts_are_copied_and_the_rest_averaged(modality, tmp_path):
    objective, _ = build(modality, "data2vec", tmp_path)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter += 1.0
    before = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    objective.update_teacher(0.9)
    shared = tuple(f"encoder.{part}" for part in objective.config.shared)
    for name, value in objective.teacher.named_parameters():
        move = 1.0 if shared and name.startswith(shared) else 0.1
        torch.testing.assert_close(value - before[name], torch.full_like(value, move), rtol=0, atol=1e-5, msg=name)


def test_what_cannot_be_shared_or_averaged_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"'encoder.trunc'.*encoder.trunk"):
        build(MODALITIES[0], "data2vec", tmp_path, "objective.shared=[trunc]")
    with pytest.raises(ValueError, match="top_k is 3; the trunk has 2"):
        build(MODALITIES[0], "data2vec", tmp_path, "objective.top_k=3")
    for wrong, allowed in (
        ("layers=fnn", "ffn, block"),
        ("layer_norms=[inst]", "instance"),
        ("loss_scale=no", "sqrt, mean"),
        ("ema_decay=1.1", "0 and at most 1"),
    ):
        with pytest.raises(ValueError, match=allowed):
            tiny.config_of(MODALITIES[0], tmp_path, f"objective.{wrong}")
