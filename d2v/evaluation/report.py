"""What a report of an evaluation is given, and what it gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from d2v import plugins
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import frozen, layer_tokens, pooled_features
from d2v.evaluation.items import Unit, units_of
from d2v.evaluation.load_encoder import open_alignment, projection_of
from d2v.evaluation.queries import readers
from d2v.evaluation.splits import EvaluationSplit
from d2v.models.alignment import D2vForAlignment
from d2v.split_names import ORDERED
from d2v.types import View


class Finding(NamedTuple):
    """A few lines for a person, and the numbers for a file."""

    lines: list[str]
    numbers: dict[str, Any]


@dataclass
class Subject:
    """A model, beside it a random init of its architecture where one is wanted, and the samples they are tried on."""

    name: str
    encoders: dict[str, Any]  # the model's first
    train: EvaluationSplit
    test: EvaluationSplit | None
    config: EvaluateConfig
    folder: Path  # of pictures
    device: str | torch.device = "cpu"

    @property
    def encoder(self):
        """The model's."""
        return next(iter(self.encoders.values()))

    @property
    def layer(self) -> str:
        """Which one features are of, where a report shows one."""
        return "last" if self.config.layer == "all" else self.config.layer

    @cached_property
    def features(self) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """Pooled features of `layer` by the encoder's name: of train (G, D), and of test (N, D) if there is one."""
        near = {name: layers[self.layer] for name, layers in self.pooled(self.train, self.layer).items()}
        if self.test is None:
            return {name: (x, None) for name, x in near.items()}
        return {name: (near[name], layers[self.layer]) for name, layers in self.pooled(self.test, self.layer).items()}

    def pooled(self, split: EvaluationSplit, layer: str) -> dict[str, dict[str, np.ndarray]]:
        """Pooled features of a split, by the encoder's name and the layer's."""
        settings = (self.config.batch_size, self.device)
        return {
            name: pooled_features(encoder, split.samples, *settings, indices=split.indices, layer=layer)
            for name, encoder in self.encoders.items()
        }

    def labels(self, report: str) -> np.ndarray:
        """Classes of train, (G,). ValueError: there are none, and the report needs them."""
        if not self.config.label:
            raise ValueError(f"evaluate.reports: {report} needs labels; evaluate.label is ''")
        return self.train.labels

    def tested(self, report: str) -> EvaluationSplit:
        """The test split. ValueError: there is none, and the report needs one."""
        if self.test is None:
            labels = self.train.labels
            is_ordered = len(labels) > 0 and bool((np.diff(labels) >= 0).all())
            cut = "cut one off by evaluate.train_split='train[:80%]' evaluate.test_split='train[80%:]'"
            raise ValueError(
                f"evaluate.reports: {report} needs a test split, and there is none: evaluate.test_split names one; "
                + (ORDERED if is_ordered else cut)
            )
        return self.test

    def shown_split(self) -> EvaluationSplit:
        """What pictures are of: the test split, or train without one."""
        return self.train if self.test is None else self.test

    def shown_view(self) -> View:
        """evaluate.pictures samples of it, at equal distances."""
        split = self.shown_split()
        chosen = np.unique(np.linspace(0, len(split.indices) - 1, self.config.pictures).astype(int))
        return split.samples.view(split.indices[chosen]).to(self.device)

    def grid(self, report: str, modality: str) -> tuple[int, int]:
        """Rows and columns of the model's tokens. ValueError: they lie on no grid, and the report needs one."""
        frontend = self.encoder.frontend(modality)
        if "grid" not in vars(frontend):
            raise ValueError(f"evaluate.reports: {report} needs tokens on a grid; those of {modality} are a sequence")
        return frontend.grid

    def on_grid(self, report: str) -> tuple[int, int]:
        """As grid, of the modality that is read."""
        return self.grid(report, self.modality)

    @cached_property
    def modality(self) -> str:
        """What the samples are of."""
        return self._one().modality

    def names(self, report: str) -> tuple[D2vForAlignment, str]:
        """The whole model, which brings the samples and words to one space, and the modality that reads words.

        ValueError: it does not, and the report needs it.
        """
        model, needs = open_alignment(self.name), f"evaluate.reports: {report} needs a model that aligns"
        if projection_of(model, self.modality) is None:
            raise ValueError(f"{needs} {self.modality} with words; {self.name} does not")
        assert model is not None
        for name, module in readers(tuple(model.config.frontends)).items():
            if not module.QUERIES and projection_of(model, name) is not None:
                return model, name
        raise ValueError(f"{needs} {self.modality} with words; {self.name} aligns {', '.join(model.projections)}")

    def blocks(self, report: str) -> None:
        """ValueError: a trunk without blocks, and the report needs one."""
        if not len(self.encoder.trunk.blocks):
            raise ValueError(
                f"evaluate.reports: {report} needs a trunk with blocks; this model has none (model.trunk.depth=0)"
            )

    def masks(self, report: str) -> None:
        """ValueError: no folder of masks was given, and the report needs one."""
        if not self.config.masks:
            raise ValueError(
                f"evaluate.reports: {report} needs evaluate.masks, a folder with a mask for each sample of data.path"
            )

    def items(self, report: str) -> list[Unit]:
        """The units within recordings. ValueError: no file of them was given, and the report needs one."""
        if not self.config.items:
            raise ValueError(
                f"evaluate.reports: {report} needs evaluate.items, a file whose lines say what is heard when in which "
                "recording"
            )
        return units_of(Path(self.config.items))

    def token_seconds(self, report: str) -> float:
        """From one token to the next. ValueError: tokens are no times, and the report needs such."""
        frontend = self.encoder.frontend(self.modality)
        seconds = getattr(frontend, "token_seconds", None)
        if seconds is None:
            raise ValueError(f"evaluate.reports: {report} needs tokens with times; those of {self.modality} have none")
        return seconds

    def tokens(self, report: str) -> None:
        """ValueError: features of whole samples were asked for, and the report needs those of tokens."""
        if self.config.layer == "class":
            raise ValueError(f"evaluate.reports: {report} needs tokens; evaluate.layer=class gives one for a sample")

    def check_layer(self) -> None:
        """ValueError: the encoder has no layer evaluate.layer; which it has."""
        wanted, view = self.config.layer, self._one().to(self.device)
        with frozen(self.encoder):
            tokens, features = layer_tokens(self.encoder, view, ["all"], "evaluate.layer")
        if wanted == "class" and features.extra is None:
            raise ValueError(
                f"evaluate.layer is 'class'; this encoder has no class token, but {', '.join(tokens)}, or all"
            )
        if wanted not in ("all", "class", *tokens):
            of_class = [] if features.extra is None else ["class"]
            raise ValueError(
                f"evaluate.layer is {wanted!r}; this encoder has {', '.join([*tokens, *of_class])}, or all"
            )

    def _one(self) -> View:
        """A sample of train."""
        return self.train.samples.view(self.train.indices[:1])

    def picture(self, report: str) -> Path:
        """Where a report's picture goes."""
        return self.folder / f"{report}.png"


# What a report may need, by the names in its NEEDS.
CHECKS = {
    "labels": Subject.labels,
    "test": Subject.tested,
    "masks": Subject.masks,
    "items": Subject.items,
    "token_seconds": Subject.token_seconds,
    "blocks": Subject.blocks,
    "tokens": Subject.tokens,
    "grid": Subject.on_grid,
    "names": Subject.names,
}


def check_reports(subject: Subject, names: Iterable[str]) -> None:
    """Before features are made, which takes minutes. ValueError: what a report needs is not there."""
    for name in names:
        for need in vars(plugins.load("d2v.evaluation.reports", name)).get("NEEDS", ()):
            if need not in CHECKS:
                raise ValueError(f"NEEDS of the report {name} has {need!r}; it may have {', '.join(CHECKS)}")
            CHECKS[need](subject, name)


def make_reports(subject: Subject, names: Iterable[str]) -> dict[str, Finding]:
    """Each report by its name. ValueError: an unknown report, or one that cannot be made of this model and data."""
    # All names first: a report may take minutes.
    modules = {name: plugins.load("d2v.evaluation.reports", name) for name in names}
    check_reports(subject, names)
    findings = {}
    for name, module in modules.items():
        findings[name] = module.report(subject)
        if not isinstance(findings[name], Finding):
            returned = type(findings[name]).__name__
            raise ValueError(
                f"the report {name} returned a {returned}; it must be a Finding of d2v/evaluation/report.py"
            )
    return findings
