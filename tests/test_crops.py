"""Crops that are resized as tensors: the same draws, and pixels of Pillow's to two levels of 256."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from d2v.modalities.image import augment


def picture(width: int, height: int, mode: str) -> Image.Image:
    """Smooth colours with grain, as a photograph has them."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    grain = np.asarray(coarse) + draw.normal(0, 8, (height, width, 3))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", [augment.BICUBIC, v2.InterpolationMode.BILINEAR])
def test_large_crops_are_pillows_to_two_levels(mode, interpolation, monkeypatch):
    monkeypatch.setattr(augment, "TENSORS", True)
    for width, height, size in ((500, 375, 224), (300, 900, 96), (200, 200, 256)):
        settings = {"scale": (0.7, 1.0), "interpolation": interpolation, "antialias": True}
        ours, pillows = augment.RandomResizedCrop(size, **settings), v2.RandomResizedCrop(size, **settings)
        image = picture(width, height, mode)
        for seed in range(3):
            torch.manual_seed(seed)
            found = ours(image)
            after = torch.rand(1)
            torch.manual_seed(seed)
            expected = pillows(image)
            assert torch.equal(after, torch.rand(1)) and (found.size, found.mode) == (expected.size, expected.mode)
            apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
            assert apart.max() <= 2 and (apart > 0).mean() < 0.05


@pytest.mark.parametrize(("side", "tensors"), [(120, True), (400, False)])
def test_others_are_pillows(side, tensors, monkeypatch):
    monkeypatch.setattr(augment, "TENSORS", tensors)
    settings = {"scale": (0.7, 1.0), "interpolation": augment.BICUBIC, "antialias": True}
    found = []
    for crop in (augment.RandomResizedCrop(64, **settings), v2.RandomResizedCrop(64, **settings)):
        torch.manual_seed(0)
        found.append(np.asarray(crop(picture(side, side, "RGB"))))
    assert np.array_equal(*found)
