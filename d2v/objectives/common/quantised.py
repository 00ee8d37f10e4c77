"""What wav2vec 2.0 (arXiv 2006.11477, sections 2 and 3.2) is made of: product quantisation by a straight-through Gumbel
softmax, negatives, and what is compared.

B samples, T tokens, n of them hidden, C width of what is quantised, G groups, V codes of each, Q width of the quantised
vectors, K negatives, P width of the embeddings.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.transformer import taken
from d2v.training.distributed import all_sum, sum_with_gradient


class Quantised(NamedTuple):
    """What the quantiser makes of n tokens."""

    vectors: Tensor  # (n, Q)
    codes: Tensor  # (n, G)
    shares: Tensor  # (n, G, V) softmax of the logits, without noise and temperature


class GumbelQuantiser(nn.Module):
    """Logits of G groups of V codes; the code vectors of the chosen ones, side by side."""

    def __init__(self, dim: int, num_groups: int, num_codes: int, out_dim: int):
        super().__init__()
        self.num_groups = num_groups
        self.logits = nn.Linear(dim, num_groups * num_codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.vectors = nn.Parameter(torch.rand(num_groups, num_codes, out_dim // num_groups))

    def forward(self, x: Tensor, temperature: float, noise: Tensor | None) -> Quantised:
        """(n, C), Gumbel noise (n, G, V) -> the codes of the largest noisy logits, with the gradient of their softmax.

        Without noise, in evaluation, the largest logits' own, which have no gradient.
        """
        logits = self.logits(x).float().unflatten(1, (self.num_groups, -1))  # (n, G, V)
        noisy = logits if noise is None else (logits + noise) / temperature
        codes = noisy.argmax(dim=2)  # (n, G)
        chosen = F.one_hot(codes, logits.shape[2]).float()  # (n, G, V)
        if noise is not None:
            soft = noisy.softmax(dim=2)
            chosen = chosen + (soft - soft.detach())  # to the bit what it was
        with torch.autocast(x.device.type, enabled=False):
            vectors = torch.einsum("ngv,gvd->ngd", chosen, self.vectors.float()).flatten(1)  # (n, Q)
        return Quantised(vectors, codes, logits.softmax(dim=2))


def gumbel(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float32."""
    return -torch.empty(shape, device=device).exponential_(generator=generator).log()


def perplexity(shares: Tensor) -> Tensor:
    """Sum over groups of exp(entropy) of the mean of shares (n, G, V) over the tokens of all ranks: G to G V, ()."""
    count = all_sum(torch.full((), float(len(shares)), device=shares.device)).clamp(min=1)
    mean = sum_with_gradient(shares.sum(dim=0)) / count  # (G, V)
    return (-(mean * (mean + 1e-7).log()).sum(dim=1)).exp().sum()


def others(count: int, num_negatives: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """For each of `count` tokens K others, drawn uniformly, itself left out, (count, K); of one token itself."""
    own = torch.arange(count, device=device)[:, None]
    drawn = torch.randint(max(1, count - 1), (count, num_negatives), generator=generator, device=device)
    return (drawn + (drawn >= own)).clamp(max=max(0, count - 1))


def similarities(prediction: Tensor, target: Tensor, codes: Tensor, negatives: Tensor) -> Tensor:
    """Cosines of predictions (n, P) with their targets and the negatives' (n, K), float32, (n, 1 + K).

    -inf where a negative has the codes (n, G) of the positive.
    """
    unit, targets = F.normalize(prediction.float(), dim=1), F.normalize(target.float(), dim=1)
    among = torch.cat([torch.arange(len(codes), device=codes.device)[:, None], negatives], dim=1)  # (n, 1 + K)
    with torch.autocast(unit.device.type, enabled=False):
        cosines = torch.einsum("np,nkp->nk", unit, targets[among])
    same = (codes[among] == codes[:, None]).all(dim=2)
    same[:, 0] = False
    return cosines.masked_fill(same, float("-inf"))


def mean_square(x: Tensor, real: Tensor | None) -> Tensor:
    """Of the features (B, T, C) of all ranks, of all tokens or those of the numbers `real` (n,): ()."""
    x = (x.flatten(0, 1) if real is None else taken(x, real)).float()  # (tokens, C)
    return sum_with_gradient(x.square().sum()) / all_sum(torch.full((), float(x.numel()), device=x.device))
