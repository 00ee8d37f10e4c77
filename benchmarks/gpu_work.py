"""What benchmarks/gpu.py measures of a device, one function a kind of job; each answers with plain numbers.

B samples, T tokens.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import step_time
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from work import Batch, Size, make_batch

from d2v import plugins
from d2v.config.loading import load_config
from d2v.training.loop import Loop
from d2v.training.setup import build_objective

WARM_UP, TIMED = 5, 20  # steps
PRODUCTS = (("float32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False))
SECONDS = 15.6  # of a clip, the longest that the published speech recipes take
PEER = Size(depth=12, images=64, samples=250_000, clips=8, tokens=512, rows=16)


def rates(device: str, side: int = 8192) -> dict[str, Any]:
    """The device, TFLOP/s of its best square product in float32, TF32 and bf16, and GB/s of a copy, there and back."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    for name, dtype, rounded in PRODUCTS:
        torch.backends.cuda.matmul.allow_tf32 = rounded
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[f"{name} TFLOP/s"] = 2 * side**3 / min(seconds_of(partial(torch.mm, a, b), device)) / 1e12
    source = torch.randn(side, side, device=device)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2 * source.nbytes / min(seconds_of(partial(target.copy_, source), device)) / 1e9
    return found


def step(device: str, recipe: str, rows: int, *settings: str) -> dict[str, float]:
    """The loop's own step of a recipe on one batch of `rows` samples, in bf16: ms, samples a second, memory."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(recipe, rows, Path(folder), settings)
        views, ids, _ = next(loop._batches())
        batches = itertools.repeat((views, ids, 0.0))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = seconds_of(lambda: loop._step(batches), device)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else step_time.memory("VmHWM") / 1024
        with FlopCounterMode(display=False) as counter:
            loop._step(batches)
    seconds = statistics.median(times)
    return {
        "ms": 1000 * seconds,
        "samples/s": rows / seconds,
        "peak GiB": peak,
        "TFLOP": counter.get_total_flops() / 1e12,
        "TFLOP/s": counter.get_total_flops() / seconds / 1e12,
    }


def peer(device: str, modality: str) -> dict[str, float]:
    """ms of data2vec 1.0's step on transformers' classes and on ours, in turn, in bf16."""
    batch = make_batch(modality, PEER)
    batch = Batch(batch.inputs.to(device), batch.hidden.to(device))
    sides = {name: step_time.make_step(name, modality, PEER) for name in ("d2v", "transformers, fused")}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        (side.objective if hasattr(side, "objective") else side.model).to(device)
    for number in range(WARM_UP + TIMED):
        for name, side in sides.items():
            began = now(device)
            with torch.autocast(device, torch.bfloat16):
                side(batch)
            side.update_teacher()
            if number >= WARM_UP:
                times[name].append(now(device) - began)
    ours, theirs = (1000 * statistics.median(times[name]) for name in sides)
    return {"d2v ms": ours, "transformers ms": theirs, "ratio": ours / theirs}


def loop_of(recipe: str, rows: int, folder: Path, settings: Any) -> Loop:
    """A run of a recipe at its first step, on generated files of the sizes that it was published for."""
    modality = recipe.partition("/")[0]
    data = {"image": images, "speech": clips, "text": lambda *_: "demo"}[modality](folder / "data", rows)
    common = [f"data.path={data}", f"train.batch_size={rows}", "train.mixed_precision=bf16", "train.accumulate=1"]
    config = load_config(recipe, [*common, *settings, f"run.dir={folder / 'run'}", "run.workers=0"])
    plugin = plugins.load("d2v.modalities", config.modality)
    (folder / "run").mkdir()
    plugin.prepare(config.data, config.frontend, folder / "run", config.train.seed)
    samples = plugin.Samples(config.data, config.frontend, split=config.data.split, folder=folder / "run")
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision)
    torch.manual_seed(config.train.seed)
    objective = build_objective(config, len(samples)).train()
    batches = plugin.batches(samples, config.data, config.frontend, config.train.batch_size, config.train.seed, print)
    return Loop(objective, batches, train=config.train, run=config.run, accelerator=accelerator)


def images(folder: Path, count: int) -> Path:
    """Noise of 256 x 256, smooth enough to be JPEG."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")
    return folder


def clips(folder: Path, count: int) -> Path:
    """Noise at 16 kHz."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        soundfile.write(folder / f"{number:05d}.wav", 0.1 * generator.standard_normal(round(16_000 * SECONDS)), 16_000)
    return folder


def seconds_of(work: Callable[[], Any], device: str) -> list[float]:
    """Of each of some calls, after the first few."""
    times = []
    for _ in range(WARM_UP + TIMED):
        began = now(device)
        work()
        times.append(now(device) - began)
    return times[WARM_UP:]


def now(device: str) -> float:
    """Seconds, when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
