"""The work that both implementations are timed on: sizes, published settings, one batch of inputs with its masks.

B samples, T tokens, S samples of audio or pixels along a side.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from d2v.modalities.common import masking, sampling
from d2v.modalities.image import masks

MODALITIES = ("image", "speech", "text")
MAIN_INPUT = {"image": "pixel_values", "speech": "input_values", "text": "input_ids"}


@dataclass(frozen=True)
class Size:
    """Widths and batch sizes; the defaults are those of the published Base models with four layers."""

    dim: int = 768
    depth: int = 4
    heads: int = 12
    image: int = 224
    patch: int = 16
    images: int = 4  # batch of images
    conv_dim: int = 512
    samples: int = 64000  # 4 s of audio
    clips: int = 2  # batch of speech
    vocab: int = 50265
    tokens: int = 128
    rows: int = 8  # batch of text


TINY = Size(
    dim=32, depth=2, heads=2, image=32, patch=8, images=2, conv_dim=16, samples=8000, vocab=60, tokens=16, rows=2
)


@dataclass(frozen=True)
class Settings:
    """What data2vec 1.0 was published with (layer drop aside, which would make steps unequal)."""

    dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.0
    norm_eps: float = 1e-5
    layer_norms: tuple[str, ...] = ("instance",)
    final_norms: tuple[str, ...] = ()
    loss_beta: float = 0.0
    head_layers: int = 1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 0.0
    lr: float = 1e-4
    ema_decay: float = 0.999


SETTINGS = {
    "image": Settings(
        0.0,
        0.05,
        0.25,
        1e-6,
        ("layer",),
        ("layer",),
        loss_beta=2.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        clip=3.0,
    ),
    "speech": Settings(),
    "text": Settings(layer_norms=("layer",), loss_beta=4.0, head_layers=2, clip=5.0),
}


class Batch(NamedTuple):
    """Random inputs by Hugging Face's name, and what the student must predict."""

    inputs: Tensor
    hidden: Tensor  # (B, T) bool


def make_batch(modality: str, size: Size) -> Batch:
    """One batch for everybody; masks as published: 120 of 196 patches in blocks, spans of 10 frames or of 4 tokens."""
    generator = torch.Generator().manual_seed(0)
    if modality == "image":
        inputs = torch.randn(size.images, 3, size.image, size.image, generator=generator)
        grid = size.image // size.patch
        rows = [
            masks.block(g, (grid, grid), round(grid * grid * 120 / 196), min_block=min(16, grid))
            for g in _generators(size.images)
        ]
    elif modality == "speech":
        inputs = torch.randn(size.clips, size.samples, generator=generator)
        frames = size.samples
        for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
            frames = (frames - kernel) // stride + 1
        rows = [masking.span(g, frames, 0.65, 10) for g in _generators(size.clips)]
    else:
        inputs = torch.randint(4, size.vocab - 1, (size.rows, size.tokens), generator=generator)
        rows = [masking.span(g, size.tokens, 0.35, 4, last_frame=True) for g in _generators(size.rows)]
    return Batch(inputs, torch.from_numpy(np.stack(rows)))


def _generators(rows: int) -> list[np.random.Generator]:
    return sampling.generators(0, 0, range(rows))
