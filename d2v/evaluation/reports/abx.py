"""ABX: is a sample nearer to another one of its class than to one of another class? No classifier, nothing is fitted.

Samples are sequences of tokens, and their distance is that of the best alignment: dynamic time warping over the angles
between tokens, divided by the length of the path. Source: Schatz et al., Evaluating speech features with the
minimal-pair ABX task (Interspeech 2013); the angle and the division as in Libri-light (arXiv 1912.07875).

n samples, T tokens, D width, P pairs.
"""

from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.evaluation.features import by_length, frozen, layer_tokens
from d2v.evaluation.report import Finding, Subject

EACH = 5  # samples of a class and group, drawn
MAX_GROUPS = 20
MAX_SAMPLES = 600  # in all: distances are of all pairs; of more, classes are drawn
PAIRS = 1024  # that are aligned together
NEEDS = ("labels", "tokens")


def report(subject: Subject) -> Finding:
    """Percent of wrong answers for each encoder, 50 being chance: all three of one group, and X of another group.

    Of train's samples; groups are those of evaluate.group, and without it there is one.
    """
    labels = subject.labels("abx")
    groups = np.zeros_like(labels) if subject.train.groups is None else subject.train.groups
    rows = chosen(labels, groups, np.random.default_rng(subject.config.seed))
    numbers, lines = {}, []
    for name, encoder in subject.encoders.items():
        errors = abx_errors(distances(sequences(subject, encoder, rows)), labels[rows], groups[rows])
        if not errors:
            raise ValueError(
                f"evaluate.reports: abx needs two classes with two samples each in one group of evaluate.group; "
                f"split {subject.config.train_split!r} has none"
            )
        numbers[name] = {kind: 100 * error for kind, error in errors.items()}
        kinds = {"within": "within a group", "across": f"across {subject.config.group}"}
        shown = ", ".join(f"{error:.1f} {kinds[kind]}" for kind, error in numbers[name].items())
        lines.append(f"ABX error of {name}: {shown} ({len(rows)} samples; chance 50)")
    return Finding(lines, numbers)


def chosen(labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows of at most EACH samples of a class in a group, (n,), of as many classes as MAX_SAMPLES allows."""
    some_groups = generator.permutation(np.unique(groups))[:MAX_GROUPS]
    num_classes = max(2, MAX_SAMPLES // (EACH * len(some_groups)))
    rows = []
    for label in generator.permutation(np.unique(labels))[:num_classes]:
        for group in some_groups:
            rows.append(generator.permutation(np.flatnonzero((labels == label) & (groups == group)))[:EACH])
    return np.sort(np.concatenate(rows))


def sequences(subject: Subject, encoder, rows: np.ndarray) -> list[Tensor]:
    """Unit tokens of each sample, without padding, (T, D) each."""
    samples, indices = subject.train.samples, subject.train.indices[rows]
    lengths = None if samples.lengths is None else samples.lengths[indices]
    found: dict[int, Tensor] = {}
    with frozen(encoder):
        for places in by_length(lengths, subject.config.batch_size, np.arange(len(rows))):
            view = samples.view(indices[places]).to(subject.device)
            x = layer_tokens(encoder, view, [subject.layer], "evaluate.layer")[0][subject.layer]
            unit = F.normalize(x.float(), dim=-1).cpu()
            real = torch.ones(unit.shape[:2], dtype=torch.bool) if view.padding is None else ~view.padding.cpu()
            found.update({int(place): unit[n][real[n]] for n, place in enumerate(places)})
    return [found[n] for n in range(len(rows))]


def distances(tokens: list[Tensor]) -> np.ndarray:
    """Of all pairs of samples, (n, n), symmetric."""
    counts = torch.tensor([len(x) for x in tokens])
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)  # (n, T, D)
    first, second = torch.triu_indices(len(tokens), len(tokens), offset=1)
    result = torch.zeros(len(tokens), len(tokens))
    for start in range(0, len(first), PAIRS):
        one, other = first[start : start + PAIRS], second[start : start + PAIRS]
        cosine = torch.bmm(padded[one], padded[other].mT)  # (P, T, T)
        result[one, other] = warped(cosine.clamp(-1, 1).acos() / torch.pi, counts[one], counts[other])
    return (result + result.T).numpy()


def warped(distance: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean distance along the cheapest monotonic path through each of (P, T, U), whose first `rows` (P,) and `columns`
    (P,) count: (P,). Of equal steps the diagonal one is taken.

    Cells of one anti-diagonal do not depend on one another: all pairs go on together, T + U - 1 steps.
    """
    pairs, height, width = distance.shape
    place = torch.arange(height)
    cost = distance.new_full((3, pairs, height + 1), torch.inf)  # of this anti-diagonal and the two before; row 0: none
    steps = distance.new_zeros((3, pairs, height + 1))
    result = distance.new_zeros(pairs)
    for diagonal in range(height + width - 1):
        column = diagonal - place  # of each row's cell
        inside = (column >= 0) & (column < width)
        cell = distance[:, place, column.clamp(0, width - 1)].masked_fill(~inside, torch.inf)
        cost, steps = cost.roll(1, 0), steps.roll(1, 0)
        # from (i - 1, j - 1), (i - 1, j) and (i, j - 1)
        before = torch.stack([cost[2, :, :-1], cost[1, :, :-1], cost[1, :, 1:]])
        lengths = torch.stack([steps[2, :, :-1], steps[1, :, :-1], steps[1, :, 1:]])
        best, which = before.min(dim=0)
        taken = lengths.gather(0, which[None])[0]
        if diagonal == 0:
            best, taken = torch.zeros_like(best), torch.zeros_like(taken)
        cost[0, :, 1:], steps[0, :, 1:] = cell + best, taken + 1
        done = rows + columns - 2 == diagonal
        result[done] = (cost[0, done, rows[done]] / steps[0, done, rows[done]]).to(result.dtype)
    return result


def abx_errors(distance: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Share of wrong answers, ties counting half: A and X of one class, B of another, A and B of one group.

    "within": X is of that group too; "across": of another. The mean over samples, then over groups, then over pairs of
    classes; a kind that no triple belongs to is left out.
    """
    found: dict[str, list[float]] = {"within": [], "across": []}
    for mine, other in permutations(np.unique(labels), 2):
        wrong: dict[str, list[float]] = {"within": [], "across": []}
        for group in np.unique(groups):
            a = np.flatnonzero((labels == mine) & (groups == group))
            b = np.flatnonzero((labels == other) & (groups == group))
            for kind, x in (("within", a), ("across", np.flatnonzero((labels == mine) & (groups != group)))):
                if (a[:, None] != x).any() and len(b):
                    wrong[kind].append(share_wrong(distance, a, b, x))
        for kind, shares in wrong.items():
            if shares:
                found[kind].append(float(np.mean(shares)))
    return {kind: float(np.mean(errors)) for kind, errors in found.items() if errors}


def share_wrong(distance: np.ndarray, a: Any, b: Any, x: Any) -> float:
    """Of the triples of samples (A,), (B,) and (X,) those in which X is nearer to B, ties counting half.

    A sample is not compared with itself.
    """
    gap = distance[np.ix_(a, x)][:, None] - distance[np.ix_(b, x)][None]  # (A, B, X)
    share = ((gap > 0) + 0.5 * (gap == 0)).mean(axis=1)  # (A, X)
    return float(share[np.not_equal.outer(a, x)].mean())
