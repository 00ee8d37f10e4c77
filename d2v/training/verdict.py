"""The verdict over a run: healthy, collapsing or collapsed, from the records of its metrics.jsonl; pure functions.

Loss, target std and prediction std do not show partial collapse: a loss falls while content goes, and rises in good
runs as the teacher's features get richer. The deep block's effective rank and k-NN, against the same network at its
random init, do.
"""

import math
from typing import Literal, NamedTuple

MIN_STEPS = 100  # before which a run that shows no clear gain is not called healthy, however short it is
EARLY = 0.1  # share of the steps before which nothing is judged but a loss that is not finite: warm-up
MIN_TARGET_STD, MIN_PREDICTION_STD = 0.1, 0.01  # fairseq's stop conditions
MIN_SAMPLES = 8  # of a health check, below which ranks and k-NN say nothing: a rank is below the number of samples
MIN_SPREAD = 0.05  # of embeddings; 1 where their directions are even
MIN_PERPLEXITY = 1.5  # of prototypes or codes; 1 where a single one is used
DEAD_RANK = 1.5  # effective rank
LOST_RANK, LOW_RANK = 0.15, 0.5  # effective rank as a share of the random init's
CLEAR_GAIN = 2  # of k-NN, in standard errors
KNN_STEPS = 0.2  # share of the steps from which k-NN below the random init counts
PREDICTION_STEPS = 1 / 3  # ... and constant predictions: a hard target is first answered by its mean
FAST_EMA = 0.998  # a mean decay below it is suspect, once something is wrong

State = Literal["healthy", "collapsing", "collapsed", "too early"]


class Verdict(NamedTuple):
    """How a run stands, the numbers that say so, and what to change (empty where nothing is wrong)."""

    state: State
    reason: str
    advice: str = ""


class Check(NamedTuple):
    """What one health check measured; accuracies of k-NN are shares, None without labels."""

    rank: float  # the student's effective rank
    student_knn: float | None
    teacher_knn: float | None
    num_samples: int  # that accuracies are over


class Course(NamedTuple):
    """A run so far: its records, the health check of its random init, those after it, and the share of steps done."""

    records: list[dict]
    init: Check | None
    checks: list[Check]
    progress: float

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, in order of steps."""
        return [r[name] for r in self.records if name in r and math.isfinite(r[name])]

    def recent(self, name: str) -> float | None:
        """Median of the last five values, so that one odd batch is no verdict; None where there are none."""
        last = sorted(self.values(name)[-5:])
        return last[len(last) // 2] if last else None


def judge(history: list[dict]) -> Verdict:
    """Verdict over the records of metrics.jsonl, in order of steps.

    A record has "step" and some of loss, target_std, prediction_std, grad_norm, lr, peak_lr, ema_decay, hidden_share,
    total_steps; a health check adds student_rank and, with labels, student_knn (a share) and health_samples. The one
    at step 0 is the random init's.
    """
    if not history:
        return Verdict("too early", "no metrics yet")
    run = read_course(history)
    for record in history:
        if not math.isfinite(record.get("loss", 0.0)):
            return Verdict("collapsed", f"loss is {record['loss']} at step {record['step']}", _advice(run))
    if run.progress < EARLY:
        return Verdict("too early", f"step {history[-1]['step']} is before {EARLY:.0%} of the run")
    gain = knn_gain(run.init, run.checks[-1]) if run.init and run.checks else None
    learns = gain is not None and gain > CLEAR_GAIN
    dead = _dead_embeddings(run) or _dead_outputs(run)
    if dead and not learns:
        return Verdict("collapsed", dead, _advice(run))
    missing = _missing(run)
    if missing or run.init is None:
        return Verdict("too early", missing)
    state, reason = _state(run.init, run.checks, gain, run.progress), _numbers(run.init, run.checks[-1])
    rank = run.checks[-1].rank
    if state != "healthy" and not learns and rank < LOW_RANK * run.init.rank:
        reason = f"{_kind(rank)}; {reason}"
    if state == "healthy" and not learns:
        state, reason = _doubts(run, reason)
    return Verdict(state, reason, "" if state in ("healthy", "too early") else _advice(run))


def _missing(run: Course) -> str:
    """What a verdict on ranks and k-NN lacks, or ""."""
    if run.init is None:
        return "no health check at step 0 to compare with"
    if len(run.checks) < 2:
        return f"{'one health check' if run.checks else 'no health check'} after step 0; two are needed"
    few = run.checks[-1].num_samples
    return f"no verdict on {few} sample{'s'[: few != 1]}; health checks need {MIN_SAMPLES}" if few < MIN_SAMPLES else ""


def better(records: list[dict]) -> str:
    """Which of "student" and "teacher" a run recommends: by k-NN, or the effective rank of features without labels.

    By the last check that has both; where they are equal it is the teacher, as published.
    """
    for record in reversed(records):
        for name in ("knn", "rank"):
            student, teacher = record.get(f"student_{name}"), record.get(f"teacher_{name}")
            if student is not None and teacher is not None:
                return "student" if student > teacher else "teacher"
    return "teacher"


def _doubts(run: Course, reason: str) -> tuple[State, str]:
    """What becomes of `healthy` where no clear gain speaks for it, and why."""
    growth, steps = _relative_loss_ratio(run), run.records[-1]["step"]
    if growth > 2:
        return "collapsing", f"loss is {growth:.1f} times that of the first steps; {reason}"
    if steps < MIN_STEPS:
        return "too early", f"{steps} steps show nothing yet; {reason}"
    return "healthy", reason


def read_course(history: list[dict]) -> Course:
    """A run from its records, of which there is at least one."""
    init, checks, total = None, [], history[-1]["step"]
    for record in history:
        total = record.get("total_steps", total)
        if "student_rank" not in record:
            continue
        if record["step"] > 0:
            checks.append(_read_check(record))
        elif init is None:
            init = _read_check(record)
    return Course(history, init, checks, history[-1]["step"] / max(1, total))


def _read_check(record: dict) -> Check:
    return Check(
        record["student_rank"],
        record.get("student_knn"),
        record.get("teacher_knn"),
        record.get("health_samples", 1000),
    )


def _state(init: Check, checks: list[Check], gain: float | None, progress: float) -> State:
    """What ranks and k-NN say; `gain` is the k-NN's over the random init in standard errors, None without labels."""
    last, share = checks[-1], checks[-1].rank / max(init.rank, 1e-9)
    learns = gain is not None and gain > CLEAR_GAIN  # then a smaller rank is the network's choice, no loss of content
    if not learns and (last.rank < DEAD_RANK or share < LOST_RANK):
        return "collapsed"
    if not learns and share < LOW_RANK and last.rank < checks[-2].rank:
        return "collapsing"
    if gain is not None and gain < -CLEAR_GAIN and progress > KNN_STEPS:
        return "collapsing"
    if progress > KNN_STEPS and _is_worse(init, last):
        return "collapsing"
    # Late collapse: more than half of what had been gained is gone again, though k-NN still stands above the init.
    labelled = [check for check in checks if check.student_knn is not None]
    best = max(labelled, key=lambda check: check.student_knn or 0.0, default=last)
    gained, lost = knn_gain(init, best) or 0.0, -(knn_gain(best, last) or 0.0)
    return "collapsing" if lost > max(3, 0.5 * gained) else "healthy"


def knn_gain(before: Check, after: Check) -> float | None:
    """Difference of two k-NN accuracies in standard errors; None where one is missing.

    The student's; the teacher's where that has clearly gained, for then it is the one to use. A teacher that merely
    stands still says nothing: a slow one keeps its random init's features while the student loses its own.
    """
    if before.student_knn is None or after.student_knn is None:
        return None
    if before.teacher_knn is not None and after.teacher_knn is not None:
        gain = _in_standard_errors(before.teacher_knn, after.teacher_knn, after.num_samples)
        if gain > CLEAR_GAIN:
            return gain
    return _in_standard_errors(before.student_knn, after.student_knn, after.num_samples)


def _is_worse(init: Check, last: Check) -> bool:
    """Whether even the better of student and teacher, which is exported, is below its random init by its error."""
    gains = []
    for before, after in ((init.student_knn, last.student_knn), (init.teacher_knn, last.teacher_knn)):
        if before is not None and after is not None:
            gains.append(_in_standard_errors(before, after, last.num_samples))
    return bool(gains) and max(gains) < -1


def _in_standard_errors(before: float, after: float, num_samples: int) -> float:
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / num_samples)
    return (after - before) / max(error, 1e-9)


def _dead_embeddings(run: Course) -> str:
    """Why a method that compares embeddings, or shares of prototypes, has collapsed completely, or ""."""
    for name, who in (("prediction_spread", "student"), ("target_spread", "teacher")):
        spread = run.recent(name)
        if spread is not None and spread < min(MIN_SPREAD, 0.5 * run.values(name)[0]):  # some begin that narrow
            return (
                f"complete collapse: the {who} gives all samples nearly the same embedding "
                f"(spread {spread:.2g}; 1 where directions are even)"
            )
    for name, what in (("prototype_perplexity", "prototype"), ("target_perplexity", "code")):
        used = run.recent(name)
        if used is not None and used < MIN_PERPLEXITY:
            return f"complete collapse: the targets of all samples are one {what} (perplexity {used:.2f})"
    return ""


def _dead_outputs(run: Course) -> str:
    """Why targets or predictions are constant by now, or "" if they are not."""
    prediction, target = run.recent("prediction_std"), run.recent("target_std")
    if prediction is not None and prediction < MIN_PREDICTION_STD and run.progress > PREDICTION_STEPS:
        return (
            f"prediction std {prediction:.2g} is below {MIN_PREDICTION_STD}: the student says the same for every token"
        )
    if target is None or target >= MIN_TARGET_STD:
        return ""
    # Targets without normalisation may start that small; where they have not shrunk and the rank holds, the scale
    # alone says nothing.
    held = run.init is not None and bool(run.checks) and run.checks[-1].rank >= LOW_RANK * run.init.rank
    if held and target >= run.values("target_std")[0]:
        return ""
    return f"target std {target:.2g} is below {MIN_TARGET_STD}: the teacher says the same for every token"


def _kind(rank: float) -> str:
    if rank < DEAD_RANK:
        return "complete collapse: features of all samples lie on one line"
    return "dimensional collapse"


def _numbers(init: Check, check: Check) -> str:
    rank = f"effective rank {check.rank:.1f} vs {init.rank:.1f} at init"
    if init.student_knn is None or check.student_knn is None:
        return f"student {rank} (no labels, hence no k-NN)"
    teacher = "" if check.teacher_knn is None else f", teacher's {100 * check.teacher_knn:.1f}"
    return f"student k-NN {100 * check.student_knn:.1f}{teacher} vs {100 * init.student_knn:.1f} at init; {rank}"


def _advice(run: Course) -> str:
    """The change for the cause that the records show, most certain first."""
    target, decays, hidden = run.values("target_std"), run.values("ema_decay"), run.values("hidden_share")
    finite = all(math.isfinite(record.get("loss", 0.0)) for record in run.records)
    ranks = [check.rank for check in (run.init, *run.checks) if check is not None]
    if finite and run.init is not None and max(ranks) < DEAD_RANK:
        return "look at the data (report.html shows some): all samples are almost the same to a random init already"
    if _dead_embeddings(run):
        return (
            "keep the batch norms of the heads, raise objective.ema_decay, sharpen or centre the targets as published, "
            "or lower train.lr"
        )
    lr = max([*run.values("peak_lr"), *run.values("lr")], default=None)
    lower = "lower train.lr" + (f" (its peak was {lr:.1e})" if lr else "") + " or lengthen train.warmup_steps"
    if not finite:
        return lower
    if target and (run.recent("target_std") or 0.0) < min(0.5 * target[0], 0.3):
        return (
            "normalise the targets (objective.layer_norms=[instance] or [layer]); where that is on, "
            "raise objective.ema_decay"
        )
    norms = sorted(run.values("grad_norm"))
    if _relative_loss_ratio(run) > 2 or (len(norms) >= 10 and norms[-1] > 20 * norms[len(norms) // 2]):
        return lower
    if decays and sum(decays) / len(decays) < FAST_EMA:
        return (
            "raise objective.ema_decay: the teacher follows the student too fast "
            f"({decays[0]:g} to {decays[-1]:g}; try 0.999 throughout)"
        )
    if hidden and sum(hidden) / len(hidden) < 0.15:
        return f"hide more: only {sum(hidden) / len(hidden):.0%} of the tokens are to be predicted"
    return lower


def _relative_loss_ratio(run: Course) -> float:
    """Recent over first loss, each over its targets' variance; 0 where there are none.

    A loss of grown targets is not worse, and above 1 it is worse than predicting nothing.
    """
    relative = []
    for record in run.records:
        if "loss" in record and "target_std" in record:
            value = record["loss"] / max(record["target_std"], 1e-3) ** 2
            if math.isfinite(value):
                relative.append(value)
    if not relative:
        return 0.0
    last = sorted(relative[-5:])
    return last[len(last) // 2] / max(relative[0], 1e-12)
