"""wav2vec 2.0 (arXiv 2006.11477): at hidden tokens, tell the quantised features from others of the utterance;
no teacher.

B samples of this process, T tokens, D width, C width of the features, n hidden tokens in all, K negatives of each,
G groups of V codes, P width of the embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.transformer import taken
from d2v.objectives.common.codes import code_use
from d2v.objectives.common.masked import check_others, masked_view, real_at, row_generators, share_of
from d2v.objectives.common.objective import Objective, check_together
from d2v.objectives.common.quantised import GumbelQuantiser, gumbel, mean_square, others, perplexity, similarities
from d2v.settings import check_fields, setting
from d2v.training.distributed import world_size
from d2v.types import Loss, View


@dataclass
class Config:
    """Quantiser, negatives and weights; the published values of Base."""

    name: str = setting("wav2vec2", "Which method.")
    out_dim: int = setting(256, "Width of predictions and targets; 768 for Large.", least=1, limit=1_000_000)
    num_groups: int = setting(2, "Groups of codes; they divide out_dim.", least=1, limit=10_000)
    num_codes: int = setting(320, "Codes of each group.", least=2, limit=1_000_000)
    negatives: int = setting(100, "Of each hidden token, from the others of its utterance.", least=1, limit=100_000)
    temperature: float = setting(0.1, "Of the softmax over positive and negatives.", above=0, limit=1000)
    start_temperature: float = setting(2.0, "Of the Gumbel softmax at the start.", above=0, limit=1000)
    end_temperature: float = setting(0.5, "Its least; 0.1 for Large.", above=0, limit=1000)
    temperature_decay: float = setting(0.999995, "What a step leaves of it.", above=0, most=1)
    diversity_weight: float = setting(0.1, "Of the share of codes that are not used.", least=0, limit=1_000_000)
    penalty_weight: float = setting(10.0, "Of the mean square of the features before their norm.", least=0, limit=1e6)

    def __post_init__(self):
        """ValueError: a number outside its bounds, or groups that do not divide the width."""
        check_fields(self, "objective")
        if self.out_dim % self.num_groups:
            raise ValueError(
                f"objective.num_groups is {self.num_groups}; it must divide objective.out_dim, {self.out_dim}"
            )


class Wav2Vec2(Objective):
    """The encoder, a quantiser of what lies before its projection, and a linear layer for either side."""

    def __init__(self, encoder: D2vModel, config: Config):
        super().__init__(teacher=False, encoder=encoder)
        (frontend,) = encoder.frontends.values()  # type: ignore[union-attr, operator]
        self.config, dim = config, encoder.trunk.config.dim
        width: int = frontend.source_dim  # type: ignore[assignment]
        self.quantiser = GumbelQuantiser(width, config.num_groups, config.num_codes, config.out_dim)
        self.predictor = nn.Linear(dim, config.out_dim)
        self.projector = nn.Linear(config.out_dim, config.out_dim)
        self.begin_step(0, 1)

    def check(self, views: list[View]) -> None:
        """ValueError: nothing is hidden, several views, masks that leave tokens out, or a row with one hidden token."""
        check_others("wav2vec2", masked_view(views, "wav2vec2", keep=False)[1])

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a batch cut into micro-batches, or that processes do not share evenly."""
        check_together("wav2vec2", batch_size, parts, world_size())

    def begin_step(self, step: int, steps: int) -> None:
        """The Gumbel softmax's temperature, which falls to its least; what is drawn is drawn for this step."""
        super().begin_step(step, steps)
        config = self.config
        self.tau = max(config.start_temperature * config.temperature_decay**step, config.end_temperature)

    def forward(self, views: list[View]) -> Loss:
        """Equation 2 of the paper summed over hidden tokens: contrast, diversity of codes, and the features' size."""
        mask = masked_view(views, "wav2vec2", keep=False)[1]
        hidden, where = mask.hidden, hidden_at(mask)  # (B, T), (n,)
        (view,), config, student = views, self.config, self.student["encoder"]
        tokens, source, raw = student.frontend(view.modality).sources(**view.inputs)  # (B, T, D), (B, T, C), (B, T, C)
        counts = mask.known.sum(dim=1)  # (B,)
        negatives, noise = self.draws(counts.tolist(), hidden.device)  # (n, K), (n, G, V)
        quantised = self.quantiser(taken(source, where), self.tau, noise if self.training else None)
        target = self.projector(quantised.vectors)  # (n, P)
        prediction = self.predictor(student(view, view.mask, tokens=tokens, only=where).x)  # (n, P)
        logits = similarities(prediction, target, quantised.codes, negatives) / config.temperature  # (n, 1 + K)
        have_others = (counts > 1).repeat_interleave(counts).nonzero()[:, 0]  # at most n numbers
        contrast = -logits.log_softmax(dim=1)[have_others.to(logits.device, non_blocking=True), 0].sum()
        count = torch.full((), len(have_others), device=logits.device)
        used, size = perplexity(quantised.shares), config.num_groups * config.num_codes
        square = mean_square(raw, None if view.padding is None else real_at(view))
        extra = config.diversity_weight * (size - used) / size + config.penalty_weight * square
        metrics = {
            **code_use(list(quantised.codes.unbind(dim=1)), config.num_codes),
            "soft_perplexity": used.detach(),
            "accuracy": (logits.argmax(dim=1) == 0).float().mean(),
            "contrast": contrast.detach() / count.clamp(min=1),
            "feature_square": square.detach(),
            "hidden_share": share_of(hidden, view.padding),
        }
        return Loss(contrast + count * extra, count, metrics)

    def draws(self, counts: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Of rows that hide so many tokens: which others are each one's negatives, (n, K), and Gumbel noise (n, G, V).

        Each row draws by itself, from what the seed, the step and its place in the global batch say. A token without
        others is its own.
        """
        config = self.config
        negatives, noise, first = [], [], 0
        for count, generator in zip(counts, row_generators(self.seed, self.step, len(counts), device), strict=True):
            negatives.append(first + others(count, config.negatives, generator, device))
            noise.append(gumbel((count, config.num_groups, config.num_codes), generator, device))
            first += count
        return torch.cat(negatives), torch.cat(noise)


def build(encoder: D2vModel, config: Config) -> Wav2Vec2:
    """The objective around an encoder."""
    return Wav2Vec2(encoder, config)
