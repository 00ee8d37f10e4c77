"""What M masks cost: one step of data2vec 2.0 against M steps of 1.0 on the same samples, at the published widths.

    python benchmarks/masks.py [image speech] [threads=2] [steps=6] [depth=4]

Both sides are the Base configs of configs/, with `depth` layers of trunk (published are 12); M is 8, hidden are 80 % of
the patches and half of the frames; float32, random inputs. Each version has a process of its own and they take steps in
turn. Columns: median seconds of a step; 2.0's over M times 1.0's (bars: 0.25 for images, 0.22 for speech); the
decoder's share of the step, forward and backward; peak memory beyond the imports, and that of a masked row over 1.0's.
"""

import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from step_time import WARM_UP, memory
from turns import Worker, parse_options, processes_in_turn
from work import MAIN_INPUT, Size, make_batch

from d2v.config.loading import load_config
from d2v.config.schema import Config
from d2v.modalities.common import masking, sampling
from d2v.training.optim import parameter_groups
from d2v.training.setup import build_objective
from d2v.types import Mask, View

MASKS = 8
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEPTH = 4
COLUMNS = (
    "| | 1.0, s | 2.0, s | 2.0 / (M x 1.0) | decoder's share | 1.0, MiB | 2.0, MiB | MiB of a masked row, 2.0 / 1.0 |"
)
SHORT = ("model.trunk.layer_drop=0", "run.dir=unused", "data.path=unused")


def settings(modality: str, version: int, depth: int) -> Config:
    """The Base config with `depth` layers, none of them dropped; targets average as many as published, or all."""
    path = CONFIGS / modality / f"data2vec{'' if version == 1 else version}_base.yaml"
    published = load_config(path, ["run.dir=unused", "data.path=unused"])
    prenet = min(published.model.trunk.prenet_depth, max(0, depth - published.objective.top_k))
    top_k = min(published.objective.top_k, depth - prenet)
    return load_config(
        path, [f"model.trunk.depth={depth}", f"model.trunk.prenet_depth={prenet}", f"objective.top_k={top_k}", *SHORT]
    )


def batch(modality: str, version: int, size: Size) -> View:
    """The same samples for both versions; 2.0 hides MASKS times."""
    made = make_batch(modality, size)
    hidden, keep = made.hidden, None
    if version == 2:
        rows, tokens = len(hidden) * MASKS, hidden.shape[1]
        generators = sampling.generators(1, 0, range(rows))
        if modality == "image":
            grid = (round(tokens**0.5),) * 2
            drawn = [masking.block_2d(g, grid, 0.8, 3, 0.07, inverse=True) for g in generators]
        else:
            drawn = [masking.block_1d(g, tokens, 0.5, 5, 0.05) for g in generators]
        hidden = torch.stack([torch.from_numpy(row) for row in drawn])  # (N, T)
        keep = (~hidden).nonzero()[:, 1].view(rows, -1)  # (N, K)
    return View(modality, {MAIN_INPUT[modality]: made.inputs}, None, Mask(hidden, keep))


class Step:
    """One optimizer step with its teacher's update."""

    def __init__(self, modality: str, version: int, depth: int = DEPTH):
        torch.manual_seed(0)
        self.objective = build_objective(settings(modality, version, depth), 0).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.objective, 0.01), 1e-4, fused=True)

    def __call__(self, view: View) -> None:
        loss = self.objective([view])
        (loss.total / loss.count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.update_teacher(0.999)

    def decoder_seconds(self, view: View, repeats: int = 3) -> float:
        """Forward and backward of the decoder alone, on features of the step's shape."""
        mask, decoder = view.mask, self.objective.decoder
        assert mask is not None and mask.keep is not None
        features = torch.randn(*mask.keep.shape, self.objective.student["encoder"].trunk.config.dim, requires_grad=True)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            decoder(features, mask, None).square().sum().backward()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def worker(pipe: Connection, modality: str, version: int, threads: int, depth: int) -> None:
    """A process of one version: answers "step" until "end"."""
    torch.set_num_threads(threads)
    size, start = Size(), memory("VmRSS")
    step, view = Step(modality, version, depth), batch(modality, version, size)
    while pipe.recv() == "step":
        began = time.perf_counter()
        step(view)
        pipe.send(time.perf_counter() - began)
    pipe.send((memory("VmHWM") - start, step.decoder_seconds(view) if version == 2 else 0.0))


def main(arguments: list[str]) -> None:
    """Prints the table."""
    words, options = parse_options(arguments, {"threads": 2, "steps": 6, "depth": DEPTH})
    modalities = words or ["image", "speech"]
    if not set(modalities) <= {"image", "speech"}:
        raise SystemExit(f"modalities are image and speech, not {', '.join(modalities)}")
    print(
        f"torch {torch.__version__}, {options['threads']} threads, {options['depth']} layers, "
        f"load {os.getloadavg()[0]:.1f}, M = {MASKS}"
    )
    print(f"{COLUMNS}\n{'|---' * 8}|")
    for modality in modalities:
        workers = {}
        for version in (1, 2):
            workers[version] = Worker(worker, (modality, version, options["threads"], options["depth"]))
        measured = processes_in_turn(workers, options["steps"], WARM_UP)
        one, two = (statistics.median(measured[version].steps) for version in (1, 2))
        (first, _), (second, decoder) = (measured[version].end for version in (1, 2))
        row = second / MASKS / first
        print(
            f"| {modality} | {one:.3f} | {two:.3f} | {two / (MASKS * one):.3f} | {decoder / two:.0%} "
            f"| {first:.0f} | {second:.0f} | {row:.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
