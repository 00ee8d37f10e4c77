"""CAPI (arXiv 2502.08769): at a few hidden tokens, predict to which clusters Sinkhorn's algorithm assigns the teacher's
tokens; the clusters learn from the same assignments.

B samples of this process, N = B * M rows, T tokens, K visible, D width, C clusters, n predictions in all.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from d2v.models.encoder import D2vModel
from d2v.models.predictor import CrossConfig, CrossPredictor
from d2v.objectives.common.clusters import Clusters, clusters_loss
from d2v.objectives.common.codes import code_use
from d2v.objectives.common.masked import at, masked_view, only_kept, refuse_mask_token, share_of, some_of
from d2v.objectives.common.objective import Objective, check_together
from d2v.objectives.common.prototypes import cross_entropy
from d2v.settings import check_fields, of_teacher, section, setting
from d2v.training.distributed import world_size
from d2v.training.schedules import cosine_between
from d2v.types import Loss, Mask, View


@dataclass
class Config:
    """Clusters, predictor and teacher; the published values."""

    name: str = setting("capi", "Which method.")
    num_codes: int = setting(16384, "Clusters.", least=2, limit=10_000_000)
    positionwise: bool = setting(
        True, "Tokens are assigned among those of the same place in the batch: place cannot become the cluster."
    )
    target_temperature: float = setting(0.06, "Of the logits that Sinkhorn's algorithm balances.", above=0, limit=1000)
    temperature: float = setting(0.12, "Of the softmax of predictions, and of the clusters'.", above=0, limit=1000)
    iterations: int = setting(3, "Of Sinkhorn's algorithm.", least=1, limit=1000)
    predicted_share: float = setting(0.05, "Share of a row's hidden tokens that is predicted.", above=0, most=1)
    predictor: CrossConfig = section(CrossConfig, "The predictor's shape.")
    ema_decay: float = of_teacher(
        0.999, "The teacher's after ema_warmup_share, from 1 at the start; back to 1 at the end.", least=0, most=1
    )
    ema_warmup_share: float = of_teacher(0.1, "How long it falls: 50,000 steps of 500,000.", least=0, below=1)

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class CAPI(Objective):
    """Student and teacher encoders, a predictor of cross-attention, the student's clusters and the teacher's.

    The clusters learn in the one optimizer, at its rate; the paper's have an AdamW of their own, at half of it.
    """

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: a mask token, which nothing would train."""
        super().__init__(encoder=encoder)
        refuse_mask_token(encoder, "capi")
        self.config, trunk = config, encoder.trunk.config
        self.predictor = CrossPredictor(trunk, config.predictor)
        self.head = weight_norm(nn.Linear(trunk.dim, config.num_codes, bias=False))
        settings = {"temperature": config.target_temperature, "iterations": config.iterations}
        self.clusters = Clusters(trunk.dim, config.num_codes, positionwise=config.positionwise, **settings)
        self.places: int | None = None  # tokens of the sample that `check` has seen
        self.begin_step(0, 1)

    def check(self, views: list[View]) -> None:
        """ValueError: several views, or masks that leave nothing out."""
        self.places = masked_view(views, "capi", keep=True)[1].hidden.shape[1]

    def check_batch(self, batch_size: int, parts: int) -> None:
        """ValueError: a batch that is cut, or has too little to be shared out among the clusters."""
        check_together("capi", batch_size, parts, world_size())
        self.clusters.check_size(batch_size, self.places)

    def forward(self, views: list[View]) -> Loss:
        """Cross entropy of the predicted tokens' assignments, summed; and, as the mean over all tokens, that of the
        clusters."""
        view, given = masked_view(views, "capi", keep=True)
        config, student = self.config, self.student["encoder"]
        with torch.no_grad():
            x = self.teacher["encoder"](view).x  # (B, T, D)
        logits = self.clusters(x)  # (B, T, C)
        targets = self.clusters.assignments(logits, view.padding)  # (B, T, C), 0 in padding
        visible = student(view, only_kept(given, view.padding)).x  # (R, K, D)
        some = some_of(given.known, config.predicted_share, len(logits), self.seed, self.step)  # (N, T), on the CPU
        mask = Mask(some).located().to(logits.device)._replace(keep=given.keep)
        asked = mask.hidden  # (N, T)
        prediction = self.predictor(visible, mask, view.padding, student.frontend(view.modality).grid)  # (n, D)
        shares = self.head(F.normalize(prediction.float(), dim=1))  # (n, C)
        wanted = at(targets, mask)  # (n, C)
        count = asked.sum()
        of_clusters, cluster_loss = clusters_loss(targets, logits, config.temperature, count, view.padding)
        predicted = cross_entropy(wanted, shares, config.temperature).sum()
        chosen = wanted.argmax(dim=1)
        metrics = {
            **code_use([chosen], config.num_codes),
            "accuracy": (shares.argmax(dim=1) == chosen).float().mean(),
            "prediction_loss": predicted.detach() / count,
            "cluster_loss": cluster_loss,
            "hidden_share": share_of(asked, view.padding),
        }
        return Loss(predicted + of_clusters, count, metrics)

    def ema_decay(self, step: int, steps: int) -> float:
        """Linear from 1 to ema_decay over ema_warmup_share, then half a cosine back to 1."""
        warmup = round(self.config.ema_warmup_share * steps)
        if step < warmup:
            return 1 - (1 - self.config.ema_decay) * step / warmup
        return cosine_between(step - warmup, steps - warmup, self.config.ema_decay, 1.0)


def build(encoder: D2vModel, config: Config) -> CAPI:
    """The objective around an encoder."""
    return CAPI(encoder, config)
