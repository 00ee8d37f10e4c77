"""Numbers -> tokens: a linear map of each patch, a mask token and sinusoidal positions.

B samples, N masked rows, S numbers of a signal, P of a patch, T = S // P tokens, D width.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mylab.sensor.config import FrontendConfig


class Frontend(nn.Module):
    """Patches of a signal."""

    main_input: ClassVar[str] = "sensor_values"
    zero_padding: ClassVar[bool] = True
    positions_read_tokens: ClassVar[bool] = False
    is_encoder: ClassVar[bool] = False
    grid: ClassVar[None] = None

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        super().__init__()
        self.config = config
        self.patches = nn.Linear(config.patch_size, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))

    def init_weights(self) -> None:
        """Torch's own."""
        self.patches.reset_parameters()
        nn.init.normal_(self.mask_token, std=0.02)

    def embed(self, sensor_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, D)."""
        return self.patches(sensor_values.unfold(1, self.config.patch_size, self.config.patch_size))

    def content_dim(self) -> int:
        """Numbers of a patch."""
        return self.config.patch_size

    def content(self, sensor_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, P), the patches themselves."""
        return sensor_values.float().unfold(1, self.config.patch_size, self.config.patch_size)

    def vocabulary(self) -> Tensor:
        """ValueError: there are no words."""
        raise ValueError("a signal has no words to predict")

    def padding(self, sensor_values: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """(B, T), True where a patch is not all data."""
        if attention_mask is None:
            return None
        return ~attention_mask.bool().unfold(1, self.config.patch_size, self.config.patch_size).all(dim=2)

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """The mask token where hidden."""
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """(T, D), fixed."""
        place = torch.arange(tokens.shape[1], device=tokens.device)[:, None]  # (T, 1)
        rate = torch.arange(tokens.shape[2], device=tokens.device) / tokens.shape[2]  # (D,)
        return torch.sin(place / 100**rate).to(tokens.dtype)

    def extra(self) -> None:
        """No class token."""
        return None

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> None:
        """Positions are in the tokens."""
        return None
