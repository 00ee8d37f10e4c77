"""MoCo and MoCHi against slow steps: the queue, keys in order, groups of batch norm, mixtures."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrasting import BATCH, QUEUE, STEPS, batch, encoder, objective, one_step
from torch import Tensor, nn

from d2v.objectives import mochi, moco
from d2v.objectives.common.contrastive import unit
from d2v.objectives.common.multi_view import embedding, generator_of_step
from d2v.types import View

# MoCo


def slow_moco(model: moco.MoCo, views: list[View]) -> tuple[Tensor, Tensor]:
    """The published order: queries, keys, logits with the queue as it was, then the queue.

    One direction after another.
    """
    config, queue = model.config, model.queue.rows.clone()
    queries = [F.normalize(embedding(model.student, view), dim=1) for view in views]
    with torch.no_grad():
        keys = [F.normalize(embedding(model.teacher, view), dim=1) for view in views]
    total = torch.tensor(0.0)
    for one, other in [(0, 1), (1, 0)] if config.symmetric else [(0, 1)]:
        for i in range(BATCH):
            logits = (
                torch.stack([queries[one][i] @ keys[other][i], *(queries[one][i] @ row for row in queue)])
                / config.temperature
            )
            total = total - logits.log_softmax(dim=0)[0]
    return total, torch.cat(keys if config.symmetric else keys[1:])


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_is_the_slow_step_and_the_queue_holds_the_last_keys(symmetric, hidden):
    torch.manual_seed(1)
    model = moco.build(
        encoder(), moco.Config(**{**QUEUE, "hidden_dim": hidden}, symmetric=symmetric, temperature=0.3)
    ).train()
    linear = [module for module in model.student["projector"] if isinstance(module, nn.Linear)]
    assert [tuple(module.weight.shape) for module in linear] == ([(8, 16)] if hidden == 0 else [(16, 16), (8, 16)])
    assert all(module.bias is not None for module in linear)
    pushed: list[Tensor] = []
    for step in range(5):  # past the queue's end
        views = batch(step)
        expected, keys = slow_moco(model, views)
        wanted = torch.autograd.grad(expected, linear[0].weight)[0]
        _, gradients, loss = one_step(model, step)
        torch.testing.assert_close(loss.total.detach(), expected.detach())
        torch.testing.assert_close(gradients["student.projector.0.weight"], wanted / BATCH, rtol=1e-4, atol=1e-6)
        pushed.append(keys)
        recent = torch.cat(pushed)[-32:]
        torch.testing.assert_close(model.queue.rows.roll(-int(model.queue.position), 0)[-len(recent) :], recent)
        assert float(loss.metrics["negatives"]) == 32


def test_collapsed_moco_is_the_log_of_its_candidates():
    """Once constant keys have filled the queue."""
    model = objective("moco")
    with torch.no_grad():
        for side in (model.student, model.teacher):
            side["projector"][-1].weight.zero_()
    for step in range(4):
        model(batch(step))
    loss = model(batch(4))
    assert float(loss.total.detach() / loss.count) == pytest.approx(math.log(33), rel=1e-5)


def test_keys_come_back_in_the_order_of_the_batch():
    """In evaluation every key is its sample's own, whoever stood beside it.

    In training the groups are drawn anew at every step.
    """
    model, view = objective("moco_v1_grouped"), batch(0)[1]
    plain = unit(embedding(model.teacher.eval(), view))
    for step in range(3):
        order = moco.shuffled(view, generator_of_step(step, plain.device))[1]
        assert sorted(order.tolist()) == list(range(BATCH)) and not torch.equal(order, torch.arange(BATCH))
        torch.testing.assert_close(model.keys(view, generator_of_step(step, plain.device)), plain)
    model.train()
    keys = [model.keys(view, generator_of_step(step, plain.device)) for step in (0, 0, 1)]
    assert torch.equal(keys[0], keys[1]) and not torch.allclose(keys[0], keys[2])


def test_groups_of_batch_norm_are_gpus_of_their_own():
    """Four groups of the shuffled keys, one after another, with ordinary batch norm."""
    model, view = objective("moco_v1_grouped"), batch(0)[1]
    found = model.keys(view, generator_of_step(3, torch.device("cpu")))
    plain = moco.build(encoder(True), moco.Config(**{**QUEUE, "hidden_dim": 0})).train()
    plain.load_state_dict(objective("moco_v1_grouped").state_dict())
    order = moco.shuffled(view, generator_of_step(3, torch.device("cpu")))[1]
    for group in range(4):
        rows = order[group::4]
        part = View("image", {"pixel_values": view.inputs["pixel_values"][rows]})
        torch.testing.assert_close(found[rows], unit(embedding(plain.teacher, part)))


# MoCHi


def slow_mix(model: mochi.MoCHi, query: Tensor, queue: Tensor, generator: torch.Generator) -> Tensor:
    """One negative after another, with the same draws."""
    config, size = model.config, (BATCH, model.config.mixed + model.config.mixed_with_query)
    first, second = (torch.randint(config.hardest, size, generator=generator) for _ in range(2))
    weight, made = torch.rand(size, generator=generator), torch.empty(*size, queue.shape[1])
    for i in range(BATCH):
        hardest = sorted(range(len(queue)), key=lambda row: -float(query[i] @ queue[row]))[: config.hardest]
        for j in range(size[1]):
            one = queue[hardest[first[i, j]]]
            if j < config.mixed:
                mixed = (1 - weight[i, j]) * one + weight[i, j] * queue[hardest[second[i, j]]]
            else:
                mixed = (1 - weight[i, j] / 2) * one + weight[i, j] / 2 * query[i]
            made[i, j] = mixed / mixed.norm()
    return made


def test_mochi_mixes_the_hardest_negatives_of_each_query():
    model = objective("mochi")
    query, queue = unit(torch.randn(BATCH, 8)), model.queue.rows.clone()
    key = unit(torch.randn(BATCH, 8))
    model.begin_step(2, STEPS)
    mixed = slow_mix(model, query, queue, generator_of_step(2, queue.device))
    expected, query = query.clone().requires_grad_(), query.clone().requires_grad_()
    slow = torch.cat(
        [(expected * key).sum(dim=1, keepdim=True), expected @ queue.T, (expected.unsqueeze(1) * mixed).sum(dim=2)],
        dim=1,
    )
    found, labels = model.compare(query, key, generator_of_step(2, queue.device))
    assert found.shape == (BATCH, 1 + 32 + 5 + 3) and not labels.any()
    torch.testing.assert_close(found, slow)
    wanted, got = (
        torch.autograd.grad(F.cross_entropy(x / 0.2, labels), leaf)[0] for x, leaf in ((slow, expected), (found, query))
    )
    torch.testing.assert_close(got, wanted)  # none through the mixtures
    assert (slow[:, 33 + 5 :] >= slow[:, 1:33].topk(6).values[:, -1:] - 1e-6).all(), (
        "the query's share makes a negative harder, not easier"
    )


def test_mochi_is_moco_before_its_first_step_and_remembers_no_mixture():
    mixing, plain = objective("mochi"), objective("moco")
    for step in range(4):
        found, expected = one_step(mixing, step), one_step(plain, step)
        assert (found[0] == expected[0]) == (step < 2)
        assert float(found[2].metrics["negatives"]) == (32 if step < 2 else 40)
        if step < 3:  # step 2's keys are of a teacher that has not seen a mixture
            assert torch.equal(mixing.queue.rows, plain.queue.rows)
    with pytest.raises(ValueError, match=r"start_step is 2; train.steps is 2: nothing would ever be mixed"):
        mixing.begin_step(0, 2)
