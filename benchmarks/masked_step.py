"""Time of a training step of MAE at 75 % hidden, against one whose encoder sees all, and against transformers' ViTMAE.

    python benchmarks/masked_step.py [base large] [threads=2] [steps=5] [batch=4] [size=224]

One step: forward, backward, AdamW; float32; images and masks are made beforehand, the same for all. `sees all` is our
step with every token in the encoder, hidden ones too, and the same decoder. The decoder is the published one, 8 x 512.
Sides take turns in one process; columns are medians of seconds on the clock and of the processor's, and each as a share
of ours. They have as many parameters, which is checked; tests/test_masked.py shows that their losses are equal.
"""

import sys

import torch
import transformers
from torch import Tensor
from turns import in_turn, parse_options

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


def measure(name: str, options: dict[str, int]) -> None:
    """Prints the rows of a size."""
    pixels = torch.randn(options["batch"], 3, options["size"], options["size"])
    objective, stock = ours(name, options["size"]), theirs(name, options["size"])
    numbers = [sum(parameter.numel() for parameter in trained(model)) for model in (objective, stock)]
    assert numbers[0] == numbers[1], f"parameters: {numbers}"
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
    optimizers = {model: torch.optim.AdamW(trained(model), lr=1e-4, fused=True) for model in (objective, stock)}

    def step(model: torch.nn.Module, loss: Tensor) -> None:
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    def our_step(view: View) -> None:
        loss = objective([view])
        step(objective, loss.total / loss.count)

    runs = {side: lambda view=view: our_step(view) for side, view in views.items()}
    runs["transformers"] = lambda: step(stock, stock(pixels, noise=noise).loss)
    seconds = in_turn(runs, options["steps"], warm_up=1)
    own = seconds["d2v"]
    for side, found in seconds.items():
        shares = f"{own.wall / found.wall:.2f} | {found.cpu:.2f} | {own.cpu / found.cpu:.2f}"
        print(f"| {name} | {side} | {found.wall:.2f} | {shares} |", flush=True)


def main(arguments: list[str]) -> None:
    """Rows of the sizes that are named."""
    names, options = parse_options(arguments, {"threads": 2, "steps": 5, "batch": 4, "size": 224})
    torch.set_num_threads(options["threads"])
    keep_freed_memory()  # as d2v/training/setup.py does
    print("| | step | s | d2v's share of it | CPU s | d2v's share of it |\n|---|---|---|---|---|---|")
    for name in names or ("base", "large"):
        measure(name, options)


if __name__ == "__main__":
    main(sys.argv[1:])
