"""Decodes an image and makes it a tensor: the random training transform and the fixed evaluation transform.

B samples, C channels, S image size. One or three channels are PIL images until the end, which is fast; other counts
are tensors (C, H, W).
"""

import io
import stat
import struct
import tokenize
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image as TensorImage

from d2v.modalities.common.shards import read

# What Pillow and numpy raise for a file that is cut off, corrupt, a bomb, or no image at all.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    Image.DecompressionBombError,
)
WHITE = (255, 255, 255, 255)  # what lies behind transparent pixels
SIGNED = 2  # a TIFF's format of samples
LEAST_FILLED = 128  # signed integers whose largest value is a smaller share of their range than 1 / this have no depth
# Where torch has code of its own for bytes; elsewhere it would resize floats, slower than Pillow
TENSORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
LARGE = 160  # pixels of a side of a crop, from which on tensors are faster
BICUBIC, NEAREST = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.NEAREST


def encoded(cell: Any) -> bytes | Path:
    """What a media cell holds: the file's bytes, or where it lies. ValueError: the cell is empty."""
    if isinstance(cell, dict) and cell.get("offset") is not None:
        return read(cell)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError("empty cell")
    return cell if isinstance(cell, bytes) else Path(cell)


def decode(source: bytes | Path, channels: int) -> Image.Image | TensorImage:
    """The image with `channels` channels, turned as its EXIF says, on white where it is transparent.

    The first page or frame of several. One of `UNREADABLE`: it is damaged, or its pixels have another number of
    channels, no known depth, or are not finite.
    """
    if _is_array(source):
        return _from_array(_scaled(np.load(_file(source), allow_pickle=False)), channels)
    with Image.open(_file(source)) as image:
        _refuse_misread(image)
        image.load()
        _turn(image)
        if channels not in (1, 3) and (image.mode[0] in "IF" or (image.mode == "CMYK" and image.format == "JPEG")):
            raise ValueError(f"{image.mode} image; a model of {channels} channels reads as many bands")
        if image.mode[0] in "IF":  # grey of more than 8 bits
            grey = _grey(image)
            return _from_array(grey if channels == 1 else np.stack([grey] * channels, axis=-1), channels)
        if channels not in (1, 3):
            return _from_array(np.asarray(image), channels)
        picture = _on_white(image) if image.has_transparency_data else image
        return picture.convert("RGB" if channels == 3 else "L")


class Outline(NamedTuple):
    """What the header of a file says."""

    height: int
    width: int
    more: bool  # pages or frames follow the first
    cut: bool = False  # more than 8 bits in each of several bands, of which Pillow reads the upper 8
    fourth: bool = False  # of a TIFF's bands the fourth, which may be a band of light, is read as transparency


def outline(source: bytes | Path) -> Outline:
    """Of a file, from its header alone. One of `UNREADABLE`: it has none."""
    if _is_array(source):
        array = np.load(_file(source), allow_pickle=False, mmap_mode=None if isinstance(source, bytes) else "r")
        height, width = sorted(array.shape)[-2:]
        return Outline(height, width, more=False)
    with Image.open(_file(source)) as image:
        _refuse_misread(image)
        height, width = image.height, image.width
        if _orientation(image) > 4:  # on its side
            height, width = width, height
        fourth = isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode == "RGBA"
        return Outline(height, width, cut=is_cut(image), fourth=fourth, more=_has_more(image))


def size(source: bytes | Path | Image.Image | Tensor) -> tuple[int, int]:
    """Height and width; of a file from its header alone. One of `UNREADABLE`: it has none."""
    if isinstance(source, Image.Image):
        return source.height, source.width
    if isinstance(source, Tensor):
        return source.shape[-2], source.shape[-1]
    return outline(source)[:2]


def one_colour(image: Image.Image | Tensor) -> bool:
    """Whether all pixels are equal."""
    if isinstance(image, Tensor):
        pixels = image.flatten(1)
        return bool((pixels == pixels[:, :1]).all())
    ranges = image.getextrema()
    return all(low == high for low, high in (ranges if isinstance(ranges[0], tuple) else [ranges]))


def _file(source: bytes | Path) -> io.BytesIO | Path:
    """What to open. OSError: no ordinary file; a pipe would be waited for."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(source.stat().st_mode):
        raise OSError("no ordinary file")
    return source


def _orientation(image: Image.Image) -> int:
    """By EXIF, 1 to 8; 1 where it is damaged, as viewers take it, and in TIFFs, which Pillow turns itself."""
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:
        return 1


def _turn(image: Image.Image) -> None:
    """Turns an image as its EXIF says."""
    if _orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)


def _has_more(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    except UNREADABLE:  # there is one, and it is damaged
        return True
    return True


def is_cut(image: Image.Image) -> bool:
    """Whether a file that is open and not read yet has more than 8 bits in each of several bands."""
    if image.mode[0] in "IF":
        return False
    arguments = [tile.args for tile in getattr(image, "tile", ())]  # the first one of each says how bytes are packed
    return any(";16" in (given if isinstance(given, str) else str((*(given or ()), "")[0])) for given in arguments)


def _refuse_misread(image: Image.Image) -> None:
    """ValueError: a TIFF that Pillow opens and reads wrong."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    raw, planes = tags.get(TiffImagePlugin.COMPRESSION, 1) == 1, tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    planes = planes and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
    if planes and raw and bits > 8:
        raise ValueError(f"planes of {bits} bits without compression: save it pixel by pixel (planarconfig contig)")
    if bits == 8 and SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
        raise ValueError("signed pixels of 8 bits: save them as uint8, or floats between 0 and 1")


def _on_white(image: Image.Image) -> Image.Image:
    picture = Image.new("RGBA", image.size, WHITE)
    picture.alpha_composite(image.convert("RGBA"))
    return picture


def _grey(image: Image.Image) -> np.ndarray:
    """Pixels (H, W) of one of Pillow's modes I and F between 0 and 1. ValueError: they do not lie there."""
    pixels = np.array(image)
    if image.mode == "F":
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(f"float pixels from {low:g} to {high:g}: they must lie between 0 and 1")
        return pixels
    bits, inverted = 16, False  # what Pillow widens to 32 bits has 16 too
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        written = tags.get(TiffImagePlugin.BITSPERSAMPLE, (bits,))[0]
        if SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()) and written == 16:
            return _scaled(pixels.astype(np.int16))
        bits = min(bits, written)
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # 0 is white, as Pillow heeds for 8 bits
    low, high = pixels.min(), pixels.max()
    if low < 0 or high >= 2**bits:
        raise ValueError(f"grey pixels from {low} to {high}: {bits} bits hold 0 to {2**bits - 1}")
    scaled = pixels.astype(np.float32) / (2**bits - 1)
    return 1 - scaled if inverted else scaled


def decode_mask(path: Path, wanted: tuple[int, int]) -> Image.Image:
    """Class numbers of 8 bits, grey or by palette, of an image of height and width `wanted`.

    ValueError: there are none, or of another size.
    """
    try:
        with Image.open(_file(path)) as image:
            image.load()
            mode, mask = image.mode, Image.fromarray(np.array(image))
    except UNREADABLE as error:
        raise ValueError(f"mask {path} cannot be read: {type(error).__name__}: {error}") from None
    if mode not in ("L", "P"):
        raise ValueError(f"mask {path} is of mode {mode}; class numbers are grey (L) or a palette's (P) of 8 bits")
    if size(mask) != wanted:
        raise ValueError(f"mask {path} has {mask.width} x {mask.height} pixels, its image {wanted[1]} x {wanted[0]}")
    return mask


def _is_array(source: bytes | Path) -> bool:
    return source[:6] == b"\x93NUMPY" if isinstance(source, bytes) else source.suffix.lower() == ".npy"


def _scaled(array: np.ndarray) -> np.ndarray:
    """Pixels of an array: uint8 stays, other integers become 0 to 1 by the range of their type, floats float32 as is.

    ValueError: no numbers, not finite, or signed integers that are negative or leave their range empty.
    """
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind in "iu":
        most, high = np.iinfo(array.dtype).max, array.max(initial=0)
        if kind == "i" and (array.min(initial=0) < 0 or high < most // LEAST_FILLED):
            raise ValueError(
                f"{array.dtype} pixels from {array.min(initial=0)} to {high} have no known depth: "
                "save them as uint8, uint16, or floats between 0 and 1"
            )
        return array.astype(np.float32) / most
    if kind not in "bf":
        raise ValueError(f"pixels of type {array.dtype}: they must be numbers")
    pixels = array.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("NaN or infinite pixels")
    return pixels


def _from_array(array: np.ndarray, channels: int) -> TensorImage:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W)."""
    given, array = array.shape, array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[2] != channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != channels:
        raise ValueError(f"array of shape {given} does not have {channels} channels, model.frontends.image.channels")
    return TensorImage(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))))


def normalise(images: Sequence[Image.Image | Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of one size -> (B, C, S, S) float32; uint8 is first scaled to 0 to 1."""
    pixels = stacked(images)
    pixels = pixels / 255 if pixels.dtype == torch.uint8 else pixels
    return ((pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)).contiguous()


def stacked(images: Sequence[Image.Image | Tensor]) -> Tensor:
    """Images of one size -> (B, C, S, S) uint8, or floats if one of them has these."""
    arrays = [_channels_first(image) for image in images]
    if len({array.dtype for array in arrays}) > 1:  # 8 and 16 bits in one data set
        arrays = [array / 255 if array.dtype == torch.uint8 else array for array in arrays]
    return torch.stack(arrays)  # a batch at once costs a third of one by one for small images


def _channels_first(image: Image.Image | Tensor) -> Tensor:
    """(C, H, W)."""
    if isinstance(image, Tensor):
        return image.as_subclass(Tensor)
    array = torch.from_numpy(np.array(image))  # (H, W, C), or (H, W) if grey
    return array.reshape(image.height, image.width, -1).permute(2, 0, 1)


def eight_bits(image: Image.Image | Tensor) -> Image.Image:
    """What RandAugment works on. ValueError: a tensor whose pixels do not lie between 0 and 1."""
    if isinstance(image, Image.Image):
        return image
    check_range(image, "data.auto_augment")
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().byte()
    return F.to_pil_image(image)


def check_range(image: Any, setting: str) -> None:
    """ValueError: an array whose pixels do not lie between 0 and 1, where `setting` would cut them off there."""
    if isinstance(image, Tensor) and image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if low < -0.5 or high > 1.5:  # bicubic resizing overshoots a little
            raise ValueError(
                f"{setting} reads pixels between 0 and 1, not {low:g} to {high:g}: scale the arrays, or leave it out"
            )


class ColorJitter(v2.ColorJitter):
    """torchvision's, which cuts floats off at 0 and 1. ValueError: pixels that do not lie there."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image by what was drawn."""
        if all(params[name] is None for name in params if name != "fn_idx"):  # of a strength of 0
            return inpt
        check_range(inpt, "data.color_jitter, or data.color_strength of data.views,")
        return super().transform(inpt, params)


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's; large crops of pictures are resized as tensors, in a half to a quarter of Pillow's time.

    By that few pixels differ, of 256 levels by one, rarely two.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image by what was drawn."""
        top, left, height, width = (params[name] for name in ("top", "left", "height", "width"))
        if not (
            TENSORS and isinstance(inpt, Image.Image) and min(height, width) >= LARGE and inpt.mode in ("RGB", "L")
        ):
            return super().transform(inpt, params)
        cut = _channels_first(inpt.crop((left, top, left + width, top + height)))
        resized = F.resize(cut, list(self.size), interpolation=self.interpolation, antialias=True)  # (C, S, S)
        return Image.fromarray(resized.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def training(
    image_size: int, *, crop_scale: Sequence[float], crop_ratio: Sequence[float], flip: float, color_jitter: float
) -> v2.Compose:
    """Colour jitter, flip, random resized crop, in the reference's order -> S x S image.

    Draws from torch's global generator.
    """
    jitter = [ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    crop = RandomResizedCrop(
        image_size,
        scale=(crop_scale[0], crop_scale[1]),
        ratio=(crop_ratio[0], crop_ratio[1]),
        interpolation=BICUBIC,
        antialias=True,
    )
    return v2.Compose([*jitter, v2.RandomHorizontalFlip(flip), crop])


def evaluation(image: Any, image_size: int, eval_crop: float, interpolation: v2.InterpolationMode = BICUBIC) -> Any:
    """Shorter side to image_size / eval_crop, then the centre, S x S.

    Offsets are cut off as transformers' image processors do.
    """
    image = F.resize(image, [round(image_size / eval_crop)], interpolation=interpolation, antialias=True)
    height, width = size(image)
    return F.crop(image, (height - image_size) // 2, (width - image_size) // 2, image_size, image_size)


def shown(image: Image.Image | Tensor) -> Image.Image:
    """An image for a person: tensors of other than three channels as their first in grey, floats from least to most."""
    if isinstance(image, Image.Image):
        return image
    array = image if len(image) == 3 else image[0]
    if array.dtype != torch.uint8:
        low, high = array.amin(), array.amax()
        array = ((array - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    return F.to_pil_image(array.as_subclass(Tensor))


def pool(pixels: Tensor, side: int = 8) -> Tensor:
    """(B, C, S, S) -> (B, C * side * side), the mean over cells."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels, side).flatten(1)
