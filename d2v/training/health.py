"""Health checks during a run: spread, rank and neighbours of pooled features, without touching the training."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from d2v.evaluation.class_names import class_names, complete, in_order, numbered
from d2v.evaluation.features import readable_features
from d2v.models.encoder import D2vModel
from d2v.protocols import Samples
from d2v.reading import Reader
from d2v.training.collapse import health, knn_leave_one_out
from d2v.training.verdict import Verdict, judge


class HealthCheck:
    """A fixed set of samples, with labels and groups where the data has them."""

    names = ("",)  # of the parts whose records are judged and drawn: there is one

    def __init__(
        self,
        samples: Samples,
        *,
        limit: int,
        label: str,
        group: str,
        batch_size: int = 64,
        reader: Reader | None = None,
    ):
        """`limit` samples at equal distances; `reader` says what becomes of unreadable ones, None: they are an error.

        ValueError: the group column does not exist.
        """
        self.samples, self.batch_size, self.reader = samples, batch_size, reader or Reader()
        self.indices = np.unique(np.linspace(0, len(samples) - 1, min(limit, len(samples))).astype(int))
        self.labels, unlabelled = _labels(samples, label, self.indices)
        self.groups = _groups(samples, group, self.indices) if group else None
        self.read = self.indices  # the samples that the last check could read, for the student
        count, apart = len(self.indices), f"neighbours of another {group}" if group else "no group kept apart"
        self.said = f"health checks: spread and rank of {count} samples; no k-NN, as {unlabelled}"
        if self.labels is not None:
            self.said = (
                f"health checks: spread, rank and k-NN by {label!r} of {count} samples, {apart} (evaluate.group)"
            )

    def __call__(
        self, student: D2vModel, teacher: D2vModel, device: torch.device
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of the last block of both and of the student's local features, and these features, (N, D) by name."""
        read, places = partial(readable_features, self.reader), {}
        settings: tuple = (self.samples, self.batch_size, device)
        places["student"], of_student = read(student, *settings, indices=self.indices)
        places["teacher"], of_teacher = read(teacher, *settings, indices=self.indices, layer="last")
        self.read = self.indices[places["student"]]
        arrays = {"student": of_student["last"], "teacher": of_teacher["last"], "local": of_student["local"]}
        features = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not all(bool(x.isfinite().all()) for x in features.values()):
            return {"student_rank": 0.0, "teacher_rank": 0.0, "local_rank": 0.0}, {}
        metrics = health(features)
        if self.labels is not None:
            for name in ("student", "teacher"):
                groups = None if self.groups is None else self.groups[places[name]]
                metrics[f"{name}_knn"] = knn_leave_one_out(features[name], self.labels[places[name]], groups=groups)
        return metrics, features

    def judge(self, records: list[dict]) -> Verdict:
        """The verdict over a run's records."""
        return judge(records)


def _labels(samples: Samples, name: str, indices: np.ndarray) -> tuple[Tensor | None, str]:
    """A column of classes as integers, or None and why there are none to tell apart."""
    if not name:
        return None, "evaluate.label is ''"
    try:
        every = class_names(samples, name)
    except ValueError as error:
        return None, str(error).partition(";")[0]  # which names all columns then
    names = [every[index] for index in indices]
    if None in names:
        return None, f"{names.count(None)} of them have no {name!r}"
    codes = numbered(names, in_order(names, samples.classes))
    if not _tells(codes):
        return None, f"{name!r} has {'one value' if codes.max() == 0 else 'another value for each of them'}"
    return torch.from_numpy(codes), ""


def _groups(samples: Samples, name: str, indices: np.ndarray) -> Tensor | None:
    """A column as integers; None: it has one value, or another one for each. ValueError: it is missing or has gaps."""
    try:
        codes = np.unique(complete(samples, name)[indices], return_inverse=True)[1]
    except ValueError as error:
        raise ValueError(f"evaluate.group is {name!r}: {error}; evaluate.group='' takes none") from None
    return torch.from_numpy(codes) if _tells(codes) else None


def _tells(codes: np.ndarray) -> bool:
    """Whether there are several values, of which one comes twice."""
    return bool(0 < codes.max() < len(codes) - 1)
