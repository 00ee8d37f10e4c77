"""From token ids to embeddings, with learned positions, as in RoBERTa and data2vec 1.0 (arXiv 2202.03555, section 3.4).

B samples, M masks per sample, N = B * M rows, T tokens, D width. The norm of the embeddings is the trunk's input norm.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization


@dataclass
class FrontendConfig:
    """`prepare` fills the fields that are the tokenizer's: vocab_size (0) and the ids of the special tokens."""

    vocab_size: int = 0
    max_positions: int = 512
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    mask_token_id: int = -1
    position_offset: int = 1  # row of the position table that padding has (zeros); the first token has the next. RoBERTa: its pad id, 1
    init_std: float = 0.02
    position_std: float = 0.02  # of the position table; small against init_std, targets are words from the start instead of places


class Frontend(nn.Module):
    """Token embeddings without scaling, and a table of positions."""

    main_input: ClassVar[str] = "input_ids"

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: the tokenizer's fields are not filled in."""
        super().__init__()
        if not 0 <= config.mask_token_id < config.vocab_size or not 0 <= config.pad_token_id < config.vocab_size:
            raise ValueError(
                f"frontend: mask_token_id {config.mask_token_id} and pad_token_id {config.pad_token_id} must lie in [0, vocab_size), "
                f"vocab_size is {config.vocab_size}; `prepare` takes them from the tokenizer"
            )
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.position_table = nn.Embedding(config.max_positions + config.position_offset + 1, dim, padding_idx=config.position_offset)

    def init_weights(self) -> None:
        """N(0, init_std) for words and N(0, position_std) for positions, with zeros for padding."""
        for table, std in ((self.tokens, self.config.init_std), (self.position_table, self.config.position_std)):
            fresh = torch.empty_like(table.weight).normal_(std=std)
            fresh[table.padding_idx] = 0
            initialization.copy_(table.weight, fresh)  # leaves what `from_pretrained` has loaded

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None, corrupted_ids: Tensor | None = None) -> Tensor:
        """Embeddings of the original ids, (B, T) -> (B, T, D); padding is zero."""
        return self.tokens(input_ids)

    def hide(self, tokens: Tensor, hidden: Tensor, input_ids: Tensor, corrupted_ids: Tensor | None = None, **_: Tensor) -> Tensor:
        """The <mask> embedding where hidden, (N, T, D); with `corrupted_ids` (B, T), those tokens elsewhere.

        Looked up anew: the gradient of the table is as large as the table, and one look-up makes one of it.
        """
        ids = input_ids if corrupted_ids is None else corrupted_ids
        ids = ids.repeat_interleave(len(hidden) // len(ids), dim=0)  # (N, T)
        return self.tokens(ids.masked_fill(hidden, self.config.mask_token_id))

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Embeddings of the positions counted over what is not padding, (N, T, D) or (1, T, D). ValueError: longer than the table."""
        length, offset = tokens.shape[1], self.config.position_offset
        if length > self.config.max_positions:
            raise ValueError(f"a sequence has {length} tokens; the model reads at most {self.config.max_positions} (frontend.max_positions)")
        if padding is None:
            return self.position_table(torch.arange(1, length + 1, device=tokens.device)[None] + offset)
        real = (~padding).long()  # (N, T)
        return self.position_table(real.cumsum(dim=1) * real + offset)

    def extra(self) -> None:
        """No extra tokens: <s> is a content token."""
        return None

    def bias(self) -> None:
        """No attention bias."""
        return None

    def padding(self, input_ids: Tensor, attention_mask: Tensor | None = None, corrupted_ids: Tensor | None = None) -> Tensor | None:
        """Where there is no token, (B, T) bool, or None: by the attention mask, or else by the pad id."""
        padding = input_ids == self.config.pad_token_id if attention_mask is None else attention_mask == 0
        return padding if padding.any() else None
