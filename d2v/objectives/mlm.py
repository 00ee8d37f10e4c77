"""Masked language modelling, BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692): which words were chosen.

All chosen places count: hidden, replaced and kept ones (data.random_token_prob, data.keep_token_prob). There is no
teacher, and no second task.
B samples, T tokens, n chosen tokens in all, D width, V words.
"""

from dataclasses import dataclass

from d2v.models.encoder import D2vModel, chosen_at
from d2v.models.heads import WordHead
from d2v.models.transformer import taken
from d2v.objectives.common.masked import chosen, cross_entropy, frontend_of, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.settings import check_fields, setting
from d2v.types import Loss, View


@dataclass
class Config:
    """There is nothing to set: how words are chosen and hidden is of the data."""

    name: str = setting("mlm", "Which method.")

    def __post_init__(self):
        """Nothing can be wrong."""
        check_fields(self, "objective")


class MLM(Objective):
    """An encoder, and a head whose last matrix is the encoder's own table of words."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens are no words, or none can be hidden."""
        super().__init__(teacher=False, encoder=encoder)
        self.config, trunk = config, encoder.trunk.config
        num_words, word_dim = frontend_of(encoder).vocabulary().shape
        self.head = WordHead(trunk.dim, word_dim, num_words, norm_eps=trunk.norm_eps, init_std=trunk.init_std)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """The cross entropy of the words at all chosen places; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, where, at = self.student["encoder"], chosen(mask), chosen_at(mask)
        frontend = encoder.frontend(view.modality)
        logits = self.head(encoder(view, mask, only=at).x, frontend.vocabulary())  # (n, V)
        total, accuracy = cross_entropy(logits, taken(view.inputs[frontend.main_input], at))
        metrics = {"accuracy": accuracy, "hidden_share": share_of(where, view.padding)}
        return Loss(total, where.sum(), metrics)


def build(encoder: D2vModel, config: Config) -> MLM:
    """The objective around an encoder."""
    return MLM(encoder, config)
