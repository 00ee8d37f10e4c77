"""ALiBi: an attention bias that falls linearly with the distance of two tokens, by a slope per head and learned scales.

N rows, K tokens, H heads, L layers.
Source: ALiBi (arXiv 2108.12409); data2vec 2.0 (arXiv 2212.07525) makes it symmetric and learns a scale per head, kept
at zero or above.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from d2v.models.transformer import precision_of


def slopes(num_heads: int) -> list[float]:
    """A geometric sequence, one number a head, for a power of two of heads.

    For other numbers of heads: the sequence of the next lower power, and every other number of the next higher one's.
    """
    lower = 2 ** int(math.log2(num_heads))
    first = 2 ** (-8 / lower)
    sequence = [first**power for power in range(1, lower + 1)]
    if lower == num_heads:
        return sequence
    every_other = slopes(2 * lower)[::2]
    return sequence + every_other[: num_heads - lower]


@lru_cache(maxsize=8)
def _slopes(num_heads: int, device: torch.device) -> Tensor:
    # the cached tensor may first be asked for in inference and then be used in training
    with torch.inference_mode(False):
        return torch.tensor(slopes(num_heads)).to(device, non_blocking=True)  # (H,)


KINDS = ("none", "fixed", "one", "head")  # no bias; by the slopes alone; with one learned scale; with one per head


def check(kind: str) -> None:
    """ValueError: no such kind."""
    if kind not in KINDS:
        raise ValueError(f"frontend alibi={kind!r} is not known; allowed are {', '.join(KINDS)}")


def build(kind: str, num_heads: int, num_layers: int = 1) -> "Alibi | None":
    """The bias of a frontend whose settings say alibi=`kind`."""
    if kind == "none":
        return None
    return Alibi(num_heads, per_head=kind == "head", num_layers=num_layers, learned=kind != "fixed")


class Alibi(nn.Module):
    """-slope * scale * distance, with a scale for all heads or one per head, for all blocks or one per block."""

    def __init__(self, num_heads: int, *, per_head: bool, num_layers: int, learned: bool):
        super().__init__()
        self.num_heads, self.num_layers = num_heads, num_layers
        self.scale = nn.Parameter(torch.ones(num_layers * (num_heads if per_head else 1)), requires_grad=learned)

    def init_weights(self) -> None:
        """Every scale is one."""
        nn.init.ones_(self.scale)

    def of(self, num_tokens: int, keep: Tensor | None) -> Tensor:
        """The bias of all T tokens, (1, H, T, T), or of those in `keep` (N, K), (N, H, K, K).

        With scales per block, (L, ...) as in `forward`.
        """
        return self(torch.arange(num_tokens, device=self.scale.device)[None] if keep is None else keep)

    def forward(self, positions: Tensor) -> Tensor:
        """Positions (N, K) of the tokens -> (N, H, K, K), or (L, N, H, K, K) with scales per block; in the precision of
        the queries, as in float32 it is the largest tensor of a step."""
        scale = self.scale.float().clamp(min=0).view(self.num_layers, 1, -1) * _slopes(
            self.num_heads, positions.device
        )  # (L, 1, H)
        precision = precision_of(scale)
        scale = scale.to(precision)
        distance = (positions[:, :, None] - positions[:, None, :]).abs().to(precision)  # (N, K, K)
        bias = -scale[..., None, None] * distance[:, None]  # (L, N, H, K, K)
        return bias[0] if self.num_layers == 1 else bias
