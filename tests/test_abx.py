"""ABX: the path and the errors against loops, and what a perfect and a useless representation give."""

from itertools import product

import numpy as np
import pytest
import tiny
import torch

from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.report import Subject, make_reports
from d2v.evaluation.reports.abx import abx_errors, chosen, distances, warped
from d2v.evaluation.splits import label_splits
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel


def slow_path(distance: np.ndarray) -> float:
    """Cost and length of the cheapest path, cell by cell."""
    cost, steps = np.full(distance.shape, np.inf), np.zeros(distance.shape)
    for i, j in product(*map(range, distance.shape)):
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        best = min((cell for cell in before if min(cell) >= 0), key=lambda cell: cost[cell], default=None)
        cost[i, j] = distance[i, j] + (0 if best is None else cost[best])
        steps[i, j] = 1 + (0 if best is None else steps[best])
    return cost[-1, -1] / steps[-1, -1]


def test_the_path_is_the_cheapest():
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(20, 7, 9, generator=generator, dtype=torch.float64)
    rows, columns = torch.randint(1, 8, (20,), generator=generator), torch.randint(1, 10, (20,), generator=generator)
    found = warped(distance, rows, columns)
    for n in range(20):
        assert float(found[n]) == pytest.approx(slow_path(distance[n, : rows[n], : columns[n]].numpy()), rel=1e-12)


def test_distances_are_angles_along_the_path():
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (3, 5, 1, 8)]
    found = distances(tokens)
    assert (found == found.T).all() and (np.diag(found) == 0).all()
    for a, b in ((0, 1), (2, 3), (1, 3)):
        angle = np.arccos(np.clip(tokens[a].numpy() @ tokens[b].numpy().T, -1, 1)) / np.pi
        assert found[a, b] == pytest.approx(slow_path(angle), rel=1e-5)
    slower = tokens[1].repeat_interleave(2, dim=0)  # the same said twice as slowly is the same
    assert distances([tokens[1], slower])[0, 1] < 1e-3


def slow_errors(distance: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Triple by triple."""
    found: dict = {}
    n = range(len(labels))
    for a, b, x in product(n, n, n):
        if labels[a] == labels[x] != labels[b] and groups[a] == groups[b] and a != x:
            kind = "within" if groups[x] == groups[a] else "across"
            wrong = 1.0 if distance[a, x] > distance[b, x] else 0.5 if distance[a, x] == distance[b, x] else 0.0
            place = found.setdefault(kind, {}).setdefault((labels[a], labels[b]), {}).setdefault(groups[a], [])
            place.append(wrong)
    return {
        kind: float(
            np.mean([np.mean([np.mean(shares) for shares in by_group.values()]) for by_group in pairs.values()])
        )
        for kind, pairs in found.items()
    }


def test_errors_are_those_of_all_triples():
    generator = np.random.default_rng(0)
    labels, groups = generator.integers(0, 3, 24), generator.integers(0, 3, 24)
    distance = generator.integers(0, 5, (24, 24)).astype(float)  # with ties
    distance = distance + distance.T
    expected = slow_errors(distance, labels, groups)
    assert abx_errors(distance, labels, groups) == pytest.approx(expected) and set(expected) == {"within", "across"}
    assert set(abx_errors(distance, labels, np.zeros_like(groups))) == {"within"}
    same = (labels[:, None] != labels).astype(float)
    assert abx_errors(same, labels, groups) == {"within": 0, "across": 0}
    assert abx_errors(np.ones((24, 24)), labels, groups) == {"within": 0.5, "across": 0.5}


def test_a_few_of_each_class_and_group_are_chosen():
    labels, groups = np.repeat([0, 1, 2], 40), np.tile([0, 1], 60)
    rows = chosen(labels, groups, np.random.default_rng(0))
    assert len(rows) == 30 and np.bincount(labels[rows]).tolist() == [10, 10, 10]
    many = chosen(np.repeat(np.arange(500), 10), np.zeros(5000, int), np.random.default_rng(0))
    assert len(many) == 600


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_the_report(modality, tmp_path):
    config = tiny.config_of(modality, "")
    samples = tiny.samples_of(config)
    torch.manual_seed(0)
    model = D2vModel(D2vConfig(config.model.frontends, config.model.trunk))
    group = {"speech": "speaker"}.get(modality, "")
    settings = EvaluateConfig(max_train=60, group=group, label=config.evaluate.label or "label")
    train, _ = label_splits(samples, None, settings)
    subject = Subject("mine", {"mine": model}, train, None, settings, tmp_path)
    (finding,) = make_reports(subject, ["abx"]).values()
    assert set(finding.numbers["mine"]) == ({"within", "across"} if group else {"within"})
    assert 0 < finding.numbers["mine"]["within"] < 60 and "ABX error of mine" in finding.lines[0]


def test_classes_of_one_sample_are_refused(tmp_path):
    config = tiny.config_of("image", "")
    samples = tiny.samples_of(config)
    train, _ = label_splits(samples, None, EvaluateConfig())
    first = [int(np.flatnonzero(train.labels == label)[0]) for label in (0, 1)]
    subject = Subject("mine", {}, train.some(np.array(first)), None, EvaluateConfig(), tmp_path)
    subject.encoders["mine"] = D2vModel(D2vConfig(config.model.frontends, config.model.trunk))
    with pytest.raises(ValueError, match=r"abx needs two classes with two samples each in one group"):
        make_reports(subject, ["abx"])
