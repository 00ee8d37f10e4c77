"""Methods that predict which code each hidden token has, where a fixed quantiser gives the codes.

B samples, T tokens, n hidden tokens in all, P numbers that a token is made of, C codes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from d2v.models.encoder import D2vModel, hidden_at
from d2v.models.transformer import taken
from d2v.objectives.common.codes import used_codes
from d2v.objectives.common.masked import cross_entropy, masked_view, share_of
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.regression import NORMS
from d2v.types import Loss, View


class CodePrediction(Objective):
    """An encoder, a linear classifier, and a quantiser (n, P) -> (n,) that stays as it is."""

    def __init__(self, encoder: D2vModel, config: Any, quantizer: nn.Module):
        """`config` has name, num_codes and norm. The classifier's weights are the method's to fill."""
        super().__init__(teacher=False, encoder=encoder)
        self.config, self.quantizer = config, quantizer
        self.head = nn.Linear(encoder.trunk.config.dim, config.num_codes)
        nn.init.zeros_(self.head.bias)

    def check(self, views: list[View]) -> None:
        """ValueError: more than one view, or masks that leave tokens out."""
        masked_view(views, self.config.name, keep=False)

    def forward(self, views: list[View]) -> Loss:
        """The cross entropy of the codes of hidden tokens; ValueError as in `check`."""
        view, mask = masked_view(views, self.config.name, keep=False)
        encoder, hidden, where = self.student["encoder"], mask.hidden, hidden_at(mask)
        codes = taken(self.codes(view), where)  # (n,)
        logits = self.head(encoder(view, mask, only=where).x)  # (n, C)
        total, accuracy = cross_entropy(logits, codes)
        use = used_codes(codes, self.config.num_codes)
        return Loss(total, hidden.sum(), {"accuracy": accuracy, "hidden_share": share_of(hidden, view.padding), **use})

    @torch.no_grad()
    def codes(self, view: View) -> Tensor:
        """Numbers of all tokens, (B, T)."""
        content = self.student["encoder"].frontend(view.modality).content(**view.inputs)  # (B, T, P)
        normed = NORMS[self.config.norm](content, view.padding)
        return self.quantizer(normed.flatten(0, 1)).unflatten(0, content.shape[:2])
