"""Time, memory and arithmetic rate of one training step, ours against the same step built on transformers.

    python benchmarks/step_time.py [image speech text] [threads=2] [steps=12] [compiled=0]

One step: student forward and backward, teacher forward, gradient norm, AdamW, EMA; float32; data are made beforehand.
Each implementation has a process of its own (peak memory is that process's), and they take steps in turn, because
machines drift. Dropouts are the published ones on both sides: without them the attention of both would take another
kernel than in a real run. compiled=1 adds ours with train.compile. Linux only: peak memory is read from /proc.

Columns: median wall and CPU seconds of a step; peak memory of the process, and what of it came after the imports (most
of which are torch and its CUDA libraries); each with its ratio to transformers. Then the arithmetic of products and
convolutions, its rate, and that as a share of torch.mm's best rate (more than all where ours asks oneDNN); the share of
operator time outside of products, convolutions and attention kernels; the share of the EMA.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from turns import Worker, parse_options, processes_in_turn
from work import MAIN_INPUT, MODALITIES, SETTINGS, TINY, Batch, Size, make_batch

WARM_UP = 3
COLUMNS = "| | step | s | ratio | CPU s | ratio | peak MiB | ratio | over imports | ratio |"
# operators that multiply matrices, with what they call
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "conv1d", "conv2d", "scaled_dot_product_flash", "linear")


class OurStep:
    """One optimizer step, as d2v/training/loop.py takes it."""

    def __init__(self, modality: str, size: Size):
        from d2v.objectives.data2vec import Config, Data2Vec  # only the process that measures ours pays for the import
        from d2v.training.memory import keep_freed_memory
        from d2v.training.optim import parameter_groups

        keep_freed_memory()  # as d2v/training/setup.py does
        s = self.settings = SETTINGS[modality]
        shared = {"image": [], "speech": ["frontends.speech"], "text": ["frontends.text", "trunk.input_norm"]}[modality]
        config = Config(
            top_k=size.depth,
            layers="block" if modality == "image" else "ffn",
            layer_norms=list(s.layer_norms),
            final_norms=list(s.final_norms),
            loss_beta=s.loss_beta,
            loss_scale={"image": "mean", "speech": "sqrt", "text": "sum"}[modality],
            head_layers=s.head_layers,
            shared=shared,
            feed_tokens=modality == "speech",
        )
        self.modality = modality
        self.objective = Data2Vec(our_encoder(modality, size), config).train()
        groups = parameter_groups(self.objective, s.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, s.lr, s.betas, s.eps, fused=True)

    def __call__(self, batch: Batch) -> float:
        """Everything but the teacher's update; the loss per hidden token."""
        from d2v.types import Mask, View

        views = [View(self.modality, {MAIN_INPUT[self.modality]: batch.inputs}, None, Mask(batch.hidden))]
        return optimizer_step(self.objective, self.optimizer, views, self.settings.clip)

    def update_teacher(self) -> None:
        self.objective.update_teacher(self.settings.ema_decay)


def optimizer_step(objective: nn.Module, optimizer: torch.optim.Optimizer, views: list, clip: float) -> float:
    """One step of an objective of ours, but for its teacher's update; the loss per prediction."""
    from d2v.training.optim import scale_and_clip, skip_unless

    loss = objective(views)
    mean = loss.total / loss.count
    mean.backward()
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    norm = scale_and_clip(parameters, torch.ones(()), clip)
    skip_unless(torch.isfinite(norm), optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return mean.item()


def our_encoder(modality: str, size: Size) -> Any:
    """A D2vModel of the published form."""
    from d2v.models.configuration import D2vConfig
    from d2v.models.encoder import D2vModel

    s, image = SETTINGS[modality], modality == "image"
    frontend = {
        "image": {"image_size": size.image, "patch_size": size.patch},
        "speech": {"conv_dim": size.conv_dim},
        "text": {"vocab_size": size.vocab, "mask_token_id": size.vocab - 1},
    }[modality]
    trunk = {
        "depth": size.depth,
        "dim": size.dim,
        "num_heads": size.heads,
        "mlp_dim": 4 * size.dim,
        "norm_eps": s.norm_eps,
    }
    trunk |= {"dropout": s.dropout, "attention_dropout": s.attention_dropout, "drop_path": s.drop_path}
    if image:
        trunk |= {"pre_norm": True, "layer_scale": 1e-4, "qkv_bias": "qv", "input_norm": False, "final_norm": True}
    return D2vModel(D2vConfig({modality: frontend}, trunk))


def make_step(name: str, modality: str, size: Size) -> Any:
    """The implementation by its name in the table."""
    torch.manual_seed(0)
    if name.startswith("d2v"):
        ours = OurStep(modality, size)
        if name.endswith("compiled"):
            from d2v.training.compiling import blocks_to_compile, compile_blocks

            compile_blocks(blocks_to_compile(ours.objective, torch.device("cpu"), print))
        return ours
    from peer import PeerStep

    return PeerStep(modality, size, fused=name.endswith("fused"))


class Task(NamedTuple):
    """What a process measures: `make(name, size)` gives an implementation's step and its batch."""

    make: Callable[[str, Any], tuple[Any, Any]]
    size: Any
    tiny: Any  # a size at which it imports what it needs, which is memory too


def make_task(modality: str, name: str, size: Size) -> tuple[Any, Batch]:
    """Step and batch of an implementation."""
    return make_step(name, modality, size), make_batch(modality, size)


def worker(pipe: Connection, name: str, task: Task, threads: int) -> None:
    """A process of one implementation: answers "step" until "end"."""
    torch.set_num_threads(threads)
    task.make(name, task.tiny)
    start = memory("VmRSS")
    step, batch = task.make(name, task.size)
    while pipe.recv() == "step":
        began, busy = time.perf_counter(), time.process_time()
        loss = step(batch)
        averaging = time.perf_counter()
        step.update_teacher()
        pipe.send((time.perf_counter() - began, time.process_time() - busy, time.perf_counter() - averaging, loss))
    peak = memory("VmHWM")
    pipe.send({"peak": peak, "start": start, "gflop": gflop(step, batch), "outside": share_outside(step, batch)})


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most. (getrusage would count what the parent had before `exec`.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def gflop(step: Any, batch: Any) -> float:
    """Arithmetic of the products and convolutions of one step, backward included."""
    # Neither compiled code nor oneDNN's products are counted: the same blocks are, as they are written.
    torch.backends.mkldnn.enabled = False
    try:
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            step(batch)
    finally:
        torch.backends.mkldnn.enabled = True
    return counter.get_total_flops() / 1e9


def share_outside(step: Any, batch: Any) -> float:
    """Share of the step's operator time that is not in products, convolutions or attention kernels."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(batch)
        step.update_teacher()
    events = profiler.key_averages()
    inside, total = 0.0, 0.0
    for event in events:
        total += event.self_cpu_time_total
        if any(part in event.key for part in PRODUCTS):
            inside += event.self_cpu_time_total
    return 1 - inside / total


def product_rate(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], threads: int) -> float:
    """GFLOP/s of this machine's best square matrix product in float32, by one library."""
    torch.set_num_threads(threads)
    best = 0.0
    for n in (1024, 1536, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        for _ in range(6):
            began = time.perf_counter()
            multiply(a, b)
            best = max(best, 2 * n**3 / (time.perf_counter() - began) / 1e9)
    return best


def measure(names: list[str], task: Task, threads: int, steps: int) -> dict[str, dict]:
    """Medians of the steps that the implementations take in turn, and what each process says at its end."""
    workers = {name: Worker(worker, (name, task, threads)) for name in names}
    results = {}
    for name, measured in processes_in_turn(workers, steps, WARM_UP).items():
        seconds, busy, averaging, _ = zip(*measured.steps, strict=True)
        results[name] = {
            **measured.end,
            "seconds": statistics.median(seconds),
            "cpu": statistics.median(busy),
            "ema": statistics.median(averaging) / statistics.median(seconds),
        }
    return results


def import_seconds(repeats: int = 5) -> float:
    """What `import d2v` adds to `import torch, transformers`; median of fresh interpreters."""
    code = (
        "import time, torch, transformers; began = time.perf_counter(); import d2v; print(time.perf_counter() - began)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def row(label: str, name: str, result: dict, against: dict) -> str:
    """The columns of time and memory; ratios are to the stock row."""
    over, over_against = (one["peak"] - one["start"] for one in (result, against))
    return (
        f"| {label} | {name} | {result['seconds']:.3f} | {result['seconds'] / against['seconds']:.2f} "
        f"| {result['cpu']:.3f} | {result['cpu'] / against['cpu']:.2f} "
        f"| {result['peak']:.0f} | {result['peak'] / against['peak']:.2f} | {over:.0f} | {over / over_against:.2f} |"
    )


def arithmetic(result: dict, rate: float) -> str:
    """The columns of arithmetic."""
    speed = result["gflop"] / result["seconds"]
    return (
        f" {result['gflop']:.0f} | {speed:.0f} | {speed / rate:.0%} | {result['outside']:.0%} | {result['ema']:.1%} |"
    )


def main(arguments: list[str]) -> None:
    """Prints the table."""
    from d2v.models.cpu import product  # not above: processes of the peers would pay for the import

    words, options = parse_options(arguments, {"threads": 2, "steps": 12, "compiled": 0})
    os.environ["KINETO_LOG_LEVEL"] = "5"  # the profiler of the workers talks about GPUs
    modalities = words or list(MODALITIES)
    rate = product_rate(torch.mm, options["threads"])
    ours = product_rate(product, options["threads"])
    print(
        f"torch {torch.__version__}, {options['threads']} threads, load {os.getloadavg()[0]:.1f}, "
        f"{options['steps']} steps after {WARM_UP}"
    )
    print(f"matrix product {rate:.0f} GFLOP/s by torch.mm, {ours:.0f} by d2v/models/cpu.py")
    print(f"`import d2v` adds {import_seconds():.2f} s\n")
    print(f"{COLUMNS} GFLOP | GFLOP/s | of product | outside | EMA |")
    print("|---" * 15 + "|")
    for modality in modalities:
        names = ["d2v", "transformers", "transformers, fused"]
        if options["compiled"]:
            names.insert(1, "d2v, compiled")
        results = measure(names, Task(partial(make_task, modality), Size(), TINY), options["threads"], options["steps"])
        for name in names:
            print(
                row(modality, name, results[name], results["transformers"]) + arithmetic(results[name], rate),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
