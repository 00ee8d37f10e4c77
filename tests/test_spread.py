"""The losses of two views without a teacher, on rows: against loops over samples, lightly's, and values that are known.

tests/test_two_views.py has whole objectives.
"""

import math
from collections.abc import Callable
from itertools import combinations, pairwise
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from d2v.objectives import barlow, simdino, vicreg, wmse
from d2v.objectives.common.gaussian import center_scale_shape, directions, invariance, sigreg, visreg


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def along(dim: int, count: int, seed: int = 9) -> Tensor:
    return directions(dim, count, torch.Generator().manual_seed(seed))


def assert_same_with_gradients(fast: Callable, slow: Callable, *inputs: Tensor) -> None:
    """Both of the same inputs, the slow one in float64."""
    given = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    found, expected = fast(*given), slow(*exact)
    assert found.dtype == torch.float32 and found.ndim == 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(torch.autograd.grad(found, given), torch.autograd.grad(expected, exact), strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


# The slow versions, in float64: one sample, one channel, one direction after another.


def slow_sigreg(x: Tensor, directions: Tensor) -> Tensor:
    points = [3 * j / 16 for j in range(17)]

    def integrand(t: float, projected: list[Tensor]) -> Tensor:
        cosine = sum((t * p).cos() for p in projected) / len(projected) - math.exp(-(t**2) / 2)
        sine = sum((t * p).sin() for p in projected) / len(projected)
        return math.exp(-(t**2) / 2) * (cosine**2 + sine**2)

    total = torch.zeros((), dtype=torch.float64)
    for s in range(directions.shape[1]):
        projected = [(row * directions[:, s]).sum() for row in x]
        values = [integrand(t, projected) for t in points]
        for a, b in pairwise(values):  # a trapezoid right of 0, and the same one left of it
            total = total + 2 * (3 / 16) * (a + b) / 2
    return len(x) * total / directions.shape[1]


def slow_visreg(x: Tensor, directions: Tensor) -> Tensor:
    n, width = x.shape
    center, scale, columns = 0.0, 0.0, []
    for d in range(width):
        mean = sum(x[:, d]) / n
        std = (sum((v - mean) ** 2 for v in x[:, d]) / n).sqrt()
        center, scale = center + mean**2 / width, scale + (1 - std) ** 2 / width
        columns.append([(v - mean) / (std.detach() + 1e-4) for v in x[:, d]])
    shape = torch.zeros((), dtype=torch.float64)
    for s in range(directions.shape[1]):
        projected = [sum(columns[d][i] * directions[d, s] for d in range(width)) for i in range(n)]
        for i, value in enumerate(sorted(projected, key=lambda value: float(value.detach()))):
            shape = shape + (value - NormalDist().inv_cdf((i + 1) / (n + 1))) ** 2
    return center + scale + shape / (n * directions.shape[1])


def slow_barlow(x: Tensor, y: Tensor, redundancy: float) -> Tensor:
    def column(z: Tensor, d: int) -> list[Tensor]:
        mean = sum(z[:, d]) / len(z)
        variance = sum((v - mean) ** 2 for v in z[:, d]) / len(z)
        return [(v - mean) / (variance + 1e-5).sqrt() for v in z[:, d]]

    total = torch.zeros((), dtype=torch.float64)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            c = sum(a * b for a, b in zip(column(x, i), column(y, j), strict=True)) / len(x)
            total = total + ((1 - c) ** 2 if i == j else redundancy * c**2)
    return total


def slow_vicreg(x: Tensor, y: Tensor) -> Tensor:
    n, width = x.shape
    total = 25 * sum((x[i, d] - y[i, d]) ** 2 for i in range(n) for d in range(width)) / (n * width)
    for z in (x, y):
        means = [sum(z[:, d]) / n for d in range(width)]
        for i in range(width):
            for j in range(width):
                c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (n - 1)
                lacks = torch.relu(1 - (c + 1e-4).sqrt()) if i == j else c
                total = total + (25 / 2 * lacks / width if i == j else c**2 / width)
    return total


def slow_rate(z: Tensor, epsilon: float) -> Tensor:
    n, width = z.shape
    product = sum(torch.outer(row, row) for row in z)
    inside = torch.eye(width, dtype=z.dtype) + width / (n * epsilon) * product
    return (width + n) / (width * n) * sum(torch.linalg.eigvalsh(inside).log())


def slow_whitened(x: Tensor, size: int, epsilon: float) -> Tensor:
    parts = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        part = part - sum(part) / size
        covariance = (1 - epsilon) * sum(torch.outer(row, row) for row in part) / (size - 1)
        root = torch.linalg.cholesky(covariance + epsilon * torch.eye(x.shape[1], dtype=x.dtype))
        parts += [torch.linalg.inv(root) @ row for row in part]
    return torch.stack(parts)


def vicreg_of(x: Tensor, y: Tensor) -> Tensor:
    (missing, shared), (more_missing, more_shared) = vicreg.terms(x), vicreg.terms(y)
    return 25 * (x - y).square().mean() + 25 * (missing + more_missing) / 2 + shared + more_shared


def barlow_of(x: Tensor, y: Tensor, redundancy: float = 0.0051) -> Tensor:
    on, off = barlow.terms(x, y)
    return on + redundancy * off


ROWS = [(2, 1), (5, 3), (8, 6)]


@pytest.mark.parametrize(("n", "width"), ROWS)
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("fast", "slow"), [(sigreg, slow_sigreg), (visreg, slow_visreg)])
def test_distances_from_a_gaussian_are_the_slow_loops(fast, slow, n, width, spread):
    ways = along(width, 4)
    torch.testing.assert_close(ways.norm(dim=0), torch.ones(4))
    assert_same_with_gradients(
        lambda x: fast(x, ways), lambda x: slow(x, ways.double()), spread * drawn(n, width) + 0.2
    )


@pytest.mark.parametrize(("n", "width"), ROWS[1:])
@pytest.mark.parametrize("agreement", [0.0, 0.9])
def test_barlow_and_vicreg_are_the_slow_loops(n, width, agreement):
    x = 0.7 * drawn(n, width) + 0.3
    y = agreement * x + (1 - agreement) * drawn(n, width, seed=1)
    assert_same_with_gradients(lambda x, y: barlow_of(x, y, 0.05), lambda x, y: slow_barlow(x, y, 0.05), x, y)
    assert_same_with_gradients(vicreg_of, slow_vicreg, x, y)


@pytest.mark.parametrize(("n", "width"), [(4, 6), (8, 3)])
@pytest.mark.parametrize("epsilon", [0.5, 0.1])
def test_the_coding_rate_is_the_slow_one(n, width, epsilon):
    assert_same_with_gradients(
        lambda z: simdino.coding_rate(z, epsilon), lambda z: slow_rate(z, epsilon), drawn(n, width)
    )


@pytest.mark.parametrize(("n", "size", "width"), [(8, 8, 3), (12, 4, 2)])
@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_whitened_rows_are_the_slow_ones_and_have_no_correlations(n, size, width, epsilon):
    x, weight = drawn(n, width) @ drawn(width, width, seed=4) + 3, drawn(n, width, seed=5)
    assert_same_with_gradients(
        lambda x: (wmse.whitened(x, size, epsilon) * weight).sum(),
        lambda x: (slow_whitened(x, size, epsilon) * weight.double()).sum(),
        x,
    )
    if epsilon == 0:
        for part in wmse.whitened(x, size, 0.0).split(size):
            torch.testing.assert_close(part.T.cov(), torch.eye(width), rtol=1e-3, atol=1e-3)


def test_views_meet_at_the_mean_of_the_global_ones():
    rows = [drawn(3, 2, seed=seed).requires_grad_() for seed in range(4)]
    expected = 0.0
    for view in rows:
        for i in range(3):
            for d in range(2):
                expected += (view[i, d] - (rows[0][i, d] + rows[1][i, d]) / 2) ** 2 / (4 * 3 * 2)
    found = invariance(rows, 2)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, rows), torch.autograd.grad(expected, rows), strict=True):
        torch.testing.assert_close(one, other)
    assert float(invariance(rows, 4).detach()) == pytest.approx(
        float(torch.stack(rows).detach().var(dim=0, correction=0).mean())
    )


# What the losses are where it is known: of independent rows, and collapsed.


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("width", [32, 512])
def test_sigreg_where_it_is_known(n, width):
    x, ways = drawn(n, width), along(width, 64)
    found = [float(sigreg(drawn(n, width, seed=seed), ways)) for seed in range(32)]
    assert sum(found) / len(found) == pytest.approx(1.05, abs=0.08)
    collapsed = torch.zeros(n, width, requires_grad=True)
    value = sigreg(collapsed, ways)
    assert float(value.detach()) == pytest.approx(0.402 * n, rel=0.01)
    assert torch.autograd.grad(value, collapsed)[0].abs().max() < 1e-3  # nothing leads away
    if n == 256:
        assert float(sigreg(0.1 * x, ways)) == pytest.approx(99, abs=1)
        assert float(sigreg(2 * x, ways)) == pytest.approx(62, abs=4)
        rank_one = drawn(n, 1) @ drawn(1, width, seed=2) / 1.0
        assert 35 < float(sigreg(rank_one, ways)) < 55
        assert float(sigreg(torch.cat([x[:, : width // 2], torch.zeros(n, width // 2)], dim=1), ways)) == pytest.approx(
            13.5, abs=2.5
        )


def test_visreg_where_it_is_known():
    x, ways = drawn(256, 128), along(128, 512)
    expected = {0: 0.004, 1: 0.002, 2: 0.008}
    for number, value in enumerate(center_scale_shape(x, ways)):
        assert float(value) == pytest.approx(expected[number], abs=0.001)
    assert float(center_scale_shape(drawn(64, 128), ways)[2]) == pytest.approx(0.029, abs=0.002)
    rank_one = drawn(256, 1) @ drawn(1, 128, seed=2)
    assert float(center_scale_shape(rank_one, ways)[2]) == pytest.approx(0.41, abs=0.1)
    for small in (1e-2, 1e-4):  # the scale's gradient does not fade where SIGReg's does
        factor = torch.tensor(small, requires_grad=True)
        (steady,) = torch.autograd.grad(center_scale_shape(factor * x, ways)[1], factor)
        (fading,) = torch.autograd.grad(sigreg(factor * x, ways) / 256, factor)
        assert float(steady) == pytest.approx(-2, abs=0.1) and abs(float(fading)) < 4 * small
    same = torch.ones(256, 128, requires_grad=True)
    center, scale, shape = center_scale_shape(same, ways)
    assert float(center.detach()) == float(scale.detach()) == 1 and 0.9 < float(shape.detach()) < 1
    assert torch.autograd.grad(visreg(same, ways), same)[0].isfinite().all()


@pytest.mark.parametrize(("n", "lost"), [(16, 0.19), (64, 0.064)])
def test_visreg_draws_rows_that_are_few_and_close_closer(n, lost):
    """What is published: the quantiles of N rows have a smaller variance than N(0, 1), by which the shape draws rows
    together as 1 / std, and the scale apart at a constant rate. See docs/methods.md."""
    x, ways = drawn(n, 32), along(32, 256)
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    for std, together in ((0.5 * lost, True), (2 * lost, False)):
        factor = torch.tensor(std, requires_grad=True)
        (slope,) = torch.autograd.grad(visreg(factor * x, ways), factor)
        assert (float(slope) > 0) == together
        assert float(slope) == pytest.approx(2 * lost / std - 2 * (1 - std), abs=0.6)


def test_vicreg_and_barlow_where_they_are_known():
    x, y = drawn(256, 128), drawn(256, 128, seed=1)
    assert float(vicreg_of(x, y)) == pytest.approx(51, abs=1)
    same = torch.zeros(256, 128)
    assert float(vicreg_of(same, same)) == pytest.approx(24.75, abs=0.01)
    expected = 128 * (1 + 1 / 256) + 0.0051 * 128 * 127 / 256
    assert expected == pytest.approx(129, abs=0.2) and float(barlow_of(x, y)) == pytest.approx(expected, abs=2)
    assert float(barlow_of(x, x)) == pytest.approx(0.32, abs=0.02)
    collapsed = torch.ones(256, 128, requires_grad=True)
    value = barlow_of(collapsed, collapsed)
    assert float(value.detach()) == 128 and torch.autograd.grad(value, collapsed)[0].isfinite().all()


def test_the_coding_rate_and_whitening_where_they_are_known():
    z = torch.nn.functional.normalize(drawn(256, 256), dim=1)
    assert float(simdino.coding_rate(z, 0.5)) == pytest.approx(1.77, abs=0.01)
    assert float(simdino.coding_rate(z[:1].expand(256, -1), 0.5)) == pytest.approx(0.05, abs=0.002)
    # whitened, rows that are all equal cannot agree: without epsilon there is no root, which is nan and no error
    assert wmse.whitened(torch.ones(8, 3), 8, 0.0).isnan().all()
    assert not wmse.whitened(torch.ones(8, 3), 8, 1e-4).any()
    assert simdino.coding_rate(torch.full((4, 3), math.nan), 0.5).isnan()


# lightly's, where the definition is the same.


def test_lightly_finds_the_same():
    loss = pytest.importorskip("lightly.loss")
    x, y = (0.8 * drawn(12, 6) + 0.1).requires_grad_(), drawn(12, 6, seed=1).requires_grad_()
    pairs = [
        (barlow_of(x, y), loss.BarlowTwinsLoss(lambda_param=0.0051)(x, y)),
        (vicreg_of(x, y), loss.VICRegLoss()(x, y)),
    ]
    views, size = [drawn(12, 3, seed=s).requires_grad_() for s in range(3)], 6
    theirs = loss.WMSELoss(embedding_dim=3, w_size=size, num_samples=3, eps=0.01, track_running_stats=False)
    torch.manual_seed(0)
    order = torch.randperm(12)
    white = [torch.nn.functional.normalize(wmse.whitened(z[order], size, 0.01), dim=1) for z in views]
    ours = torch.stack([(a - b).square().sum(dim=1).mean() for a, b in combinations(white, 2)]).mean()
    torch.manual_seed(0)
    pairs.append((ours, theirs(torch.cat(views))))
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        inputs = [x, y] if found is not ours else views
        ours_by, theirs_by = (torch.autograd.grad(value, inputs) for value in (found, expected))
        for one, other in zip(ours_by, theirs_by, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_lightly_finds_the_same_distances_from_a_gaussian(monkeypatch):
    lejepa = pytest.importorskip("lightly.loss.lejepa_loss")
    module = pytest.importorskip("lightly.loss.visreg_loss")
    x, raw = drawn(10, 6).requires_grad_(), drawn(6, 32, seed=3)
    ways = raw / raw.norm(dim=0)
    monkeypatch.setattr(torch, "randn", lambda *shape, **more: raw.clone())
    theirs = (
        lejepa.SIGReg(num_vectors=32)(x),
        module.visreg_center_loss(x) + module.visreg_scale_loss(x) + module.visreg_shape_loss(x, 32),
    )
    for found, expected in zip((sigreg(x, ways), visreg(x, ways)), theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        (one,), (other,) = torch.autograd.grad(found, x), torch.autograd.grad(expected, x)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_sums_are_not_rounded_in_low_precision():
    x, y, ways = drawn(16, 8), drawn(16, 8, seed=1), along(8, 16)
    cases = [
        lambda: sigreg(x, ways),
        lambda: visreg(x, ways),
        lambda: barlow_of(x, y),
        lambda: vicreg_of(x, y),
        lambda: simdino.coding_rate(x, 0.5),
        lambda: wmse.whitened(x, 16, 0.0).sum(),
    ]
    for case in cases:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = case()
        assert torch.equal(rounded, case())
