"""ELECTRA (arXiv 2003.10555): a small generator fills in the chosen words, the student says of each word whether it was
replaced.

The generator is a narrow trunk on the student's own embeddings of words and positions, mapped to its width. Means are
over each row's words, and then over rows: published batches have rows of one length, where that is the same.
B samples, T tokens, n chosen tokens in all, D width, V words.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, chosen_at
from d2v.models.heads import WordHead, perceptron
from d2v.models.transformer import Trunk, attention_bias, taken
from d2v.objectives.common.masked import (
    chosen,
    drawn,
    frontend_of,
    masked_view,
    over_rows,
    real_at,
    share_of,
    uniforms,
)
from d2v.objectives.common.objective import Objective
from d2v.settings import check_fields, setting
from d2v.types import Loss, Mask, View


@dataclass
class Config:
    """The generator's shape and the weight of the student's task; published: ELECTRA-small's."""

    name: str = setting("electra", "Which method.")
    weight: float = setting(50.0, "Of the student's loss; that of the generator is 1.", above=0, limit=1_000_000)
    dim: int = setting(64, "Width of the generator: a quarter, or in base a third, of the student's.", least=1)
    depth: int = setting(12, "Blocks of the generator.", least=1, limit=1000)
    num_heads: int = setting(1, "Heads of the generator; with ALiBi as many as the student's.", least=1, limit=10_000)

    def __post_init__(self):
        """ValueError: a number outside its bounds, or a width that the heads do not divide."""
        check_fields(self, "objective")
        if self.dim % self.num_heads:
            raise ValueError(
                f"objective.dim is {self.dim}; it must be a multiple of objective.num_heads, {self.num_heads}"
            )


class Electra(Objective):
    """The student is the discriminator; the generator shares its words and is thrown away."""

    def __init__(self, encoder: D2vModel, config: Config):
        """ValueError: tokens are no words, none can be hidden, or other heads than those that ALiBi is of."""
        super().__init__(teacher=False, encoder=encoder)
        self.config, trunk, frontend = config, encoder.trunk.config, frontend_of(encoder)
        num_words, word_dim = frontend.vocabulary().shape
        if frontend.bias(1) is not None and config.num_heads != trunk.num_heads:
            raise ValueError(
                f"objective.num_heads is {config.num_heads}; the generator shares the student's ALiBi: it must be "
                f"model.trunk.num_heads, {trunk.num_heads}"
            )
        self.project = nn.Linear(trunk.dim, config.dim)
        shape = {"dim": config.dim, "depth": config.depth, "num_heads": config.num_heads, "mlp_dim": 4 * config.dim}
        self.generator = Trunk(replace(trunk.shared, **shape))
        self.generator.init_weights()
        self.head = WordHead(config.dim, word_dim, num_words, norm_eps=trunk.norm_eps, init_std=trunk.init_std)
        self.classifier = perceptron([trunk.dim, trunk.dim, 1])

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """The generator's cross entropy of chosen words + weight * the student's of every word; as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, where, at = self.student["encoder"], chosen(mask), chosen_at(mask)  # (B, T), (n,)
        main_input = encoder.frontend(view.modality).main_input
        ids = view.inputs[main_input]  # (B, T)
        real = torch.ones_like(where) if view.padding is None else ~view.padding
        words_at = torch.arange(ids.numel(), device=ids.device) if view.padding is None else real_at(view)
        logits = self.generated(view, mask, at)  # (n, V)
        words = over_rows(F.cross_entropy(logits, taken(ids, at), reduction="none"), where, at)
        new = drawn(logits.detach(), taken(uniforms(ids, self.step, self.seed), at))  # (n,)
        filled = ids.flatten().index_copy(0, at, new).view_as(ids)
        replaced = filled != ids  # a word that is drawn as it was counts as original
        said = self.classifier(encoder(read(view, main_input, filled), only=words_at).x)[:, 0].float()
        truth = taken(replaced, words_at).float()
        found = over_rows(F.binary_cross_entropy_with_logits(said, truth, reduction="none"), real, words_at)
        rows = where.any(dim=1).sum()
        metrics = {
            "hidden_share": share_of(where, view.padding),
            "replaced_share": share_of(replaced, view.padding),
            "word_loss": words.detach() / rows.clamp(min=1),
            "accuracy": ((said > 0) == (truth > 0)).float().mean(),
        }
        return Loss(words + self.config.weight * found, rows, metrics)

    def generated(self, view: View, mask: Mask, at: Tensor) -> Tensor:
        """The generator's logits of the words of the numbers `at` (n,), (n, V), from the student's embeddings."""
        frontend = self.student["encoder"].frontend(view.modality)
        x = frontend.hide(frontend.embed(**view.inputs), mask.hidden, **view.inputs)  # (B, T, D)
        x = self.project(x + frontend.positions(x, view.padding))
        x, _ = self.generator(x, attention_bias(view.padding, frontend.bias(x.shape[1])), only=at)
        return self.head(x, frontend.vocabulary()).float()


def read(view: View, main_input: str, ids: Tensor) -> View:
    """The view with other words, nothing hidden."""
    inputs = {name: value for name, value in view.inputs.items() if name != "corrupted_ids"}
    return View(view.modality, inputs | {main_input: ids}, view.padding)


def build(encoder: D2vModel, config: Config) -> Electra:
    """The objective around an encoder."""
    return Electra(encoder, config)
