"""Decodes an image and makes it a tensor: the random training transform and the fixed evaluation transform.

B samples, C channels, S image size. One or three channels are PIL images until the end, which is fast; other counts
are tensors (C, H, W).
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image as TensorImage

# What Pillow and numpy raise for a file that is cut off, corrupt, a bomb, or no image at all.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
BICUBIC, NEAREST = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.NEAREST


def encoded(cell: Any) -> bytes | Path:
    """What a media cell holds: the file's bytes, or where it lies. ValueError: the cell is empty."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError("empty cell")
    return cell if isinstance(cell, bytes) else Path(cell)


def decode(source: bytes | Path, channels: int) -> Image.Image | TensorImage:
    """The image with `channels` channels. One of `UNREADABLE`: it is damaged or has another number of channels."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if _is_array(source):
        return _from_array(np.load(file, allow_pickle=False), channels)
    with Image.open(file) as image:
        image.load()
        if channels == 3 or (channels == 1 and image.mode[0] not in "IF"):
            return image.convert("RGB" if channels == 3 else "L")
        return _from_array(np.asarray(image), channels)


def size(source: bytes | Path | Image.Image | Tensor) -> tuple[int, int]:
    """Height and width; of a file from its header alone. One of `UNREADABLE`: it has none."""
    if isinstance(source, Image.Image):
        return source.height, source.width
    if isinstance(source, Tensor):
        return source.shape[-2], source.shape[-1]
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if _is_array(source):
        array = np.load(file, allow_pickle=False, mmap_mode=None if isinstance(source, bytes) else "r")
        height, width = sorted(array.shape)[-2:]
        return height, width
    with Image.open(file) as image:
        return image.height, image.width


def decode_mask(path: Path, wanted: tuple[int, int]) -> Image.Image:
    """Class numbers of 8 bits, grey or by palette, of an image of height and width `wanted`.

    ValueError: there are none, or of another size.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P"):
                raise ValueError(
                    f"mask {path} is of mode {image.mode}; class numbers are grey (L) or a palette's (P) of 8 bits"
                )
            mask = Image.fromarray(np.array(image))
    except OSError as error:
        raise ValueError(f"mask {path} cannot be read: {type(error).__name__}: {error}") from None
    if size(mask) != wanted:
        raise ValueError(f"mask {path} has {mask.width} x {mask.height} pixels, its image {wanted[1]} x {wanted[0]}")
    return mask


def _is_array(source: bytes | Path) -> bool:
    return source[:6] == b"\x93NUMPY" if isinstance(source, bytes) else source.suffix.lower() == ".npy"


def _from_array(array: np.ndarray, channels: int) -> TensorImage:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W): uint8 stays, uint16 becomes 0 to 1, the rest float32 as it is."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[2] != channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != channels:
        raise ValueError(f"array of shape {array.shape} does not have {channels} channels")
    if array.dtype != np.uint8:
        array = array.astype(np.float32) / (65535 if array.dtype == np.uint16 else 1)
    return TensorImage(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))))


def normalise(images: Sequence[Image.Image | Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of one size -> (B, C, S, S) float32; uint8 is first scaled to 0 to 1."""
    arrays = [_channels_first(image) for image in images]
    if len({array.dtype for array in arrays}) > 1:  # 8 and 16 bits in one data set
        arrays = [array / 255 if array.dtype == torch.uint8 else array for array in arrays]
    pixels = torch.stack(arrays)  # (B, C, S, S); a batch at once costs a third of one by one for small images
    pixels = pixels / 255 if pixels.dtype == torch.uint8 else pixels
    return ((pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)).contiguous()


def _channels_first(image: Image.Image | Tensor) -> Tensor:
    """(C, H, W)."""
    if isinstance(image, Tensor):
        return image.as_subclass(Tensor)
    array = torch.from_numpy(np.array(image))  # (H, W, C), or (H, W) if grey
    return array.reshape(image.height, image.width, -1).permute(2, 0, 1)


def training(
    image_size: int, *, crop_scale: Sequence[float], crop_ratio: Sequence[float], flip: float, color_jitter: float
) -> v2.Compose:
    """Colour jitter, flip, random resized crop, in the reference's order -> S x S image.

    Draws from torch's global generator.
    """
    jitter = [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    crop = v2.RandomResizedCrop(
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
