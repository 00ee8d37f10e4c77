"""Views of MoCo v2 that one core makes of decoded pictures in a second, against torchvision's first transforms.

    python benchmarks/augment.py [rounds=5] [images=32]

Pictures of 500 x 375 pixels become views of 224; pictures of 32 pixels become views of 32, which are not blurred, as
usual for such images. Both sides do the same operations, read PIL images and end with a normalised batch of float32;
torchvision's blur is Pillow's, as in MoCo's code. They take turns, with one thread; a second is one of processor time,
the median of the rounds.
"""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from data_loading import picture
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as v1
from turns import in_turn, parse_options

from d2v.modalities import image
from d2v.modalities.image import augment, views

CASES = {224: (500, 375), 32: (32, 32)}  # size of the views: width and height of the pictures
Make = Callable[[list[Image.Image]], Tensor]


def ours(size: int) -> Make:
    """Pictures -> (B, 3, S, S), as training makes one of its views."""
    data = image.DataConfig(views=["moco_v2"], blur=blurs(size))
    (view,) = views.transforms(data, size)
    return lambda pictures: augment.normalise([view(picture) for picture in pictures], data.mean, data.std)


def theirs(size: int) -> Make:
    """Pictures -> (B, 3, S, S), by torchvision.transforms."""
    data = image.DataConfig()
    blur = [v1.RandomApply([v1.Lambda(_blurred)], 0.5)] if blurs(size) else []
    view = v1.Compose(
        [
            v1.RandomResizedCrop(size, (0.2, 1.0)),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v1.RandomGrayscale(0.2),
            *blur,
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(data.mean, data.std),
        ]
    )
    return lambda pictures: torch.stack([view(picture) for picture in pictures])


def blurs(size: int) -> bool:
    """Whether views of this size are blurred."""
    return size > 32


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(float(np.random.uniform(0.1, 2.0))))


SIDES = {"d2v": ours, "torchvision": theirs}


def compare(size: int, rounds: int, num_images: int) -> dict[str, float]:
    """Views a second of each side."""
    generator = np.random.default_rng(0)
    pictures = [picture(generator, *CASES[size]) for _ in range(num_images)]
    makers = {name: partial(side(size), pictures) for name, side in SIDES.items()}
    return {name: num_images / one.cpu for name, one in in_turn(makers, rounds, warm_up=1).items()}


def main(arguments: list[str]) -> None:
    """One line for each size."""
    words, options = parse_options(arguments, {"rounds": 5, "images": 32})
    if words:
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| views per second of a core | d2v | torchvision | ratio |\n|---|---|---|---|")
    for size in CASES:
        rates = compare(size, options["rounds"], options["images"])
        ratio = rates["d2v"] / rates["torchvision"]
        print(f"| {size} pixels | {rates['d2v']:.0f} | {rates['torchvision']:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
