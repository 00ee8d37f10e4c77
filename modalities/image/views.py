"""Views of an image to be compared with one another: the published augmentations by name, and smaller crops.

C channels, S image size, L size of a local view. PIL images until the end; every draw is of torch's global generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from d2v.modalities.common.checks import check_unread, check_views

BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
BLUR_SIGMA = (0.1, 2.0)


class Family(NamedTuple):
    """A published augmentation; what is drawn with which probability."""

    scale: tuple[float, float]  # share of the area that a crop has
    jitter: tuple[float, float, float, float]  # of brightness, contrast, saturation, hue
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0
    interpolation: v2.InterpolationMode = BICUBIC
    order: str = "crop flip jitter grey blur solarise"


STRONG, WEAK = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1)
FAMILIES = {
    # MoCo v2 (arXiv 2003.04297) and SimSiam
    "moco_v2": Family(
        (0.2, 1), (0.4, 0.4, 0.4, 0.1), blur=0.5, interpolation=BILINEAR, order="crop jitter grey blur flip"
    ),
    # instance discrimination (arXiv 1805.01978) and MoCo v1
    "instdisc": Family(
        (0.2, 1), (0.4, 0.4, 0.4, 0.4), jitter_chance=1, interpolation=BILINEAR, order="crop grey jitter flip"
    ),
    "simclr": Family((0.08, 1), STRONG, blur=0.5),  # arXiv 2002.05709, appendix A
    # BYOL (arXiv 2006.07733), appendix B; MoCo v3 and VICReg too
    "byol_a": Family((0.08, 1), WEAK, blur=1),
    "byol_b": Family((0.08, 1), WEAK, blur=0.1, solarise=0.2),
    # DINO's code (arXiv 2104.14294) and iBOT
    "dino_a": Family((0.4, 1), WEAK, blur=1),
    "dino_b": Family((0.4, 1), WEAK, blur=0.1, solarise=0.2),
    "dino_local": Family((0.05, 0.4), WEAK, blur=0.5),
    "swav": Family((0.14, 1), STRONG, blur=0.5, interpolation=BILINEAR),  # arXiv 2006.09882
}
SWAV_LOCAL = FAMILIES["swav"]._replace(scale=(0.05, 0.14))
VIEWS = tuple(FAMILIES)


@dataclass
class ViewConfig:
    """Views of the same images instead of one masked view; flip and crop_ratio are theirs too, crop_scale, color_jitter and masks are not."""

    views: list[str] = field(
        default_factory=list
    )  # one augmentation for each view, of those in modalities/image/views.py; empty: one masked view
    view_scale: list[float] | None = (
        None  # share of the area that crops of these views have; None: as published for each
    )
    local_views: int = 0  # further, smaller views, after the others (multi-crop)
    local_size: int = 96
    local_scale: list[float] | None = None  # None: as published, [0.05, 0.4] or beside swav [0.05, 0.14]
    color_strength: float = 1.0  # times the published colour jitter
    blur: bool = True  # false: no view is blurred, as usual for images of 32 pixels


def check(data: Any, frontend: Any) -> None:
    """ValueError: settings of views (of a DataConfig) that contradict one another or that nothing reads."""
    check_views(data.views, VIEWS)
    _check_read(data)
    for name in ("view_scale", "local_scale"):
        scale = getattr(data, name)
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(f"data.{name} {list(scale)} must be [low, high] with 0 < low <= high <= 1")
    if not data.views:
        return
    if frontend.channels not in (1, 3):
        raise ValueError(
            f"data.views change colours, which needs 1 or 3 channels; model.frontends.image.channels is {frontend.channels}"
        )
    hue = max(FAMILIES[name].jitter[3] for name in data.views)
    if not 0 <= data.color_strength * hue <= 0.5:
        raise ValueError(
            f"data.color_strength {data.color_strength} must lie between 0 and {0.5 / hue:g}, where the hue of {data.views} goes once round"
        )
    if data.local_views < 0:
        raise ValueError(f"data.local_views is {data.local_views}; it must be 0 or more")
    if data.local_views:
        _check_size(data.local_size, frontend)


def _check_read(data: Any) -> None:
    if data.views:
        check_unread(
            data,
            ("crop_scale", "color_jitter"),
            "data.views have crops and colours of their own (data.view_scale, data.color_strength)",
        )
    else:
        check_unread(data, ("view_scale", "local_views", "color_strength", "blur"), "data.views is empty")
    if not data.local_views:
        check_unread(data, ("local_size", "local_scale"), "data.local_views is 0")


def _check_size(size: int, frontend: Any) -> None:
    if not 0 < size <= frontend.image_size:
        raise ValueError(
            f"data.local_size {size} must be between 1 and the size of the other views, model.frontends.image.image_size {frontend.image_size}"
        )
    if not frontend.backbone and size % frontend.patch_size:
        raise ValueError(
            f"data.local_size {size} must be a multiple of model.frontends.image.patch_size {frontend.patch_size}"
        )


def transforms(data: Any, image_size: int) -> list[Callable[[Any], Any]]:
    """Of each view, the local ones last: image -> S x S, or L x L, image."""
    made = [_transform(FAMILIES[name], data.view_scale, image_size, data) for name in data.views]
    local = SWAV_LOCAL if "swav" in data.views else FAMILIES["dino_local"]
    return made + [_transform(local, data.local_scale, data.local_size, data)] * data.local_views


def _transform(family: Family, scale: Any, size: int, data: Any) -> v2.Compose:
    low, high = scale or family.scale
    ratio = (data.crop_ratio[0], data.crop_ratio[1])
    jitter = v2.ColorJitter(*(data.color_strength * amount for amount in family.jitter))
    parts = {
        "crop": v2.RandomResizedCrop(
            size, scale=(low, high), ratio=ratio, interpolation=family.interpolation, antialias=True
        ),
        "flip": v2.RandomHorizontalFlip(data.flip),
        "jitter": v2.RandomApply([jitter], p=family.jitter_chance),
        "grey": v2.RandomGrayscale(family.grey),
    }
    if family.blur and data.blur:
        parts["blur"] = v2.RandomApply([v2.Lambda(blurred)], p=family.blur)
    if family.solarise:
        parts["solarise"] = v2.RandomApply([v2.Lambda(solarised)], p=family.solarise)
    return v2.Compose([parts[name] for name in family.order.split() if name in parts])


def blurred(image: Any) -> Any:
    """Gaussian blur of a standard deviation drawn from 0.1 to 2 pixels, by Pillow as in MoCo, SwAV and DINO.

    SimCLR and BYOL cut their kernel at 23 of 224 pixels, where it is nearly zero.
    """
    sigma = float(torch.empty(()).uniform_(*BLUR_SIGMA))
    if isinstance(image, Image.Image):
        return image.filter(ImageFilter.GaussianBlur(sigma))
    return F.gaussian_blur(image, [min(23, 2 * min(image.shape[-2:]) - 1)] * 2, [sigma])


def solarised(image: Any) -> Any:
    """Values in the upper half become their distance to the largest."""
    return F.solarize(image, 128 / 255 if not isinstance(image, Image.Image) and image.is_floating_point() else 128)
