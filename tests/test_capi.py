"""CAPI against slow loops: assignments, the loss and its gradients, the predictor, what is predicted, collapse."""

import math

import latent
import numpy as np
import pytest
import tiny
import torch
from tiny import MODALITIES
from torch import Tensor

from d2v.modalities.common import masking
from d2v.objectives.capi import CAPI
from d2v.objectives.common.clusters import Clusters
from d2v.objectives.common.masked import some_of
from d2v.objectives.common.prototypes import sinkhorn_of_logits
from d2v.types import Mask, View


def build(modality: str, folder, *more: str) -> tuple[CAPI, View]:
    """CAPI and a batch."""
    return latent.build("capi", modality, folder, *more)


def slow_sinkhorn(logits: list[Tensor], temperature: float, iterations: int = 3) -> list[Tensor]:
    """Shares of some rows (K,) of one place, in double precision, one number after another."""
    largest = [max(float(row[k]) for row in logits) for k in range(len(logits[0]))]
    shares = [
        [math.exp((float(value) - top) / temperature + 50) for value, top in zip(row, largest, strict=True)]
        for row in logits
    ]
    for _ in range(iterations):
        sums = [sum(column) + 1e-8 for column in zip(*shares, strict=True)]
        shares = [[value / total for value, total in zip(row, sums, strict=True)] for row in shares]
        shares = [[value / (sum(row) + 1e-8) for value in row] for row in shares]
    return [torch.tensor(row) for row in shares]


def slow(objective: CAPI, view: View) -> tuple[Tensor, int]:
    """The loss of a batch, and how many predictions are in it."""
    config, student, predictor = objective.config, objective.student["encoder"], objective.predictor
    hidden, samples = view.mask.hidden, len(next(iter(view.inputs.values())))
    masks = len(hidden) // samples
    with torch.no_grad():
        teacher = objective.teacher["encoder"](view).x
    real = torch.ones(teacher.shape[:2], dtype=torch.bool) if view.padding is None else ~view.padding
    logits, targets = {}, {}
    for b, t in real.nonzero().tolist():
        x = torch.nn.functional.layer_norm(teacher[b, t], (teacher.shape[2],))
        logits[b, t] = objective.clusters.layer(x / x.norm())
    groups = [list(logits)]
    if config.positionwise:
        groups = [[(b, t) for b, t in logits if t == place] for place in range(real.shape[1])]
    for group in groups:
        if group:
            found = slow_sinkhorn([logits[place].detach() for place in group], config.target_temperature)
            targets |= dict(zip(group, found, strict=True))

    def entropy(target: Tensor, values: Tensor) -> Tensor:
        return -(target * (values / config.temperature).log_softmax(dim=0)).sum()

    of_clusters = sum(entropy(targets[place], logits[place]) for place in logits) / len(logits)
    asked = some_of(hidden, config.predicted_share, samples, objective.seed, objective.step)
    total, count = torch.zeros(()), 0
    shown = torch.zeros_like(hidden).scatter(1, view.mask.keep, True)
    for n in range(len(hidden)):
        b = n // masks
        keep = [t for t in view.mask.keep[n].tolist() if real[b, t]]
        row = View(view.modality, alone(view, b))
        length = int(real[b].sum())
        mask = Mask(~shown[n : n + 1, :length], torch.tensor([keep]))
        visible = student(row, mask).x
        for t in asked[n].nonzero().flatten().tolist():
            one = torch.zeros(1, hidden.shape[1], dtype=torch.bool)
            one[0, t] = True
            grid = student.frontend(view.modality).grid
            prediction = predictor(visible, Mask(one, torch.tensor([keep])), None, grid)[0]
            weight = objective.head.weight
            total = total + entropy(targets[b, t], weight @ (prediction / prediction.norm()))
            count += 1
    return total + count * of_clusters, count


def alone(view: View, b: int) -> dict[str, Tensor]:
    """The inputs of one sample, without padding."""
    inputs = {name: value[b : b + 1] for name, value in view.inputs.items()}
    if view.padding is not None and "attention_mask" in inputs:
        size = int(inputs["attention_mask"].sum())
        inputs = {name: value[:, :size] for name, value in inputs.items()}
    return inputs


@pytest.mark.parametrize("positionwise", ["true", "false"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_and_gradients_are_the_slow_loop(modality, positionwise, tmp_path):
    objective, view = build(modality, tmp_path, f"objective.positionwise={positionwise}", "objective.num_codes=5")
    expected, count = slow(objective, view)
    expected.backward()
    gradients = {key: p.grad.clone() for key, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    loss = objective([view])
    loss.total.backward()
    assert int(loss.count) == count
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-4, atol=1e-3)
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=2e-3, atol=1e-3, msg=key)


def test_assignments_are_balanced_at_each_place_by_itself():
    """Whatever the size of the logits, and whatever lies in padding."""
    logits = 30 * torch.randn(6, 4, 3)
    padding = torch.zeros(6, 4, dtype=torch.bool)
    padding[:2, 3] = padding[:, 2] = True
    found = sinkhorn_of_logits(logits.masked_fill(padding[..., None], 1e9), 6.0, 3, padding)
    for t in range(4):
        rows = [b for b in range(6) if not padding[b, t]]
        for b, expected in zip(rows, slow_sinkhorn([logits[b, t] for b in rows], 6.0) if rows else [], strict=True):
            torch.testing.assert_close(found[b, t], expected, rtol=1e-3, atol=1e-5)
    assert not found[padding].any() and found.isfinite().all()
    even = sinkhorn_of_logits(torch.randn(512, 2, 8), 1.0, 30)
    torch.testing.assert_close(even.sum(dim=0), torch.full((2, 8), 64.0), rtol=1e-2, atol=0.1)
    assert torch.allclose(even.sum(dim=2), torch.ones(512, 2))


def test_a_share_of_hidden_tokens_is_predicted_anew_in_each_step():
    hidden = torch.rand(6, 40) < 0.6
    first, second = (some_of(hidden, 0.25, 3, 0, step) for step in (1, 2))
    assert not (first & ~hidden).any() and not torch.equal(first, second)
    assert first.sum(dim=1).tolist() == [round(int(n) * 0.25) for n in hidden.sum(dim=1)]
    assert torch.equal(some_of(hidden[:4], 0.25, 2, 0, 1), first[:4])  # a row does not depend on those behind it
    few = torch.zeros(2, 40, dtype=torch.bool)
    few[0, 3] = True
    assert some_of(few, 0.05, 2, 0, 0).sum(dim=1).tolist() == [1, 0]
    times = torch.stack([some_of(torch.ones(1, 20, dtype=torch.bool), 0.25, 1, 0, step)[0] for step in range(400)])
    assert (times.float().mean(dim=0) - 0.25).abs().max() < 0.1


def test_a_rectangle_stays_visible_and_wraps_around():
    wrapped = 0
    for seed in range(200):
        hidden = masking.rectangle(np.random.default_rng(seed), (8, 6), 17, 0.5).reshape(8, 6)
        assert (~hidden).sum() == 17
        rows, columns = (~hidden).any(axis=1), (~hidden).any(axis=0)
        assert rows.sum() * columns.sum() - 17 < columns.sum()  # its last row alone is cut
        assert 0.3 < rows.sum() / columns.sum() < 3.1
        wrapped += rows[0] and rows[-1] and not rows.all()
        for line in (rows, columns):  # one run, around the torus
            assert sum(line[place] != line[place - 1] for place in range(len(line))) in (0, 2)
    assert 20 < wrapped < 180


def test_values_at_the_start_and_when_collapsed(tmp_path):
    """ln C of predictions without a clue; one cluster where the teacher says the same everywhere."""
    objective, view = build("image", tmp_path)
    with torch.no_grad():
        objective.head.parametrizations.weight.original0.zero_()
    assert float(objective([view]).metrics["prediction_loss"]) == pytest.approx(math.log(16), rel=1e-5)
    clusters = Clusters(8, 16, positionwise=False, temperature=0.06, iterations=3)
    shares = clusters.assignments(clusters(torch.randn(64, 4, 8)), None).flatten(0, 1)
    assert float(torch.special.entr(shares.mean(dim=0)).sum().exp()) > 13  # of 16
    same = clusters.assignments(clusters(torch.randn(8).expand(64, 4, 8)), None).flatten(0, 1)
    assert len(same.argmax(dim=1).unique()) == 1
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.zero_()
    assert float(objective([view]).metrics["target_perplexity"]) == pytest.approx(1)


def test_the_clusters_learn_from_their_own_loss_alone(tmp_path):
    objective, view = build("image", tmp_path)
    loss = objective([view])
    weight = objective.clusters.layer.weight
    whole = torch.autograd.grad(loss.total, weight, retain_graph=True)[0]
    student = torch.autograd.grad(loss.total, objective.student["encoder"].trunk.blocks[0].mlp.fc1.weight)[0]
    assert whole.any() and student.any() and not loss.total.isnan()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    with torch.no_grad():
        weight.mul_(1.0)
        targets = objective.clusters.assignments(objective.clusters(objective.teacher["encoder"](view).x), None)
    assert not targets.requires_grad and "clusters.layer.weight" in objective.state_dict()
    assert not [key for key in objective.teacher.state_dict() if "clusters" in key]


def test_the_teachers_decay_is_as_published(tmp_path):
    """It stands still at first, moves most after the warm-up, and comes to rest at the end."""
    objective = build("image", tmp_path)[0]
    found = [objective.ema_decay(step, 1000) for step in (0, 50, 100, 550, 1000)]
    assert found == pytest.approx([1, 0.9995, 0.999, 0.9995, 1])


def test_what_cannot_be_trained_is_said(tmp_path):
    objective, view = build("image", tmp_path)
    for views, message in (
        ([view, view], "make 2: leave them out"),
        ([view._replace(mask=Mask(view.mask.hidden))], "capi encodes what is visible: its masks need `keep`"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.check(views)
    objective.check([view])
    objective.check_batch(4, 1)
    with pytest.raises(
        ValueError, match=r"shares 1 samples .* at each place: at most 8, or objective.positionwise=false"
    ):
        objective.check_batch(1, 1)
    with pytest.raises(ValueError, match=r"train.accumulate is 2; capi compares the samples of a whole batch: it must"):
        objective.check_batch(4, 2)
    objective = build("image", tmp_path, "objective.positionwise=false", "objective.num_codes=100")[0]
    objective.check([view])
    with pytest.raises(ValueError, match=r"the 256 tokens of a batch \(train.batch_size times 64\) .* at most 64$"):
        objective.check_batch(4, 1)
    objective.check_batch(8, 1)
    with pytest.raises(ValueError, match=r"set model.frontends.image.mask_token=false"):
        build("image", tmp_path, "model.frontends.image.mask_token=true")


def test_too_few_rows_are_said_before_the_first_step(tmp_path):
    command = tiny.arguments("image", tmp_path, tiny.using("capi"), "objective.num_codes=64")
    with pytest.raises(ValueError, match=r"objective.num_codes is 64; Sinkhorn's algorithm shares 4 samples"):
        tiny.pretrain.main(command)
