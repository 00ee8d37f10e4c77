"""Contrastive losses against slow loops, lightly's own, and the values that formulas promise.

Queues and banks against lists.
"""

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from d2v.objectives.common.contrastive import (
    against_queue,
    cosines,
    describe,
    info_nce,
    nce,
    unit,
    with_gradient_now,
    within_batch,
)
from d2v.objectives.common.queues import MemoryBank, Queue

GRID = [(batch, size, temperature) for batch in (1, 2, 5) for size in (1, 7) for temperature in (0.07, 0.5, 1.0)]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def slow_info_nce(query: list[Tensor], candidates: list[list[Tensor]], temperature: float) -> Tensor:
    """The definition, in double precision; the positive is a query's first candidate."""
    total = torch.zeros((), dtype=torch.float64)
    for q, others in zip(query, candidates, strict=True):
        scores = [(q.double() * other.double()).sum() / temperature for other in others]
        total = total - (scores[0].exp() / sum(score.exp() for score in scores)).log()
    return total


def assert_equal_with_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "size", "temperature"), GRID)
def test_info_nce_against_a_queue_is_the_slow_loop(batch, size, temperature):
    query, key, queue = rows(batch, 4).requires_grad_(), rows(batch, 4, seed=1).requires_grad_(), rows(size, 4, seed=2)
    similarity, labels = against_queue(query, key, queue)
    assert similarity.shape == (batch, 1 + size)
    slow = slow_info_nce(list(query), [[key[i], *queue] for i in range(batch)], temperature)
    assert_equal_with_gradients(info_nce(similarity, labels, temperature), slow, query, key)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("batch", [2, 3, 6])
def test_nt_xent_is_the_slow_loop_and_the_sum_of_its_parts(batch, temperature):
    first, second = rows(batch, 4).requires_grad_(), rows(batch, 4, seed=1).requires_grad_()
    views, candidates = [*first, *second], []
    for i in range(2 * batch):
        partner = (i + batch) % (2 * batch)
        candidates.append([views[partner], *(views[j] for j in range(2 * batch) if j not in (i, partner))])
    slow = slow_info_nce(views, candidates, temperature)
    whole = info_nce(*within_batch(first, second, torch.arange(batch)), temperature)
    assert_equal_with_gradients(whole, slow, first, second)
    parts = [info_nce(*within_batch(first, second, torch.arange(rank, batch, 2)), temperature) for rank in range(2)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("num_samples", [3, 50])
@pytest.mark.parametrize("noise", [1, 8])
def test_nce_is_the_published_formula(num_samples, noise):
    similarity, temperature, z = (3 * rows(4, 1 + noise)).requires_grad_(), 0.5, 20.0
    p, share, epsilon = (similarity.double() / temperature).exp() / z, noise / num_samples, 1e-7
    slow = -sum(
        (row[0] / (row[0] + share + epsilon)).log()
        + sum((share / (other + share + epsilon)).log() for other in row[1:])
        for row in p
    )
    assert_equal_with_gradients(nce(similarity / temperature - math.log(z), num_samples), slow, similarity)
    assert nce(torch.full((1, 3), 200.0), num_samples).isfinite()  # where exp overflows


def test_products_of_either_form_are_the_slow_ones_also_in_low_precision():
    x, y = rows(3, 8), rows(3, 5, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        own, common = cosines(x, y), cosines(x, y[0])
    for i in range(3):
        for j in range(5):
            torch.testing.assert_close(own[i, j], (x[i] * y[i, j]).sum())
            torch.testing.assert_close(common[i, j], (x[i] * y[0, j]).sum())


# Random unit rows of width 128: the logits are N(0, 1 / (d T^2)), hence ln(e^(s/T) + M e^(1 / 2dT^2)) - s/T
# with the positive's cosine s.
FRESH_QUEUE = [
    (0.07, 1.0, 0.09), (0.07, 0.9, 0.32), (0.07, 0.5, 4.75), (0.07, 0.0, 11.9),
    (0.2, 1.0, 6.19), (0.2, 0.9, 6.69), (0.2, 0.5, 8.69), (0.2, 0.0, 11.19),
]  # fmt: skip


@pytest.fixture(scope="module")
def queue() -> Queue:
    torch.manual_seed(3)  # not that of `rows`
    return Queue(65536, 128)


@pytest.mark.parametrize(("temperature", "cosine", "expected"), FRESH_QUEUE)
def test_the_loss_starts_low_with_a_fresh_queue(temperature, cosine, expected, queue):
    query, noise = rows(16, 128), rows(16, 128, seed=1)
    key = cosine * query + (1 - cosine**2) ** 0.5 * unit(noise - (noise * query).sum(dim=1, keepdim=True) * query)
    loss = info_nce(*against_queue(query, key, queue.rows), temperature) / 16
    assert float(loss) == pytest.approx(expected, abs=0.05)


def test_a_gradient_taken_now_keeps_nothing_that_may_change():
    query, candidates = rows(4, 8).requires_grad_(), rows(6, 8, seed=1)
    weight = torch.linspace(0.5, 2, 8)

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        similarity = x @ candidates.T
        return similarity.exp().sum(), similarity

    (expected,) = torch.autograd.grad(3 * loss(query * weight)[0], query)
    total, similarity = with_gradient_now(loss, query * weight)
    assert not similarity.requires_grad and torch.equal(similarity, (query * weight) @ candidates.T)
    assert float(total.detach()) == float(similarity.exp().sum())
    candidates.zero_()
    (3 * total).backward()
    torch.testing.assert_close(query.grad, expected)
    candidates.normal_()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total, _ = with_gradient_now(lambda x: (cosines(x, candidates).exp().sum(),) * 2, query)
        gradients += torch.autograd.grad(total, query)
    assert torch.equal(*gradients)
    candidates.zero_()
    with torch.no_grad():
        assert float(with_gradient_now(loss, query)[0]) == 24 and not with_gradient_now(loss, query)[0].requires_grad


@pytest.mark.parametrize("size", [4096, 65536])
def test_collapsed_it_is_the_log_of_the_candidates(size):
    same = unit(torch.ones(4, 8))
    similarity, labels = against_queue(same, same, same[:1].expand(size, -1))
    assert float(info_nce(similarity, labels, 0.2) / 4) == pytest.approx(math.log(size + 1), rel=1e-5)
    metrics = describe(similarity, labels, same, same)
    assert (
        metrics["accuracy"] == metrics["alignment"] == metrics["uniformity"] == metrics["prediction_spread"] == 0
        and metrics["negatives"] == size
    )
    similarity, labels = within_batch(same, same, torch.arange(4))
    assert float(info_nce(similarity, labels, 0.2) / 8) == pytest.approx(math.log(7), rel=1e-5)
    assert (
        describe(similarity, labels, same, same)["negatives"] == 6
        and describe(similarity, labels, same, same)["accuracy"] == 0
    )


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 6.64), (0.5, 6.26)])
def test_nt_xent_of_incoherent_views(temperature, expected):
    loss = info_nce(*within_batch(rows(256, 128), rows(256, 128, seed=1), torch.arange(256)), temperature) / 512
    assert float(loss) == pytest.approx(expected, abs=0.06)


def test_what_is_shown():
    query, key = rows(6, 4), rows(6, 4, seed=1)
    key[:3] = query[:3]
    similarity, labels = against_queue(query, key, rows(20, 4, seed=2))
    right = sum(all(similarity[i, 0] > similarity[i, j] for j in range(1, 21)) for i in range(6)) / 6
    metrics = describe(similarity, labels, query, key)
    assert 0.5 <= right < 1 and float(metrics["accuracy"]) == pytest.approx(right) and metrics["negatives"] == 20
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
    assert metrics["alignment"] == pytest.approx(float((query - key).square().sum(dim=1).mean()), rel=1e-5)
    again = torch.zeros_like(similarity, dtype=torch.bool)
    again[:, 4:] = True
    few = describe(similarity, labels, query, key, again)
    assert few["negatives"] == 3 and few["accuracy"] > metrics["accuracy"]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly_finds_the_same(temperature):
    loss = pytest.importorskip("lightly.loss")
    first, second = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    ours = info_nce(*within_batch(unit(first), unit(second), torch.arange(6)), temperature) / 12
    assert_equal_with_gradients(ours, loss.NTXentLoss(temperature)(first, second).double(), first, second)
    with_bank, queue = loss.NTXentLoss(temperature, memory_bank_size=(12, 8)), Queue(12, 8)
    with_bank.memory_bank.bank.copy_(queue.rows)
    for step in range(5):  # past the end of the queue
        query, key = (
            torch.randn(6, 8, requires_grad=True),
            unit(torch.randn(6, 8, generator=torch.Generator().manual_seed(step))),
        )
        ours = info_nce(*against_queue(unit(query), key, queue.rows.clone()), temperature) / 6
        queue.push(key)
        assert_equal_with_gradients(ours, with_bank(query, key).double(), query)
    torch.testing.assert_close(queue.rows, with_bank.memory_bank.bank)


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_a_queue_is_a_deque(count):
    """Its oldest row is at `position`; 5 does not divide 8: a push may go round the end."""
    queue = Queue(8, 4)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(8))
    expected = deque(queue.rows.clone(), maxlen=8)
    for step in range(7):
        keys = rows(count, 4, seed=step)
        queue.push(keys)
        expected.extend(keys)
        found = queue.rows.roll(-int(queue.position), 0)
        assert torch.equal(found, torch.stack(list(expected)))


def test_keys_that_are_not_finite_leave_the_old_ones():
    queue, bank, bad = Queue(8, 4), MemoryBank(8, 4, 0.5), rows(4, 4)
    bad[1, 2] = math.nan
    before, remembered = queue.rows.clone(), bank.rows.clone()
    queue.push(bad)
    bank.update(torch.arange(4), bad)
    assert torch.equal(queue.rows[1], before[1]) and torch.equal(queue.rows[2], bad[2]) and int(queue.position) == 4
    assert (
        torch.equal(bank.rows[1], remembered[1])
        and bank.rows.isfinite().all()
        and not torch.equal(bank.rows[2], remembered[2])
    )


def test_a_bank_moves_only_the_rows_it_was_given():
    bank = MemoryBank(1000, 12, 0.75)
    assert bank.rows.abs().max() <= 0.5 and float(bank.rows.norm(dim=1).square().mean()) == pytest.approx(1, abs=0.05)
    before, indices, embeddings = bank.rows.clone(), torch.tensor([7, 0, 999]), rows(3, 12)
    bank.update(indices, embeddings)
    for number in range(1000):
        expected = before[number]
        if number in (7, 0, 999):
            moved = 0.75 * before[number] + 0.25 * embeddings[indices.tolist().index(number)]
            expected = moved / moved.norm()
        torch.testing.assert_close(bank.rows[number], expected)


def test_queue_and_bank_come_back_from_a_state_dict():
    for one, other in ((Queue(8, 4), Queue(8, 4)), (MemoryBank(8, 4, 0.5), MemoryBank(8, 4, 0.5))):
        if isinstance(one, Queue):
            one.push(rows(4, 4))
        other.load_state_dict(one.state_dict())
        assert one.state_dict().keys() and all(
            torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
        )
