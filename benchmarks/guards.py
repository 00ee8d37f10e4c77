"""What keeping rows apart costs beside a step of ViT-S: SIGReg and VISReg, forward and backward.

    python benchmarks/guards.py [rows=256] [dim=512] [images=8] [size=224] [threads=1] [rounds=5]

The step is of the encoder alone, one view of `rows` images: forward, backward and AdamW, float32; no teacher, no head,
no further view, all of which would make the shares smaller. It is measured on `images` images and multiplied, as
`rows` of them do not fit into memory here. Losses are those of `rows` rows of width `dim`, as one view of a method or a
guard of data2vec has them, with their draw of directions; sides take turns. Columns: median seconds on the clock and of
the processor, and both as shares of the step.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from turns import in_turn, parse_options

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.gaussian import directions, sigreg, visreg
from d2v.types import View

OPTIONS = {"rows": 256, "dim": 512, "images": 8, "size": 224, "threads": 1, "rounds": 5}
LOSSES = {
    "SIGReg, 1024 directions": (sigreg, 1024),
    "VISReg, 1024 directions": (visreg, 1024),
    "VISReg, 4096 directions": (visreg, 4096),
}
SMALL = {"depth": 12, "dim": 384, "num_heads": 6, "mlp_dim": 1536}


def make_step(images: int, size: int, trunk: dict[str, int]) -> Callable[[], None]:
    """A step of an encoder with patches of 16 pixels on random images."""
    frontend = {
        "image_size": size,
        "patch_size": 16,
        "relative_bias": False,
        "positions": "learned",
        "mask_token": False,
    }
    more = {"pre_norm": True, "input_norm": False, "final_norm": True}
    encoder = D2vModel(D2vConfig({"image": frontend}, {**trunk, **more})).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), 1e-4, fused=True)
    view = View("image", {"pixel_values": torch.randn(images, 3, size, size)})

    def step() -> None:
        features = encoder(view)
        loss = features.x.square().mean() + features.extra.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_loss(loss: Callable[[Tensor, Tensor], Tensor], count: int, rows: int, dim: int) -> Callable[[], None]:
    """A loss of random rows along fresh directions, with its gradient."""
    x, generator = torch.randn(rows, dim, requires_grad=True), torch.Generator().manual_seed(0)

    def run() -> None:
        torch.autograd.grad(loss(x, directions(dim, count, generator)), x)

    return run


def compare(options: dict[str, int], trunk: dict[str, int]) -> dict[str, list[float]]:
    """Of the step and of each loss: seconds on the clock and of the processor, and both as shares of the step."""
    torch.manual_seed(0)
    runs = {"step": make_step(options["images"], options["size"], trunk)}
    runs |= {name: make_loss(*parts, options["rows"], options["dim"]) for name, parts in LOSSES.items()}
    found = in_turn(runs, options["rounds"], warm_up=2)
    more = options["rows"] / options["images"]
    wall, cpu = found["step"].wall * more, found["step"].cpu * more
    return {"step": [wall, cpu, 1.0, 1.0]} | {
        name: [found[name].wall, found[name].cpu, found[name].wall / wall, found[name].cpu / cpu] for name in LOSSES
    }


def main(arguments: list[str]) -> None:
    """Prints the table."""
    _, options = parse_options(arguments, OPTIONS)
    torch.set_num_threads(options["threads"])
    print(f"torch {torch.__version__}, {options['threads']} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{options['rows']} rows of {options['dim']}; ViT-S/16 at {options['size']} pixels\n")
    print("| | s | CPU s | of a step | of its CPU |\n|---|---|---|---|---|")
    for name, (wall, cpu, share, of_cpu) in compare(options, SMALL).items():
        print(f"| {name} | {wall:.3g} | {cpu:.3g} | {share:.2%} | {of_cpu:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
