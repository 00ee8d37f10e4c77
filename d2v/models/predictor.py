"""A narrow predictor of plain blocks: from the tokens that an encoder has read to some that it has not.

B samples, R rows of context, N rows of targets (N = R * M), T tokens, K read, J wanted, n wanted in all, D model width,
P predictor width. Source: I-JEPA (arXiv 2301.08243), section 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2v.models import positions
from d2v.models.transformer import Trunk, TrunkConfig, attention_bias
from d2v.settings import check_values, setting
from d2v.types import Mask


@dataclass
class PredictorConfig:
    """Its shape; the published one."""

    dim: int = setting(384, "Width of its tokens.", least=4, limit=1_000_000)
    depth: int = setting(6, "Blocks.", least=1, limit=200)
    num_heads: int = setting(12, "Heads of attention; they divide the width.", least=1, limit=10_000)

    def __post_init__(self):
        """ValueError: a number outside its bounds, or a width that heads or positions do not divide."""
        check_values(self, "objective.predictor")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"objective.predictor.dim is {self.dim}; it must be a multiple of objective.predictor.num_heads, "
                f"{self.num_heads}, and of 4"
            )


class Predictor(nn.Module):
    """Context and mask tokens, each with its fixed position, through blocks of attention; a linear layer back."""

    def __init__(self, dim: int, config: PredictorConfig):
        super().__init__()
        width = config.dim
        self.inputs = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        blocks = TrunkConfig(
            depth=config.depth,
            dim=width,
            num_heads=config.num_heads,
            mlp_dim=4 * width,
            pre_norm=True,
            input_norm=False,
            final_norm=True,
            norm_eps=1e-6,
        )
        self.trunk = Trunk(blocks)
        self.trunk.init_weights()
        self.outputs = nn.Linear(width, dim)
        for linear in (self.inputs, self.outputs):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Mask, padding: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
        """Tokens `keep` (R, K, D) of each context -> (n, D), what stands at the hidden tokens of its M rows.

        Each row of targets is a sequence of its own: they do not see each other. `padding` (B, T) tokens are passed
        over. `grid`: how all T tokens lie; None: in a sequence.
        """
        keep, hidden = mask.keep, mask.hidden
        assert keep is not None
        rows, tokens = hidden.shape
        where = positions.fixed(tokens, grid, self.mask_token.numel(), x.device)  # (T, P)
        context = self.inputs(x) + where[keep]  # (R, K, P)
        counts = hidden.sum(dim=1)  # (N,)
        most = int(counts.max())  # J
        places = hidden.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (N, J), hidden ones first
        wanted = torch.arange(most, device=x.device) < counts[:, None]  # (N, J)
        queries = self.mask_token + where[places]  # (N, J, P)
        sequence = torch.cat([_repeated(context, rows), queries.to(context.dtype)], dim=1)  # (N, K + J, P)
        unread = torch.zeros_like(keep, dtype=torch.bool)  # (R, K)
        if padding is not None:
            unread = _repeated(padding, len(keep)).gather(1, keep)
        ignored = torch.cat([_repeated(unread, rows), ~wanted], dim=1)  # (N, K + J)
        bias = attention_bias(ignored if bool(ignored.any()) else None, None)
        out, _ = self.trunk(sequence, bias)
        return self.outputs(out[:, keep.shape[1] :][wanted])


def _repeated(x: Tensor, rows: int) -> Tensor:
    """(R, ...) -> (N, ...), the M rows of a context next to each other."""
    return x.repeat_interleave(rows // len(x), dim=0)
