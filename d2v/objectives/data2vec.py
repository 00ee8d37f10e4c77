"""data2vec 1.0 (arXiv 2202.03555): regress the averaged, normalised top-K layers of an EMA teacher from masked inputs.

B samples, T tokens, D width, n hidden tokens in all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.heads import mean_of_tokens, perceptron
from d2v.models.transformer import taken
from d2v.objectives.common.guard import GUARD, GUARD_WEIGHT, GUARDS, check_guard, guard
from d2v.objectives.common.multi_view import generator_of_step
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import NORMS, SCALES, channel_std, mean_of_layers, regression_loss
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.schedules import linear_decay
from d2v.types import Loss, View

OF_TOKENS = ("instance", "group", "batch")  # norms over several tokens


@dataclass
class Config:
    """Target, loss and teacher; the published values per modality are in configs/."""

    name: str = setting("data2vec", "Which method.")
    top_k: int = setting(8, "Teacher layers that are averaged, the last ones.", least=1, limit=1000)
    layers: str = setting(
        "ffn", "What a layer gives: its FFN output before the residual, or the block's end.", among=("ffn", "block")
    )
    layer_norms: list[str] = setting(["instance"], "Norms of each layer, in this order.", among=tuple(NORMS))
    final_norms: list[str] = setting([], "Norms of the average, in this order.", among=tuple(NORMS))
    loss_beta: float = setting(0.0, "Where smooth L1 becomes linear; 0 is the squared error.", least=0)
    loss_scale: str = setting(
        "sqrt",
        "The sum over channels is divided by sqrt(D), by D (mean), or by nothing (sum).",
        among=tuple(SCALES),
    )
    head_layers: int = setting(1, "Linear layers of the predictor.", least=1, limit=100)
    head_init: str = setting(
        "default", "How the predictor's weights start: torch's own, or like the trunk.", among=("default", "trunk")
    )
    ema_decay: float = of_teacher(
        0.999,
        "The teacher's at the start, from which it goes to ema_end_decay.",
        least=0,
        most=1,
        only={"ema_anneal_steps": True},
    )
    ema_end_decay: float = of_teacher(0.9999, "The teacher's after ema_anneal_steps.", least=0, most=1)
    ema_anneal_steps: int = of_teacher(30000, "Steps from the first decay to the last, linearly.", least=0)
    shared: list[str] = setting(
        [], "Parts of the encoder that the teacher copies instead of averaging (prefixes of names)."
    )
    feed_tokens: bool = setting(
        False, "The teacher is fed the student's unmasked local features.", only={"shared": True}
    )
    norm_over_padding: bool = setting(
        False,
        "The reference's quirk: instance norm counts padded tokens.",
        only=[{"layer_norms": OF_TOKENS}, {"final_norms": OF_TOKENS}],
    )
    guard: str = setting("none", GUARD, among=("none", *GUARDS))
    guard_weight: float = setting(0.1, GUARD_WEIGHT, above=0, limit=1_000_000, only={"guard": tuple(GUARDS)})

    def __post_init__(self):
        """ValueError: a choice that does not exist, or a number outside its bounds."""
        check_fields(self, "objective")


class RegressionHead(nn.Module):
    """data2vec 1.0's predictor: one linear layer, or linear layers of twice the width with GELU between them and a
    linear back."""

    def __init__(self, dim: int, num_layers: int = 1):
        super().__init__()
        self.layers = perceptron([dim] + [2 * dim] * (num_layers - 1) + [dim])

    def init_weights(self, std: float, truncated: bool) -> None:
        """N(0, std), truncated at one std if asked; biases zero."""
        for linear in self.layers:
            if isinstance(linear, nn.Linear):
                if truncated:
                    nn.init.trunc_normal_(linear.weight, std=std, a=-std, b=std)
                else:
                    nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.layers(x)


class Data2Vec(Objective):
    """Student and teacher encoders and a predictor on the hidden tokens."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: more layers to average than the trunk has, or a shared part that does not exist."""
        super().__init__(tuple(f"encoder.{part}" for part in config.shared), encoder=encoder)
        trunk = encoder.trunk.config
        if config.top_k > trunk.depth:
            raise ValueError(f"objective.top_k is {config.top_k}; the trunk has {trunk.depth} layers to average")
        self.config = config
        self.first = trunk.depth - config.top_k
        self.predictor = RegressionHead(trunk.dim, config.head_layers)
        if config.head_init == "trunk":
            self.predictor.init_weights(trunk.init_std, truncated=trunk.init == "depth_scaled")

    def check(self, views: list[View]) -> None:
        """ValueError: nothing is hidden, or masks of data2vec 2.0, which leave tokens out."""
        if views[0].mask is None:
            raise ValueError(
                "data2vec predicts what is hidden of one view; data.views makes views in which nothing is: leave it out"
            )
        others = views[1:]  # of text, what the reference's teacher reads in place of the same tokens
        if len(others) > 1 or any(view.mask is not None or view.indices is not None for view in others):
            raise ValueError(
                f"data2vec predicts what is hidden of one view, and its targets are of the same places; data.views and "
                f"data.local_views make {len(views)}: name one there, or none"
            )
        masks = [view.mask for view in views if view.mask is not None]
        if any(mask.keep is not None for mask in masks):
            raise ValueError(
                "data2vec encodes every token: the masks of this data.mask_kind leave some out; "
                "use its default, or objective.name=data2vec2"
            )

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a guard that does not see the samples of a batch together."""
        check_guard(self.config.guard, batch_size, parts)

    def forward(self, views: list[View]) -> Loss:
        """The regression loss over hidden tokens of a view; the teacher sees it whole, or a second view in its place.

        ValueError as in `check`.
        """
        self.check(views)
        view = views[0]
        teacher_view = views[1] if len(views) > 1 else view
        assert view.mask is not None
        hidden, where = view.mask.hidden, hidden_at(view.mask)  # (B, T), (n,)
        student = self.student["encoder"]
        tokens = student.embed(view)  # (B, T, D)
        target = self.target(teacher_view, tokens.detach(), where)  # (n, D)
        guarded = self.config.guard != "none"
        features = student(view, view.mask, tokens=tokens, only=None if guarded else where)
        prediction = self.predictor(taken(features.x, where) if guarded else features.x).float()  # (n, D)
        total = regression_loss(prediction, target, self.config.loss_beta, self.config.loss_scale)
        metrics = {
            "target_std": channel_std(target),
            "prediction_std": channel_std(prediction.detach()),
            "hidden_share": hidden.sum() / (hidden.numel() if view.padding is None else (~view.padding).sum()),
        }
        if guarded:
            samples = [mean_of_tokens(features.x.float(), view.padding)]
            term = guard(self.config.guard, samples, generator_of_step(self.step, total.device, self.seed))
            total, metrics["guard"] = total + hidden.sum() * self.config.guard_weight * term, term.detach()
        return Loss(total, hidden.sum(), metrics)

    @torch.no_grad()
    def target(self, view: View, tokens: Tensor, only: Tensor | None = None) -> Tensor:
        """Targets (B, T, D), or (n, D) of the tokens `only` (n,), from the teacher on the whole view.

        `tokens` are the student's features.
        """
        config = self.config
        fed = tokens if config.feed_tokens else None
        apart = {*config.layer_norms, *config.final_norms} <= {"layer"}  # a token's norm does not need the other tokens
        teacher, asked_for = self.teacher["encoder"], only if apart else None
        layers = teacher(view, tokens=fed, layers=config.layers, first=self.first, only=asked_for).layers
        padding = None if config.norm_over_padding else view.padding
        target = mean_of_layers(layers, config.layer_norms, config.final_norms, padding)
        return target if only is None or apart else taken(target, only)

    def ema_decay(self, step: int, steps: int = 0) -> float:
        """Linear from ema_decay to ema_end_decay over ema_anneal_steps."""
        return linear_decay(step, self.config.ema_decay, self.config.ema_end_decay, self.config.ema_anneal_steps)


def build(encoder: D2vModel, config: Config) -> Data2Vec:
    """The objective around an encoder."""
    return Data2Vec(encoder, config)
