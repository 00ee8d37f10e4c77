"""Small models of the methods that contrast with negatives, their batches, and a step as the loop takes it."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from d2v import D2vConfig, D2vModel
from d2v.objectives import instdisc, mochi, moco, simclr
from d2v.objectives.common.multi_view import MultiView
from d2v.types import Loss, View

BATCH, STEPS, SAMPLES = 8, 5, 20
HEAD = {"hidden_dim": 16, "out_dim": 8}
QUEUE = {**HEAD, "queue_size": 32}
MIXED = {**QUEUE, "hardest": 6, "mixed": 5, "mixed_with_query": 3, "start_step": 2}
BANK = {"num_samples": SAMPLES, "out_dim": 8}

# what is trained here: the config, and whether the encoder has batch norms
CASES = {
    "moco": (moco.Config(**QUEUE), False),
    "moco_v1_grouped": (moco.Config(**{**QUEUE, "hidden_dim": 0}, temperature=0.07, norm_groups=4), True),
    "moco_symmetric_grouped": (moco.Config(**QUEUE, symmetric=True, norm_groups=2), True),
    "moco_one_group": (moco.Config(**QUEUE), True),
    "mochi": (mochi.Config(**MIXED), False),
    "mochi_symmetric_grouped": (mochi.Config(**MIXED, symmetric=True, norm_groups=2), True),
    "instdisc": (instdisc.Config(**BANK, negatives=7), False),
    "instdisc_sampled_softmax": (instdisc.Config(**BANK, loss="softmax", negatives=7), False),
    "instdisc_softmax": (instdisc.Config(**BANK, loss="softmax", negatives=0, temperature=0.1), True),
    "simclr": (simclr.Config(out_dim=8, temperature=0.5), False),
    "simclr_norms": (simclr.Config(num_layers=3, hidden_dim=12, out_dim=8, temperature=0.5), True),
}
BUILD = {"moco": moco.build, "mochi": mochi.build, "instdisc": instdisc.build, "simclr": simclr.build}


class TokenNorm(nn.Module):
    """A batch norm over all tokens, (B, T, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def encoder(norms: bool = False) -> D2vModel:
    """Of features that differ.

    Those of a class token at its small init hardly do, and a batch norm would blow up the rounding.
    """
    frontend = {"image_size": 8, "patch_size": 4, "class_token": not norms, "init": "xavier"}
    made = D2vModel(
        D2vConfig(
            frontends={"image": frontend},
            trunk={"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "init": "default"},
        )
    )
    if norms:
        made.trunk.final_norm = TokenNorm(16)
    return made


def objective(name: str) -> MultiView:
    torch.manual_seed(1)
    config, norms = CASES[name]
    return BUILD[config.name](encoder(norms), config).train()


def batch(step: int, rank: int = 0, world: int = 1) -> list[View]:
    """This process's rows of two views."""
    generator = torch.Generator().manual_seed(100 + step)
    indices = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    common = torch.randn(BATCH, 3, 8, 8, generator=generator)
    pixels = [common + 0.5 * torch.randn(BATCH, 3, 8, 8, generator=generator) for _ in range(2)]
    return [View("image", {"pixel_values": x[rank::world]}, indices=indices[rank::world]) for x in pixels]


def one_step(model: MultiView, step: int, rank: int = 0, world: int = 1) -> tuple[float, dict[str, Tensor], Loss]:
    """The loop's: the mean loss of all samples, gradients of all processes, plain SGD, the teacher."""
    model.begin_step(step, STEPS)
    views = batch(step, rank, world)[: model.config.num_views]
    model.check(views)
    loss = model(views)
    loss.total.backward()
    sums = torch.stack([loss.total.detach(), loss.count.float()])
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    for value in (sums, *(p.grad for p in trained.values())):
        if world > 1:
            dist.all_reduce(value)
    gradients = {key: p.grad / sums[1] for key, p in trained.items()}
    with torch.no_grad():
        for key, p in trained.items():
            p -= 0.01 * gradients[key]
    model.zero_grad()
    if len(model.teacher):
        model.update_teacher(model.ema_decay(step + 1, STEPS))
    return float(sums[0] / sums[1]), gradients, loss


def trained(name: str, rank: int = 0, world: int = 1) -> dict:
    model = objective(name)
    model.check_batch(BATCH, world)
    steps = [one_step(model, step, rank, world) for step in range(4)]
    return {
        "losses": [loss for loss, *_ in steps],
        "gradients": [gradients for _, gradients, _ in steps],
        "state": model.state_dict(),
    }
