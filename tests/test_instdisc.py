"""Instance discrimination against a slow step."""

import copy

import pytest
import torch
from contrasting import BATCH, SAMPLES, STEPS, batch, encoder, objective, one_step

from d2v.objectives import instdisc
from d2v.objectives.common.contrastive import unit
from d2v.objectives.common.multi_view import embedding, generator_of_step


@pytest.mark.parametrize("name", ["instdisc", "instdisc_sampled_softmax", "instdisc_softmax"])
def test_instdisc_is_the_slow_step(name):
    model = objective(name)
    config = model.config
    z = 0.0
    for step in range(3):
        model.begin_step(step, STEPS)
        view, bank = batch(step)[0], model.bank.rows.clone()
        twin = copy.deepcopy(model.student)
        features = unit(embedding(twin, view))
        drawn = torch.randint(
            SAMPLES, (BATCH, config.negatives), generator=generator_of_step(step, bank.device)
        ).tolist()
        everyone = list(range(SAMPLES))
        scores = []
        for i, own in enumerate(view.indices.tolist()):
            candidates = [own, *drawn[i]] if config.negatives else [own, *everyone[:own], *everyone[own + 1 :]]
            scores.append(torch.stack([features[i] @ bank[j] / config.temperature for j in candidates]))
        if config.loss == "nce":
            z = z or float(torch.stack(scores).detach().exp().mean()) * SAMPLES
            p, share = torch.stack(scores).double().exp() / z, config.negatives / SAMPLES
            slow = -(p[:, 0] / (p[:, 0] + share + 1e-7)).log().sum() - (share / (p[:, 1:] + share + 1e-7)).log().sum()
        else:
            slow = -sum(row.log_softmax(dim=0)[0] for row in scores)
        wanted = torch.autograd.grad(slow, twin["projector"][0].weight)[0] / BATCH
        _, gradients, loss = one_step(model, step)
        assert float(loss.total.detach()) == pytest.approx(float(slow.detach()), rel=1e-4) and float(
            model.normaliser
        ) == pytest.approx(z, rel=1e-5)
        torch.testing.assert_close(gradients["student.projector.0.weight"], wanted, rtol=1e-3, atol=1e-5)
        for i, own in enumerate(view.indices.tolist()):
            torch.testing.assert_close(
                model.bank.rows[own], unit((bank[own] + features[i].detach())[None] / 2)[0], rtol=1e-4, atol=1e-5
            )
        rest = [number for number in everyone if number not in view.indices.tolist()]
        assert torch.equal(model.bank.rows[rest], bank[rest])
        counted = [len([j for j in row if j != own]) for row, own in zip(drawn, view.indices.tolist(), strict=True)]
        assert float(loss.metrics["negatives"]) == pytest.approx(
            sum(counted) / BATCH if config.negatives else SAMPLES - 1
        )


def test_instdisc_says_what_it_misses():
    with pytest.raises(ValueError, match=r"objective.num_samples is 0.*number of usable samples"):
        instdisc.build(encoder(), instdisc.Config())
    model, (view, _) = objective("instdisc"), batch(0)
    with pytest.raises(ValueError, match="do not number them"):
        model.check([view._replace(indices=None)])
    with pytest.raises(ValueError, match="num_samples is 20, but a sample's number is 20"):
        model.check([view._replace(indices=torch.arange(13, 21))])
    model.check([view])
