"""Changes of colour on the device: torchvision's formulas, the same draws as Pillow's way, and no wait for a device."""

import numpy as np
import pytest
import torch
from on_device import CUDA, FakeDevice
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from d2v.modalities import image
from d2v.modalities.common import sampling
from d2v.modalities.image import augment, colours, views
from d2v.modalities.image.colours import BRIGHTNESS, CONTRAST, HUE, NONE, SATURATION, Drawn
from d2v.training.loading import MicroBatches

GREY_LEVEL = 1 / 255
NAMES = [name for name in views.FAMILIES if name != "dino_local"]
ALONE = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
    NONE: lambda x, factor: x,
}


def pictures(number: int, side: int = 24, channels: int = 3) -> list[Image.Image]:
    """Smooth ones, as photographs are, of many colours."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(number):
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        made.append(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    return made if channels == 3 else [one.convert("L") for one in made]


def config(*names: str, **settings) -> image.DataConfig:
    return image.DataConfig(**{"views": list(names), "mean": [0.0], "std": [1.0]} | settings)


def made(data: image.DataConfig, pictures: list[Image.Image], size: int, view: int = 0) -> torch.Tensor:
    """The last view of each, drawn from the same seeds."""
    transform = views.transforms(data, size)[view]
    images = []
    for seed, picture in enumerate(pictures):
        torch.manual_seed(seed)
        images.append(transform(picture))
    if not data.augment_on_device:
        return augment.normalise(images, data.mean, data.std)
    pixels, later = colours.collate(images, data.mean, data.std)
    return later({"pixel_values": pixels})["pixel_values"]


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_is_torchvisions(kind, channels):
    torch.manual_seed(0)
    x = torch.rand(4, channels, 9, 7)
    x[0] = x[0, :1]  # one is grey
    x[1, :, :4] = 0
    factors = torch.tensor([-0.5, 0.3, 0.0, 0.5] if kind == HUE else [0.0, 0.4, 1.0, 1.7])
    expected = torch.stack([ALONE[kind](one, float(factor)) for one, factor in zip(x, factors, strict=True)])
    torch.testing.assert_close(colours.changed(x, torch.full((4,), kind), factors), expected, atol=2e-6, rtol=0)


def test_each_image_has_its_own_change():
    torch.manual_seed(0)
    x = torch.rand(5, 3, 6, 6)
    kinds, factors = torch.tensor([*ALONE]), torch.tensor([0.5, 1.4, 0.2, 0.1, 9.0])
    expected = [ALONE[int(kind)](one, float(factor)) for one, kind, factor in zip(x, kinds, factors, strict=True)]
    torch.testing.assert_close(colours.changed(x, kinds, factors), torch.stack(expected), atol=2e-6, rtol=0)


def test_a_blur_is_a_gaussian():
    torch.manual_seed(0)
    x, sigma = torch.rand(3, 2, 40, 40), torch.tensor([0.1, 0.0, 2.0])
    found = colours.blurred(x, sigma)
    assert torch.equal(found[1], x[1])
    for row in (0, 2):
        expected = F.gaussian_blur(x[row], [25, 25], [float(sigma[row])])
        torch.testing.assert_close(found[row, :, 12:-12, 12:-12], expected[:, 12:-12, 12:-12], atol=2e-6, rtol=0)
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(colours.blurred(flat, torch.tensor([2.0])), flat)  # at the margins too


def test_solarising_and_statistics():
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    images = [(one, Drawn([], 0.0, solarised)) for one, solarised in zip(pixels, [False, True], strict=True)]
    stacked, later = colours.collate(images, [0.5], [0.25])
    assert stacked.dtype == torch.uint8
    found = later({"pixel_values": stacked, "other": None})["pixel_values"] * 0.25 + 0.5
    expected = torch.tensor([[0.0, 127, 128, 255], [0, 127, 127, 0]]).view(2, 1, 2, 2) / 255
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_is_drawn_as_image_by_image(name, channels):
    several = pictures(40, channels=channels)
    one_by_one, at_once = (made(config(name, augment_on_device=later), several, 16) for later in (False, True))
    apart = (one_by_one - at_once).abs().mean((1, 2, 3))  # of each image
    assert apart.mean() < 2 * GREY_LEVEL and apart.max() < 4 * GREY_LEVEL


def test_local_views_too():
    several = pictures(20)
    settings = {"local_views": 2, "local_size": 8, "color_strength": 0.5, "blur": False}
    both = [made(config("dino_a", augment_on_device=later, **settings), several, 16, -1) for later in (False, True)]
    assert both[1].shape == (20, 3, 8, 8) and (both[0] - both[1]).abs().mean() < 1.5 * GREY_LEVEL


@pytest.fixture
def folder(tmp_path):
    """Of pictures, one of them with 16 bits."""
    for number, one in enumerate(pictures(9)):
        one.save(tmp_path / f"{number}.png")
    np.save(tmp_path / "deep.npy", np.random.default_rng(0).random((24, 24, 3)).astype(np.float32))
    return tmp_path


def batches_of(folder, **settings):
    frontend = image.FrontendConfig(image_size=16, patch_size=4)
    data = config("dino_a", "dino_b", path=str(folder), local_views=1, local_size=8, **settings)
    samples = image.Samples(data, frontend, split="train", folder=folder)
    return image.batches(samples, data, frontend, 10, 0)


def test_batches_are_the_same_once_they_are_on_the_device(folder):
    usual, later = batches_of(folder), batches_of(folder, augment_on_device=True)
    for step in range(3):
        (expected, ids), (found, again) = usual(step, 0, 1), later(step, 0, 1)
        assert ids == again and all(view.later is None for view in expected)
        for one, other in zip(expected, found, strict=True):
            there = other.to("cpu")
            assert there.later is None and there.local == one.local and torch.equal(there.indices, one.indices)
            apart = (there.inputs["pixel_values"] - one.inputs["pixel_values"]).abs()
            assert apart.mean() < 2 * GREY_LEVEL


def test_parts_make_the_whole_and_workers_send_it(folder):
    batches = batches_of(folder, augment_on_device=True)
    whole = [view.to("cpu").inputs["pixel_values"] for view in batches(1, 0, 1)[0]]
    parts = [[view.to("cpu").inputs["pixel_values"] for view in batches(1, part, 2)[0]] for part in range(2)]
    loader = DataLoader(
        MicroBatches(batches, 0, 1, 1), batch_size=None, sampler=[1], num_workers=1, collate_fn=lambda sample: sample
    )
    ((sent, _),) = loader
    rows = [sampling.share(10, part, 2) for part in range(2)]
    for number, pixels in enumerate(whole):
        for part, some in zip(parts, rows, strict=True):
            torch.testing.assert_close(part[number], pixels[some])
        assert torch.equal(sent[number].to("cpu").inputs["pixel_values"], pixels)


def test_nothing_waits_for_the_device(folder):
    (view, *_), _ = batches_of(folder, augment_on_device=True)(0, 0, 1)
    with FakeDevice() as device:
        there = view.to(CUDA)
        assert there.inputs["pixel_values"].device == CUDA and not device.waits
