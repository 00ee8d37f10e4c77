"""The settings of scripts/evaluate.py and of scripts/embed.py: sections `evaluate:` and `embed:` of a config."""

import re
from dataclasses import dataclass, replace
from typing import Any

from d2v.settings import check_fields, check_values, setting

TOKENS = "none"  # of embed.pool
POOLS = ("mean", "class", "first", TOKENS)
AUTO, LABEL = "auto", "label"  # the defaults of evaluate.test_split (and embed.layers) and evaluate.label
PROJECTED = "projected"  # of embed.layers
LAYERS = ("last", "local", "all", "class")  # of evaluate.layer, beside the numbers of blocks


@dataclass
class EvaluateConfig:
    """Which samples, which features, and which scores."""

    path: Any = setting("", "Where the labelled data is; empty: data.path.", place=True)
    train_split: str = setting("train", "The split that neighbours and probes learn from.")
    test_split: str = setting(
        AUTO,
        "The split that is scored; auto: test, where the data has one, else as if empty; empty: within train, where "
        "neighbours leave one out and probes run in folds.",
    )
    max_train: int = setting(0, "This many samples of train, drawn with seed; 0: all.", least=0)
    max_test: int = setting(0, "This many samples of test, drawn with seed; 0: all.", least=0)
    layer: str = setting(
        "last",
        "last: the trunk's output; local: what enters the trunk; 1 to depth: a block's end; all: each of these; "
        "class: the class token.",
    )
    label: str = setting(
        LABEL,
        "The column to be predicted, by default that of data.label, if evaluate.path is empty; where the data has no "
        "column of the default's name, and where this is empty, nothing is scored, for reports that need no classes.",
    )
    group: str = setting(
        "",
        "A column, e.g. the speaker; adds scores within train where neighbours and probes see other groups only.",
    )
    zscore: bool = setting(True, "k-NN reads features by train's mean and deviation; probes always do.")
    k: list[int] = setting([20], "Neighbours that vote; a score for each number.", least=1, limit=1_000_000)
    temperature: float = setting(0.07, "A neighbour's vote weighs exp(cosine / temperature).", above=0, limit=1000)
    probe: bool = setting(True, "Linear probes too.")
    probe_steps: int = setting(300, "Steps of a linear probe.", least=1, limit=1_000_000)
    probe_lrs: list[float] = setting(
        [0.001, 0.003, 0.01, 0.03, 0.1],
        "Learning rates of a linear probe, of which a holdout chooses one.",
        above=0,
        limit=1000,
    )
    probe_holdout: float = setting(0.1, "Share of train that chooses the learning rate.", above=0, below=1)
    random_seeds: int = setting(3, "Random inits of the same architecture to compare with.", least=0, limit=1000)
    raw: bool = setting(True, "Scores of the raw input too.")
    batch_size: int = setting(64, "Of computing features; changes no result.", least=1)
    seed: int = setting(0, "Of drawing samples and holdouts.", least=0, limit=4_000_000_000)
    reports: list[str] = setting(
        [], "Further reports, by the names of their files in d2v/evaluation/reports; some take minutes."
    )
    logistic_cs: list[float] = setting(
        [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0],
        "Of the report logistic: values of C, of which a holdout chooses one.",
        above=0,
        only={"reports": "logistic"},
    )
    few_labels: list[str] = setting(
        ["1%", "5%", "10%", "100%"],
        "Of the report few_labels: a share of each class, or so many of each (5).",
        only={"reports": "few_labels"},
    )
    few_draws: int = setting(
        3, "Of the report few_labels: how often samples are drawn.", least=1, limit=1000, only={"reports": "few_labels"}
    )
    pictures: int = setting(
        6,
        "Samples that the reports attention and patches show.",
        least=1,
        limit=10_000,
        only={"reports": ("attention", "patches")},
    )
    templates: list[str] = setting(
        ["{}"],
        "Of the report zero_shot: sentences with {} where the name of a class goes; a class is the mean of its own.",
        only={"reports": "zero_shot"},
    )
    items: str = setting(
        "",
        "Of the report abx_items: a file with the columns file, onset, offset and phone, and perhaps prev-phone, "
        "next-phone and speaker, as ZeroSpeech's.",
        place=True,
        only={"reports": "abx_items"},
    )
    masks: str = setting(
        "",
        "Of the report dense: a folder with a mask (class numbers, 255: none) of the name of each image, in .png.",
        place=True,
        only={"reports": "dense"},
    )

    def __post_init__(self):
        """ValueError: a value that no evaluation can use."""
        check_values(self, "evaluate")
        without = [template for template in self.templates if "{}" not in template]
        if without:
            raise ValueError(f"evaluate.templates has {without[0]!r}; each must hold {{}}, where a class's name goes")
        for name in ("k", "probe_lrs", "logistic_cs", "few_labels", "templates"):
            if not getattr(self, name):
                raise ValueError(f"evaluate.{name} is []; it must have one or more entries")
        if not all(map(_is_amount, self.few_labels)):
            raise ValueError(
                f'evaluate.few_labels is {self.few_labels!r}; it must be numbers such as "5" or shares such as "10%"'
            )
        if self.layer not in LAYERS and not self.layer.isdecimal():
            raise ValueError(
                f"evaluate.layer is {self.layer!r}; it must be {', '.join(LAYERS)} or the number of a block"
            )


@dataclass
class EmbedConfig:
    """Which features, and how they are made."""

    layers: list[str] = setting(
        [AUTO],
        "last, local or blocks from 1 to depth, of which the mean is taken; projected: the last as a model that aligns "
        "modalities projects it, at length 1; auto: projected of such a model, else last.",
    )
    pool: str = setting(
        "mean",
        "mean: over content tokens; class: the class token; first: the first content token (of a sentence: <s>); none: "
        "each content token by itself, (tokens, width) a sample.",
        among=POOLS,
    )
    batch_size: int = setting(
        16, "Rows of the longest samples; of shorter ones as many as take the same room.", least=1, limit=1_000_000
    )
    chunk: int = setting(
        1024,
        "Samples that are sorted by length, and then written, together; of pool=none at most 64.",
        least=1,
        limit=10_000_000,
    )
    overlap: float = setting(
        0.1,
        "Share that neighbouring windows have in common, where a sample is longer than a model reads at once.",
        least=0,
        below=1,
    )

    def __post_init__(self):
        """ValueError: a value that no embedding can use."""
        check_fields(self, "embed")
        alone = list(self.layers) in ([AUTO], [PROJECTED])
        if not alone and not (
            self.layers and all(name in ("last", "local") or name.isdecimal() for name in self.layers)
        ):
            raise ValueError(
                f'embed.layers is {self.layers!r}; may hold "last", "local" or numbers of blocks, or "projected" alone'
            )
        if self.pool == "class" and list(self.layers) not in (["last"], [AUTO]):
            raise ValueError(f"embed.pool=class is of the last layer only; embed.layers is {list(self.layers)}")
        if self.pool != "mean" and list(self.layers) == [PROJECTED]:
            raise ValueError(f"embed.layers=[projected] is of embed.pool=mean only; embed.pool is {self.pool}")

    def of_model(self, *, projects: bool) -> "EmbedConfig":
        """With what stands for auto. ValueError: projected is asked for, and the model does not project."""
        if list(self.layers) == [PROJECTED] and not projects:
            raise ValueError(
                "embed.layers is ['projected'], but this model aligns no modalities and does not project; leave it out"
            )
        if list(self.layers) != [AUTO]:
            return self
        return replace(self, layers=[PROJECTED] if projects and self.pool == "mean" else ["last"])


def _is_amount(text: str) -> bool:
    """Whether an entry of few_labels is a positive number of samples, or a share above 0 % and up to 100 %."""
    if text.endswith("%"):
        return re.fullmatch(r"\d+(\.\d+)?%", text) is not None and 0 < float(text[:-1]) <= 100
    return re.fullmatch(r"[1-9]\d*", text) is not None
