"""Teacher layers -> targets: normalise each of the top K layers, average them, normalise the average; all in float32.

B samples, T tokens, D width. Source: data2vec (arXiv 2202.03555) section 3.3; the order of the norms is its code's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def instance_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each channel of each sample over its own tokens, (B, T, D); padded tokens do not count."""
    if padding is None:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    else:
        data = (~padding)[..., None].to(x.dtype)  # (B, T, 1)
        count = data.sum(dim=1, keepdim=True)
        mean = (x * data).sum(dim=1, keepdim=True) / count
        variance = ((x - mean).square() * data).sum(dim=1, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + EPS)


def layer_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each token over its channels, (B, T, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def group_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each sample over its tokens and channels jointly, (B, T, D); padded tokens do not count."""
    if padding is None:
        return F.layer_norm(x, x.shape[-2:], eps=EPS)
    data = (~padding)[..., None].to(x.dtype)
    count = data.sum(dim=(1, 2), keepdim=True) * x.shape[-1]
    mean = (x * data).sum(dim=(1, 2), keepdim=True) / count
    variance = ((x - mean).square() * data).sum(dim=(1, 2), keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + EPS)


def batch_norm(x: Tensor, padding: Tensor | None) -> Tensor:
    """Each channel over all tokens of the batch, (B, T, D); padded tokens do not count."""
    tokens = x.flatten(0, 1) if padding is None else x[~padding]
    variance, mean = torch.var_mean(tokens, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(variance + EPS)


NORMS = {"instance": instance_norm, "layer": layer_norm, "group": group_norm, "batch": batch_norm}


def mean_of_layers(
    layers: list[Tensor], layer_norms: list[str], final_norms: list[str], padding: Tensor | None = None
) -> Tensor:
    """Targets (B, T, D) from the top K layers, each (B, T, D). `*_norms` are keys of NORMS, applied in their order."""
    total = None
    for layer in layers:
        layer = layer.float()
        for name in layer_norms:
            layer = NORMS[name](layer, padding)
        total = layer if total is None else total + layer
    assert total is not None, "no teacher layers"
    target = total / len(layers)
    for name in final_norms:
        target = NORMS[name](target, padding)
    return target
