"""Barlow Twins, VICReg, LeJEPA, VISReg, SimDINO and W-MSE whole, and data2vec with a guard.

Against slow steps, over two processes, and what they refuse. tests/test_spread.py has the losses on rows.
"""

from itertools import combinations

import pytest
import torch
from test_spread import slow_barlow, slow_rate, slow_sigreg, slow_vicreg, slow_visreg, slow_whitened
from torch import Tensor
from torch.nn.functional import normalize
from two_views import BATCH, CASES, MODULES, assert_equal, by_two, objective, trained, views_of

from d2v.objectives.common.gaussian import directions
from d2v.objectives.common.multi_view import generator_of_step, summary


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes has."""
    return by_two(tmp_path_factory.mktemp("two"), trained, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, two):
    """Losses, gradients and all state of three steps, in float64, where they differ by no rounding."""
    one = trained(case)
    assert any(key.startswith("gradient.0.student.encoder") and value.abs().max() > 1e-3 for key, value in one.items())
    for found in two:
        assert {value.dtype for key, value in one.items() if "gradient" in key} == {torch.float64}
        assert_equal(found[case], one)


# The slow versions of whole objectives, from their modules applied by hand.


def rows_of(side, views: list, apart: bool) -> list[Tensor]:
    """Projections (B, P) of each view: one by one, or all of them through the projector at once."""
    features = [summary(side["encoder"], view) for view in views]
    if apart:
        return [side["projector"](x) for x in features]
    return list(side["projector"](torch.cat(features)).chunk(len(views)))


def slow(made, views: list) -> Tensor:
    """The loss of the whole batch, in float64 from the projections on."""
    config, name = made.config, made.config.name
    rows = [z.double() for z in rows_of(made.student, views, apart=name in ("barlow", "vicreg"))]
    if name == "barlow":
        return slow_barlow(*rows, config.redundancy)
    if name == "vicreg":
        return slow_vicreg(*rows)
    if name in ("lejepa", "visreg"):
        generator = generator_of_step(made.step, rows[0].device, made.seed)
        along = directions(config.out_dim, config.num_directions, generator).double()
        center = (rows[0] + rows[1]) / 2
        apart = sum((z - center).square().mean() for z in rows) / len(rows)
        spread = sum((slow_sigreg if name == "lejepa" else slow_visreg)(z, along) for z in rows) / len(rows)
        return (1 - config.weight) * apart + config.weight * spread
    if name == "wmse":
        return slow_wmse(made, rows)
    with torch.no_grad():
        targets = [normalize(z.double(), dim=1) for z in rows_of(made.teacher, views[:2], apart=False)]
    rows = [normalize(z, dim=1) for z in rows]
    cosines = [(targets[i] * rows[j]).sum() / BATCH for i in range(2) for j in range(len(rows)) if i != j]
    rate = sum(slow_rate((rows[i] + targets[i]) / 2, config.epsilon) for i in range(2)) / 2
    return -sum(cosines) / len(cosines) - config.rate_weight * rate


def slow_wmse(made, rows: list[Tensor]) -> Tensor:
    generator, terms = generator_of_step(made.step, rows[0].device, made.seed), []
    for _ in range(made.config.rounds):
        order = torch.randperm(BATCH, generator=generator)
        white = [slow_whitened(z[order], made.config.sub_batch, made.config.epsilon) for z in rows]
        for x, y in combinations(white, 2):
            unit = zip(normalize(x, dim=1), normalize(y, dim=1), strict=True)
            terms.append(sum((a - b).square().sum() for a, b in unit) / BATCH)
    return sum(terms) / len(terms)


WHOLE = [(case, "image") for case in CASES if not case.startswith("data2vec")]
WHOLE += [(name, modality) for name in MODULES if not name.startswith("data2vec") for modality in ("speech", "text")]


@pytest.mark.parametrize(("case", "modality"), WHOLE)
def test_an_objective_and_its_gradients_are_the_slow_ones(case, modality):
    fast, made, views = objective(case, modality), objective(case, modality), views_of(case, 0, modality=modality)
    for one in (fast, made):
        one.begin_step(2, 5)
    loss, expected = fast(views), slow(made, views)
    assert int(loss.count) == BATCH and loss.total.dtype == torch.float32
    assert all(value.ndim == 0 and value.isfinite() for value in loss.metrics.values())
    assert float(loss.total.detach()) / BATCH == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    (loss.total / loss.count).backward()
    expected.backward()
    others = dict(made.named_parameters())
    for key, parameter in fast.named_parameters():
        if parameter.requires_grad:
            scale = max(1.0, float(others[key].grad.abs().max()))
            torch.testing.assert_close(parameter.grad, others[key].grad, rtol=1e-3, atol=1e-4 * scale, msg=key)


# Draws, views and batches.


@pytest.mark.parametrize("case", ["lejepa", "visreg", "wmse", "data2vec_sigreg", "data2vec2_visreg"])
def test_draws_are_of_the_seed_and_the_step_alone(case):
    def loss(seed: int, step: int, before: int = 0) -> float:
        made = objective(case)
        made.seed = seed
        torch.manual_seed(before)
        made.begin_step(step, 5)
        return float(made(views_of(case, 0)).total.detach())

    assert loss(0, 1) == loss(0, 1, before=7)
    assert len({loss(seed, step) for seed in (0, 1) for step in (0, 1)}) == 4


@pytest.mark.parametrize("case", ["barlow", "vicreg"])
def test_a_third_view_is_an_error_where_nothing_reads_it(case):
    with pytest.raises(ValueError, match=rf"{case} compares 2 views of a sample; data.views and .* make 3"):
        objective(case)(views_of("visreg_local", 0))


@pytest.mark.parametrize("case", ["lejepa", "visreg"])
def test_views_that_are_to_be_global_must_be_there(case):
    made = objective(case, global_views=3)
    with pytest.raises(ValueError, match=r"objective.global_views is 3; data.views makes 2: name as many there"):
        made.check(views_of("visreg_local", 0))  # two whole ones, and local ones
    assert made(views_of("visreg_local", 0)[:2] + views_of(case, 1)[:1]).total.isfinite()


@pytest.mark.parametrize(
    ("case", "batch", "parts", "message"),
    [
        *[(case, 1, 1, r"train.batch_size is 1: at least two samples must be together") for case in list(CASES)[:8]],
        *[
            (case, 8, 2, r"train.accumulate is 2; \w+ compares the samples of a whole batch")
            for case in list(CASES)[:9]
        ],
        ("wmse", 2, 1, r"train.batch_size is 2; it must be a multiple of objective.sub_batch, 4, the samples that are"),
        ("wmse", 10, 1, r"train.batch_size is 10; it must be a multiple of objective.sub_batch, 4, the samples"),
        ("data2vec_sigreg", 1, 1, r"train.batch_size is 1; objective.guard=sigreg needs at least two samples"),
        ("data2vec2_visreg", 8, 4, r"train.accumulate is 4; objective.guard=visreg compares the samples of a whole"),
    ],
)
def test_batches_that_are_too_small_or_cut_are_refused(case, batch, parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        objective(case).check_batch(batch, parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("wmse", {"sub_batch": 100}, r"objective.sub_batch is 100; to whiten .* width 64 .* it must be at least 128"),
        ("lejepa", {"weight": 1.5}, r"objective.weight is 1.5; it must be at least 0 and at most 1"),
        ("visreg", {"num_directions": 0}, r"objective.num_directions is 0; it must be at least 1"),
        ("lejepa", {"global_views": 1}, r"objective.global_views is 1; it must be at least 2"),
        ("barlow", {"redundancy": -1.0}, r"objective.redundancy is -1.0; it must be 0 or more"),
        ("simdino", {"epsilon": 0.0}, r"objective.epsilon is 0.0; it must be a positive number"),
        ("data2vec", {"guard": "vicreg"}, r"objective.guard is 'vicreg'; it may be none, sigreg, visreg"),
        (
            "data2vec2",
            {"guard_weight": 0.5},
            r"objective.guard_weight is 0.5, which objective.guard=none does not read",
        ),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        MODULES[name].Config(**settings)


def test_a_batch_that_cannot_be_whitened_is_nan_which_the_loop_leaves_out_and_no_error():
    """Projections that are all alike, without epsilon."""
    made = objective("wmse", epsilon=0.0)
    torch.nn.init.zeros_(made.student["projector"][-1].weight)
    assert made(views_of("wmse", 0)).total.isnan()
    made = objective("wmse")
    torch.nn.init.zeros_(made.student["projector"][-1].weight)
    assert made(views_of("wmse", 0)).total.isfinite()
