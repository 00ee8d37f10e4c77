"""The only things that travel between modules: Mask, View, Features, Loss.

B samples, M masks per sample, N = B * M rows, T content tokens (patches, frames, words), K visible tokens, E extra
tokens, D width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Mask(NamedTuple):
    """What the student must predict, over content tokens; extra tokens (a class token) are never hidden."""

    hidden: Tensor  # (N, T) bool, True where the student must predict
    # (N, K) indices that the student encodes, or (B, K) where the M masks of a sample share them; None: all T, hidden
    # ones replaced by the mask token
    keep: Tensor | None = None
    # (N, D) bool, True where a channel of the local features is zero in every token; of fine-tuning
    channels: Tensor | None = None
    # (N, T) bool, True where a word was chosen: hidden, replaced or kept as it is; None: the hidden ones alone
    chosen: Tensor | None = None
    # (N, T) `hidden` on the CPU, where it was made: which tokens these are is known there without waiting for a device
    host: Tensor | None = None
    # (n,) which tokens are hidden, by their numbers row * T + place; and which are `chosen`. See `located`
    hidden_at: Tensor | None = None
    chosen_at: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """`hidden` where it can be read soonest, (N, T)."""
        return self.hidden if self.host is None else self.host

    def located(self) -> "Mask":
        """With the numbers of its tokens, made where the mask was: a step then waits for no device to count them."""
        chosen_at = None if self.chosen is None else numbers_of(self.chosen)
        return self._replace(hidden_at=numbers_of(self.known), chosen_at=chosen_at)

    def to(self, device: torch.device | str) -> "Mask":
        """Every tensor of the mask on `device`; `host` stays behind."""
        host = self.host if self.hidden.device.type != "cpu" else self.hidden
        moved: Any = [_moved(x, device) for x in self]
        return Mask(*moved)._replace(host=host)


def _moved(x: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if x is None else x.to(device, non_blocking=True)


def numbers_of(where: Tensor) -> Tensor:
    """Which of (N, T) bool are True, row by row: (n,) numbers row * T + place."""
    return where.flatten().nonzero()[:, 0]


class Later(Protocol):
    """What is still to be done to the inputs of a view, once they are on the device."""

    def to(self, device: torch.device | str) -> "Later": ...
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]: ...


class View(NamedTuple):
    """One reading of a batch, by one modality."""

    modality: str  # which frontend reads it
    inputs: dict[str, Tensor]  # keyword arguments of that frontend's `embed`, by Hugging Face's names
    padding: Tensor | None = None  # (B, T) bool in token units, True where there is no data
    mask: Mask | None = None
    # of pairs (B,) or (B, 2), see right_ones; of fine-tuning: (B,) classes, (B,) or (B, C) numbers, (B, L) token ids
    # followed by -100, or (B, L, 5) boxes and their classes followed by -1
    labels: Tensor | None = None
    indices: Tensor | None = None  # (B,) numbers of the samples in their split, for methods that remember each sample
    local: bool = False  # a smaller view beside whole ones (multi-crop)
    part: str = ""  # of a joint run: which of its parts reads the view
    real_at: Tensor | None = None  # (n,) which tokens are no padding, by their numbers row * T + place. See `located`
    seconds: float = 0.0  # of a joint run: what making the views of its part took
    later: Later | None = None  # done by `to`, where reading alone would keep a device waiting

    def located(self) -> "View":
        """With the numbers of its real tokens and of those that its mask names."""
        mask = None if self.mask is None else self.mask.located()
        return self._replace(mask=mask, real_at=None if self.padding is None else numbers_of(~self.padding))

    def to(self, device) -> "View":
        """Every tensor of the view on `device`, where what is to be done later is done."""
        move = partial(_moved, device=device)
        mask = None if self.mask is None else self.mask.to(device)
        inputs = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        if self.later is not None:
            inputs = self.later.to(device)(inputs)
        rest = move(self.padding), mask, move(self.labels), move(self.indices)
        return View(self.modality, inputs, *rest, self.local, self.part, move(self.real_at), self.seconds)


class Features(NamedTuple):
    """What the encoder returns; extra tokens are apart, so that a target never meets them."""

    x: Tensor  # (N, K, D) trunk output of the content tokens; (n, D) of those asked for by `only`
    # one (N, K, D) per block asked for: the FFN output before the last residual, or the block's end
    layers: list[Tensor]
    extra: Tensor | None = None  # (N, E, D) trunk output of the extra tokens
    # of output_hidden_states: (N, T, D) before the first block and at the end of each, content tokens alone
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None  # of output_attentions: (N, H, E + T, E + T) of each block

    @property
    def last_hidden_state(self) -> Tensor:
        """`x`, by Hugging Face's name."""
        return self.x

    def keys(self) -> list[str]:
        """Hugging Face's names of what was asked for."""
        return [
            name for name in ("last_hidden_state", "hidden_states", "attentions") if getattr(self, name) is not None
        ]

    def __getitem__(self, key: Any) -> Any:
        """By place, or by Hugging Face's name. KeyError: there is none of that name."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key not in self.keys():
            raise KeyError(f"{key}; there is {', '.join(self.keys())}")
        return getattr(self, key)

    def to_tuple(self) -> tuple:
        """Hugging Face's return_dict=False: `x`, hidden states and attentions, without what was not asked for."""
        return tuple(part for part in (self.x, self.hidden_states, self.attentions) if part is not None)


class Pooled(NamedTuple):
    """A metric of what all processes have, whose sums over them are taken when it is time to log."""

    sums: Tensor  # (S,) of this process, float64
    value: Callable[[Tensor], Tensor]  # of the sums over all processes, () float32


class Loss(NamedTuple):
    """A sum and its count, so that unequal batches weigh what they should; the loop divides once."""

    total: Tensor  # sum over predictions, float32
    count: Tensor  # how many predictions are in it
    metrics: Mapping[str, Tensor | Pooled]  # () each; a Tensor's mean over processes is logged
