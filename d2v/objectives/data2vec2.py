"""data2vec 2.0 (arXiv 2212.07525): M masks of a sample share one teacher pass.

The student encodes visible tokens only, a decoder predicts the rest.

B samples, M masks per sample, N = B * M rows, T tokens, K visible tokens, D width, n hidden tokens in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2v.models.decoder import Decoder, DecoderConfig
from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.transformer import taken
from d2v.objectives.common.guard import GUARD, GUARD_WEIGHT, GUARDS, check_guard, guard, means_of_visible
from d2v.objectives.common.masked import of_samples, real_at, refuse_mask_token
from d2v.objectives.common.multi_view import generator_of_step
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import NORMS, SCALES, TARGETS, channel_std, regression_loss
from d2v.settings import check_fields, of_teacher, section, setting
from d2v.training.schedules import linear_decay
from d2v.types import Loss, Mask, View


@dataclass
class Config:
    """Target, decoder, losses and teacher; the published values per modality are in configs/."""

    name: str = setting("data2vec2", "Which method.")
    top_k: int = setting(10, "Teacher layers that are averaged, the last ones.", least=1, limit=1000)
    layers: str = setting(
        "ffn", "What a layer gives: its FFN output before the residual, or the block's end.", among=("ffn", "block")
    )
    targets: str = setting(
        "mean", "What is predicted: the layers' average, or every layer by itself (Bootleg).", among=tuple(TARGETS)
    )
    layer_norms: list[str] = setting(["instance"], "Norms of each layer, in this order.", among=tuple(NORMS))
    final_norms: list[str] = setting(
        [], "Norms of the average, or of each layer after its own, in this order.", among=tuple(NORMS)
    )
    loss_beta: float = setting(0.0, "Where smooth L1 becomes linear; 0 is the squared error.", least=0)
    loss_scale: str = setting(
        "sqrt",
        "The sum over channels is divided by sqrt(D), by D (mean), or by nothing (sum).",
        among=tuple(SCALES),
    )
    visible_weight: float = setting(
        0.0,
        "Weight of the loss at visible tokens, each over the square root of its distance to a hidden one (V-JEPA 2.1).",
        least=0,
        limit=1_000_000,
    )
    cls_loss: float = setting(
        0.0,
        "Weight of the class token's loss, which is summed over rows.",
        least=0,
        limit=1_000_000,
        only={"targets": "mean"},
    )
    cls_rows: int = setting(
        0,
        "Rows in that sum, whatever the batch; 0: those of a micro-batch, as published: "
        "the weight changes with their number.",
        least=0,
        limit=1_000_000,
        only={"cls_loss": True},
    )
    decoder: DecoderConfig = section(DecoderConfig, "The decoder's shape, dropout and noise.")
    ema_decay: float = of_teacher(
        0.999,
        "The teacher's at the start, from which it goes to ema_end_decay.",
        least=0,
        most=1,
        only={"ema_anneal_steps": True},
    )
    ema_end_decay: float = of_teacher(0.99999, "The teacher's after ema_anneal_steps.", least=0, most=1)
    ema_anneal_steps: int = of_teacher(100000, "Steps from the first decay to the last, linearly.", least=0)
    shared: list[str] = setting(
        [], "Parts of the encoder that the teacher copies instead of averaging (prefixes of names)."
    )
    feed_tokens: bool = setting(
        False, "The teacher is fed the student's unmasked local features.", only={"shared": True}
    )
    reference_padding: bool = setting(
        False, "The reference's quirk: padded tokens count in instance norm, and the decoder reads them."
    )
    guard: str = setting("none", GUARD, among=("none", *GUARDS))
    guard_weight: float = setting(0.1, GUARD_WEIGHT, above=0, limit=1_000_000, only={"guard": tuple(GUARDS)})

    def __post_init__(self):
        """ValueError: a choice that does not exist, a number outside its bounds, or one that nothing reads."""
        check_fields(self, "objective")


class Data2Vec2(Objective):
    """Student and teacher encoders and a decoder from visible to hidden tokens."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: more layers to average than the trunk has after its prenet, a shared part that does not exist, or
        a mask token."""
        super().__init__(tuple(f"encoder.{part}" for part in config.shared), encoder=encoder)
        trunk = encoder.trunk.config
        if config.top_k > trunk.depth - trunk.prenet_depth:
            layers = f"{trunk.depth} layers"
            if trunk.prenet_depth:
                layers += f", of which the first {trunk.prenet_depth} give no targets"
            raise ValueError(f"objective.top_k is {config.top_k}; the trunk has {layers}")
        refuse_mask_token(encoder, "data2vec2")
        if config.cls_loss and all(frontend.extra() is None for frontend in encoder.frontends.values()):
            raise ValueError(
                f"objective.cls_loss is {config.cls_loss}, but the frontend has no class token; set it to 0"
            )
        self.config = config
        self.first = trunk.depth - config.top_k
        self.num_targets = config.top_k if config.targets == "layers" else 1
        self.decoder = Decoder(trunk.dim, config.decoder, self.num_targets * trunk.dim)
        if config.decoder.head_init == "trunk":
            self.decoder.init_head(trunk.init_std)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks without `keep`."""
        if len(views) > 1:
            raise ValueError(
                f"data2vec2 predicts what is hidden of one view; data.views and data.local_views make {len(views)}: "
                "name one there, or none"
            )
        if any(view.mask is None or view.mask.keep is None for view in views):
            raise ValueError(
                "data2vec2 encodes what is visible: "
                "its masks need `keep`, the same number of tokens in every row (see data.mask_kind)"
            )
        if any(
            view.mask and view.mask.keep is not None and len(view.mask.hidden) != len(view.mask.keep) for view in views
        ):
            raise ValueError(
                "data2vec2 predicts all that a mask leaves out; data.mask_kind=multi_block is for ijepa: choose another"
            )

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a guard that does not see the samples of a batch together."""
        check_guard(self.config.guard, batch_size, parts)

    def forward(self, views: list[View]) -> Loss:
        """The regression loss over the hidden tokens of all masks, and the class token's; ValueError as in `check`."""
        self.check(views)
        (view,) = views
        mask = view.mask
        assert mask is not None
        student = self.student["encoder"]
        tokens = student.embed(view)  # (B, T, D)
        target = self.target(view, tokens.detach())  # (B, T, D)
        features = student(view, mask, tokens=tokens)
        masks = len(mask.hidden) // len(target)  # M
        padding = None
        if view.padding is not None and not self.config.reference_padding:
            padding = view.padding.repeat_interleave(masks, dim=0)  # (N, T)
        where = hidden_at(mask)  # (n,)
        if self.config.visible_weight:
            where = real_tokens(mask, view)
        prediction = self.decoder(features.x, mask, padding, where).float()  # (n, D), or (n, L * D) of layers
        wanted = of_samples(target, mask, where)  # as the prediction
        count = mask.hidden.sum()
        weights = None
        if self.config.visible_weight:
            grid = student.frontend(view.modality).grid
            weights = taken(by_distance(mask.hidden, grid), where) * self.config.visible_weight  # (n,)
            weights = weights.masked_fill(taken(mask.hidden, where), 1.0)
        total = self.regression(prediction, wanted, weights)
        metrics = {
            "target_std": channel_std(wanted),
            "prediction_std": channel_std(prediction.detach()),
            "hidden_share": count / (mask.hidden.numel() if view.padding is None else masks * (~view.padding).sum()),
        }
        if self.config.cls_loss:
            total = total + count * self.class_loss(features.extra, target, view.padding)
        if self.config.guard != "none":
            assert mask.keep is not None
            samples = means_of_visible(features.x, mask.keep, view.padding, masks)
            term = guard(self.config.guard, samples, generator_of_step(self.step, total.device, self.seed))
            total, metrics["guard"] = total + count * self.config.guard_weight * term, term.detach()
        return Loss(total, count, metrics)

    def regression(self, prediction: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of predictions, two (n, L * D): of L targets each, the mean over them; `weights` (n,) of each."""
        layers = self.num_targets
        if weights is not None:
            weights = weights.repeat_interleave(layers)
        prediction, wanted = (x.reshape(len(x) * layers, -1) for x in (prediction, wanted))  # (n * L, D) each
        return regression_loss(prediction, wanted, self.config.loss_beta, self.config.loss_scale, weights) / layers

    @torch.no_grad()
    def target(self, view: View, tokens: Tensor) -> Tensor:
        """Targets (B, T, D), or (B, T, L * D) of layers, from the teacher on the whole view.

        `tokens` are the student's local features.
        """
        config = self.config
        fed = tokens if config.feed_tokens else None
        layers = self.teacher["encoder"](view, tokens=fed, layers=config.layers, first=self.first).layers
        padding = None if config.reference_padding else view.padding
        return TARGETS[config.targets](layers, config.layer_norms, config.final_norms, padding)

    def class_loss(self, extra: Tensor | None, target: Tensor, padding: Tensor | None) -> Tensor:
        """The class token (N, E, D) against the mean target of its sample (B, T, D), summed over rows.

        ValueError: there is no such token.
        """
        if extra is None:
            raise ValueError(
                f"objective.cls_loss is {self.config.cls_loss}, but the frontend has no class token; set it to 0"
            )
        real = torch.ones(target.shape[:2], device=target.device) if padding is None else (~padding).float()  # (B, T)
        mean = (target * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)  # (B, D)
        rows = len(extra)
        wanted = mean.repeat_interleave(rows // len(mean), dim=0)  # (N, D)
        error = regression_loss(extra[:, -1], wanted, self.config.loss_beta, self.config.loss_scale)
        return self.config.cls_loss * (self.config.cls_rows or rows) / rows * error

    def ema_decay(self, step: int, steps: int = 0) -> float:
        """Linear from ema_decay to ema_end_decay over ema_anneal_steps."""
        return linear_decay(step, self.config.ema_decay, self.config.ema_end_decay, self.config.ema_anneal_steps)


def real_tokens(mask: Mask, view: View) -> Tensor:
    """Numbers (n,) of hidden and visible tokens, row * T + place, in rising order, without padding."""
    if view.padding is None:
        return torch.arange(mask.hidden.numel(), device=mask.hidden.device)
    samples, tokens = view.padding.shape
    masks = len(mask.hidden) // samples
    at = real_at(view)
    first = at // tokens * masks * tokens + at % tokens  # of the sample's first row
    return (first[:, None] + torch.arange(masks, device=at.device) * tokens).flatten().sort().values


def by_distance(hidden: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """(N, T) bool -> 1 / sqrt(the distance to the nearest hidden token), (N, T): in the grid, or along the sequence.

    0 where a row hides nothing. V-JEPA 2.1 (arXiv 2603.14482).
    """
    rows, columns = grid or (1, hidden.shape[1])
    place = torch.arange(rows * columns, device=hidden.device)
    where = torch.stack([place // columns, place % columns], dim=1).float()  # (T, 2)
    distances = torch.cdist(where, where).masked_fill(~hidden[:, None], torch.inf)  # (N, T, T)
    return distances.amin(dim=2).clamp(min=1).rsqrt()


def build(encoder: D2vModel, config: Config) -> Data2Vec2:
    """The objective around an encoder."""
    return Data2Vec2(encoder, config)
