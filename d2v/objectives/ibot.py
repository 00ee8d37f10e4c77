"""iBOT (arXiv 2111.07832): DINO, and at every hidden token of a global view the prototypes that the teacher gives to
it, seen whole.

B samples of this process, T content tokens, n hidden ones, D width, K prototypes.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.heads import mean_of_tokens
from d2v.models.transformer import taken
from d2v.objectives.common.multi_view import MultiView, each, num_samples, pooled, summary
from d2v.objectives.common.prototypes import PrototypeHead, across_views, cross_entropy, sharpened, usage
from d2v.objectives.common.queues import Center
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.schedules import cosine_between, linear_decay
from d2v.types import Loss, Mask, Pooled, View


@dataclass
class Config:
    """Head, temperatures, centres and teacher; the published values.

    What ends in `share` is of train.steps, where the paper counts epochs.
    """

    num_views: ClassVar[int] = 2

    name: str = setting("ibot", "Which method.")
    hidden_dim: int = setting(2048, "Width of the head's hidden layers.", least=1, limit=1_000_000)
    bottleneck_dim: int = setting(
        256, "Width of the unit vectors that prototypes are compared with.", least=1, limit=1_000_000
    )
    num_prototypes: int = setting(8192, "Outputs of the head.", least=1, limit=100_000_000)
    shared_head: bool = setting(True, "false: tokens have prototypes of their own behind the same MLP.")
    frozen_gain: bool = setting(False, "norm_last_layer: prototypes stay unit vectors.")
    frozen_share: float = setting(0.00125, "How long prototypes stay as they are: 1 epoch of 800.", least=0, most=1)
    class_weight: float = setting(1.0, "Of DINO's loss.", above=0, limit=1_000_000)
    patch_weight: float = setting(1.0, "Of the loss of hidden tokens.", above=0, limit=1_000_000)
    student_temperature: float = setting(0.1, "Of the student's softmax.", above=0, limit=1000)
    start_temperature: float = setting(
        0.04,
        "Of the teacher's softmax at the start; linear to the two that follow.",
        above=0,
        limit=1000,
        only={"warmup_share": True},
    )
    teacher_temperature: float = setting(0.07, "Of the teacher's summaries after warmup_share.", above=0, limit=1000)
    patch_temperature: float = setting(0.07, "Of the teacher's tokens after warmup_share.", above=0, limit=1000)
    warmup_share: float = setting(
        0.0375, "How long the teacher's temperatures rise: 30 epochs of 800.", least=0, most=1
    )
    center_momentum: float = setting(0.9, "Share of the old centre of summaries in the new one.", least=0, most=1)
    patch_center_momentum: float = setting(0.9, "Share of the old centre of tokens in the new one.", least=0, most=1)
    ema_decay: float = of_teacher(
        0.996, "The teacher's at the start; it reaches 1 at the last step by half a cosine.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a decay or a share outside [0, 1], or a number that must be positive."""
        check_fields(self, "objective")


class IBOT(MultiView):
    """As DINO, with a second target for tokens.

    The first two views are global and carry masks, which only the student meets.
    """

    def __init__(self, encoder: D2vModel, config: Config):
        dim, num_outputs = encoder.trunk.config.dim, 1 if config.shared_head else 2
        sizes = (dim, config.hidden_dim, config.bottleneck_dim, config.num_prototypes)
        super().__init__(
            encoder, hides=True, head=PrototypeHead(*sizes, frozen_gain=config.frozen_gain, num_outputs=num_outputs)
        )
        self.config = config
        self.center = Center(config.num_prototypes, config.center_momentum)
        self.patch_center = Center(config.num_prototypes, config.patch_center_momentum)
        self.begin_step(0, 1)

    def check(self, views: list[View]) -> None:
        """ValueError: too few views, or global ones without masks that replace tokens in place."""
        super().check(views)
        for number, view in enumerate(views[:2]):
            what = ""
            if view.mask is None:
                what = "no mask"
            elif view.mask.keep is not None:
                what = "one that leaves tokens out"
            elif len(view.mask.hidden) != num_samples(view):
                what = "several"
            if what:
                raise ValueError(
                    "ibot needs a mask of each sample, that replaces tokens in place, in two global views; "
                    f"view {number} has {what}"
                )

    def begin_step(self, step: int, steps: int) -> None:
        """The teacher's temperatures: linear in the step (the paper's code: in the epoch)."""
        super().begin_step(step, steps)
        config = self.config
        start, warmup = config.start_temperature, round(config.warmup_share * steps)
        self.temperature = linear_decay(step, start, config.teacher_temperature, warmup)
        self.patch_temperature = linear_decay(step, start, config.patch_temperature, warmup)

    def forward(self, views: list[View]) -> Loss:
        """class_weight * DINO's loss + patch_weight * that of hidden tokens (equations 1 and 2, here summed over
        samples)."""
        self.check(views)
        config, whole = self.config, views[:2]
        masks = [view.mask for view in whole if view.mask is not None]
        logits, patch_logits = self.predictions(views, masks)
        with torch.no_grad():
            outputs, patch_outputs = self.teacher_outputs(whole)
        count = torch.full((), len(logits[0]), device=logits[0].device)
        class_loss, class_metrics = self.class_loss(outputs, logits, count)
        patch_loss, patch_metrics = self.patch_loss(patch_outputs, patch_logits, masks, count)
        self.center.update(torch.cat(outputs))  # the next step's
        means = [mean_of_tokens(x, view.padding) for x, view in zip(patch_outputs, whole, strict=True)]  # (B, K) each
        self.patch_center.update(torch.cat(means))
        metrics = {
            **class_metrics,
            **patch_metrics,
            "center_norm": self.center.value.norm(),
            "patch_center_norm": self.patch_center.value.norm(),
            "target_spread": spread_of(outputs[0]),
            "prediction_spread": spread_of(logits[0]),
        }
        return Loss(config.class_weight * class_loss + config.patch_weight * patch_loss, count, metrics)

    def class_loss(
        self, outputs: list[Tensor], logits: list[Tensor], count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | Pooled]]:
        """DINO's loss (equation 2) of what teacher and student give to each view, (B, K), and what is shown of it."""
        targets = [sharpened(rows, self.center.value, self.temperature) for rows in outputs]
        loss = across_views(targets, logits, self.config.student_temperature)
        return loss, {**usage(torch.cat(targets), loss / count), "class_loss": loss.detach() / count}

    def patch_loss(
        self, outputs: list[Tensor], logits: list[Tensor], masks: list[Mask], count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of hidden tokens (equation 1), and what is shown of it.

        `outputs` (B, T, K) of each global view are the teacher's, `logits` (n, K) of hidden tokens the student's.
        """
        losses, entropies = [], []  # (n,) each
        for teacher_rows, student_rows, mask in zip(outputs, logits, masks, strict=True):
            seen = taken(teacher_rows, hidden_at(mask))
            target = sharpened(seen, self.patch_center.value, self.patch_temperature)  # (n, K)
            losses.append(cross_entropy(target, student_rows, self.config.student_temperature))
            entropies.append(torch.special.entr(target).sum(dim=1))
        loss = over_samples(losses, masks)
        entropy = over_samples(entropies, masks) / count
        return loss, {"patch_loss": loss.detach() / count, "patch_target_entropy": entropy}

    def teacher_outputs(self, views: list[View]) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's logits of whole views: (B, K) of each, and (B, T, K) of its tokens."""
        head = self.teacher["head"]
        tokens = each(views, partial(summary_and_tokens, self.teacher["encoder"]))  # (B, 1 + T, D) each
        return [head(x[:, 0]) for x in tokens], [head(x[:, 1:], -1) for x in tokens]

    def predictions(self, views: list[View], masks: list[Mask]) -> tuple[list[Tensor], list[Tensor]]:
        """The student's logits (B, K) of every view, and (n, K) of the hidden tokens of each global one."""
        encoder, head = self.student["encoder"], self.student["head"]
        tokens = each(views[:2], lambda view: summary_and_tokens(encoder, view, view.mask))  # (B, 1 + T, D) each
        summaries = [x[:, 0] for x in tokens] + each(views[2:], partial(summary, encoder))
        logits = list(head(torch.cat(summaries)).chunk(len(views)))
        return logits, [head(taken(x[:, 1:], hidden_at(mask)), -1) for x, mask in zip(tokens, masks, strict=True)]

    def of_length(self, step: int, steps: int) -> tuple[float, ...]:
        """The teacher's decay and temperatures, and whether the prototypes stand."""
        self.begin_step(step, steps)
        frozen = step < round(self.config.frozen_share * steps)
        return (*super().of_length(step, steps), self.temperature, self.patch_temperature, frozen)

    def adjust_gradients(self, step: int, steps: int) -> None:
        """At first the prototypes have none, so that the optimizer passes over them, its moments too."""
        if step < round(self.config.frozen_share * steps):
            self.student["head"].prototypes.zero_grad()

    def ema_decay(self, step: int, steps: int) -> float:
        """Half a cosine from ema_decay to 1 over the run."""
        return cosine_between(step, steps, self.config.ema_decay, 1.0)


def summary_and_tokens(encoder: nn.Module, view: View, mask: Mask | None = None) -> Tensor:
    """The summary of each sample in front of its content tokens, (B, 1 + T, D)."""
    features = encoder(view, mask)
    return torch.cat([pooled(features, view.padding).unsqueeze(1), features.x], dim=1)


def over_samples(values: list[Tensor], masks: list[Mask]) -> Tensor:
    """The mean over views of the sum over samples of the mean of values (n,) at a sample's hidden tokens.

    0 for a sample in which nothing is hidden.
    """
    sums = []
    for x, mask in zip(values, masks, strict=True):
        share = mask.hidden / mask.hidden.sum(dim=1, keepdim=True).clamp(min=1)  # (B, T)
        sums.append((x * taken(share, hidden_at(mask))).sum())
    return torch.stack(sums).mean()


def build(encoder: D2vModel, config: Config) -> IBOT:
    """The objective around an encoder."""
    return IBOT(encoder, config)
