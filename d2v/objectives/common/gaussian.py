"""What keeps rows apart without negatives and without a teacher: how far they are from a standard Gaussian, seen along
random directions.

n rows of this process, N of all, D width, S directions, K points, V views.
"""

import torch
from torch import Tensor

from d2v.training.distributed import gather_with_gradient, mean_with_gradient, world_size

POINTS, LAST_POINT = 17, 3.0


def directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors, (D, S); the same on all processes if their generators are."""
    drawn = torch.randn(dim, count, generator=generator, device=generator.device)
    return drawn / drawn.norm(dim=0)


def sigreg(x: Tensor, along: Tensor) -> Tensor:
    """LeJEPA's distance of the rows of all processes from N(0, I), (n, D) along (D, S) -> () (arXiv 2511.08544).

    N times the mean over directions of the integral of |characteristic function - exp(-t^2 / 2)|^2 under the window
    exp(-t^2 / 2): 17 points from 0 to 3, trapezoid weights, doubled for the half below 0. Of Gaussian rows it is about
    1.05, whatever N and D; of equal rows at 0 it is 0.402 N, with next to no gradient.
    """
    with torch.autocast(x.device.type, enabled=False):
        projected = x.float() @ along  # (n, S)
    points = torch.linspace(0, LAST_POINT, POINTS, device=x.device)  # (K,)
    wanted = (-points.square() / 2).exp()  # the characteristic function of N(0, 1), and the window
    weights = wanted * 2 * LAST_POINT / (POINTS - 1)
    weights[0] /= 2
    weights[-1] /= 2
    angles = projected.unsqueeze(2) * points  # (n, S, K)
    found = mean_with_gradient(torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)]))  # (2, S, K)
    error = (found[0] - wanted).square() + found[1].square()  # (S, K)
    return len(x) * world_size() * (error * weights).sum(dim=1).mean()


def center_scale_shape(x: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """VISReg's terms of the rows of all processes, (n, D) along (D, S) -> three () (arXiv 2606.02572, section 3).

    The squared mean, (1 - std)^2, and the distance of the sorted projections of standardised rows from the quantiles of
    N(0, 1); no gradient flows through the std of the shape. The scale's gradient does not fade where rows fall
    together; but the quantiles of few rows vary less than N(0, 1), and the shape shrinks rows whose std is below 0.19
    (N = 16) or 0.06 (64) faster. The published code takes the rows of each process by themselves.
    """
    rows = gather_with_gradient(x.float())  # (N, D)
    std, mean = torch.std_mean(rows, dim=0, correction=0)  # (D,)
    with torch.autocast(x.device.type, enabled=False):
        projected = ((rows - mean) / (std.detach() + 1e-4)) @ along  # (N, S)
    places = torch.arange(1, len(rows) + 1, device=x.device) / (len(rows) + 1)
    quantiles = torch.special.ndtri(places)  # (N,)
    shape = (projected.sort(dim=0).values - quantiles.unsqueeze(1)).square().mean()
    return mean.square().mean(), (1 - std).square().mean(), shape


def visreg(x: Tensor, along: Tensor) -> Tensor:
    """The sum of centre, scale and shape, (n, D) along (D, S) -> ()."""
    return torch.stack(center_scale_shape(x, along)).sum()


def invariance(rows: list[Tensor], num_global: int) -> Tensor:
    """Mean squared distance of all V views, (n, D) each, from the mean of the first `num_global`: (); of these rows."""
    views = torch.stack(rows)  # (V, n, D)
    return (views - views[:num_global].mean(dim=0)).square().mean()
