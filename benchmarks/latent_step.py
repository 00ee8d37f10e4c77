"""Time of a training step of I-JEPA against the same step built of transformers' IJepa.

    python benchmarks/latent_step.py [base large] [threads=2] [steps=5] [batch=4] [size=224]

One step: the student on the context, the teacher on the whole image, the predictor (6 x 384) once for each of four
targets, backward, AdamW, EMA; float32; images and masks are made beforehand, the same for both. transformers has the
encoder alone: its predictor here is a stack of its own layers of the predictor's width. Sides take turns in one
process; columns as in benchmarks/masked_step.py. That both have as many trained parameters is checked.
"""

import copy
import sys

import torch
import torch.nn.functional as F
import transformers
from masked_step import PATCH, SIZES, check_sizes, print_rows, print_table, stepper
from torch import Tensor, nn
from turns import in_turn

from d2v.modalities.image.masks import MaskConfig, multi_block
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import ijepa
from d2v.types import Mask, View

WIDTH, DEPTH, HEADS = 384, 6, 12  # of the predictor
DECAY = 0.996


def ours(name: str, size: int) -> ijepa.IJEPA:
    """The objective around a ViT."""
    depth, dim, heads = SIZES[name]
    frontend = {"image_size": size, "patch_size": PATCH, "relative_bias": False, "positions": "sincos"}
    frontend |= {"class_token": False, "mask_token": False}
    trunk = {"depth": depth, "dim": dim, "num_heads": heads, "mlp_dim": 4 * dim, "pre_norm": True, "norm_eps": 1e-6}
    trunk |= {"input_norm": False, "final_norm": True}
    objective = ijepa.build(D2vModel(D2vConfig({"image": frontend}, trunk)), ijepa.Config())
    objective.train()
    return objective


class Theirs(nn.Module):
    """Student, teacher and predictor of transformers' layers; positions are not trained, as ours are not."""

    def __init__(self, name: str, size: int):
        super().__init__()
        depth, dim, heads = SIZES[name]
        self.encoder = stock(size, depth, dim, heads)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.inputs, self.outputs = nn.Linear(dim, WIDTH), nn.Linear(WIDTH, dim)
        self.predictor = stock(size, DEPTH, WIDTH, HEADS)
        del self.predictor.embeddings.patch_embeddings
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, pixels: Tensor, mask: Mask) -> Tensor:
        """Smooth L1 over the targets' tokens, the mean."""
        keep, images = mask.keep, len(pixels)
        assert keep is not None
        context = layers(self.encoder, taken(self.encoder.embeddings(pixels), keep))  # (B, K, D)
        with torch.no_grad():
            target = self.teacher(pixels).last_hidden_state
            target = F.layer_norm(target, target.shape[-1:])  # (B, T, D)
        places = mask.hidden.nonzero()[:, 1].view(len(mask.hidden), -1)  # (N, J)
        of = torch.arange(len(places)) // (len(places) // images)  # the image of each target
        where = self.predictor.embeddings.position_embeddings[0]  # (T, P)
        tokens = self.inputs(context) + where[keep]
        sequence = torch.cat([tokens[of], self.mask_token + where[places]], dim=1)
        out = self.outputs(layers(self.predictor, sequence)[:, keep.shape[1] :])  # (N, J, D)
        return F.smooth_l1_loss(out, taken(target[of], places))

    def update_teacher(self) -> None:
        """The EMA."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - DECAY)


def stock(size: int, depth: int, dim: int, heads: int) -> transformers.IJepaModel:
    """The stock encoder of a size."""
    config = transformers.IJepaConfig(
        image_size=size, patch_size=PATCH, num_hidden_layers=depth, hidden_size=dim, num_attention_heads=heads,
        intermediate_size=4 * dim, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = transformers.IJepaModel(config).train()
    model.embeddings.position_embeddings.requires_grad_(False)
    return model


def taken(x: Tensor, at: Tensor) -> Tensor:
    """(N, T, D), (N, K) -> (N, K, D)."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def layers(model: transformers.IJepaModel, x: Tensor) -> Tensor:
    """The stock layers and the last norm."""
    for layer in model.layers:
        x = layer(x)
    return model.layernorm(x)


def masks_of(images: int, grid: tuple[int, int]) -> Mask:
    """Four targets of an image and its context, the published ones."""
    return multi_block(0, 0, images, range(images), MaskConfig(mask_kind="multi_block", masks=4), grid)


def measure(name: str, options: dict[str, int]) -> None:
    """Prints the rows of a size."""
    objective, peer = ours(name, options["size"]), Theirs(name, options["size"])
    check_sizes(objective, peer)
    side = options["size"] // PATCH
    mask = masks_of(options["batch"], (side, side))
    pixels = torch.randn(options["batch"], 3, options["size"], options["size"])
    view = View("image", {"pixel_values": pixels}, mask=mask)
    step = stepper(objective, peer)

    def our_step() -> None:
        loss = objective([view])
        step(objective, loss.total / loss.count)
        objective.update_teacher(DECAY)

    def their_step() -> None:
        step(peer, peer(pixels, mask))
        peer.update_teacher()

    print_rows(name, in_turn({"d2v": our_step, "transformers": their_step}, options["steps"], warm_up=1))


def main(arguments: list[str]) -> None:
    """Prints the table."""
    print_table(arguments, ("base",), measure)


if __name__ == "__main__":
    main(sys.argv[1:])
