"""Settings of the sensor's data and frontend."""

from dataclasses import dataclass
from typing import Any

from d2v.modalities.common.labels import SplitConfig
from d2v.settings import check_fields, setting


@dataclass
class FrontendConfig:
    """What shapes the frontend."""

    patch_size: int = setting(8, "Numbers of one token.", least=1)


@dataclass
class ReadConfig:
    """Which signals are read."""

    path: Any = setting("", "A folder of classes, each a folder of .npy files.")
    split: str = setting("train", "A folder in it, if it has one of this name.")
    label: str = setting("label", "The column of classes.")
    max_bad_share: float = setting(0.01, "A larger share of unreadable files is an error.", least=0, most=1)

    def __post_init__(self):
        """ValueError: a number that makes no sense."""
        check_fields(self, "data")


@dataclass
class DataConfig(ReadConfig):
    """Signals for pretraining, and what is hidden of them."""

    mask_prob: float = setting(0.5, "Share of tokens in spans, before they overlap.", above=0, below=1)
    mask_length: int = setting(3, "Tokens of a span.", least=1)
    views: list[str] = setting([], "Noisy views to compare; empty: one masked view.", among=("noisy",))


@dataclass
class LabelledConfig(ReadConfig, SplitConfig):
    """Signals with labels for fine-tuning."""

    regression: bool = setting(False, "The label is a number.")
