"""What single tokens know of their place: a linear classifier and k-NN, each by mean intersection over union on masks.

B samples of a batch, S side of a mask, T tokens of a grid, D width, n tokens of training, C classes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.evaluation.classifiers import fit_probe, logits_of, moments
from d2v.evaluation.features import frozen, layer_tokens
from d2v.evaluation.report import Finding, Subject
from d2v.evaluation.scoring import probe_of
from d2v.evaluation.splits import EvaluationSplit
from d2v.protocols import Pictures
from d2v.training.collapse import knn_votes

IGNORED = 255  # in a mask: no class
MAX_TOKENS = 100_000  # of training, equally many of each sample
NEEDS = ("masks", "test", "tokens", "grid")
SURE = 0.5  # least share of a token's pixels that must have its class where it is a neighbour
Segment = Callable[[np.ndarray, int], np.ndarray]  # tokens (B, rows, columns, D) and S -> classes (B, S, S)


class Tokens(NamedTuple):
    """Tokens of training with the class of each one's place."""

    x: np.ndarray  # (n, D)
    classes: np.ndarray  # (n,) of 0 to 254
    sure: np.ndarray  # (n,) bool: SURE of its pixels have that class


def report(subject: Subject) -> Finding:
    """Mean IoU over the classes of the test masks, for each encoder.

    At the masks' resolution: logits of tokens are interpolated, votes of neighbours are those of their whole place.
    """
    test, config = subject.tested("dense"), subject.config
    numbers, lines = {}, []
    for name, encoder in subject.encoders.items():
        tokens = training_tokens(subject, encoder)
        ways = {"": linear(subject, tokens)}
        if tokens.sure.any():
            ways |= {f"{k}": neighbours(subject, tokens, k) for k in config.k}
        confusions = {way: np.zeros((256, 256), dtype=np.int64) for way in ways}
        for x, masks in batches(subject, encoder, test):
            real = masks != IGNORED
            for way, segment in ways.items():
                pairs = 256 * masks[real].astype(np.int64) + segment(x, masks.shape[-1])[real]
                confusions[way] += np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        ious = {way: intersection_over_union(confusion) for way, confusion in confusions.items()}
        mean = {way: 100 * float(np.mean(list(one.values()))) for way, one in ious.items()}
        numbers[name] = {"miou": mean[""], "iou": {str(c): 100 * iou for c, iou in ious[""].items()}}
        numbers[name]["knn"] = {way: mean[way] for way in ways if way}
        lines.append(f"dense probe of {name}: mean IoU {mean['']:.1f} over {len(ious[''])} classes")
        lines += [f"dense {k}-NN of {name}: mean IoU {mean[k]:.1f} over {len(ious[k])} classes" for k in ways if k]
    return Finding(lines, numbers)


def linear(subject: Subject, tokens: Tokens) -> Segment:
    """Segments by a linear classifier, trained as probes are. ValueError: there is one class."""
    config = subject.config
    classes, labels = np.unique(tokens.classes, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"evaluate.masks {config.masks}: the tokens of split {config.train_split!r} have one class, {classes[0]}"
        )
    mean, scale = moments(tokens.x)
    scaled = ((tokens.x - mean) * scale).astype(np.float32)
    weights, _ = fit_probe(scaled, labels, len(classes), probe_of(config), subject.device)

    def segment(x: np.ndarray, size: int) -> np.ndarray:
        queries = torch.from_numpy(((x - mean) * scale).astype(np.float32)).flatten(0, 2)  # (B * T, D)
        logits = logits_of(weights, queries.to(subject.device))[0].cpu()  # (B * T, C)
        return classes[interpolated(logits.unflatten(0, x.shape[:3]), size)]

    return segment


def neighbours(subject: Subject, tokens: Tokens, k: int) -> Segment:
    """Segments by the votes of the k nearest tokens of training by cosine, weighed as those of samples are."""
    config = subject.config
    classes, labels = np.unique(tokens.classes[tokens.sure], return_inverse=True)
    mean, scale = moments(tokens.x) if config.zscore else (np.float32(0), np.float32(1))
    bank = torch.from_numpy(((tokens.x[tokens.sure] - mean) * scale).astype(np.float32)).to(subject.device)
    known = torch.from_numpy(labels).to(subject.device)

    def segment(x: np.ndarray, size: int) -> np.ndarray:
        queries = torch.from_numpy(((x - mean) * scale).astype(np.float32)).flatten(0, 2).to(subject.device)
        votes = knn_votes(queries, bank, known, k, config.temperature)  # (B * T, C)
        cells = classes[votes.argmax(dim=1).cpu().numpy()].reshape(x.shape[:3])  # (B, rows, columns)
        down, across = (np.arange(size) * side // size for side in cells.shape[1:])
        return cells[:, down[:, None], across]

    return segment


def batches(subject: Subject, encoder, split: EvaluationSplit) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens (B, rows, columns, D) and masks (B, S, S) of a split."""
    size = subject.config.batch_size
    for indices in np.split(split.indices, range(size, len(split.indices), size)):
        view = split.samples.view(indices).to(subject.device)
        grid = subject.grid("dense", view.modality)
        with frozen(encoder):
            x = layer_tokens(encoder, view, [subject.layer], "evaluate.layer")[0][subject.layer]
        pictures = cast(Pictures, split.samples)  # a modality with a grid has masks too
        yield x.float().unflatten(1, grid).cpu().numpy(), pictures.masks(indices, subject.config.masks)


def training_tokens(subject: Subject, encoder) -> Tokens:
    """Tokens and the class that most of each one's place has."""
    generator = np.random.default_rng(subject.config.seed)
    share = max(1, MAX_TOKENS // len(subject.train.indices))
    parts = []
    for tokens, masks in batches(subject, encoder, subject.train):
        values = majority(masks, tokens.shape[1:3])
        sure = (cells_of(masks, tokens.shape[1:3]) == values[..., None]).mean(axis=-1) >= SURE
        for x, value, certain in zip(tokens, values, sure, strict=True):
            rows = generator.permutation(np.flatnonzero(value.ravel() != IGNORED))[:share]
            parts.append((x.reshape(-1, x.shape[-1])[rows], value.ravel()[rows], certain.ravel()[rows]))
    found = Tokens(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    if not len(found.classes):
        raise ValueError(
            f"evaluate.masks {subject.config.masks}: no token of split {subject.config.train_split!r} has a class"
        )
    return found


def cells_of(masks: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(B, S, S) -> the pixels of each cell of the grid, (B, rows, columns, pixels)."""
    rows, columns = grid
    cells = masks.reshape(len(masks), rows, masks.shape[1] // rows, columns, masks.shape[2] // columns).swapaxes(2, 3)
    return cells.reshape(len(masks), rows, columns, -1)


def majority(masks: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(B, S, S) uint8 -> the most frequent class of each cell of the grid, (B, rows, columns); 255: none."""
    cells = cells_of(masks, grid)
    best, most = np.full(cells.shape[:3], IGNORED, dtype=np.uint8), np.zeros(cells.shape[:3], dtype=np.int64)
    for value in np.setdiff1d(np.unique(masks), [IGNORED]):
        count = (cells == value).sum(axis=-1)
        best, most = np.where(count > most, value, best), np.maximum(count, most)
    return best


def interpolated(logits: Tensor, size: int) -> np.ndarray:
    """(B, rows, columns, C) -> the best class of each pixel, (B, S, S)."""
    return (
        F.interpolate(logits.movedim(-1, 1), size=(size, size), mode="bilinear", align_corners=False)
        .argmax(dim=1)
        .numpy()
    )


def intersection_over_union(confusion: np.ndarray) -> dict[int, float]:
    """Counts (true, predicted) -> IoU in [0, 1] of each class that occurs in truth or prediction."""
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return {int(c): float(hits[c] / union[c]) for c in np.flatnonzero(union)}
