"""MoCo v3 (arXiv 2104.02057): find the EMA teacher's projection of the other view among those of the whole batch.

No queue.

B samples of this process, N of all, P width of the projections.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from d2v.models.encoder import D2vModel
from d2v.models.heads import projector
from d2v.objectives.common.contrastive import cosines, info_nce, unit
from d2v.objectives.common.multi_view import MultiView, embedding
from d2v.objectives.common.objective import freeze
from d2v.objectives.common.regression import spread_of
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.distributed import gather, mine
from d2v.training.schedules import cosine_between
from d2v.types import Loss, View


@dataclass
class Config:
    """Heads, temperature and teacher; the published values of vision transformers, those of ResNets in brackets."""

    num_views: ClassVar[int] = 2

    name: str = setting("mocov3", "Which method.")
    projector_layers: int = setting(3, "Layers of the projector (2).", least=1, limit=100)
    hidden_dim: int = setting(4096, "Width of the hidden layers of projector and predictor.", least=1, limit=1_000_000)
    out_dim: int = setting(256, "Width of the projections.", least=1, limit=1_000_000)
    predictor_norm: bool = setting(
        True, "A batch norm without weights ends the predictor, as it does the projector (false)."
    )
    temperature: float = setting(0.2, "Of the softmax (1.0).", above=0, limit=1000)
    ema_decay: float = of_teacher(
        0.99,
        "The teacher's at the start; it reaches 1 at the last step by half a cosine (0.996 for 1000 epochs).",
        least=0,
        most=1,
    )
    freeze: list[str] = setting(
        [], "Parts of the encoder that stay as they were made (prefixes of names): the patch projection."
    )

    def __post_init__(self):
        """ValueError: a decay outside [0, 1], a width or depth below 1, a temperature that is not above 0."""
        check_fields(self, "objective")


class MoCoV3(MultiView):
    """Student encoder and projector, their EMA, and a predictor on the student's side."""

    exact_views = True

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: a part to freeze that the encoder does not have."""
        freeze(config.freeze, encoder)
        dim, hidden, out = encoder.trunk.config.dim, config.hidden_dim, config.out_dim
        super().__init__(
            encoder, projector=projector([dim] + [hidden] * (config.projector_layers - 1) + [out], last="norm")
        )
        self.config = config
        self.predictor = projector([out, hidden, out], last="norm" if config.predictor_norm else "bare")

    def forward(self, views: list[View]) -> Loss:
        """Both directions: 2T times the cross entropy of a prediction's key among all keys of the other view, summed
        over samples (algorithm 1)."""
        self.check(views)
        queries = [unit(self.predictor(embedding(self.student, view))) for view in views]  # (B, P) each
        with torch.no_grad():
            keys = [gather(unit(embedding(self.teacher, view))) for view in views]  # (N, P) each
        temperature, positive = self.config.temperature, mine(len(queries[0]), queries[0].device)  # (B,)
        similarity = torch.cat([cosines(queries[0], keys[1]), cosines(queries[1], keys[0])])  # (2B, N)
        positives = positive.repeat(2)
        total = 2 * temperature * info_nce(similarity, positives, temperature)
        metrics = {
            "accuracy": (similarity.argmax(dim=1) == positives).float().mean(),
            "target_spread": spread_of(keys[0]),
            "prediction_spread": spread_of(queries[0]),
        }
        return Loss(total, torch.full((), len(positive), device=total.device), metrics)

    def ema_decay(self, step: int, steps: int) -> float:
        """Half a cosine from ema_decay to 1 over the run."""
        return cosine_between(step, steps, self.config.ema_decay, 1.0)


def build(encoder: D2vModel, config: Config) -> MoCoV3:
    """The objective around an encoder."""
    return MoCoV3(encoder, config)
