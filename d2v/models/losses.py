"""Losses of task models as pure functions that return sums in float32.

B samples, C classes, T tokens, L labels of a sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a label that says nothing, as in transformers


def supervised(logits: Tensor, labels: Tensor, problem_type: str) -> tuple[Tensor, Tensor]:
    """The summed loss of logits (B, C) and its count, such that their ratio is transformers' loss for the
    `problem_type`.

    Cross entropy with classes (B,), of which -100 are left out, or shares (B, C); squared error of numbers (B,) or
    (B, C); binary cross entropy of (B, C).
    """
    logits = logits.float()
    if problem_type == "single_label_classification":
        are_shares = labels.dim() == logits.dim()
        count = torch.full((), len(logits), device=logits.device) if are_shares else (labels != IGNORED).sum()
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED), count
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    count = torch.full((), logits.numel(), device=logits.device)
    return loss(logits, labels.float().view_as(logits), reduction="sum"), count


def ctc(logits: Tensor, num_tokens: Tensor, labels: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Summed negative log likelihood of label sequences (B, L), filled up with -100, under logits (B, T, C), and the
    number of sequences.

    Graves et al., "Connectionist temporal classification", ICML 2006. A sequence that its `num_tokens` (B,) cannot
    spell counts as 0.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)  # (T, B, C)
    real = labels >= 0
    total = F.ctc_loss(
        log_probs, labels[real], num_tokens, real.sum(dim=1), blank=blank, reduction="sum", zero_infinity=True
    )
    return total, torch.full((), len(labels), device=logits.device)
