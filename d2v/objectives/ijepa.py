"""I-JEPA (arXiv 2301.08243): from one block of a sample, predict what an EMA teacher says of several others.

B samples, R contexts, N rows of targets (R * M), T tokens, K read, D width, n hidden tokens in all.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.predictor import Predictor, PredictorConfig
from d2v.objectives.common.masked import at, masked_view, only_kept, refuse_mask_token, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import channel_std, regression_loss
from d2v.settings import check_fields, of_teacher, section, setting
from d2v.training.schedules import linear_decay
from d2v.types import Loss, View


@dataclass
class Config:
    """Predictor, loss and teacher; the published values."""

    name: str = setting("ijepa", "Which method.")
    loss_beta: float = setting(1.0, "Where smooth L1 becomes linear; 0 is the squared error.", least=0)
    predictor: PredictorConfig = section(PredictorConfig, "The predictor's shape.")
    ema_decay: float = of_teacher(0.996, "The teacher's at the start; 1 never updates it.", least=0, most=1)
    ema_stretch: float = of_teacher(
        1.25, "It would reach 1, linearly, after so many times train.steps.", least=1, limit=1000
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class IJEPA(Objective):
    """Student and teacher encoders and a predictor from the context to each row of targets."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: a mask token, which nothing would train."""
        super().__init__(encoder=encoder)
        refuse_mask_token(encoder, "ijepa")
        self.config = config
        self.predictor = Predictor(encoder.trunk.config.dim, config.predictor)

    def check(self, views: list[View]) -> None:
        """ValueError: several views, or masks that leave nothing out."""
        masked_view(views, "ijepa", keep=True)

    def forward(self, views: list[View]) -> Loss:
        """Smooth L1 of the teacher's normed output at hidden tokens, the mean over channels, summed over tokens;
        ValueError as in `check`."""
        view, mask = masked_view(views, "ijepa", keep=True)
        student = self.student["encoder"]
        context = student(view, only_kept(mask, view.padding)).x  # (R, K, D)
        prediction = self.predictor(context, mask, view.padding, student.frontend(view.modality).grid).float()  # (n, D)
        wanted = at(self.target(view), mask)  # (n, D)
        metrics = {
            "target_std": channel_std(wanted),
            "prediction_std": channel_std(prediction.detach()),
            "hidden_share": share_of(mask.hidden, None),
        }
        return Loss(regression_loss(prediction, wanted, self.config.loss_beta, "mean"), mask.hidden.sum(), metrics)

    @torch.no_grad()
    def target(self, view: View) -> Tensor:
        """The teacher's output on the whole view, each token normed over its channels, (B, T, D)."""
        x = self.teacher["encoder"](view).x.float()
        return F.layer_norm(x, x.shape[-1:])

    def ema_decay(self, step: int, steps: int) -> float:
        """Linear from ema_decay towards 1, of which the run sees 1 / ema_stretch."""
        return linear_decay(step, self.config.ema_decay, 1.0, round(self.config.ema_stretch * steps))


def build(encoder: D2vModel, config: Config) -> IJEPA:
    """The objective around an encoder."""
    return IJEPA(encoder, config)
