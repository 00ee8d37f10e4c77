"""Settings of image data: how it is read, pretraining on it, and fine-tuning on its labels."""

from dataclasses import dataclass, field
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.image import masks, views
from d2v.modalities.image.frontend import FrontendConfig


@dataclass
class ReadConfig:
    """Where images are, how they are read and cropped."""

    path: Any = ""  # folder, table, Hub name, a list of these, or "demo": scikit-learn's 8 x 8 digits
    split: str = "train"
    label: str = "label"
    max_bad_share: float = 0.1
    check_files: bool = True  # decode every file once before training; False reads headers only
    min_size: int = 1  # pixels of the shorter side
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    flip: float = 0.5
    color_jitter: float = 0.4
    eval_crop: float = 0.875
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class DataConfig(ReadConfig, masks.MaskConfig, views.ViewConfig):
    """Images to pretrain on: how they are read, and how they are masked or which views are made of them."""


@dataclass
class LabelledConfig(ReadConfig, labels.SplitConfig):
    """Where labelled images are, and how they are augmented; `split` is the one to train on."""

    regression: bool = False  # the label is a number
    auto_augment: str = ""  # RandAugment as timm writes it: rand-m9-mstd0.5-inc1; it takes the place of color_jitter
    random_erase: float = 0.0  # probability that a box of an image becomes noise
    mixup: float = 0.0  # parameter of the Beta distribution of shares; 0: none
    cutmix: float = 0.0  # the same of areas
    mix_prob: float = 1.0  # probability that a batch is mixed
    cutmix_prob: float = 0.5  # and then by cutmix, where both are given
    label_smoothing: float = 0.0


def check_reading(data: ReadConfig, frontend: FrontendConfig) -> None:
    """ValueError: settings of reading and cropping that contradict one another."""
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) not in (1, frontend.channels):
            raise ValueError(
                f"data.{name} has {len(values)} values for {frontend.channels} channels: give one, or one per channel"
            )
    if min(data.std) <= 0:
        raise ValueError(f"data.std {list(data.std)} must be positive")
    if data.color_jitter and frontend.channels not in (1, 3):
        raise ValueError(
            f"data.color_jitter {data.color_jitter} needs 1 or 3 channels, not {frontend.channels}: set it to 0"
        )
    for name, values, top in (("crop_scale", data.crop_scale, 1.0), ("crop_ratio", data.crop_ratio, float("inf"))):
        if len(values) != 2 or not 0 < values[0] <= values[1] <= top:
            raise ValueError(
                f"data.{name} {list(values)} must be [low, high] with 0 < low <= high{' <= 1' if top == 1 else ''}"
            )
    for name, value in (("flip", data.flip), ("eval_crop", data.eval_crop)):
        if not 0 <= value <= 1 or (value == 0 and name != "flip"):
            raise ValueError(f"data.{name} {value} must lie between 0 and 1")
