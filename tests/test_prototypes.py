"""Heads, targets, assignments and losses over prototypes.

Against slow versions, lightly's, and what chance and collapse must give.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from d2v.models.batch_norm import GroupedBatchNorm
from d2v.objectives.common.prototypes import PrototypeHead, across_views, cross_entropy, sharpened, sinkhorn, usage
from d2v.objectives.common.queues import Center
from d2v.types import Mask


def shares_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape).mul(3).softmax(-1)


def slow_pairs(targets: list, logits: list, temperature: float) -> tuple[torch.Tensor, int]:
    """One pair of views, one sample and one prototype after another, and the number of pairs."""
    pairs = [(i, v) for i in range(len(targets)) for v in range(len(logits)) if v != i]
    total = torch.zeros(())
    for i, v in pairs:
        for target, row in zip(targets[i], logits[v], strict=True):
            scaled = row / temperature
            for k in range(len(row)):
                total = total - target[k] * (scaled[k] - scaled.logsumexp(0))
    return total / len(pairs), len(pairs)


@pytest.mark.parametrize(("views", "pairs"), [(2, 2), (3, 4), (2 + 8, 18)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_between_views_and_its_gradients(views, pairs, temperature):
    targets, logits = [shares_of(2, 4) for _ in range(2)], [torch.randn(2, 4, requires_grad=True) for _ in range(views)]
    expected, number = slow_pairs(targets, logits, temperature)
    found = across_views(targets, logits, temperature)
    assert number == pairs
    torch.testing.assert_close(found, expected)
    for x, y in zip(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(x, y)


def test_losses_and_targets_are_float32_whatever_comes():
    half = torch.randn(2, 3).bfloat16()
    assert sharpened(half, torch.zeros(3), 0.04).dtype == sinkhorn(half, 0.05).dtype == torch.float32
    assert (
        cross_entropy(shares_of(2, 3), half, 0.1).dtype
        == across_views([shares_of(2, 3)] * 2, [half, half], 0.1).dtype
        == torch.float32
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_head(frozen):
    head = PrototypeHead(6, 16, 5, 7, frozen_gain=frozen, num_outputs=2)
    x = torch.randn(3, 4, 6)
    for number, layer in enumerate(head.prototypes):
        gain, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        assert gain.requires_grad is not frozen and torch.equal(gain, torch.ones(7, 1))
        z = F.gelu(F.gelu(x @ head.mlp[0].weight.T) @ head.mlp[2].weight.T) @ head.mlp[4].weight.T
        expected = (z / z.norm(dim=-1, keepdim=True)) @ (direction / direction.norm(dim=1, keepdim=True)).T
        torch.testing.assert_close(head(x, number), expected)
        assert expected.abs().max() <= 1
    assert not torch.equal(head(x), head(x, -1)) and torch.equal(head(x, 1), head(x, -1))
    torch.testing.assert_close(copy.deepcopy(head)(x), head(x))
    big = PrototypeHead(64, 128, 32, 7, frozen_gain=True)
    assert all(
        abs(float(big.mlp[i].weight.detach().std()) - 0.02) < 2e-3 and not big.mlp[i].bias.any() for i in (0, 2, 4)
    )
    head(x).sum().backward()
    assert (head.prototypes[0].parametrizations.weight.original0.grad is None) is frozen


def test_head_with_batch_norms():
    head, x = PrototypeHead(6, 16, 5, 7, frozen_gain=True, norm=True), torch.randn(8, 6)
    z = x
    for place in (0, 3):
        z = F.linear(z, head.mlp[place].weight)
        z = F.gelu((z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt())
    direction = F.normalize(head.prototypes[0].parametrizations.weight.original1, dim=1)
    torch.testing.assert_close(head(x), F.normalize(F.linear(z, head.mlp[6].weight), dim=1) @ direction.T)
    assert {type(layer) for layer in head.mlp[1::3]} == {
        GroupedBatchNorm
    }  # whose statistics are those of all processes


def slow_sinkhorn(cosines: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """As published: prototypes in rows, normalised by the total first."""
    q = (cosines / epsilon).exp().double().T  # (K, N)
    num_prototypes, num_rows = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for k in range(num_prototypes):
            q[k] = q[k] / q[k].sum() / num_prototypes
        for n in range(num_rows):
            q[:, n] = q[:, n] / q[:, n].sum() / num_rows
    return (q * num_rows).T.float()


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 0.5])
@pytest.mark.parametrize(("rows", "prototypes"), [(8, 4), (5, 11)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn(epsilon, rows, prototypes, iterations):
    cosines = F.normalize(torch.randn(rows, 6), dim=1) @ F.normalize(torch.randn(6, prototypes), dim=0)
    torch.testing.assert_close(
        sinkhorn(cosines, epsilon, iterations), slow_sinkhorn(cosines, epsilon, iterations), rtol=1e-4, atol=1e-7
    )


def test_sinkhorn_shares_the_rows_among_the_prototypes():
    cosines = F.normalize(torch.randn(12, 6), dim=1) @ F.normalize(torch.randn(6, 4), dim=0)
    shares = sinkhorn(cosines, 0.2, 300)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(shares.sum(dim=0), torch.full((4,), 3.0), rtol=1e-3, atol=0)
    assert sinkhorn(torch.ones(6, 3), 1e-3).isfinite().all()  # e^1000 would not be
    assert not sinkhorn(cosines.requires_grad_(), 0.05).requires_grad


def test_equal_to_lightly():
    """DINOLoss with its centre over two steps, SwaVLoss with its Sinkhorn and queue, and IBOTPatchLoss."""
    lightly = pytest.importorskip("lightly.loss")
    ibot = pytest.importorskip("d2v.objectives.ibot")
    theirs, center = lightly.DINOLoss(output_dim=9, student_temp=0.1, center_momentum=0.9), Center(9, 0.9)
    for temperature in (0.04, 0.07):
        teacher, student = [torch.randn(4, 9) for _ in range(2)], [torch.randn(4, 9) for _ in range(5)]
        expected = theirs(teacher, student, teacher_temp=temperature)
        targets = [sharpened(rows, center.value, temperature) for rows in teacher]
        torch.testing.assert_close(across_views(targets, student, 0.1) / 4, expected)
        center.update(torch.cat(teacher))
        torch.testing.assert_close(center.value, theirs.center.view(9))

    z = [F.normalize(torch.randn(4, 6), dim=1) @ F.normalize(torch.randn(6, 9), dim=0) for _ in range(5)]
    queue = [F.normalize(torch.randn(8, 6), dim=1) @ F.normalize(torch.randn(6, 9), dim=0) for _ in range(2)]
    for kept in (None, queue):
        rows = z[:2] if kept is None else [torch.cat(pair) for pair in zip(queue, z, strict=False)]
        targets = [sinkhorn(x, 0.05)[-4:] for x in rows]
        torch.testing.assert_close(across_views(targets, z, 0.1) / 4, lightly.SwaVLoss()(z[:2], z[2:], kept)[0])

    hidden = torch.rand(4, 3, 3) < 0.5
    hidden[0] = False
    teacher, student = torch.randn(2, int(hidden.sum()), 9)
    expected = lightly.IBOTPatchLoss(output_dim=9, teacher_temp=0.05)(teacher, student, hidden)
    losses = cross_entropy(sharpened(teacher, torch.zeros(9), 0.05), student, 0.1)
    torch.testing.assert_close(ibot.over_samples([losses], [Mask(hidden.flatten(1))]) / 4, expected)


@pytest.mark.parametrize("agreement", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_loss_of_an_untrained_head(agreement, temperature):
    """Logits of unit vectors of width P are N(0, 1 / P).

    With s = 1 / (sqrt(P) t) of a side, the loss is ln K + s_s^2 / 2 - agreement s_s s_t.
    """
    num_prototypes, width = 8192, 256
    directions, z = (
        F.normalize(torch.randn(num_prototypes, width), dim=1),
        F.normalize(torch.randn(2, 64, width), dim=2),
    )
    teacher = z[0] @ directions.T
    student = F.normalize(agreement * z[0] + math.sqrt(1 - agreement**2) * z[1], dim=1) @ directions.T
    of_student, of_teacher = 1 / (16 * 0.1), 1 / (16 * temperature)
    target = sharpened(teacher, torch.zeros(num_prototypes), temperature)
    expected = math.log(num_prototypes) + of_student**2 / 2 - agreement * of_student * of_teacher
    assert float(across_views([target] * 2, [student] * 3, 0.1)) / 64 == pytest.approx(expected, abs=0.04)
    entropy = float(usage(target, torch.zeros(()))["target_entropy"])
    assert entropy == pytest.approx(math.log(num_prototypes) - of_teacher**2 / 2, abs=0.04)


def test_loss_of_untrained_embeddings():
    """SwAV's embeddings of incoherent views: ln K + s^2 / 2 with s = 1 / (sqrt(P) t), whatever the assignment."""
    prototypes, z = F.normalize(torch.randn(1024, 128), dim=1), F.normalize(torch.randn(4, 256, 128), dim=2)
    logits = list(z @ prototypes.T)
    loss = across_views([sinkhorn(rows, 0.05) for rows in logits[:2]], logits, 0.1) / 256
    assert float(loss) == pytest.approx(math.log(1024) + 1 / (2 * 128 * 0.1**2), abs=0.04)


def test_collapse_has_two_signatures():
    uniform, one_hot = torch.full((6, 16), 1 / 16), F.one_hot(torch.full((6,), 3), 16).float()
    loss = across_views([uniform] * 2, [torch.zeros(6, 16)] * 4, 0.1) / 6
    found = usage(uniform, loss)
    assert float(loss) == pytest.approx(math.log(16)) and float(found["divergence"]) == pytest.approx(0, abs=1e-6)
    assert float(found["target_entropy"]) == float(found["mean_target_entropy"]) == pytest.approx(math.log(16))
    loss = across_views([one_hot] * 2, [10 * one_hot] * 4, 0.1) / 6
    found = usage(one_hot, loss)
    assert float(loss) == pytest.approx(0, abs=1e-6) and float(found["target_entropy"]) == 0
    assert float(found["prototype_perplexity"]) == pytest.approx(1) and float(found["prototypes_used"]) == 1
    # what SwAV gives when embeddings are all the same: assignments are uniform, and the loss is stuck
    stuck = sinkhorn(torch.zeros(6, 16), 0.05)
    assert float(across_views([stuck] * 2, [torch.zeros(6, 16)] * 2, 0.1)) / 6 == pytest.approx(math.log(16))


def test_usage_of_several_prototypes():
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0, 0.5], [1, 0, 0, 0]])
    found = {name: float(value) for name, value in usage(targets, torch.tensor(1.0)).items()}
    mean = [0.5, 0.375, 0.125]
    assert found["target_entropy"] == pytest.approx(math.log(2) / 4) and found["divergence"] == pytest.approx(
        1 - math.log(2) / 4
    )
    assert found["mean_target_entropy"] == pytest.approx(-sum(p * math.log(p) for p in mean))
    assert (
        found["prototype_perplexity"] == pytest.approx(math.exp(found["mean_target_entropy"]))
        and found["prototypes_used"] == 2
    )


def test_center_is_a_moving_average_and_survives_a_bad_batch():
    center, expected = Center(3, 0.9), torch.zeros(3)
    for _ in range(3):
        rows = torch.randn(4, 3)
        before = center.value
        center.update(rows)
        expected = 0.9 * expected + 0.1 * rows.mean(dim=0)
        torch.testing.assert_close(center.value, expected)
        assert center.value is before  # in place
    center.update(torch.full((4, 3), torch.nan))
    torch.testing.assert_close(center.value, expected)
    again = Center(3, 0.9)
    again.load_state_dict(center.state_dict())
    assert torch.equal(again.value, center.value)
