"""The optimizer, its parameter groups, and the arithmetic on gradients."""

import re
from collections.abc import Callable
from typing import Any, Protocol

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd

from d2v.objectives.common.objective import Objective, within
from d2v.training.distributed import all_sum, is_sharded, shares


class OptimizerSettings(Protocol):
    """What is asked of train.* here."""

    optimizer: str
    lr: float
    betas: list[float]
    eps: float
    momentum: float
    weight_decay: float
    decay_all: bool
    layer_decay: float
    layer_decay_frontends: bool


def make_optimizer(objective: Objective, train: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW, SGD with momentum, or LARS (You et al., arXiv 1708.03888), which adapts the rate of what decays alone.

    LARS is the paper's: the trust ratio divides by |g| + wd |p|. The code of MoCo v3, BYOL and SimCLR divides by
    |g + wd p| instead; at their decays of 1e-6 the rates agree to a few millionths of |p| / |g|.
    """
    groups = parameter_groups(
        objective,
        train.weight_decay,
        decay_all=train.decay_all,
        layer_decay=train.layer_decay,
        frontends=train.layer_decay_frontends,
        constant=objective.constant_rate,
    )
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), eps=train.eps, fused=True)
    if train.optimizer == "sgd":
        if is_sharded(objective):
            optimizer = SkippableSGD(groups, lr=train.lr, momentum=train.momentum, foreach=True)
        else:
            optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, fused=True)
        if train.momentum:
            _clear_momentum(optimizer)
        return optimizer
    adapted = [{**group, "always_adapt": group["decays"]} for group in groups]
    momentum: Any = train.momentum  # timm says int
    optimizer = SkippableLars(adapted, lr=train.lr, momentum=momentum, trust_coeff=0.001)
    if train.momentum:
        _clear_momentum(optimizer)
    return optimizer


class SkippableLars(Lars):
    """LARS whose step changes nothing where `found_inf` () is 1, as torch's fused optimizers do."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of all parameters that have a gradient; of sharded ones with one reduction of all norms."""
        _step_or_put_back(self, self._step)

    def _step(self) -> None:
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            whole = [parameter.grad for parameter in trained]
            parameters, gradients = shares(trained), shares(whole)
            decay = group["weight_decay"]
            if decay or group["always_adapt"]:
                size, slope = (norms_of(tensors) for tensors in (trained, whole))
                ratio = group["trust_coeff"] * size / (slope + size * decay + group["eps"])
                ratio = torch.where((size > 0) & (slope > 0), ratio, 1.0)
                gradients = torch._foreach_add(gradients, parameters, alpha=decay)
                torch._foreach_mul_(gradients, list(ratio.unbind()))
            if group["momentum"]:
                moments = shares([self.state[parameter]["momentum_buffer"] for parameter in trained])
                torch._foreach_mul_(moments, group["momentum"])
                torch._foreach_add_(moments, gradients)
                gradients = moments
            torch._foreach_add_(parameters, gradients, alpha=-group["lr"])


class SkippableSGD(torch.optim.SGD):
    """SGD whose step is skipped as SkippableLars's, of sharded parameters, for which torch has no fused one."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of all parameters that have a gradient."""
        _step_or_put_back(self, super().step)


def _step_or_put_back(optimizer: Any, step: Callable[[], Any]) -> None:
    """Calls `step`, of which nothing remains where the optimizer's found_inf is 1."""
    changed = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                changed += [parameter, *optimizer.state[parameter].values()]
    before = [x.clone() for x in changed]
    found_inf, optimizer.found_inf = optimizer.found_inf, None  # torch's own SGD reads it only where it is fused
    step()
    if found_inf is not None:
        put_back_unless(found_inf == 0, changed, before)


def _clear_momentum(optimizer: torch.optim.Optimizer) -> None:
    """It is filled in the first step, and stays as memory was if that one is skipped."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    layer_decay: float = 1.0,
    frontends: bool = True,
    constant: tuple[str, ...] = (),
) -> list[dict]:
    """Trained parameters in groups of one decay and one `scale` of the learning rate (see layer_scale).

    Vectors (biases, norms, tokens, gains) are not decayed, unless `decay_all`: fairseq decays everything. `constant`:
    prefixes of names whose rate stays at its peak.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = _matrices(module)
    of_timm = {} if layer_decay == 1 else _layers_of_timm(module)
    blocks = [block + 1 for name in trained if (block := _block(name)) is not None]
    depth = max([*blocks, *of_timm.values()], default=0)
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for wanted in (True, False):  # what decays comes first
        for name, p in trained.items():
            decays = decay_all or name in matrices or sum(size != 1 for size in p.shape) > 1
            if decays != wanted:
                continue
            scale = layer_scale(name, depth, layer_decay, frontends, of_timm.get(name))
            stays = any(within(name, prefix) for prefix in constant)
            group = groups.setdefault((decays, scale, stays), {"params": []})
            group["params"].append(p)
            group["weight_decay"] = weight_decay if decays else 0.0
            group |= {"decays": decays, "scale": scale, "constant": stays}
    return list(groups.values())


def _matrices(module: nn.Module) -> set[str]:
    """Names of the weights of linear layers, convolutions and tables, which are matrices with one row too."""
    layers = (nn.Linear, nn.Embedding, _ConvNd)
    return {f"{name}.weight".lstrip(".") for name, inner in module.named_modules() if isinstance(inner, layers)}


def layer_scale(name: str, depth: int, layer_decay: float, frontends: bool, of_timm: int | None = None) -> float:
    """Share of the learning rate: layer_decay ** (depth + 1 - layer) of an encoder of `depth` blocks.

    A block's layer is its number from 1, in a network of timm `of_timm`. Layer 0, or with `frontends` false the last:
    what comes before the blocks. Layer depth + 1: all else, and the biases of attention, which every block reads.
    Source: BEiT's fine-tuning code; data2vec 2.0's leaves what is not a block at the full rate.
    """
    if of_timm is not None:
        return layer_decay ** (depth + 1 - of_timm) if of_timm or frontends else 1.0
    block = _block(name)
    if block is not None:
        return layer_decay ** (depth - block)
    before = ".frontends." in name or ".trunk.input_norm." in name
    of_attention = "bias_table" in name or ".alibi." in name
    return layer_decay ** (depth + 1) if before and not of_attention and frontends else 1.0


def _layers_of_timm(module: nn.Module) -> dict[str, int]:
    """The layer of each weight of timm's networks in `module`: 0 of the stem, then block by block, as timm numbers."""
    found: dict[str, int] = {}
    networks: list[tuple[str, Any]] = [(name, x) for name, x in module.named_modules() if hasattr(x, "group_matcher")]
    for prefix, network in networks:
        from timm.models import group_parameters  # seconds that those who have none need not wait

        numbers: Any = group_parameters(network, network.group_matcher(), reverse=True)
        found |= {f"{prefix}.{name}": int(number) for name, number in numbers.items()}
    return found


def _block(name: str) -> int | None:
    """The number of the block, from 0, that a parameter of an encoder lies in."""
    match = re.search(r"\.trunk\.blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


@torch.no_grad()
def scale_and_clip(parameters: list[nn.Parameter], scale: Tensor, max_norm: float, *, each: bool = False) -> Tensor:
    """Multiplies gradients by `scale` and clips their global norm, or `each` one's, to `max_norm` (0: never).

    Returns the global norm before clipping.
    """
    whole = [p.grad for p in parameters if p.grad is not None]
    gradients = shares(whole)
    norms = norms_of(whole) * scale
    norm = norms.norm()
    if max_norm and each:
        torch._foreach_mul_(gradients, list((scale * (max_norm / norms).clamp(max=1.0)).unbind()))
    else:
        torch._foreach_mul_(gradients, scale * (max_norm / norm).clamp(max=1.0) if max_norm else scale)
    return norm


def norms_of(tensors: list[Tensor]) -> Tensor:
    """The norm of each of n tensors, (n,); where they are sharded over all shares, by one reduction."""
    norms = torch.stack(torch._foreach_norm(shares(tensors)))  # type: ignore[arg-type]
    return all_sum(norms.square()).sqrt() if isinstance(tensors[0], DTensor) else norms


def skip_unless(finite: Tensor, optimizer: Any) -> None:
    """The next step of an optimizer of make_optimizer changes nothing unless `finite` ()."""
    optimizer.found_inf = (~finite).float()


@torch.no_grad()
def put_back_unless(finite: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    """Each of `tensors` becomes what it was `before` unless `finite` (); nobody waits for the device."""
    for x, old in zip(shares(tensors), shares(before), strict=True):
        x.copy_(torch.where(finite, x, old))
