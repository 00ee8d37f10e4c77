"""What each modality has for itself in a trunk that it shares: copies of a layer, one for each, equal at first.

As in BEiT-3 (arXiv 2208.10442), where attention is shared and norms and feed-forward networks are each modality's own.
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import initialization


class Own(nn.ModuleDict):
    """A layer in copies, by modality."""

    def __init__(self, layer: nn.Module, modalities: Sequence[str]):
        """`layer` becomes the first modality's; copying draws no random number."""
        first, *others = modalities
        super().__init__({first: layer, **{name: copy.deepcopy(layer) for name in others}})

    @property
    def others(self) -> list[nn.Module]:
        """All but the first."""
        return list(self.values())[1:]

    @torch.no_grad()
    def make_equal(self) -> None:
        """The others become as the first; what `from_pretrained` has loaded stays."""
        first = next(iter(self.values()))
        for other in self.others:
            for parameter, wanted in zip(other.parameters(), first.parameters(), strict=True):
                initialization.copy_(parameter, wanted)


def give_own(module: nn.Module, names: Sequence[str], modalities: Sequence[str]) -> None:
    """Each modality has the layers `names` of a module for itself; what has no weights stays."""
    for name in names:
        layer = module.get_submodule(name)
        if any(True for _ in layer.parameters()):
            setattr(module, name, Own(layer, modalities))


def own_layers(module: nn.Module) -> dict[str, Own]:
    """Those of a module by their names."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Own)}


def plain_name(name: str, own: Iterable[str]) -> tuple[str, str]:
    """What a weight is called where nothing is any modality's own, and whose it is: "" everybody's.

    `own`: names of the layers that are.
    """
    for layer in own:
        if name.startswith(f"{layer}."):
            whose, _, rest = name.removeprefix(f"{layer}.").partition(".")
            return f"{layer}.{rest}", whose
    return name, ""
