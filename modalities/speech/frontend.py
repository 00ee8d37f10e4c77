"""Speech frontend: waveform to frames, by strided convolutions over samples or over a log-mel spectrogram.

Samples as published, the spectrogram for small budgets.

B samples, N rows (samples x masks), S audio samples, L frames inside the extractor, T tokens, C extractor width,
D model width, H heads.
Equations: data2vec (arXiv 2202.03555) section 4.2, wav2vec 2.0 (arXiv 2006.11477) section 2; without a mask token and
with ALiBi: data2vec 2.0 (arXiv 2212.07525).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.modalities.common.checks import check_attention_mask
from d2v.modalities.speech.mel import LogMel, fft_size
from d2v.models import alibi
from d2v.models.token_conv import convolved
from d2v.models.transformer import is_plain, linear_map
from d2v.settings import check_values, setting

MODALITY = "speech"
KINDS = ("waveform", "mel")


@dataclass
class FrontendConfig:
    """Defaults are data2vec Base's; `kind: mel` uses the mel_ settings in place of conv_kernels and conv_strides."""

    kind: str = setting("waveform", "What the extractor convolves: samples, or a log-mel spectrogram.", among=KINDS)
    sample_rate: int = setting(
        16000, "Samples a second; clips of another rate are resampled.", least=1, limit=1_000_000
    )
    conv_dim: int = setting(512, "Width of the extractor.", least=1, limit=100_000)
    conv_kernels: list[int] = setting(
        [10, 3, 3, 3, 3, 2, 2],
        "Kernel of each convolution over samples.",
        least=1,
        limit=100_000,
        only={"kind": "waveform"},
    )
    conv_strides: list[int] = setting(
        [5, 2, 2, 2, 2, 2, 2],
        "Stride of each convolution over samples.",
        least=1,
        limit=100_000,
        only={"kind": "waveform"},
    )
    mel_bins: int = setting(80, "Bands of the spectrogram.", least=1, limit=10_000, only={"kind": "mel"})
    mel_window_ms: float = setting(
        25.0, "Window of the spectrogram in milliseconds.", above=0, limit=10_000, only={"kind": "mel"}
    )
    mel_hop_ms: float = setting(
        10.0, "Step from one window to the next in milliseconds.", above=0, limit=10_000, only={"kind": "mel"}
    )
    mel_low: float = setting(60.0, "Where the bands begin, in Hz.", least=0, limit=1_000_000, only={"kind": "mel"})
    mel_high: float | None = setting(
        None, "Where the bands end, in Hz; null: half the sample rate.", above=0, limit=1_000_000, only={"kind": "mel"}
    )
    mel_kernel: int = setting(
        3, "Kernel of the convolution over the spectrogram.", least=1, limit=1000, only={"kind": "mel"}
    )
    mel_stride: int = setting(
        2, "Stride of the convolution over the spectrogram.", least=1, limit=1000, only={"kind": "mel"}
    )
    norm_eps: float = setting(1e-5, "Of the norm between extractor and projection.", least=0, limit=1)
    pos_kernel: int = setting(19, "Kernel of each convolution of positions.", least=1, limit=10_000)
    pos_depth: int = setting(5, "Convolutions of positions.", least=1, limit=1000)
    pos_groups: int = setting(
        16, "Groups of each convolution of positions; it divides the model's width.", least=1, limit=1_000_000
    )
    mask_token: bool = setting(True, "false: what is hidden is zero before the positions (data2vec 2.0).")
    alibi: str = setting(
        "none",
        "Attention falls with distance: not at all, by fixed slopes, or by slopes times one learned scale or one per "
        "head.",
        among=alibi.KINDS,
    )
    alibi_layers: int = setting(
        1,
        "Of alibi: 1: all blocks share the scales; the trunk's depth: each has its own.",
        least=1,
        limit=1000,
        only={"alibi": ("one", "head")},
    )
    reference_padding: bool = setting(
        False,
        "The reference's quirk (and transformers'): deeper position layers read padded frames, so that features depend "
        "on the batch.",
    )
    reference_padded_input: bool = setting(
        False, "data2vec 2.0's quirk: the first position layer reads padded frames as they come from the extractor."
    )

    def __post_init__(self):
        """ValueError: settings that are wrong by themselves or contradict one another."""
        check_values(self, "model.frontends.speech")
        kernels, strides = list(self.conv_kernels), list(self.conv_strides)
        if not kernels or len(kernels) != len(strides):
            raise ValueError(
                f"frontend conv_kernels={kernels} and conv_strides={strides} must have the same length, at least 1"
            )


def lengths(config: FrontendConfig, samples: Any) -> Any:
    """Tokens that `samples` audio samples give, at least 0: a number of a number, integers of an array or a tensor."""
    for kernel, stride in _windows(config):
        samples = (samples - kernel) // stride + 1
    return samples.clip(min=0) if isinstance(samples, np.ndarray | Tensor) else max(0, samples)


def receptive_field(config: FrontendConfig, tokens: int = 1) -> int:
    """Fewest audio samples that give `tokens` tokens."""
    for kernel, stride in reversed(_windows(config)):
        tokens = (tokens - 1) * stride + kernel
    return tokens


def stride(config: FrontendConfig) -> int:
    """Audio samples from one token to the next."""
    return math.prod(step for _, step in _windows(config))


def _windows(config: FrontendConfig) -> list[tuple[int, int]]:
    """(kernel, stride) of every layer, from the waveform up."""
    if config.kind == "mel":
        width, hop = (round(config.sample_rate * ms / 1000) for ms in (config.mel_window_ms, config.mel_hop_ms))
        return [(fft_size(width), hop), (config.mel_kernel, config.mel_stride)]
    return list(zip(config.conv_kernels, config.conv_strides, strict=True))


def num_bands(window: int) -> int:
    """Bands of the spectrogram that `content` has of samples: 80, or as many as the token's window can tell apart."""
    return max(1, min(80, fft_size(window) // 6))


@lru_cache(maxsize=8)
def spectrogram_of(window: int, hop: int, rate: int) -> LogMel:
    """Log-mel frames of `window` samples, `hop` apart: no part of a model, as it has no weights.

    ValueError: too few samples.
    """
    with torch.inference_mode(False):  # it may first be asked for in inference and then be used in training
        return LogMel(rate, num_bands(window), 1000 * window / rate, 1000 * hop / rate, low=FrontendConfig.mel_low)


class ConvBlock(nn.Module):
    """Strided convolution without bias -> layer norm over channels -> GELU; (B, L, C_in) to (B, L', C_out).

    Windows times weights in one matrix product: channels stay last, so that the norm needs no transpose and no copy
    back.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, kernel))  # as nn.Conv1d's
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(1, self.kernel, self.stride).flatten(2)  # (B, L', C_in * kernel)
        x = linear_map(windows, self.weight.flatten(1), None)  # (B, L', C_out)
        if not is_plain(self.norm, nn.LayerNorm):
            return F.gelu(self.norm(x))
        # float32 statistics also where the whole model is half precision
        normed = F.layer_norm(
            x.float(), self.norm.normalized_shape, self.norm.weight.float(), self.norm.bias.float(), self.norm.eps
        )
        return F.gelu(normed.to(x.dtype))


class WaveformExtractor(nn.Module):
    """The convolutional extractor of wav2vec 2.0 in its layer-norm form; (B, S) to (B, T, C)."""

    def __init__(self, config: FrontendConfig):
        super().__init__()
        dims = [1] + [config.conv_dim] * len(config.conv_kernels)
        layers = zip(dims[:-1], dims[1:], config.conv_kernels, config.conv_strides, strict=True)
        self.layers = nn.ModuleList(ConvBlock(*layer) for layer in layers)

    def forward(self, waves: Tensor) -> Tensor:
        x = waves.to(next(self.parameters()).dtype)[..., None]  # (B, S, 1)
        for layer in self.layers:
            x = layer(x)
        return x  # (B, T, C)


class MelExtractor(nn.Module):
    """Log-mel spectrogram and one strided convolution; (B, S) to (B, T, C).

    The 20 ms grid of the waveform stack at a hundredth of its cost.
    """

    def __init__(self, config: FrontendConfig):
        super().__init__()
        self.spectrogram = LogMel(
            config.sample_rate,
            config.mel_bins,
            config.mel_window_ms,
            config.mel_hop_ms,
            low=config.mel_low,
            high=config.mel_high,
        )
        self.layers = nn.ModuleList([ConvBlock(config.mel_bins, config.conv_dim, config.mel_kernel, config.mel_stride)])

    def forward(self, waves: Tensor) -> Tensor:
        frames = self.spectrogram(waves)  # (B, L, M)
        return self.layers[0](frames.to(next(self.parameters()).dtype))  # (B, T, C)


class Frontend(nn.Module):
    """Extractor -> layer norm -> projection, a mask token or none, convolutional positions, and ALiBi if asked for."""

    main_input: ClassVar[str] = "input_values"
    is_encoder: ClassVar[bool] = False
    grid: ClassVar[None] = None  # tokens are a sequence
    positions_read_tokens: ClassVar[bool] = True

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: pos_groups does not divide `dim`, or a mel band that the sample rate does not have."""
        super().__init__()
        if dim % config.pos_groups:
            raise ValueError(f"frontend pos_groups={config.pos_groups} does not divide the model's width {dim}")
        self.config, self.source_dim = config, config.conv_dim
        self.zero_padding = not config.reference_padded_input
        self.extractor = (MelExtractor if config.kind == "mel" else WaveformExtractor)(config)
        self.norm = nn.LayerNorm(config.conv_dim, config.norm_eps)
        self.projection = nn.Linear(config.conv_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim)) if config.mask_token else None
        kernel = config.pos_kernel
        self.positions_conv = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=config.pos_groups) for _ in range(config.pos_depth)
        )
        self.alibi = alibi.build(config.alibi, num_heads, config.alibi_layers)

    def embed(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) waveforms at the config's sample rate, attention_mask (B, S) 1 where there is audio -> (B, T, D).

        ValueError: no token fits.
        """
        return self.sources(input_values, attention_mask)[0]

    def sources(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `embed`; and what lies before the projection, and before its norm, (B, T, C) each."""
        if input_values.ndim != 2:
            raise ValueError(f"input_values of shape {tuple(input_values.shape)}: this model reads (batch, samples)")
        if lengths(self.config, input_values.shape[-1]) < 1:
            needed = receptive_field(self.config)
            raise ValueError(f"input_values hold {input_values.shape[-1]} samples; one token needs {needed}")
        if attention_mask is not None:
            input_values = input_values.masked_fill(attention_mask == 0, 0)
        raw = self.extractor(input_values)
        normed = self.norm(raw)
        return self.projection(normed), normed, raw

    @property
    def token_seconds(self) -> float:
        """From one token to the next."""
        return stride(self.config) / self.config.sample_rate

    def content_dim(self) -> int:
        """Bands of the frames that fall to a token; of samples, see `spectrogram_of`."""
        if self.config.kind == "mel":
            return min(self.config.mel_kernel, self.config.mel_stride) * self.config.mel_bins
        return num_bands(receptive_field(self.config))

    def content(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, P), the log-mel frames that fall to each token and to no other, side by side.

        Of samples: one frame of the token's own window. ValueError: the window is too short for a spectrogram.
        """
        if attention_mask is not None:
            input_values = input_values.masked_fill(attention_mask == 0, 0)
        tokens = lengths(self.config, input_values.shape[-1])
        if self.config.kind == "mel":
            size = min(self.config.mel_kernel, self.config.mel_stride)
            frames = self.extractor.spectrogram(input_values)  # type: ignore[operator]  # (B, L, M)
            return frames.unfold(1, size, self.config.mel_stride)[:, :tokens].transpose(2, 3).flatten(2)
        spectrogram = spectrogram_of(receptive_field(self.config), stride(self.config), self.config.sample_rate)
        surplus = spectrogram.size - receptive_field(self.config)  # its windows lie in the middle of powers of two
        padded = F.pad(input_values, (surplus // 2, surplus - surplus // 2))
        return spectrogram.to(padded.device)(padded)[:, :tokens]

    def vocabulary(self) -> Tensor:
        """ValueError: frames are no words."""
        raise ValueError("speech has no words to predict: objective.name may be mae or best_rq")

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D) with the mask token, or zero, where hidden."""
        if self.mask_token is None:
            return tokens.masked_fill(hidden[..., None], 0)
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """What to add to tokens (N, T, D), which are zero at padding.

        Padded frames stay zero, so that a clip's features do not depend on the others of its batch.
        """
        x = tokens
        padding = None if self.config.reference_padding else padding
        for conv in self.positions_conv:
            x = convolved(conv, x)  # (N, T, D)
            x = x if padding is None else x.masked_fill(padding[..., None], 0)
        return x

    def extra(self) -> None:
        """No class token."""

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """ALiBi of all T tokens, (1, H, T, T), or of `keep` (N, K), (N, H, K, K); None without it.

        Blocks in front if they differ.
        """
        if self.alibi is None:
            return None
        assert num_tokens is not None
        return self.alibi.of(num_tokens, keep)

    def padding(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """(B, T) bool, True past a clip's own tokens; None if nothing is padded.

        ValueError: an attention mask of another shape.
        """
        check_attention_mask(attention_mask, input_values, "input_values")
        # a graph that is exported has values later: it cannot ask
        if attention_mask is None or (not torch.compiler.is_exporting() and bool(attention_mask.all())):
            return None
        tokens = lengths(self.config, attention_mask.long().sum(-1))  # (B,)
        places = torch.arange(lengths(self.config, input_values.shape[-1]), device=tokens.device)  # (T,)
        return places >= tokens[:, None]  # (B, T)

    def init_weights(self) -> None:
        """As published: kaiming-normal extractor, torch's default linear and positional layers, mask token U(0, 1)."""
        for module in self.modules():
            if isinstance(module, ConvBlock):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv1d):
                module.reset_parameters()
        if self.mask_token is not None:
            nn.init.uniform_(self.mask_token)
        if self.alibi is not None:
            self.alibi.init_weights()
