"""What an encoder's frozen features are worth, beside a random init and the raw input, so that an evaluation can fail.

D width, N samples of a split.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from d2v.evaluation.classifiers import Probe, knn, linear_probe, probe_other_groups, zscore
from d2v.evaluation.features import Samples, pooled_features
from d2v.training.collapse import knn_leave_one_out


@dataclass
class EvaluateConfig:
    """Which samples, which features, and which scores."""

    path: Any = ""  # where the labelled data is; "": data.path
    train_split: str = "train"
    test_split: str = "test"  # "": none; scores within train then: neighbours leave one out, probes in folds
    max_train: int = 0  # this many samples, drawn with `seed`; 0: all
    max_test: int = 0
    layer: str = "last"  # "last" (trunk output), "local" (before the trunk), a block from 1 to depth (its end), "all", or "class" (class token)
    label: str = "label"  # column to be predicted; "": none, for reports that need no classes
    group: str = (
        ""  # column, e.g. the speaker: adds scores within train where neighbours and probes see other groups only
    )
    zscore: bool = True  # of k-NN's features, with train's statistics; probes always
    k: list[int] = field(default_factory=lambda: [20])
    temperature: float = 0.07
    probe: bool = True
    probe_steps: int = 300
    probe_lrs: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1])
    probe_holdout: float = 0.1  # share of train that chooses the learning rate
    random_seeds: int = 3  # random inits of the same architecture to compare with
    raw: bool = True  # also the raw-input baseline
    batch_size: int = 64
    seed: int = 0
    reports: list[str] = field(
        default_factory=list
    )  # further ones by the names of their files in d2v/reports; some take minutes
    logistic_cs: list[float] = field(
        default_factory=lambda: [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    )  # of the report logistic
    few_labels: list[str] = field(
        default_factory=lambda: ["1%", "5%", "10%", "100%"]
    )  # share of each class, or "5": so many of each
    few_draws: int = 3  # of the report few_labels
    pictures: int = 6  # samples that the reports attention and patches show
    masks: str = ""  # of the report dense: a folder with a mask (class numbers, 255: none) of the name of each image, ending in .png

    def __post_init__(self):
        """ValueError: a value that no evaluation can use."""
        for name, good, allowed in (
            ("k", bool(self.k) and min(self.k) > 0, "one or more positive numbers"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("probe_steps", self.probe_steps > 0, "a positive number"),
            ("probe_lrs", bool(self.probe_lrs) and min(self.probe_lrs) > 0, "one or more positive numbers"),
            ("probe_holdout", 0 < self.probe_holdout < 1, "between 0 and 1"),
            ("batch_size", self.batch_size > 0, "a positive number"),
            ("random_seeds", self.random_seeds >= 0, "0 or more"),
            ("logistic_cs", bool(self.logistic_cs) and min(self.logistic_cs) > 0, "one or more positive numbers"),
            (
                "few_labels",
                bool(self.few_labels) and all(map(_is_amount, self.few_labels)),
                'numbers such as "5" or shares such as "10%"',
            ),
            ("few_draws", self.few_draws > 0, "a positive number"),
            ("pictures", self.pictures > 0, "a positive number"),
            (
                "layer",
                self.layer in ("last", "local", "all") or self.layer.isdecimal(),
                '"last", "local", "all" or the number of a block',
            ),
        ):
            if not good:
                raise ValueError(f"evaluate.{name} is {getattr(self, name)!r}; it must be {allowed}")


def _is_amount(text: str) -> bool:
    return re.fullmatch(r"[1-9]\d*|(?!0+(\.0+)?%)\d+(\.\d+)?%", text) is not None and (
        text[-1] != "%" or float(text[:-1]) <= 100
    )


class Split(NamedTuple):
    """The samples of one split that are scored, with their labels."""

    samples: Samples
    indices: np.ndarray  # (N,) into samples
    labels: np.ndarray  # (N,) integers from 0; empty where evaluate.label is ""
    groups: np.ndarray | None  # (N,) integers


class Row(NamedTuple):
    """One line of the table: percentages by the score's name; a mean and its spread where several encoders are behind it."""

    model: str
    layer: str
    dim: int
    scores: dict[str, float]
    spread: dict[str, float] = {}  # noqa: RUF012 a NamedTuple's default, never changed


def label_splits(train: Samples, test: Samples | None, config: EvaluateConfig) -> tuple[Split, Split | None]:
    """Splits with labels as integers, subsampled. ValueError: a column that is missing, one class only, or classes that train has not."""
    chosen = _choose(len(train), config.max_train, config.seed)
    if not config.label:
        none = np.zeros(0, dtype=np.int64)
        return Split(train, chosen, none, None), test and Split(
            test, _choose(len(test), config.max_test, config.seed), none, None
        )
    classes, labels = np.unique(train.column(config.label)[chosen], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"evaluate.label={config.label!r} has one value in split {config.train_split!r}: {classes[0]!r}; choose another column"
        )
    groups = np.unique(train.column(config.group)[chosen], return_inverse=True)[1] if config.group else None
    if groups is not None and groups.max() == 0:
        raise ValueError(
            f"evaluate.group={config.group!r} has one value in split {config.train_split!r}: no sample has neighbours of other groups"
        )
    train_split = Split(train, chosen, labels, groups)
    if test is None:
        return train_split, None
    chosen = _choose(len(test), config.max_test, config.seed)
    values = test.column(config.label)[chosen]
    unseen = sorted(set(values.tolist()) - set(classes.tolist()))
    if unseen:
        few = ", ".join(map(str, unseen[:5]))
        remedy = "raise evaluate.max_train" if config.max_train else "check evaluate.train_split and evaluate.label"
        raise ValueError(
            f"{len(unseen)} classes of split {config.test_split!r} are not in {config.train_split!r} ({few}); {remedy}"
        )
    return train_split, Split(test, chosen, np.searchsorted(classes, values), None)


def _choose(count: int, limit: int, seed: int) -> np.ndarray:
    if limit <= 0 or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def evaluate_features(
    train_x: np.ndarray,
    test_x: np.ndarray | None,
    train: Split,
    test: Split | None,
    config: EvaluateConfig,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Percentages by name for features of the two splits; `test` None: scores within train only."""
    probe = Probe(config.probe_lrs, config.probe_steps, config.probe_holdout, config.seed)
    scores = {}
    near = zscore(train_x)[0] if config.zscore else train_x
    if test is not None and test_x is not None:
        near_test = zscore(train_x, test_x)[1] if config.zscore else test_x
        for k in config.k:
            scores[f"k-NN {k}"] = 100 * knn(near, train.labels, near_test, test.labels, k, config.temperature, device)
        if config.probe:
            scores["linear"] = 100 * linear_probe(train_x, train.labels, test_x, test.labels, probe, device)[0]
    if train.groups is not None or test is None:
        name = f"other {config.group}" if config.group else "leave one out"
        groups = np.arange(len(near)) if train.groups is None else train.groups
        x, y, g = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (near, train.labels, groups))
        for k in config.k:
            scores[f"k-NN {k}, {name}"] = 100 * knn_leave_one_out(x, y, k, config.temperature, g, centre=False)
        if config.probe:
            name = f"other {config.group}" if config.group else "10 folds"
            scores[f"linear, {name}"] = 100 * probe_other_groups(train_x, train.labels, groups, probe, device)
    return scores


def evaluate_encoder(
    name: str, encoder, train: Split, test: Split | None, config: EvaluateConfig, device: str | torch.device = "cpu"
) -> list[Row]:
    """One row for each layer that `config.layer` asks for."""
    near = pooled_features(encoder, train.samples, config.batch_size, device, indices=train.indices, layer=config.layer)
    far = (
        {}
        if test is None
        else pooled_features(encoder, test.samples, config.batch_size, device, indices=test.indices, layer=config.layer)
    )
    if config.layer == "all" and np.array_equal(near["last"], near[list(near)[-2]]):
        del near["last"]  # no final norm: what comes before it once more
    return [
        Row(name, layer, x.shape[1], evaluate_features(x, far.get(layer), train, test, config, device))
        for layer, x in near.items()
    ]


def evaluate_raw(train: Split, test: Split | None, config: EvaluateConfig, device: str | torch.device = "cpu") -> Row:
    """The row of the modality's raw-input baseline: no network."""
    near = train.samples.raw(train.indices).astype(np.float32)
    far = None if test is None else test.samples.raw(test.indices).astype(np.float32)
    return Row(train.samples.raw_name, "raw", near.shape[1], evaluate_features(near, far, train, test, config, device))


def average(name: str, runs: list[list[Row]]) -> list[Row]:
    """Rows of the same layers from several encoders -> their mean, with the standard deviation between encoders as the spread."""
    rows = []
    for layer in zip(*runs, strict=True):
        same = list(layer)
        values = {score: np.array([row.scores[score] for row in same]) for score in same[0].scores}
        means = {score: float(v.mean()) for score, v in values.items()}
        spread = {score: float(v.std(ddof=1)) for score, v in values.items()} if len(same) > 1 else {}
        rows.append(Row(name, same[0].layer, same[0].dim, means, spread))
    return rows


def table(rows: list[Row]) -> str:
    """A table in Markdown, one line a row."""
    names = list(dict.fromkeys(score for row in rows for score in row.scores))
    cells = [["features", "layer", "dim", *names]]
    for row in rows:
        spread = {score: f" ±{value:.1f}" for score, value in row.spread.items()}
        scores = [f"{row.scores[score]:.1f}{spread.get(score, '')}" if score in row.scores else "-" for score in names]
        cells.append([row.model, row.layer, str(row.dim), *scores])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
