"""What single tokens know: a linear classifier of each token's place, and the mean intersection over union on masks.

B samples of a batch, S side of a mask, T tokens of a grid, D width, n tokens of training, C classes.
"""

from collections.abc import Iterator
from typing import cast

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

IGNORED = 255  # in a mask: no class
MAX_TOKENS = 100_000  # of training, equally many of each sample
NEEDS = ("masks", "test", "tokens", "grid")


def report(subject: Subject) -> Finding:
    """Mean IoU over the classes of the test masks, for each encoder.

    At the masks' resolution, logits of tokens being interpolated.
    """
    test, config = subject.tested("dense"), subject.config
    probe = probe_of(config)
    numbers, lines = {}, []
    for name, encoder in subject.encoders.items():
        x, values = training_tokens(subject, encoder)
        classes, labels = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"evaluate.masks {config.masks}: the tokens of split {config.train_split!r} have one class, "
                f"{classes[0]}"
            )
        mean, scale = moments(x)
        weights, _ = fit_probe(((x - mean) * scale).astype(np.float32), labels, len(classes), probe, subject.device)
        confusion = np.zeros((256, 256), dtype=np.int64)
        for tokens, masks in batches(subject, encoder, test):
            scaled = torch.from_numpy(((tokens - mean) * scale).astype(np.float32)).flatten(0, 2)  # (B * T, D)
            logits = logits_of(weights, scaled.to(subject.device))[0].cpu()  # (B * T, C)
            predicted = classes[interpolated(logits.unflatten(0, tokens.shape[:3]), masks.shape[-1])]
            real = masks != IGNORED
            confusion += np.bincount(256 * masks[real].astype(np.int64) + predicted[real], minlength=256 * 256).reshape(
                256, 256
            )
        ious = intersection_over_union(confusion)
        numbers[name] = {
            "miou": 100 * float(np.mean(list(ious.values()))),
            "iou": {str(c): 100 * iou for c, iou in ious.items()},
        }
        lines.append(f"dense probe of {name}: mean IoU {numbers[name]['miou']:.1f} over {len(ious)} classes")
    return Finding(lines, numbers)


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


def training_tokens(subject: Subject, encoder) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, D) and the class that most of each one's place has, (n,)."""
    generator = np.random.default_rng(subject.config.seed)
    share = max(1, MAX_TOKENS // len(subject.train.indices))
    parts = []
    for tokens, masks in batches(subject, encoder, subject.train):
        values = majority(masks, tokens.shape[1:3])
        tokens, values = tokens.reshape(len(tokens), -1, tokens.shape[-1]), values.reshape(len(values), -1)
        for x, value in zip(tokens, values, strict=True):
            rows = generator.permutation(np.flatnonzero(value != IGNORED))[:share]
            parts.append((x[rows], value[rows]))
    x, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not len(values):
        raise ValueError(
            f"evaluate.masks {subject.config.masks}: no token of split {subject.config.train_split!r} has a class"
        )
    return x, values


def majority(masks: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(B, S, S) uint8 -> the most frequent class of each cell of the grid, (B, rows, columns); 255: none."""
    rows, columns = grid
    cells = masks.reshape(len(masks), rows, masks.shape[1] // rows, columns, masks.shape[2] // columns).swapaxes(2, 3)
    cells = cells.reshape(len(masks), rows, columns, -1)
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
