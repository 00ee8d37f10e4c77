"""A guard of data2vec and data2vec2: its value, what it changes, and a run that collapses without it.

tests/test_two_views.py has it over processes.
"""

import json

import pytest
import torch
from test_collapse import NO_TARGET_NORM, RUN
from test_spread import slow_sigreg, slow_visreg
from torch import nn
from two_views import BATCH, MASKS, objective, views_of

from d2v.objectives.common import guard as guards
from d2v.objectives.common.gaussian import directions
from d2v.objectives.common.multi_view import generator_of_step
from scripts import pretrain

GUARDED = ["data2vec_sigreg", "data2vec_visreg", "data2vec2_visreg"]


@pytest.mark.parametrize("case", GUARDED)
def test_a_guard_adds_its_weight_times_the_mean_features_distance_from_a_gaussian(case, monkeypatch):
    monkeypatch.setattr(guards, "DIRECTIONS", 5)
    with_guard, without = objective(case), objective(case, guard="none", guard_weight=0.1)
    (view,) = views_of(case, 0)
    for made in (with_guard, without):
        made.begin_step(1, 5)
    features = without.student["encoder"](view, view.mask).x  # (N, K, D)
    masks = MASKS if view.mask.keep is not None else 1
    config = with_guard.config
    along = directions(features.shape[2], 5, generator_of_step(1, features.device)).double()
    expected = 0.0
    for m in range(masks):  # a row is a sample, its mean token
        rows = torch.stack([sum(features[b * masks + m]) / features.shape[1] for b in range(BATCH)]).double()
        expected += (slow_sigreg if config.guard == "sigreg" else slow_visreg)(rows, along) / masks
    loss, plain = with_guard([view]), without([view])
    assert torch.equal(loss.count, plain.count) and "guard" not in plain.metrics
    assert float(loss.metrics["guard"]) == pytest.approx(float(expected.detach()), rel=1e-4)
    total = plain.total + plain.count * config.guard_weight * expected
    torch.testing.assert_close(loss.total, total.float(), rtol=1e-4, atol=1e-4)
    total.backward()
    loss.total.backward()
    others = dict(without.named_parameters())
    for key, parameter in with_guard.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, others[key].grad, rtol=1e-3, atol=1e-3, msg=key)


def test_padded_tokens_do_not_count():
    x = torch.randn(4, 3, 2)  # of two samples, two masks each
    keep = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 1, 3], [0, 2, 3]])
    padding = torch.tensor([[False, False, False, True], [False, False, True, True]])
    first, second = guards.means_of_visible(x, keep, padding, 2)
    torch.testing.assert_close(first, torch.stack([x[0].mean(dim=0), x[2, :2].mean(dim=0)]))
    torch.testing.assert_close(second, torch.stack([x[1, :2].mean(dim=0), x[3, 0]]))


@pytest.mark.parametrize("guard", guards.GUARDS)
def test_what_predicts_itself_collapses_unless_it_is_guarded(guard, monkeypatch):
    """A network that shall predict its own output of another noise, which a constant does best."""
    monkeypatch.setattr(guards, "DIRECTIONS", 64)
    spread = {}
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        body = nn.Linear(8, 8)
        optimizer = torch.optim.Adam(body.parameters(), lr=0.02)
        for step in range(100):
            x = torch.randn(64, 8)
            a, b = body(x + 0.2 * torch.randn_like(x)), body(x + 0.2 * torch.randn_like(x))
            loss = (a - b).square().mean()
            if weight:
                loss = loss + weight * guards.guard(guard, [a], generator_of_step(step, x.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spread[weight] = float(body(torch.randn(256, 8)).std(dim=0).mean().detach())
    assert spread[0.0] < 0.05 and spread[0.1] > 0.3, spread


@pytest.mark.slow
def test_a_run_that_collapses_does_not_with_a_guard(tmp_path, capsys):
    """data2vec without norms of its targets and with a fast teacher, as tests/test_collapse.py has it.

    In batches of 64: of 16 rows VISReg's shape draws samples together (tests/test_spread.py).
    """
    found = {}
    for guard, weight in (("none", 0.1), ("sigreg", 0.01), ("visreg", 1.0)):
        more = [f"objective.guard={guard}", f"objective.guard_weight={weight}", f"run.dir={tmp_path / guard}"]
        pretrain.main([*RUN, *NO_TARGET_NORM, "train.batch_size=64", *more])
        (verdict,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict: ")]
        lines = [json.loads(line) for line in (tmp_path / guard / "metrics.jsonl").read_text().splitlines()]
        losses, checks = [one for one in lines if "loss" in one], [one for one in lines if "student_knn" in one]
        assert ("guard" in losses[-1]) == (guard != "none")
        found[guard] = (
            verdict.split(": ")[1],
            losses[-1]["prediction_std"],
            checks[-1]["student_knn"],
            checks[-1]["student_std"],
        )
    assert found["none"][0] == "collapsed" and found["none"][1] < 0.01, found
    for guard in guards.GUARDS:
        assert found[guard][0] == "healthy" and found[guard][1] > 0.1, found
        assert found[guard][2] > found["none"][2] + 0.05 and found[guard][3] > 10 * found["none"][3], found
