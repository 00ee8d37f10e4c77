"""Views of an image to be compared with one another: the published augmentations by name, and smaller crops.

C channels, S image size, L size of a local view. PIL images until the end; every draw is of torch's global generator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from d2v.modalities.common.checks import check_ranges, check_views
from d2v.modalities.image import augment
from d2v.modalities.image.colours import BRIGHTNESS, CONTRAST, HUE, SATURATION, Drawn
from d2v.modalities.image.frontend import FrontendConfig
from d2v.settings import check_readers, setting

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


STRONG, WEAK, PIRL = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1), (0.4, 0.4, 0.4, 0.2)
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
    # pretext tasks, with the values of VISSL; rotnet and jigsaw change no colours, but for grey
    "rotnet": Family((0.08, 1), (0, 0, 0, 0), interpolation=BILINEAR, order="crop flip"),
    # published: 255 pixels of a side, anywhere, of an image whose shorter side has 256
    "jigsaw": Family((0.6, 1), (0, 0, 0, 0), grey=0.66, interpolation=BILINEAR, order="crop flip grey"),
    "pirl": Family((0.08, 1), PIRL, jitter_chance=1, interpolation=BILINEAR, order="crop jitter grey flip"),
    "pirl_tiles": Family((0.6, 1), PIRL, jitter_chance=1, interpolation=BILINEAR, order="crop jitter grey flip"),
}
SWAV_LOCAL = FAMILIES["swav"]._replace(scale=(0.05, 0.14))
VIEWS = tuple(FAMILIES)


def change_colours(names: list[str]) -> bool:
    """Whether any of these views has other colours than its image, apart from grey."""
    return any(name in FAMILIES and any(FAMILIES[name].jitter) for name in names)


@dataclass
class ViewConfig:
    """Views of the same images in place of one masked view.

    They read flip and crop_ratio, not crop_scale and color_jitter.
    """

    views: list[str] = setting(
        [], f"One augmentation a view: {', '.join(VIEWS[:-1])} or {VIEWS[-1]}; empty: one masked view."
    )
    view_scale: list[float] | None = setting(
        None,
        "Least and greatest share of the area that crops of these views have; null: as published for each.",
        above=0,
        most=1,
        count=2,
        only={"views": True},
    )
    local_views: int = setting(
        0, "Further, smaller views, after the others (multi-crop).", least=0, limit=1000, only={"views": True}
    )
    local_size: int = setting(
        96, "Pixels of a side of the smaller views.", least=1, limit=16_384, only={"local_views": True}
    )
    local_scale: list[float] | None = setting(
        None,
        "Least and greatest share of the area that smaller views have; null: as published, [0.05, 0.4], "
        "or beside swav [0.05, 0.14].",
        above=0,
        most=1,
        count=2,
        only={"local_views": True},
    )
    color_strength: float = setting(
        1.0,
        "What the published changes of colour are multiplied by.",
        least=0,
        limit=1000,
        only=[{"views": change_colours}, {"local_views": True}],
    )
    blur: bool = setting(True, "false: no view is blurred, as usual for images of 32 pixels.", only={"views": True})
    augment_on_device: bool = setting(
        False,
        "Colours and blur of views change on the device, a batch at once, and not in the workers: for a GPU that waits "
        "for data.",
        only={"views": True},
    )


def check(data: Any, frontend: FrontendConfig) -> None:
    """ValueError: settings of views (of a DataConfig) that contradict one another or that nothing reads."""
    check_views(data.views, VIEWS)
    check_readers({"data": data})
    check_ranges(data, "view_scale", "local_scale")
    if not data.views:
        return
    if frontend.channels not in (1, 3):
        raise ValueError(
            "data.views change colours, which needs 1 or 3 channels; "
            f"model.frontends.image.channels is {frontend.channels}"
        )
    hue = max(FAMILIES[name].jitter[3] for name in data.views)
    if data.color_strength * hue > 0.5:
        raise ValueError(
            f"data.color_strength {data.color_strength} must lie between 0 and {0.5 / hue:g}, "
            f"where the hue of {data.views} goes once round"
        )
    if data.local_views:
        _check_size(data.local_size, frontend)


def _check_size(size: int, frontend: FrontendConfig) -> None:
    if size > frontend.image_size:
        raise ValueError(
            f"data.local_size {size} must be between 1 and the size of the other views, "
            f"model.frontends.image.image_size {frontend.image_size}"
        )
    if not frontend.backbone and size % frontend.patch_size:
        raise ValueError(
            f"data.local_size {size} must be a multiple of model.frontends.image.patch_size {frontend.patch_size}"
        )


def transforms(data: Any, image_size: int) -> list[Callable[[Any], Any]]:
    """Of each view, the local ones last: image -> S x S, or L x L, image; of one that is `Deferred`, and Drawn."""
    make = Deferred if data.augment_on_device else _in_turn
    return [make(parts) for parts in _views(data, image_size)]


def _views(data: Any, image_size: int) -> list[dict[str, Callable[[Any], Any]]]:
    made = [_parts(FAMILIES[name], data.view_scale, image_size, data) for name in data.views]
    local = SWAV_LOCAL if "swav" in data.views else FAMILIES["dino_local"]
    return made + [_parts(local, data.local_scale, data.local_size, data)] * data.local_views


def _parts(family: Family, scale: Any, size: int, data: Any) -> dict[str, Callable[[Any], Any]]:
    """The steps of a view by their names, in their order."""
    low, high = scale or family.scale
    ratio = (data.crop_ratio[0], data.crop_ratio[1])
    jitter = augment.ColorJitter(*(data.color_strength * amount for amount in family.jitter))
    parts = {
        "crop": augment.RandomResizedCrop(
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
    return {name: parts[name] for name in family.order.split() if name in parts}


def _in_turn(parts: dict[str, Callable[[Any], Any]]) -> v2.Compose:
    return v2.Compose(list(parts.values()))


class Deferred:
    """A view of which only crop and flip are made here; its colours are drawn as always, for the device to change."""

    def __init__(self, parts: dict[str, Any]):
        self.parts = parts

    def __call__(self, image: Any) -> tuple[Any, Drawn]:
        """The cropped image, and what it is to become."""
        turns, sigma, is_solarised = [], 0.0, False
        for name, part in self.parts.items():
            if name in ("crop", "flip"):
                image = part(image)
            elif torch.rand(1) >= part.p:  # as torchvision decides
                continue
            elif name == "jitter":
                turned = _turns(part.transforms[0])
                if turned:
                    augment.check_range(image, "data.color_strength of data.views")
                turns += turned
            elif name == "grey":
                turns.append((SATURATION, 0.0))
            elif name == "blur":
                sigma = _sigma()
            else:
                is_solarised = True
        return image, Drawn(turns, sigma, is_solarised)


def _turns(jitter: v2.ColorJitter) -> list[tuple[int, float]]:
    """What it draws: kinds of change in their order, each with its factor."""
    drawn = jitter.make_params([])
    factors = {
        BRIGHTNESS: drawn["brightness_factor"],
        CONTRAST: drawn["contrast_factor"],
        SATURATION: drawn["saturation_factor"],
        HUE: drawn["hue_factor"],
    }
    return [(kind, factors[kind]) for kind in drawn["fn_idx"].tolist() if factors[kind] is not None]


def _sigma() -> float:
    return float(torch.empty(()).uniform_(*BLUR_SIGMA))


def blurred(image: Any) -> Any:
    """Gaussian blur of a standard deviation drawn from 0.1 to 2 pixels, by Pillow as in MoCo, SwAV and DINO.

    SimCLR and BYOL cut their kernel at 23 of 224 pixels, where it is nearly zero.
    """
    sigma = _sigma()
    if isinstance(image, Image.Image):
        return image.filter(ImageFilter.GaussianBlur(sigma))
    return F.gaussian_blur(image, [min(23, 2 * min(image.shape[-2:]) - 1)] * 2, [sigma])


def solarised(image: Any) -> Any:
    """Values in the upper half become their distance to the largest."""
    return F.solarize(image, 128 / 255 if not isinstance(image, Image.Image) and image.is_floating_point() else 128)
