"""Images and seconds of audio that one worker reads, decodes, augments and masks per second, as training does.

    python benchmarks/data_loading.py [image views speech] [batches=30]

The files are made first: JPEGs of 500 x 375 pixels, and FLACs of 12 s at 16 kHz; one thread, as in a worker. `views`
are DINO's, two of 224 pixels and eight of 96: as they are, and with data.augment_on_device, whose changes of colour are
then timed on the CPU too.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from turns import parse_options

from d2v.modalities import image, speech

NUM_FILES, BATCH = 32, 8


def write_images(folder: Path) -> None:
    """About 60 KB each."""
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        picture(generator, 500, 375).save(folder / f"{number}.jpg", quality=90)


def picture(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth random picture with some grain."""
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = generator.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def write_clips(folder: Path) -> None:
    """Coloured noise."""
    generator = np.random.default_rng(0)
    for number in range(NUM_FILES):
        wave = np.cumsum(generator.normal(size=12 * 16000))
        soundfile.write(folder / f"{number}.flac", 0.5 * (wave / np.abs(wave).max()), 16000)


def image_rate(folder: Path, num_batches: int) -> str:
    """Random crop to 224, flip, colour jitter, block mask."""
    write_images(folder)
    data, frontend = image.DataConfig(path=str(folder), max_bad_share=0.0), image.FrontendConfig()
    samples = image.Samples(data, frontend, split="train", folder=folder)
    seconds, views = drain(image.batches(samples, data, frontend, BATCH, 0), num_batches)
    pixels = sum(len(view.inputs["pixel_values"]) for view in views)
    return f"{pixels / seconds:.0f} images of 500 x 375 per second per worker"


def views_rate(folder: Path, num_batches: int) -> str:
    """DINO's views, whose colours the worker changes, or the device."""
    write_images(folder)
    frontend, rates = image.FrontendConfig(), []
    for on_device in (False, True):
        data = image.DataConfig(
            path=str(folder), views=["dino_a", "dino_b"], local_views=8, augment_on_device=on_device
        )
        samples = image.Samples(data, frontend, split="train", folder=folder)
        seconds, views = drain(image.batches(samples, data, frontend, BATCH, 0), num_batches)
        rates.append(1000 * seconds / num_batches / BATCH)
    began = time.perf_counter()
    for view in views:
        view.to("cpu")
    there = 1000 * (time.perf_counter() - began) / num_batches / BATCH
    return (
        f"{rates[0]:.1f} ms of a worker an image, with data.augment_on_device {rates[1]:.1f} and {there:.1f} on the CPU"
    )


def speech_rate(folder: Path, num_batches: int) -> str:
    """Decoded anew each time: nothing is cached."""
    write_clips(folder)
    data, frontend = speech.DataConfig(path=str(folder), cache_hours=0.0), speech.FrontendConfig()
    samples = speech.Samples(data, frontend, split="train", folder=folder)
    seconds, views = drain(speech.batches(samples, data, frontend, BATCH, 0), num_batches)
    audio = sum(view.inputs["input_values"].numel() for view in views) / frontend.sample_rate
    return f"{audio / seconds:.0f} seconds of 16 kHz FLAC per second per worker"


def drain(batches, num_batches: int) -> tuple[float, list]:
    """Seconds that some batches take, and the batches' views."""
    views = []
    began = time.perf_counter()
    for step in range(num_batches):
        views += batches(step, 0, 1)[0]
    return time.perf_counter() - began, views


RATES = {"image": image_rate, "views": views_rate, "speech": speech_rate}


def main(arguments: list[str]) -> None:
    """One line per modality."""
    torch.set_num_threads(1)
    words, options = parse_options(arguments, {"batches": 30})
    for modality in words or RATES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{modality}: {RATES[modality](Path(folder), options['batches'])}")


if __name__ == "__main__":
    main(sys.argv[1:])
