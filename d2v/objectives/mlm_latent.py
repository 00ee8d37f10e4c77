"""Words and latents at once, by the weights of BootBERT (arXiv 2310.19420): which words were chosen, and what a teacher
that reads the whole text has in their places.

BootBERT's student reads visible words alone and a decoder fills in the others; here the student reads <mask>, as in
mlm. Its teacher's embeddings are averaged too.
B samples, T tokens, n chosen tokens in all, D width, V words.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.encoder import D2vModel, chosen_at
from d2v.models.heads import WordHead, perceptron
from d2v.models.transformer import taken
from d2v.objectives.common.masked import chosen, cross_entropy, frontend_of, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import channel_std, regression_loss
from d2v.settings import check_fields, of_teacher, setting
from d2v.training.schedules import linear_decay
from d2v.types import Loss, View


@dataclass
class Config:
    """Weight of the words, and teacher; the published values."""

    name: str = setting("mlm_latent", "Which method.")
    word_weight: float = setting(0.1, "Of the words' cross entropy; that of the latents is 1.", least=0, limit=1000)
    ema_decay: float = of_teacher(
        0.996, "The teacher's at the start; it reaches 1 at the last step, linearly.", least=0, most=1
    )

    def __post_init__(self):
        """ValueError: a number outside its bounds."""
        check_fields(self, "objective")


class MLMLatent(Objective):
    """Student and teacher, a head for words and one for latents."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens are no words, or none can be hidden."""
        super().__init__(encoder=encoder)
        self.config, trunk = config, encoder.trunk.config
        num_words, word_dim = frontend_of(encoder).vocabulary().shape
        self.head = WordHead(trunk.dim, word_dim, num_words, norm_eps=trunk.norm_eps, init_std=trunk.init_std)
        self.predictor = perceptron([trunk.dim, trunk.dim])

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """word_weight * cross entropy + smooth L1, summed over all chosen places; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, where, at = self.student["encoder"], chosen(mask), chosen_at(mask)
        frontend = encoder.frontend(view.modality)
        target = self.target(view, at)  # (n, D)
        x = encoder(view, mask, only=at).x  # (n, D)
        wanted = taken(view.inputs[frontend.main_input], at)  # (n,)
        words, accuracy = cross_entropy(self.head(x, frontend.vocabulary()), wanted)
        prediction = self.predictor(x).float()  # (n, D)
        latents = regression_loss(prediction, target, 1.0, "mean")
        count = where.sum()
        metrics = {
            "accuracy": accuracy,
            "hidden_share": share_of(where, view.padding),
            "word_loss": words.detach() / count.clamp(min=1),
            "latent_loss": latents.detach() / count.clamp(min=1),
            "target_std": channel_std(target),
            "prediction_std": channel_std(prediction.detach()),
        }
        return Loss(self.config.word_weight * words + latents, count, metrics)

    @torch.no_grad()
    def target(self, view: View, at: Tensor) -> Tensor:
        """The teacher's last layer of the whole text, normed over its width without weights, of the words `at` (n,):
        (n, D)."""
        x = self.teacher["encoder"](view, only=at).x.float()
        return F.layer_norm(x, x.shape[-1:])

    def ema_decay(self, step: int, steps: int) -> float:
        """Linear from ema_decay to 1 over the run."""
        return linear_decay(step, self.config.ema_decay, 1.0, steps)


def build(encoder: D2vModel, config: Config) -> MLMLatent:
    """The objective around an encoder."""
    return MLMLatent(encoder, config)
