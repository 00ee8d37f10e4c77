"""Time of a training step of MAE at 75 % hidden, against one whose encoder sees all, and against transformers' ViTMAE.

    python benchmarks/masked_step.py [base large] [threads=2] [steps=5] [batch=4] [size=224]

One step: forward, backward, AdamW; float32; images and masks are made beforehand, the same for all. `sees all` is our
step with every token in the encoder, hidden ones too, and the same decoder. The decoder is the published one, 8 x 512.
Sides take turns in one process; columns are medians of seconds on the clock and of the processor's, and each as a share
of ours. They have as many parameters, which is checked; tests/test_masked.py shows that their losses are equal.
"""

import sys
from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from turns import Seconds, in_turn, parse_options

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import mae
from d2v.training.memory import keep_freed_memory
from d2v.types import Mask, View

SIZES = {  # depth, width, heads
    "tiny": (2, 64, 2),
    "small": (12, 384, 6),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
PATCH = 16


def ours(name: str, size: int) -> mae.MAE:
    """The objective around a ViT."""
    depth, dim, heads = SIZES[name]
    frontend = {"image_size": size, "patch_size": PATCH, "relative_bias": False, "positions": "sincos"}
    trunk = {"depth": depth, "dim": dim, "num_heads": heads, "mlp_dim": 4 * dim, "pre_norm": True, "norm_eps": 1e-6}
    trunk |= {"input_norm": False, "final_norm": True, "init": "xavier"}
    encoder = D2vModel(D2vConfig({"image": frontend | {"mask_token": False}}, trunk))
    return mae.build(encoder, mae.Config()).train()


def theirs(name: str, size: int) -> transformers.ViTMAEForPreTraining:
    """The stock class of the same size."""
    depth, dim, heads = SIZES[name]
    config = transformers.ViTMAEConfig(
        image_size=size, patch_size=PATCH, num_hidden_layers=depth, hidden_size=dim, num_attention_heads=heads,
        intermediate_size=4 * dim, norm_pix_loss=True, mask_ratio=0.75,
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config).train()


def trained(model: torch.nn.Module) -> list[Tensor]:
    """Parameters that have gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def size_of(model: torch.nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in trained(model))


def check_sizes(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """AssertionError: they do not train as many numbers."""
    assert size_of(ours) == size_of(theirs), f"parameters: {size_of(ours)}, {size_of(theirs)}"


def stepper(*models: torch.nn.Module) -> Callable[[torch.nn.Module, Tensor], None]:
    """What takes a step of one of them from its loss: backward and AdamW."""
    optimizers = {model: torch.optim.AdamW(trained(model), lr=1e-4, fused=True) for model in models}

    def step(model: torch.nn.Module, loss: Tensor) -> None:
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    return step


def print_rows(name: str, seconds: dict[str, Seconds]) -> None:
    """A row of each side, with the shares that "d2v" has of it."""
    own = seconds["d2v"]
    for side, found in seconds.items():
        shares = f"{own.wall / found.wall:.2f} | {found.cpu:.2f} | {own.cpu / found.cpu:.2f}"
        print(f"| {name} | {side} | {found.wall:.2f} | {shares} |", flush=True)


def measure(name: str, options: dict[str, int]) -> None:
    """Prints the rows of a size."""
    pixels = torch.randn(options["batch"], 3, options["size"], options["size"])
    objective, stock = ours(name, options["size"]), theirs(name, options["size"])
    check_sizes(objective, stock)
    tokens = (options["size"] // PATCH) ** 2
    noise = torch.rand(options["batch"], tokens)
    order = noise.argsort(dim=1)
    keep = order[:, : int(tokens * 0.25)]
    hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, keep, False)
    inputs = {"pixel_values": pixels}
    views = {
        "d2v": View("image", inputs, mask=Mask(hidden, keep)),
        "d2v, sees all": View("image", inputs, mask=Mask(hidden, torch.arange(tokens).expand_as(noise))),
    }
    step = stepper(objective, stock)

    def our_step(view: View) -> None:
        loss = objective([view])
        step(objective, loss.total / loss.count)

    runs = {side: lambda view=view: our_step(view) for side, view in views.items()}
    runs["transformers"] = lambda: step(stock, stock(pixels, noise=noise).loss)
    print_rows(name, in_turn(runs, options["steps"], warm_up=1))


def print_table(arguments: list[str], sizes: tuple[str, ...], measure: Callable[[str, dict[str, int]], None]) -> None:
    """The rows of the sizes that are named, or of `sizes`."""
    names, options = parse_options(arguments, {"threads": 2, "steps": 5, "batch": 4, "size": 224})
    torch.set_num_threads(options["threads"])
    keep_freed_memory()  # as d2v/training/setup.py does
    print("| | step | s | d2v's share of it | CPU s | d2v's share of it |\n|---|---|---|---|---|---|")
    for name in names or sizes:
        measure(name, options)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    print_table(arguments, ("base", "large"), measure)


if __name__ == "__main__":
    main(sys.argv[1:])
