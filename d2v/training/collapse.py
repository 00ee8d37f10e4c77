"""Collapse and health: spread, effective rank and neighbours of features, and a verdict over a run's metrics; pure functions.

N rows (tokens or pooled samples), D width, C classes, Q queries, G samples of a bank.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.training.distributed import all_sum


def channel_std(x: Tensor, reduce: Callable[[Tensor], Tensor] = all_sum) -> Tensor:
    """Mean over channels of the standard deviation over the rows of all ranks: (N, D) -> (); nan for fewer than two rows.

    mean_d sqrt(var_d + 1e-6) with the unbiased variance. Two passes (the mean first, then squares around it), because the difference of
    sums of squares loses everything when the mean is large. `reduce` sums a tensor over ranks.
    """
    x = x.detach().float()
    count = reduce(torch.tensor(float(len(x)), device=x.device))
    mean = reduce(x.sum(dim=0)) / count  # (D,)
    squares = reduce((x - mean).square().sum(dim=0))  # (D,)
    return (squares / (count - 1) + 1e-6).sqrt().mean()


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the centred features' normalised singular values: (N, D) -> [1, min(N, D)]; 0 if no feature varies.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007. It depends on N / D: compare readings over the same samples only.
    """
    sigma = _centred_singular_values(features)  # (min(N, D),)
    if not sigma.any():
        return 0.0
    return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def rankme(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): the same entropy of features that are not centred, with 1e-7 added to each share. (N, D) -> [1, min(N, D)]."""
    sigma = torch.linalg.svdvals(features.detach().double())
    return float(torch.special.entr(sigma / sigma.sum() + 1e-7).sum().exp())


def singular_values(features: Tensor) -> Tensor:
    """Singular values of the features' covariance (over N), largest first: (N, D) -> (min(N, D),). A cliff in them is dimensional collapse."""
    return _centred_singular_values(features).square() / len(features)


def _centred_singular_values(features: Tensor) -> Tensor:
    features = features.detach().double()  # (N, D)
    sigma = torch.linalg.svdvals(features - features.mean(dim=0))
    # What a float32 network's rounding leaves of constant features would else read as full rank.
    return torch.where(sigma > torch.finfo(torch.float32).eps * features.norm(), sigma, 0.0)


def normalised_std(features: Tensor) -> Tensor:
    """Spread of the directions: mean_d std of L2-normalised rows, times sqrt(D). (N, D) -> () about 1 if isotropic, 0 if collapsed."""
    return F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance, to the power `alpha`, of positive pairs: two (N, D) of unit rows -> (). Wang and Isola, arXiv 2005.10242."""
    return (x - y).norm(dim=1).pow(alpha).mean()


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean Gaussian potential over all pairs of unit rows: (N, D) -> (); about -2t + 2t^2/D if uniform, 0 if collapsed."""
    return torch.pdist(x).square().mul(-t).exp().mean().log()


def health(features: dict[str, Tensor]) -> dict[str, float]:
    """Effective rank and normalised std of pooled features by name: {name: (N, D)} -> {name_rank, name_std, health_samples}."""
    metrics: dict[str, float] = {}
    for name, x in features.items():
        metrics[f"{name}_rank"], metrics[f"{name}_std"] = effective_rank(x), float(normalised_std(x))
        metrics["health_samples"] = len(x)  # the verdict's standard error needs it
    return metrics


def knn_votes(
    queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, *, same: Callable | None = None
) -> Tensor:
    """Scores of each class by weighted cosine k-NN: (Q, D), (G, D), (G,) integers from 0 -> (Q, C).

    The score of a class is the sum of exp(cosine / temperature) over those of the k nearest that have it (InstDisc, arXiv 1805.01978).
    `same(rows of queries)` -> (rows, G) bool marks what may not be a neighbour: the query itself, or samples of its speaker.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    one_hot = F.one_hot(labels.long()).float()  # (G, C)
    scores = []
    for rows in torch.arange(len(queries), device=queries.device).split(1024):  # bounds the similarity matrix
        similarity = queries[rows] @ bank.T  # (rows, G)
        if same is not None:
            similarity = similarity.masked_fill(
                same(rows), -math.inf
            )  # weight exp(-inf) = 0, should fewer than k be left
        top, nearest = similarity.topk(min(k, len(bank)), dim=1)  # (rows, k)
        scores.append(((top / temperature).exp().unsqueeze(2) * one_hot[nearest]).sum(dim=1))
    return torch.cat(scores)


def knn_leave_one_out(
    features: Tensor,
    labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    groups: Tensor | None = None,
    *,
    centre: bool = True,
) -> float:
    """Accuracy in [0, 1] of k-NN among the samples themselves, each without itself or, with `groups`, without its group.

    `features` (N, D), `labels` and `groups` (N,) integers. Centred by default: a large common mean brings every cosine near 1, which
    buries the neighbours but is no collapse. ValueError: all samples are of one group.
    """
    groups = torch.arange(len(features), device=features.device) if groups is None else groups.to(features.device)
    if len(groups) < 2 or bool((groups == groups[0]).all()):
        raise ValueError(
            f"k-NN has no neighbours: all {len(groups)} samples are of one group; give at least two groups"
        )
    labels = labels.to(features.device)
    features = features.float() - features.float().mean(dim=0) if centre else features
    votes = knn_votes(
        features, features, labels, k, temperature, same=lambda rows: groups[rows].unsqueeze(1) == groups
    )  # (N, C)
    return float((votes.argmax(dim=1) == labels).float().mean())


# The verdict. Loss, target std and prediction std do not show partial collapse: a loss falls while content goes, and rises in good runs as
# the teacher's features get richer. The deep block's effective rank and k-NN, against the same network at its random init, do.

EARLY = 0.1  # share of the steps before which nothing is judged but a loss that is not finite: warm-up
MIN_TARGET_STD, MIN_PREDICTION_STD = 0.1, 0.01  # fairseq's stop conditions
MIN_SPREAD, MIN_PERPLEXITY = (
    0.05,
    1.5,
)  # of embeddings, 1 where their directions are even; of prototypes, 1 where a single one is used
DEAD_RANK, LOST_RANK, LOW_RANK = 1.5, 0.15, 0.5  # effective rank: absolute; shares of the random init's
KNN_STEPS = 0.2  # share of the steps from which k-NN below the random init counts
PREDICTION_STEPS = 1 / 3  # ... and constant predictions: a hard target is first answered by its mean
FAST_EMA = 0.998  # a mean decay below it is suspect, once something is wrong


class Verdict(NamedTuple):
    """How a run stands, the numbers that say so, and what to change (empty where nothing is wrong)."""

    state: Literal["healthy", "collapsing", "collapsed", "too early"]
    reason: str
    advice: str = ""


def judge(history: list[dict]) -> Verdict:
    """Verdict over the records of metrics.jsonl, in order of steps.

    A record has "step" and some of loss, target_std, prediction_std, grad_norm, lr, ema_decay, hidden_share, total_steps; a health check
    adds student_rank and, with labels, student_knn (a share) and health_samples. The one at step 0 is the random init's.
    """
    if not history:
        return Verdict("too early", "no metrics yet")
    for record in history:
        if not math.isfinite(record.get("loss", 0.0)):
            return Verdict("collapsed", f"loss is {record['loss']} at step {record['step']}", _advice(history))
    step = history[-1]["step"]
    progress = step / max(1, (_values(history, "total_steps") or [step])[-1])
    if progress < EARLY:
        return Verdict("too early", f"step {step} is before {EARLY:.0%} of the run")
    init = next((r for r in history if r["step"] == 0 and "student_rank" in r), None)
    checks = [r for r in history if r["step"] > 0 and "student_rank" in r]
    gain = _knn_gain(init, checks[-1]) if init and checks else None
    learns = gain is not None and gain > 2
    if (dead := _dead_embeddings(history) or _dead_outputs(history, checks, init, progress)) and not learns:
        return Verdict("collapsed", dead, _advice(history))
    if init is None or len(checks) < 2:
        missing = (
            "no health check at step 0 to compare with"
            if init is None
            else f"{len(checks)} health checks after step 0; two are needed"
        )
        return Verdict("too early", missing)
    reason = _numbers(init, checks[-1])
    state = _state(init, checks, gain, progress)
    if state != "healthy" and not learns and checks[-1]["student_rank"] < LOW_RANK * init["student_rank"]:
        kind = (
            "complete collapse: features of all samples lie on one line"
            if checks[-1]["student_rank"] < DEAD_RANK
            else "dimensional collapse"
        )
        reason = f"{kind}; {reason}"
    if state == "healthy" and not learns and _relative_loss_ratio(history) > 2:
        state, reason = (
            "collapsing",
            f"loss is {_relative_loss_ratio(history):.1f} times that of the first steps; {reason}",
        )
    return Verdict(state, reason, "" if state == "healthy" else _advice(history))


def _state(
    init: dict, checks: list[dict], gain: float | None, progress: float
) -> Literal["healthy", "collapsing", "collapsed"]:
    """What ranks and k-NN say; `gain` is the k-NN's over the random init in standard errors, None without labels."""
    rank, share = checks[-1]["student_rank"], checks[-1]["student_rank"] / max(init["student_rank"], 1e-9)
    learns = gain is not None and gain > 2  # then a smaller rank is the network's choice, not a loss of content
    if not learns and (rank < DEAD_RANK or share < LOST_RANK):
        return "collapsed"
    if not learns and share < LOW_RANK and rank < checks[-2]["student_rank"]:
        return "collapsing"
    if gain is not None and gain < -2 and progress > KNN_STEPS:
        return "collapsing"
    # Late collapse: more than half of what had been gained is gone again, though k-NN still stands above the random init.
    labelled = [c for c in checks if "student_knn" in c]
    best = max(labelled, key=lambda c: c["student_knn"], default=checks[-1])
    gained, lost = _knn_gain(init, best) or 0.0, -(_knn_gain(best, checks[-1]) or 0.0)
    return "collapsing" if lost > max(3, 0.5 * gained) else "healthy"


def _knn_gain(before: dict, after: dict) -> float | None:
    """Difference of two k-NN accuracies in standard errors; None where one is missing.

    The student's; the teacher's where that has clearly gained, for then it is the one to use. A teacher that merely stands still says
    nothing: a slow one keeps its random init's features while the student loses its own.
    """
    gains = [
        _knn_difference(name, before, after)
        for name in ("teacher_knn", "student_knn")
        if name in before and name in after
    ]
    if "student_knn" not in before or "student_knn" not in after:
        return None
    return gains[0] if gains[0] > 2 else gains[-1]


def _knn_difference(name: str, before: dict, after: dict) -> float:
    p, q = before[name], after[name]
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / after.get("health_samples", 1000))
    return (q - p) / max(error, 1e-9)


def _dead_embeddings(history: list[dict]) -> str:
    """Why a method that compares embeddings, or shares of prototypes, has collapsed completely, or "" if it has not."""
    for name, who in (("prediction_spread", "student"), ("target_spread", "teacher")):
        spread = _recent(history, name)
        if spread is not None and spread < min(MIN_SPREAD, 0.5 * _values(history, name)[0]):  # some begin that narrow
            return f"complete collapse: the {who} gives all samples nearly the same embedding (spread {spread:.2g}; 1 where directions are even)"
    used = _recent(history, "prototype_perplexity")
    if used is not None and used < MIN_PERPLEXITY:
        return f"complete collapse: the targets of all samples are one prototype (perplexity {used:.2f})"
    return ""


def _dead_outputs(history: list[dict], checks: list[dict], init: dict | None, progress: float) -> str:
    """Why targets or predictions are constant by now, or "" if they are not."""
    prediction, target = _recent(history, "prediction_std"), _recent(history, "target_std")
    if prediction is not None and prediction < MIN_PREDICTION_STD and progress > PREDICTION_STEPS:
        return (
            f"prediction std {prediction:.2g} is below {MIN_PREDICTION_STD}: the student says the same for every token"
        )
    if target is None or target >= MIN_TARGET_STD:
        return ""
    # Targets without normalisation may start that small; where they have not shrunk and the rank holds, the scale alone says nothing.
    held = init is not None and bool(checks) and checks[-1]["student_rank"] >= LOW_RANK * init["student_rank"]
    if held and target >= _values(history, "target_std")[0]:
        return ""
    return f"target std {target:.2g} is below {MIN_TARGET_STD}: the teacher says the same for every token"


def _numbers(init: dict, check: dict) -> str:
    rank = f"effective rank {check['student_rank']:.1f} vs {init['student_rank']:.1f} at init"
    if "student_knn" not in init or "student_knn" not in check:
        return f"student {rank} (no labels, hence no k-NN)"
    teacher = f", teacher's {100 * check['teacher_knn']:.1f}" if "teacher_knn" in check else ""
    return f"student k-NN {100 * check['student_knn']:.1f}{teacher} vs {100 * init['student_knn']:.1f} at init; {rank}"


def _advice(history: list[dict]) -> str:
    """The change for the cause that the records show, most certain first."""
    target, decays, hidden = (
        _values(history, "target_std"),
        _values(history, "ema_decay"),
        _values(history, "hidden_share"),
    )
    if _dead_embeddings(history):
        return "keep the batch norms of the heads, raise objective.ema_decay, sharpen or centre the targets as published, or lower train.lr"
    lr = max(_values(history, "lr"), default=None)
    lower = "lower train.lr" + (f" (its peak was {lr:.1e})" if lr else "") + " or lengthen train.warmup_steps"
    if not all(math.isfinite(r.get("loss", 0.0)) for r in history):
        return lower
    if target and (_recent(history, "target_std") or 0.0) < min(0.5 * target[0], 0.3):
        return "normalise the targets (objective.layer_norms=[instance] or [layer]); where that is on, raise objective.ema_decay"
    norms = sorted(_values(history, "grad_norm"))
    if _relative_loss_ratio(history) > 2 or (len(norms) >= 10 and norms[-1] > 20 * norms[len(norms) // 2]):
        return lower
    if decays and sum(decays) / len(decays) < FAST_EMA:
        return f"raise objective.ema_decay: the teacher follows the student too fast ({decays[0]:g} to {decays[-1]:g}; try 0.999 throughout)"
    if hidden and sum(hidden) / len(hidden) < 0.15:
        return f"hide more: only {sum(hidden) / len(hidden):.0%} of the tokens are to be predicted"
    return lower


def _relative_loss_ratio(history: list[dict]) -> float:
    """Recent over first loss, each over its targets' variance (a loss of grown targets is not worse); above 1: worse than predicting nothing."""
    relative = [r["loss"] / max(r["target_std"], 1e-3) ** 2 for r in history if "loss" in r and "target_std" in r]
    relative = [x for x in relative if math.isfinite(x)]
    return sorted(relative[-5:])[len(relative[-5:]) // 2] / max(relative[0], 1e-12) if relative else 0.0


def _values(history: list[dict], name: str) -> list[float]:
    return [r[name] for r in history if name in r and math.isfinite(r[name])]


def _recent(history: list[dict], name: str) -> float | None:
    """Median of the last five values, so that one odd batch is no verdict; None where there are none."""
    last = sorted(_values(history, name)[-5:])
    return last[len(last) // 2] if last else None
