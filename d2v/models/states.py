"""What Hugging Face's output_hidden_states and output_attentions ask for, taken from the blocks of a trunk as they run.

N rows, E extra tokens, T content tokens, D width, H heads.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from d2v.models.transformer import Trunk


class States:
    """What ran, in the order of the blocks; one that layer drop leaves out has no entry."""

    def __init__(self):
        self.hidden: list[Tensor] = []  # (N, E + T, D), before the first block and at the end of each
        self._attended: list[tuple] = []  # each attention, and what it was given

    @property
    def attentions(self) -> tuple[Tensor, ...]:
        """(N, H, E + T, E + T) of each block, before dropout: computed now, from what the attention was given."""
        return tuple(attention.weights(*given) for attention, given in self._attended)


@contextmanager
def watched(trunk: Trunk) -> Iterator[States]:
    """The states of the blocks that run inside the context."""
    states = States()

    def before(block: nn.Module, given: tuple) -> None:
        if not states.hidden:
            states.hidden.append(given[0])

    def after(block: nn.Module, given: tuple, out: tuple) -> None:
        states.hidden.append(out[0])

    def attends(attention: nn.Module, given: tuple) -> None:
        states._attended.append((attention, given))

    handles = []
    for block in trunk.blocks:
        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        handles.append(block.get_submodule("attention").register_forward_pre_hook(attends))
    try:
        with _as_written(trunk):
            yield states
    finally:
        for handle in handles:
            handle.remove()


def _as_written(trunk: Trunk) -> AbstractContextManager:
    """Within it blocks that are compiled run as they are written: compiled code calls no hooks."""
    compiled = any(block._compiled_call_impl is not None for block in trunk.blocks)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # type: ignore[no-untyped-call]
