"""Codes of tokens: what numbers they get, and how many of the codes are used.

B samples, T tokens, n tokens in all, P numbers of a token, C codes, L codebooks.
"""

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from d2v.files import open_to_others, written
from d2v.training.distributed import pooled
from d2v.types import Pooled

FORMAT = "d2v codes 1"  # of the metadata of a file of centers


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


class NearestCenter(nn.Module):
    """The quantiser of k-means: the center that is nearest to a token."""

    centers: Tensor  # (C, P)

    def __init__(self, centers: Tensor):
        super().__init__()
        self.register_buffer("centers", centers)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (n, P) -> numbers of their codes (n,), in float32."""
        return nearest(x, self.centers.float())


def nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Which of the centers (C, P) is nearest to each of (n, P), (n,): in float32, as in bfloat16 one in twenty would be
    another."""
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ centers.T - centers.square().sum(dim=1) / 2).argmax(dim=1)


def save_centers(file: Path, centers: Tensor, about: dict[str, str]) -> None:
    """Writes centers (C, P), and what they are of. ValueError: the disk does not take it."""
    with written(file) as draft:
        save_file({"centers": centers.contiguous()}, draft, {"format": FORMAT, **about})
        open_to_others(draft)


def load_centers(file: Path) -> tuple[Tensor, dict[str, str]]:
    """Centers (C, P), and what they are of. ValueError: no such file, or another."""
    try:
        with safe_open(file, "pt", "cpu") as content:
            about = content.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"objective.codes is {file}, which d2v codes did not write")
            return content.get_tensor("centers"), about
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"objective.codes is {file}, which cannot be read ({reason}); d2v codes makes it") from None


@torch.no_grad()
def used_codes(codes: Tensor, num_codes: int) -> dict[str, Tensor | Pooled]:
    """How the codes (n,) of all ranks use the C that there are.

    `codes_used`: how many some token has; `code_perplexity`: C if all are used alike, 1 if one is.
    """
    counts = counted([codes], num_codes)
    return {
        "codes_used": pooled(counts, lambda counts: (counts > 0).sum().float()),
        "code_perplexity": pooled(counts, partial(_perplexity, num_codes)),
    }


@torch.no_grad()
def code_use(chosen: list[Tensor], num_codes: int) -> dict[str, Tensor | Pooled]:
    """How the targets of all ranks use the codes, the mean over codebooks: `chosen` are (n,) of each.

    `target_perplexity`: exp of the entropy of the codes' shares, C if all are used alike, 1 if one is.
    `code_use`: the share of codes that some target has.
    """
    counts = counted(chosen, num_codes)
    return {
        "target_perplexity": pooled(counts, partial(_perplexity, num_codes)),
        "code_use": pooled(counts, lambda counts: (counts > 0).float().mean()),
    }


def counted(chosen: list[Tensor], num_codes: int) -> Tensor:
    """How often each code of each of L codebooks is among its codes (n,) of this rank, (L * C,)."""
    counts = []
    for codes in chosen:
        ones = torch.ones_like(codes, dtype=torch.float32)
        counts.append(torch.zeros(num_codes, device=codes.device).index_add_(0, codes, ones))
    return torch.cat(counts)


def _perplexity(num_codes: int, counts: Tensor) -> Tensor:
    """The mean over codebooks of the perplexity of their codes' shares: (L * C,) -> ()."""
    counts = counts.view(-1, num_codes)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(dim=1).exp().mean().float()
