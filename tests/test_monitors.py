"""Monitors against slow oracles and known matrices; the verdict on histories of every kind."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as distributed

from d2v.objectives.common.regression import channel_std, spread_of
from d2v.training.collapse import (
    alignment,
    effective_rank,
    health,
    knn_leave_one_out,
    knn_votes,
    normalised_std,
    rankme,
    singular_values,
    uniformity,
)
from d2v.training.verdict import Verdict, better, judge


def features_of_rank(rank: int, n: int = 200, dim: int = 32) -> torch.Tensor:
    """Centred (n, dim) features with `rank` equal singular values."""
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1), torch.randn(n, rank)], dim=1)).Q[
        :, 1:
    ]  # orthogonal to the constant
    return basis @ torch.linalg.qr(torch.randn(dim, rank)).Q.T * 5


def slow_channel_std(x: torch.Tensor) -> float:
    stds = []
    for d in range(x.shape[1]):
        column = [float(v) for v in x[:, d]]
        mean = sum(column) / len(column)
        stds.append(math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1) + 1e-6))
    return sum(stds) / len(stds)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_channel_std_is_the_loop(scale, shift):
    x = torch.randn(50, 7) * scale + shift
    assert channel_std(x).item() == pytest.approx(slow_channel_std(x), rel=1e-3)


def test_channel_std_of_bfloat16_is_computed_in_float32_and_carries_no_gradient():
    x = torch.randn(50, 7, requires_grad=True)
    half = x.bfloat16()
    assert channel_std(half).dtype == torch.float32 and not channel_std(half).requires_grad
    assert channel_std(half).item() == pytest.approx(slow_channel_std(half.detach().float()), rel=1e-5)


def test_the_spread_of_directions_is_normalised_std():
    x = torch.randn(50, 8) + 1
    assert spread_of(x).item() == pytest.approx(normalised_std(x).item(), rel=1e-6)
    assert spread_of(x[:1]) == spread_of(x[:1].repeat(4, 1)) == 0 and not spread_of(x.requires_grad_()).requires_grad


def test_channel_std_of_one_row_is_unknown():
    assert channel_std(torch.randn(1, 4)).isnan()


def two_ranks(folder: str, x: torch.Tensor) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    Path(folder, f"{rank}.txt").write_text(str(tiny.known(channel_std(x[:5] if rank == 0 else x[5:])).item()))
    distributed.destroy_process_group()


def test_channel_std_of_two_ranks_with_unequal_rows_is_that_of_one(tmp_path):
    x = torch.randn(40, 6) + torch.arange(40).unsqueeze(1)  # the ranks' means differ
    assert tiny.wait(tiny.start(two_ranks, str(tmp_path), x, world=2)) == [0, 0]
    values = [float((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    assert values[0] == values[1] == pytest.approx(channel_std(x).item(), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_effective_rank_of_equal_singular_values(rank):
    assert effective_rank(features_of_rank(rank) + 100) == pytest.approx(
        rank, rel=1e-3
    )  # the common mean does not count


def test_effective_rank_by_its_definition():
    x = torch.randn(30, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    sigma = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)
    p = [s / sigma.sum() for s in sigma]
    assert effective_rank(x) == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)), rel=1e-5)


def test_constant_features_have_rank_zero_although_rounding_varies():
    row = torch.randn(1, 32)
    assert effective_rank(row.repeat(100, 1)) == 0
    assert effective_rank(row * (1 + 1e-7 * torch.randn(100, 32))) == 0
    assert normalised_std(row.repeat(100, 1)) == pytest.approx(0, abs=1e-6)


def test_rankme_of_an_exactly_rank_4_matrix():
    x = features_of_rank(4, n=256, dim=64)
    assert rankme(x) == pytest.approx(4.0, abs=0.01)
    assert rankme(x + 100) < 1.5  # not centred: the mean is a direction


def test_singular_values_are_those_of_the_covariance():
    x = torch.randn(100, 6) * torch.arange(1, 7) + 3
    expected = np.linalg.svd(np.cov(x.numpy().T, ddof=0), compute_uv=False)
    np.testing.assert_allclose(singular_values(x).numpy(), expected, rtol=1e-5)


def test_isotropic_features_have_std_one_alignment_zero_and_known_uniformity():
    x = torch.nn.functional.normalize(torch.randn(1500, 128), dim=1)
    assert normalised_std(5 * x) == pytest.approx(1.0, abs=0.01)
    assert alignment(x, x).item() == 0
    assert alignment(x, -x).item() == pytest.approx(4.0)  # squared distance of opposite points
    assert uniformity(x).item() == pytest.approx(-4 + 8 / 128, abs=0.01)
    assert uniformity(x[:1].repeat(20, 1)).item() == pytest.approx(0, abs=1e-5)


def test_health_names():
    metrics = health({"student": features_of_rank(4), "local": features_of_rank(2)})
    assert set(metrics) == {"student_rank", "student_std", "local_rank", "local_std", "health_samples"}
    assert (metrics["student_rank"], metrics["health_samples"]) == (pytest.approx(4, rel=1e-3), 200)


def slow_knn(features, labels, groups, k, temperature) -> float:
    """Leave-group-out, one query and one neighbour at a time."""
    x = [[float(v) for v in row / np.linalg.norm(row)] for row in features]
    right = 0
    for q in range(len(x)):
        cosines = [
            (sum(a * b for a, b in zip(x[q], x[i], strict=True)), labels[i])
            for i in range(len(x))
            if groups[i] != groups[q]
        ]
        scores = {}
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            scores[label] = scores.get(label, 0) + math.exp(cosine / temperature)
        right += max(scores, key=scores.get) == labels[q]
    return right / len(x)


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("grouped", [False, True])
def test_knn_is_the_loop(k, grouped):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    features = generator.normal(size=(60, 8)) + 1.0 * np.eye(8)[labels]
    groups = generator.integers(0, 4, 60) if grouped else np.arange(60)
    got = knn_leave_one_out(
        torch.tensor(features), torch.tensor(labels), k, 0.1, torch.tensor(groups) if grouped else None, centre=False
    )
    assert got == pytest.approx(slow_knn(features, labels, groups, k, 0.1))
    assert 0.4 < got < 1


def test_knn_finds_neighbours_behind_a_common_mean():
    labels = torch.arange(100) % 2
    x = torch.randn(100, 4) * 0.1 + labels.unsqueeze(1) + 1e4
    assert knn_leave_one_out(x, labels, k=5) == 1.0


def test_knn_within_one_group_is_refused():
    with pytest.raises(ValueError, match="one group"):
        knn_leave_one_out(torch.randn(9, 4), torch.arange(9) % 2, groups=torch.zeros(9))


def test_votes_do_not_depend_on_how_queries_are_cut():
    bank, queries, labels = torch.randn(30, 4), torch.randn(1100, 4), torch.arange(30) % 3
    votes = knn_votes(queries, bank, labels, 5, 0.1)
    np.testing.assert_allclose(votes[1090:], knn_votes(queries[1090:], bank, labels, 5, 0.1), rtol=1e-4)


# The verdict


def run(*, ranks, knns=None, steps=1000, **metrics) -> list[dict]:
    """A history: health checks evenly over the run (the first at step 0), a training record at each of 20 steps.

    A metric is a number, or (first, last): it moves linearly for half of the run and stays.
    """
    history = []
    for i, rank in enumerate(ranks):
        record = {
            "step": round(i * steps / (len(ranks) - 1)),
            "student_rank": rank,
            "health_samples": 500,
            "total_steps": steps,
        }
        history.append(record | ({"student_knn": knns[i]} if knns else {}))
    defaults = {
        "loss": 2.0,
        "target_std": 0.7,
        "prediction_std": 0.5,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "ema_decay": 0.999,
        "hidden_share": 0.5,
    }
    for i in range(1, 21):
        record = {"step": i * steps // 20, "total_steps": steps}
        for name, value in (defaults | metrics).items():
            first, last = value if isinstance(value, tuple) else (value, value)
            record[name] = first + (last - first) * min(1, (i - 1) / 9)
        history.append(record)
    return sorted(history, key=lambda r: r["step"])


HEALTHY = {
    "the measured good speech run": run(
        ranks=[9.8, 10, 12, 14.2], knns=[0.463, 0.594, 0.60, 0.622], loss=(1.95, 2.4), target_std=(0.5, 0.72)
    ),
    "a loss that rises with its targets": run(
        ranks=[10, 9, 11], knns=[0.27, 0.39, 0.41], loss=(0.4, 1.6), target_std=(0.5, 1.0)
    ),
    "fewer dimensions that hold more": run(ranks=[20, 12, 9, 7], knns=[0.27, 0.33, 0.38, 0.41]),
    "a fast teacher that did no harm": run(ranks=[20, 22, 25], knns=[0.27, 0.35, 0.41], ema_decay=(0.97, 0.999)),
    "no labels, rank holds": run(ranks=[10, 8, 9, 8.5]),
    "small targets that were small from the start": run(ranks=[10, 11, 12], target_std=(0.04, 0.09)),
    "k-NN within the noise of the random init": run(ranks=[10, 11, 12], knns=[0.46, 0.45, 0.45]),
}
COLLAPSING = {
    "content goes though stds look well": (
        run(ranks=[10, 9, 9], knns=[0.463, 0.40, 0.242], ema_decay=(0.95, 0.995)),
        "ema_decay",
    ),
    "rank falls below half": (run(ranks=[10, 6, 4], knns=[0.46, 0.46, 0.45], ema_decay=(0.9, 0.9)), "ema_decay"),
    "rank falls, no labels, targets shrink": (run(ranks=[10, 6, 4], target_std=(0.9, 0.2)), "objective.layer_norms"),
    "rank falls, gradients spike": (
        [*run(ranks=[10, 6, 4], grad_norm=0.1), {"step": 1000, "grad_norm": 90.0}],
        "train.lr",
    ),
    "hardly anything hidden": (run(ranks=[10, 6, 4], hidden_share=0.05), "hide more"),
    "what was learnt is lost again": (run(ranks=[10, 12, 11, 10], knns=[0.40, 0.60, 0.55, 0.44]), "train.lr"),
    "the loss blows up": (run(ranks=[10, 9, 8], loss=(1.0, 9.0)), "train.lr"),
}
COLLAPSED = {
    "one direction left": (run(ranks=[10, 3, 1.2], knns=[0.46, 0.3, 0.12]), ""),
    "a tenth of the rank left, no labels": (run(ranks=[40, 20, 4]), ""),
    "constant targets": (run(ranks=[10, 3, 2], target_std=(0.9, 0.02)), "objective.layer_norms"),
    "constant targets before any health check": (
        run(ranks=[10, 3], target_std=(0.9, 0.02))[:-1],
        "objective.layer_norms",
    ),
    "constant predictions": (run(ranks=[10, 9, 8], prediction_std=(0.3, 0.001)), ""),
    "nan": ([*run(ranks=[10, 9, 8]), {"step": 1001, "loss": math.nan}], "train.lr"),
    "inf within the warm-up": ([{"step": 1, "loss": math.inf, "lr": 0.1, "total_steps": 100}], "train.lr"),
}
JOINT = {"target_std": 0.7, "prediction_std": 0.5}  # such methods have none; here they look well
COMPLETE = {
    "embeddings of all samples alike": run(
        ranks=[10, 9, 8], prediction_spread=(0.9, 0.01), target_spread=(0.9, 0.02), **JOINT
    ),
    "targets of all samples alike": run(ranks=[10, 9, 8], target_spread=(0.9, 0.02), **JOINT),
    "one prototype for all": run(ranks=[10, 9, 8], prototype_perplexity=(40.0, 1.01), prediction_spread=0.8, **JOINT),
    "one code for all": run(ranks=[10, 9, 8], target_perplexity=(40.0, 1.01), **JOINT),
    "features on a line": run(ranks=[10, 3, 1.2], prediction_spread=0.8, **JOINT),
}
EARLY = {
    "nothing yet": [],
    "the random init only": [{"step": 0, "student_rank": 10.0, "total_steps": 100}],
    "warm-up, though it looks bad": [
        r for r in run(ranks=[10, 1, 1], steps=1000, prediction_std=0.0) if r["step"] < 100
    ],
    "one check": run(ranks=[10, 1])[:-2],
    "two samples, whose rank is 1 whatever they are": [{**r, "health_samples": 2} for r in run(ranks=[1, 1, 1])],
    "no random init": run(ranks=[10, 9, 8, 8])[1:],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name):
    verdict = judge(HEALTHY[name])
    assert verdict.state == "healthy", verdict
    assert "effective rank" in verdict.reason and not verdict.advice


@pytest.mark.parametrize(
    ("state", "name"), [("collapsing", n) for n in COLLAPSING] + [("collapsed", n) for n in COLLAPSED]
)
def test_unhealthy_with_advice(state, name):
    history, advice = (COLLAPSING if state == "collapsing" else COLLAPSED)[name]
    verdict = judge(history)
    assert verdict.state == state, verdict
    assert verdict.advice and advice in verdict.advice, verdict
    assert any(c.isdigit() for c in verdict.reason) or "nan" in verdict.reason


def test_advice_names_the_peak_rate_also_where_only_the_end_was_logged():
    history = [{**record, "lr": 1e-5, "peak_lr": 2e-3} for record in run(ranks=[10, 3, 1.2])]
    assert "its peak was 2.0e-03" in judge(history).advice


def test_data_without_differences_is_no_matter_of_rates():
    verdict = judge(run(ranks=[0.0, 0.0, 0.0]))
    assert verdict.state == "collapsed" and verdict.advice.startswith("look at the data"), verdict


def test_one_sample_has_no_spread():
    found = health({"student": torch.randn(1, 8)})
    assert found["student_std"] == 0.0 and found["student_rank"] == 0.0 and found["health_samples"] == 1


@pytest.mark.parametrize("name", COMPLETE)
def test_complete_collapse_is_named(name):
    verdict = judge(COMPLETE[name])
    assert verdict.state == "collapsed" and verdict.reason.startswith("complete collapse") and verdict.advice, verdict


def test_dimensional_collapse_is_told_from_complete_collapse():
    """Directions are spread, but in few dimensions."""
    verdict = judge(run(ranks=[40, 10, 4], prediction_spread=0.8, target_spread=0.8))
    assert verdict.state == "collapsed" and verdict.reason.startswith(
        "dimensional collapse; student effective rank 4.0 vs 40.0"
    ), verdict


def test_embeddings_that_were_narrow_from_the_start_are_no_collapse():
    assert (
        judge(run(ranks=[10, 9, 8], prediction_spread=0.03, target_spread=(0.03, 0.2), prototype_perplexity=30.0)).state
        == "healthy"
    )


@pytest.mark.parametrize("name", EARLY)
def test_too_early(name):
    verdict = judge(EARLY[name])
    assert verdict.state == "too early" and verdict.reason, verdict


def test_reason_names_the_numbers():
    verdict = judge(HEALTHY["the measured good speech run"])
    assert verdict == Verdict("healthy", "student k-NN 62.2 vs 46.3 at init; effective rank 14.2 vs 9.8 at init")


def test_a_drop_of_knn_counts_by_its_samples():
    history = partial(run, ranks=[10, 10, 10], knns=[0.46, 0.42, 0.40])
    few = [r | {"health_samples": 50} if "health_samples" in r else r for r in history()]
    many = [r | {"health_samples": 5000} if "health_samples" in r else r for r in history()]
    assert (judge(few).state, judge(many).state) == ("healthy", "collapsing")


@pytest.mark.parametrize(
    ("last", "knn", "state"), [(20, 0.46, "too early"), (20, 0.70, "healthy"), (200, 0.46, "healthy")]
)
def test_a_handful_of_steps_is_healthy_only_with_a_clear_gain(last: int, knn: float, state: str):
    records = [
        {"step": step, "loss": 1.0, "student_rank": 10.0, "student_knn": value, "total_steps": last}
        for step, value in ((0, 0.46), (last // 2, 0.46), (last, knn))
    ]
    assert judge(records).state == state


def measured(student: float | None, teacher: float | None, kind: str = "knn") -> dict:
    """A record of a health check."""
    return {"step": 1, f"student_{kind}": student, f"teacher_{kind}": teacher}


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([measured(0.5, 0.4)], "student"),
        ([measured(0.4, 0.5)], "teacher"),
        ([measured(0.4, 0.4)], "teacher"),
        ([measured(9.0, 3.0, "rank")], "student"),
        ([measured(9.0, 3.0, "rank") | measured(0.4, 0.5)], "teacher"),
        ([measured(0.4, 0.5), measured(0.6, 0.5)], "student"),
        ([measured(0.6, 0.5), {"step": 2, "loss": 1.0}], "student"),
        ([{"step": 0, "loss": 1.0}], "teacher"),
    ],
)
def test_the_better_of_student_and_teacher_is_by_the_last_check_of_both(records: list[dict], best: str):
    assert better(records) == best


@pytest.mark.parametrize(("last", "state"), [(0.44, "healthy"), (0.42, "collapsing")])
def test_a_run_whose_better_side_is_below_its_random_init_is_not_healthy(last: float, state: str):
    init = {"student_rank": 10.0, "student_knn": 0.46, "teacher_knn": 0.46, "health_samples": 500, "total_steps": 200}
    now = init | {"student_knn": last - 0.01, "teacher_knn": last}
    assert judge([init | {"step": 0}, now | {"step": 100}, now | {"step": 200}]).state == state


@pytest.mark.parametrize(("teacher", "state"), [(0.60, "healthy"), (0.46, "collapsing"), (0.20, "collapsing")])
def test_a_teacher_that_gained_makes_up_for_its_student_and_one_that_stands_still_does_not(teacher: float, state: str):
    records = [
        {
            "step": 0,
            "total_steps": 100,
            "student_rank": 10.0,
            "student_knn": 0.46,
            "teacher_knn": 0.46,
            "health_samples": 500,
        }
    ]
    records += [
        {"step": step, "student_rank": 9.0, "student_knn": 0.30, "teacher_knn": teacher, "health_samples": 500}
        for step in (50, 100)
    ]
    assert judge(records).state == state
