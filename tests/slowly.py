"""What tests of methods that predict hidden tokens have in common: masks, and the comparison with the slow way."""

import small
import torch
from torch import Tensor

from d2v.objectives.common.objective import Objective
from d2v.types import Loss, Mask, View


def shaken(objective: Objective) -> Objective:
    """In training, its weights moved away from zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return objective.train()


def gradients(objective: Objective, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter that has one."""
    objective.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def same_as_slow(objective: Objective, loss: Loss, slow: Tensor) -> None:
    """A loss and its gradients are those of the slow way."""
    torch.testing.assert_close(loss.total.detach(), slow.detach(), rtol=1e-4, atol=1e-5)
    fast, expected = gradients(objective, loss.total), gradients(objective, slow)
    assert fast.keys() == expected.keys() == {n for n, p in objective.named_parameters() if p.requires_grad}
    for name, value in expected.items():
        torch.testing.assert_close(
            fast[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def left_out(view: View, masks: int = 2, ratio: float = 0.6) -> View:
    """The view with random masks of each row, and what they leave."""
    generator = torch.Generator().manual_seed(5)
    samples = len(next(iter(view.inputs.values())))
    encoder = small.encoder(view.modality)
    tokens = encoder.frontends[view.modality].content(**view.inputs).shape[1]
    real = torch.full((samples,), tokens) if view.padding is None else (~view.padding).sum(dim=1)
    hidden = torch.zeros(samples * masks, tokens, dtype=torch.bool)
    for row in range(len(hidden)):
        count = int(real[row // masks])
        hidden[row, torch.randperm(count, generator=generator)[: max(1, int(ratio * count))]] = True
    most = (
        int((~hidden).sum(dim=1).min())
        if view.padding is None
        else max(int((~hidden[row, : real[row // masks]]).sum()) for row in range(len(hidden)))
    )
    keep = torch.stack([(~row).nonzero()[:most, 0] for row in hidden])
    return view._replace(mask=Mask(hidden, keep))


def in_place(view: View) -> View:
    """The view with tokens hidden where they stand, one in the last row."""
    encoder = small.encoder(view.modality)
    tokens = encoder.frontends[view.modality].content(**view.inputs).shape[1]
    samples = len(next(iter(view.inputs.values())))
    hidden = torch.rand(samples, tokens, generator=torch.Generator().manual_seed(9)) < 0.5
    hidden[:, 0] = True
    hidden[-1, 1:] = False
    return view._replace(mask=Mask(hidden if view.padding is None else hidden & ~view.padding))
