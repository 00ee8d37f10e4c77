"""Settings of image data: how it is read, pretraining on it, and fine-tuning on its labels."""

from dataclasses import dataclass
from typing import Any

from d2v.modalities.common import labels
from d2v.modalities.common.checks import check_ranges
from d2v.modalities.image import masks, views
from d2v.modalities.image.frontend import MODALITY, FrontendConfig
from d2v.settings import check_values, setting


@dataclass
class FilesConfig:
    """Where images are, and what is read of them."""

    path: Any = setting(
        "",
        "A folder, a table, a Hub data set, a list of these, or what d2v brings: demo, scikit-learn's digits, and "
        "demo-patterns, which are drawn; required.",
        place=True,
    )
    split: str = setting("train", "The split to train on.")
    label: str = setting("label", "The column with the class, if there is one.")
    max_bad_share: float = setting(0.1, "Share of bad images above which a run stops.", least=0, most=1)
    check_files: bool = setting(True, "Every file is decoded once before training; false: headers are read only.")
    min_size: int = setting(1, "Images whose shorter side has fewer pixels are left out.", least=0, limit=1_000_000)
    flip: float = setting(0.5, "Chance that a training image is mirrored.", least=0, most=1)
    mean: list[float] = setting(
        [0.485, 0.456, 0.406],
        "What is subtracted from pixels between 0 and 1: one value, or one per channel.",
        least=-1000,
        limit=1000,
    )
    std: list[float] = setting(
        [0.229, 0.224, 0.225], "What pixels are then divided by: one value, or one per channel.", above=0, limit=1000
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        check_values(self, "data")


@dataclass
class ReadConfig(FilesConfig):
    """Where images are, and how they are read and cropped."""

    crop_scale: list[float] = setting(
        [0.08, 1.0],
        "Least and greatest share of the area that a random crop has.",
        above=0,
        most=1,
        count=2,
        only={"views": False},
        why="data.views have crops and colours of their own (data.view_scale, data.color_strength)",
    )
    crop_ratio: list[float] = setting(
        [3 / 4, 4 / 3], "Least and greatest ratio of width to height of a random crop.", above=0, count=2, limit=1000
    )
    color_jitter: float = setting(
        0.4,
        "Brightness, contrast and saturation of a training image change by up to this share; 0: not at all.",
        least=0,
        limit=1000,
        only={"views": False},
        why="data.views have crops and colours of their own (data.view_scale, data.color_strength)",
    )
    eval_crop: float = setting(
        0.875, "Share of an image's shorter side that the centre crop of evaluation has.", above=0, most=1
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense."""
        super().__post_init__()
        check_ranges(self, "crop_scale", "crop_ratio")


@dataclass
class DataConfig(ReadConfig, masks.MaskConfig, views.ViewConfig):
    """Images to pretrain on: how they are read, and how they are masked or which views are made of them."""


@dataclass
class LabelledConfig(ReadConfig, labels.SplitConfig):
    """Where labelled images are, and how they are augmented; `split` is the one to train on."""

    regression: bool = setting(False, "The label is a number.")
    auto_augment: str = setting(
        "", "RandAugment as timm writes it, such as rand-m9-mstd0.5-inc1; it takes the place of color_jitter."
    )
    random_erase: float = setting(0.0, "Chance that a box of a training image becomes noise.", least=0, most=1)
    mixup: float = setting(
        0.0,
        "Parameter of the Beta distribution of the shares of two images that are mixed; 0: none are.",
        least=0,
        limit=1000,
    )
    cutmix: float = setting(
        0.0,
        "Parameter of the Beta distribution of the area that is pasted from another image; 0: none is.",
        least=0,
        limit=1000,
    )
    mix_prob: float = setting(
        1.0, "Chance that a batch is mixed.", least=0, most=1, only=[{"mixup": True}, {"cutmix": True}]
    )
    cutmix_prob: float = setting(
        0.5,
        "Chance that a mixed batch is mixed by cutmix, where both are given.",
        least=0,
        most=1,
        only={"mixup": True, "cutmix": True},
    )
    label_smoothing: float = setting(
        0.0, "Share of each label that is spread over all classes evenly.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a value that makes no sense, or two settings that contradict one another."""
        super().__post_init__()
        self.check_splits()
        if self.auto_augment and self.color_jitter:
            raise ValueError(
                f"data.auto_augment takes the place of data.color_jitter, which is {self.color_jitter}: set it to 0"
            )
        of_classes = {name: getattr(self, name) for name in ("mixup", "cutmix", "label_smoothing")}
        for name, value in of_classes.items():
            if self.regression and value:
                raise ValueError(
                    f"data.regression=true learns numbers, and data.{name} is {value}, of classes: set it to 0"
                )


def check_pixels(data: FilesConfig, frontend: FrontendConfig) -> None:
    """ValueError: a mean or deviation that does not fit the number of channels."""
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) not in (1, frontend.channels):
            raise ValueError(
                f"data.{name} has {len(values)} values for {frontend.channels} channels: give one, or one per channel"
            )


def check_reading(data: ReadConfig, frontend: FrontendConfig) -> None:
    """ValueError: settings of pixels that do not fit the number of channels."""
    check_pixels(data, frontend)
    if data.color_jitter and frontend.channels not in (1, 3):
        raise ValueError(
            f"data.color_jitter {data.color_jitter} needs 1 or 3 channels, not {frontend.channels}: set it to 0"
        )


def check_labelled(data: LabelledConfig, frontend: FrontendConfig, batch_size: int) -> None:
    """ValueError: settings that do not fit the number of channels or of images in a batch."""
    check_reading(data, frontend)
    if data.auto_augment and frontend.channels != 3:
        raise ValueError(
            f"data.auto_augment needs images of 3 channels; model.frontends.{MODALITY}.channels is {frontend.channels}"
        )
    if (data.mixup or data.cutmix) and batch_size % 2:
        raise ValueError(
            f"train.batch_size is {batch_size}; data.mixup and data.cutmix mix pairs of images and need an even number"
        )
