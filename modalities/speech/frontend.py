"""Speech frontend: waveform to frames, by a stack of strided convolutions over samples (published) or over a log-mel spectrogram (small budgets).

B samples, N rows (samples x masks), S audio samples, L frames inside the extractor, T tokens, C extractor width, D model width.
Equations: data2vec (arXiv 2202.03555) section 4.2, wav2vec 2.0 (arXiv 2006.11477) section 2; without a mask token and with ALiBi: data2vec 2.0
(arXiv 2212.07525).
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.modalities.speech.mel import LogMel, fft_size
from d2v.models import alibi
from d2v.models.token_conv import convolved

MODALITY = "speech"
KINDS = ("waveform", "mel")


@dataclass
class FrontendConfig:
    """Defaults are data2vec Base's; `kind: mel` uses the mel_ settings in place of conv_kernels and conv_strides."""

    kind: str = "waveform"
    sample_rate: int = 16000
    conv_dim: int = 512
    conv_kernels: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    conv_strides: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    mel_bins: int = 80
    mel_window_ms: float = 25.0
    mel_hop_ms: float = 10.0
    mel_low: float = 60.0
    mel_high: float | None = None  # None: half the sample rate
    mel_kernel: int = 3
    mel_stride: int = 2
    norm_eps: float = 1e-5  # of the norm between extractor and projection
    pos_kernel: int = 19
    pos_depth: int = 5
    pos_groups: int = 16
    mask_token: bool = True  # false: what is hidden is zero before the positions (data2vec 2.0)
    alibi: str = "none"  # attention falls with distance: see d2v/models/alibi.py
    alibi_layers: int = 1  # 1: all blocks share the scales; the trunk's depth: each has its own
    reference_padding: bool = False  # the reference's quirk (and transformers'): deeper position layers read padded frames, so features depend on the batch
    reference_padded_input: bool = (
        False  # data2vec 2.0's quirk: the first layer reads them too, as they come from the extractor
    )

    def __post_init__(self):
        """ValueError: settings that are wrong by themselves or contradict one another."""
        if self.kind not in KINDS:
            raise ValueError(f"frontend kind={self.kind!r} is not known; allowed are {', '.join(KINDS)}")
        alibi.check(self.alibi)
        kernels, strides = list(self.conv_kernels), list(self.conv_strides)
        if not kernels or len(kernels) != len(strides):
            raise ValueError(
                f"frontend conv_kernels={kernels} and conv_strides={strides} must have the same length, at least 1"
            )
        names = (
            "sample_rate",
            "conv_dim",
            "mel_bins",
            "mel_kernel",
            "mel_stride",
            "pos_kernel",
            "pos_depth",
            "pos_groups",
            "alibi_layers",
        )
        for name, value in [
            ("conv_kernels", min(kernels)),
            ("conv_strides", min(strides)),
            *((name, getattr(self, name)) for name in names),
        ]:
            if value < 1:
                raise ValueError(f"frontend {name} holds {value}; it must be at least 1")


def lengths(config: FrontendConfig, samples: Any) -> Any:
    """Tokens that `samples` audio samples give, at least 0; a number, an integer array or an integer tensor, and the same comes back."""
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


class ConvBlock(nn.Module):
    """Strided convolution without bias -> layer norm over channels -> GELU; (B, L, C_in) to (B, L', C_out).

    Windows times weights in one matrix product: channels stay last, so that the norm needs no transpose and no copy back.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, kernel))  # as nn.Conv1d's
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(1, self.kernel, self.stride).flatten(2)  # (B, L', C_in * kernel)
        x = F.linear(windows, self.weight.flatten(1))  # (B, L', C_out)
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
    """Log-mel spectrogram and one strided convolution: the 20 ms grid of the waveform stack at a hundredth of its cost; (B, S) to (B, T, C)."""

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
    """Extractor -> layer norm -> projection, a learned mask token or none, convolutional positions, and ALiBi if asked for."""

    main_input: ClassVar[str] = "input_values"
    positions_read_tokens: ClassVar[bool] = True

    def __init__(self, config: FrontendConfig, dim: int, num_heads: int):
        """ValueError: pos_groups does not divide `dim`, or a mel band that the sample rate does not have."""
        super().__init__()
        if dim % config.pos_groups:
            raise ValueError(f"frontend pos_groups={config.pos_groups} does not divide the model's width {dim}")
        self.config, self.zero_padding = config, not config.reference_padded_input
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
        """(B, S) waveforms at the config's sample rate, attention_mask (B, S) 1 where there is audio -> (B, T, D). ValueError: no token fits."""
        if lengths(self.config, input_values.shape[-1]) < 1:
            needed = receptive_field(self.config)
            raise ValueError(f"input_values hold {input_values.shape[-1]} samples; one token needs {needed}")
        if attention_mask is not None:
            input_values = input_values.masked_fill(attention_mask == 0, 0)
        return self.projection(self.norm(self.extractor(input_values)))

    def hide(self, tokens: Tensor, hidden: Tensor, **inputs: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D) with the mask token, or zero, where hidden."""
        if self.mask_token is None:
            return tokens.masked_fill(hidden[..., None], 0)
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def positions(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """What to add to tokens (N, T, D), which are zero at padding; padded frames stay zero, so that a clip's features are its own."""
        x = tokens
        padding = None if self.config.reference_padding else padding
        for conv in self.positions_conv:
            x = convolved(conv, x)  # (N, T, D)
            x = x if padding is None else x.masked_fill(padding[..., None], 0)
        return x

    def extra(self) -> None:
        """No class token."""

    def bias(self, num_tokens: int | None = None, keep: Tensor | None = None) -> Tensor | None:
        """ALiBi of all T tokens, (1, H, T, T), or of `keep` (N, K), (N, H, K, K); blocks in front if they differ; None without it."""
        if self.alibi is None:
            return None
        assert num_tokens is not None
        return self.alibi.of(num_tokens, keep)

    def padding(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """(B, T) bool, True past a clip's own tokens; None if nothing is padded."""
        # a graph that is exported has values later: it cannot ask
        if attention_mask is None or (not torch.compiler.is_exporting() and bool(attention_mask.all())):
            return None
        tokens = lengths(self.config, attention_mask.long().sum(-1))  # (B,)
        return torch.arange(lengths(self.config, input_values.shape[-1]), device=tokens.device) >= tokens[:, None]

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
