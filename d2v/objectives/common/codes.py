"""Codes of tokens: what numbers they get, and how many of the codes are used.

B samples, T tokens, n tokens in all, P numbers of a token, C codes.
"""

import torch
from torch import Tensor, nn

from d2v.training.distributed import all_sum


class RandomProjection(nn.Module):
    """BEST-RQ's quantiser (arXiv 2202.01855, section 3.1): the nearest of random unit vectors to a random projection.

    Nothing is learnt; both are buffers, because a resumed run needs the same.
    """

    projection: Tensor  # (P, code_dim)
    codebook: Tensor  # (C, code_dim)

    def __init__(self, content_dim: int, num_codes: int, code_dim: int):
        super().__init__()
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(content_dim, code_dim)))
        self.register_buffer("codebook", nn.functional.normalize(torch.randn(num_codes, code_dim), dim=1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (n, P) -> numbers of their codes (n,), by the cosine, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() @ self.projection.float() @ self.codebook.float().T).argmax(dim=1)


@torch.no_grad()
def code_use(codes: Tensor, num_codes: int) -> dict[str, Tensor]:
    """How the codes (n,) of all ranks use the C that there are.

    `codes_used`: how many some token has; `code_perplexity`: C if all are used alike, 1 if one is.
    """
    counts = all_sum(torch.zeros(num_codes, device=codes.device).index_add_(0, codes, torch.ones_like(codes).float()))
    shares = counts / counts.sum().clamp(min=1)
    return {"codes_used": (counts > 0).sum().float(), "code_perplexity": torch.special.entr(shares).sum().exp()}
