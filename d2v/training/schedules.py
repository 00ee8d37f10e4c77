"""Learning rate and EMA decay as pure functions of the step; nothing is stepped, nothing is replayed.

`step` counts completed optimizer steps: the first step trains with the rate of step 0.
"""

import math
from typing import Any


def cosine(step: int, total: int, warmup: int, *, floor: float = 0.0, start: float = 0.0) -> float:
    """Linear from `start` to 1 over `warmup` steps, then half a cosine down to `floor` (shares of the peak)."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * progress))


def polynomial(step: int, total: int, warmup: int, *, floor: float = 0.0, start: float = 0.0) -> float:
    """Linear from `start` to 1 over `warmup` steps, then linear to `floor` (fairseq's polynomial_decay of power 1)."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    return floor + (1 - floor) * max(0.0, (total - step) / max(1, total - warmup))


def tri_stage(
    step: int, total: int, warmup: int, *, floor: float = 0.01, start: float = 0.01, hold: float = 0.9
) -> float:
    """Linear from `start` over `warmup` steps, 1 for `hold` of the run, then exponential to `floor`: fairseq's.

    Where warm-up and `hold` would fill the run, so that nothing ever fell: 1 for `hold` of what the warm-up leaves.
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    held = total if warmup + hold * total < total else total - warmup
    hold_until = warmup + hold * held
    if step <= hold_until:
        return 1.0
    return math.exp(math.log(floor) * min(1.0, (step - hold_until) / max(1.0, total - hold_until)))


def constant(step: int, total: int, warmup: int, *, floor: float = 0.0, start: float = 0.0) -> float:
    """Linear from `start` to 1 over `warmup` steps, then 1."""
    return start + (1 - start) * step / warmup if step < warmup else 1.0


SCHEDULES = {"cosine": cosine, "polynomial": polynomial, "tri_stage": tri_stage, "constant": constant}


def rate(train: Any, step: int, steps: int) -> float:
    """Share of the full learning rate at a step of `steps`, by a TrainConfig's schedule."""
    extra = {"hold": train.hold} if train.schedule == "tri_stage" else {}
    return SCHEDULES[train.schedule](step, steps, train.warmup_steps, floor=train.floor, start=train.start, **extra)


def cosine_between(step: int, steps: int, start: float, end: float | None) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps` (None: `start` throughout).

    EMA decay of BYOL, MoCo v3 and DINO, 1 - (1 - start) (1 + cos(pi step / steps)) / 2 with end 1, and DINO's weight
    decay.
    """
    if end is None:
        return start
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, step / steps)))


def linear_decay(step: int, start: float, end: float, anneal_steps: int) -> float:
    """Linear from `start` to `end` over `anneal_steps`, then `end`.

    EMA decay of data2vec (arXiv 2202.03555 section 3.3), DINO's temperature.
    """
    return end if step >= anneal_steps else end - (end - start) * (1 - step / anneal_steps)
