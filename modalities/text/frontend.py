"""From token ids to embeddings, with learned positions, as in RoBERTa and data2vec 1.0 (arXiv 2202.03555, section 3.4).

B samples, M masks per sample, N = B * M rows, T tokens, K visible tokens, H heads, D width. The norm of the embeddings
is the trunk's input norm, or, in data2vec 2.0 (arXiv 2212.07525), part of the embedding: its teacher is fed what comes
after it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization

from d2v.modalities.common.checks import check_attention_mask
from d2v.modalities.text import cooccurrence
from d2v.models import alibi
from d2v.settings import check_values, setting

MODALITY = "text"


@dataclass
class FrontendConfig:
    """`prepare` fills the fields that are the tokenizer's: vocab_size (0) and the ids of the special tokens."""

    vocab_size: int = setting(
        0,
        "Rows of the table of tokens; 0: as many as the tokenizer has. A larger table may be rounded up.",
        least=0,
        limit=10_000_000,
    )
    max_positions: int = setting(
        512, "The most tokens that the model reads at once, with <s> and </s>.", least=1, limit=1_000_000
    )
    bos_token_id: int | None = setting(0, "Id of <s>; taken from the tokenizer.", least=-1, limit=10_000_000)
    pad_token_id: int = setting(1, "Id of <pad>; taken from the tokenizer.", least=-1, limit=10_000_000)
    eos_token_id: int | None = setting(2, "Id of </s>; taken from the tokenizer.", least=-1, limit=10_000_000)
    mask_token_id: int = setting(-1, "Id of <mask>; taken from the tokenizer.", least=-1, limit=10_000_000)
    position_offset: int = setting(
        1,
        "Row of the table of positions that padding has, zeros; the first token has the next. RoBERTa: its pad id.",
        least=0,
        limit=10_000_000,
    )
    init_std: float = setting(0.02, "Standard deviation of the initial table of tokens.", least=0, limit=1000)
    init: str = setting(
        "normal",
        "The initial table of tokens: normal, random numbers; cooccurrence, vectors of which tokens are neighbours in "
        "the texts that a new run trains on, as large.",
        among=("normal", "cooccurrence"),
    )
    init_window: int = setting(
        5,
        "Of cooccurrence: tokens on either side that are neighbours.",
        least=1,
        limit=1000,
        only={"init": "cooccurrence"},
    )
    embedding_norm: bool = setting(
        False,
        "Positions, their norm and dropout belong to the embedding, and there is no mask token (data2vec 2.0).",
        only={"objective.name": lambda name: name != "data2vec"},
        why="data2vec 1.0 hides tokens by <mask>, which such an embedding does not have",
    )
    embedding_dropout: float = setting(0.0, "Dropout after the norm of embedding_norm.", least=0, below=1)
    alibi: str = setting(
        "none",
        "Attention falls with distance, for small budgets: not at all, by fixed slopes, or by slopes times one learned "
        "scale or one per head.",
        among=alibi.KINDS,
    )
    position_std: float = setting(
        0.02,
        "Standard deviation of the initial table of positions; small against init_std, targets are words from the "
        "start instead of places.",
        least=0,
        limit=1000,
    )
    reference_padded_input: bool = setting(
        False, "data2vec 2.0's quirk: the first block reads padded tokens as the norm of embedding_norm leaves them."
    )

    def __post_init__(self):
        """ValueError: a value out of range, or what belongs to the norm of the embeddings without it."""
        check_values(self, "model.frontends.text")
        if self.embedding_dropout and not self.embedding_norm:
            raise ValueError(
                f"frontend embedding_dropout={self.embedding_dropout} needs embedding_norm=true; "
                "else it is model.trunk.input_dropout"
            )
        if self.reference_padded_input and not self.embedding_norm:
            raise ValueError("frontend reference_padded_input=true is of data2vec 2.0: it needs embedding_norm=true")


class Frontend(nn.Module):
    """Token embeddings without scaling, and a table of positions."""

    main_input: ClassVar[str] = "input_ids"
    is_encoder: ClassVar[bool] = False
    grid: ClassVar[None] = None  # tokens are a sequence
    positions_read_tokens: ClassVar[bool] = False

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: the tokenizer's fields are not filled in."""
        super().__init__()
        if not 0 <= config.mask_token_id < config.vocab_size or not 0 <= config.pad_token_id < config.vocab_size:
            raise ValueError(
                f"frontend: mask_token_id {config.mask_token_id} and pad_token_id {config.pad_token_id} must lie in "
                f"[0, vocab_size), vocab_size is {config.vocab_size}; `prepare` takes them from the tokenizer"
            )
        self.config, self.source_dim = config, dim
        self.zero_padding = not config.reference_padded_input
        self.tokens = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.position_table = nn.Embedding(
            config.max_positions + config.position_offset + 1, dim, padding_idx=config.position_offset
        )
        self.norm = nn.LayerNorm(dim) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.alibi = alibi.build(config.alibi, num_heads)

    def init_weights(self) -> None:
        """N(0, init_std) for words and N(0, position_std) for positions, with zeros for padding."""
        for embedding, std in ((self.tokens, self.config.init_std), (self.position_table, self.config.position_std)):
            fresh = torch.empty_like(embedding.weight).normal_(std=std)
            fresh[embedding.padding_idx] = 0
            initialization.copy_(embedding.weight, fresh)  # leaves what `from_pretrained` has loaded
        if self.norm is not None:
            self.norm.reset_parameters()
        if self.alibi is not None:
            self.alibi.init_weights()

    def begin_with(self, samples: Any) -> str:
        """Fills the table of tokens from a run's Samples where `init` says so, and says it.

        Special tokens and words without neighbours keep their random vectors, and so do channels beyond as many words.
        """
        if self.config.init != "cooccurrence":
            return ""
        corpus, (num_words, dim) = samples.corpus, self.tokens.weight.shape
        words, found = cooccurrence.vectors(corpus.tokens, corpus.offsets, num_words, dim, self.config.init_window)
        with torch.no_grad():
            fresh = torch.from_numpy(found * self.config.init_std).to(self.tokens.weight)  # (n, D)
            self.tokens.weight[torch.from_numpy(words), : fresh.shape[1]] = fresh
        return "words by co-occurrence"

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, corrupted_ids: Tensor | None = None
    ) -> Tensor:
        """Embeddings of the original ids, (B, T) -> (B, T, D); padding is zero.

        With their norm: positions too. ValueError: as in positions.
        """
        tokens = self.tokens(input_ids)
        if self.norm is None:
            return tokens
        padding = input_ids == self.config.pad_token_id if attention_mask is None else attention_mask == 0
        return self.dropout(self.norm(tokens + self._places(tokens.shape[1], padding)))

    def content_dim(self) -> int:
        """ValueError: words have none."""
        raise ValueError("a word is made of no values to predict: objective.name may be mlm, mlm_latent or electra")

    def content(self, input_ids: Tensor, **_: Tensor) -> Tensor:
        """ValueError: words have none."""
        raise ValueError("a word is made of no values to predict: objective.name may be mlm, mlm_latent or electra")

    def vocabulary(self) -> Tensor:
        """The table of tokens, (V, D). ValueError: no <mask> can take the place of a word."""
        if self.norm is not None:
            raise ValueError(
                "model.frontends.text.embedding_norm is true, with which there is no <mask> in place of a word that is "
                "to be predicted: set it to false, and model.trunk.input_norm to true"
            )
        return self.tokens.weight

    def sources(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, corrupted_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `embed`, three times: nothing lies before the tokens that a method could quantise instead."""
        tokens = self.embed(input_ids, attention_mask, corrupted_ids)
        return tokens, tokens, tokens

    def hide(
        self, tokens: Tensor, hidden: Tensor, input_ids: Tensor, corrupted_ids: Tensor | None = None, **_: Tensor
    ) -> Tensor:
        """The <mask> embedding where hidden, (N, T, D); with `corrupted_ids` (B, T), those tokens elsewhere.

        Looked up anew: the gradient of the embedding is as large as itself, and one look-up makes one of it. Without a
        mask token: zero.
        """
        if self.norm is not None:
            return tokens.masked_fill(hidden[..., None], 0)
        ids = input_ids if corrupted_ids is None else corrupted_ids
        ids = ids.repeat_interleave(len(hidden) // len(ids), dim=0)  # (N, T)
        return self.tokens(ids.masked_fill(hidden, self.config.mask_token_id))

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor | None:
        """Embeddings of the positions, (N, T, D) or (1, T, D); None if they are in the tokens already.

        ValueError: more tokens than there are positions.
        """
        return self._places(tokens.shape[1], padding) if self.norm is None else None

    def _places(self, length: int, padding: Tensor | None) -> Tensor:
        """Positions are counted over what is not padding."""
        offset = self.config.position_offset
        if length > self.config.max_positions:
            raise ValueError(
                f"a sequence has {length} tokens; "
                f"the model reads at most {self.config.max_positions} (frontend.max_positions)"
            )
        if padding is None:
            places = torch.arange(1, length + 1, device=self.position_table.weight.device)[None]  # (1, T)
            return self.position_table(places + offset)
        real = (~padding).long()  # (N, T)
        return self.position_table(real.cumsum(dim=1) * real + offset)

    def extra(self) -> None:
        """No extra tokens: <s> is a content token."""
        return None

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """ALiBi of all T tokens, (1, H, T, T), or of `keep` (N, K), (N, H, K, K); None without it."""
        if self.alibi is None:
            return None
        assert num_tokens is not None
        return self.alibi.of(num_tokens, keep)

    def padding(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, corrupted_ids: Tensor | None = None
    ) -> Tensor | None:
        """Where there is no token, (B, T) bool, or None: by the attention mask, or else by the pad id.

        ValueError: an attention mask of another shape.
        """
        check_attention_mask(attention_mask, input_ids, "input_ids")
        padding = input_ids == self.config.pad_token_id if attention_mask is None else attention_mask == 0
        # a graph that is exported has values later: it cannot ask
        return padding if torch.compiler.is_exporting() or padding.any() else None
