"""Log-mel spectrogram without padding: trailing zeros never reach a real frame, which depends on its window alone.

B samples, S audio samples, F frames, M mel bins.
"""

import warnings

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

# (log(power + FLOOR) + SHIFT) / SCALE is near zero mean, unit variance on clips of unit variance
FLOOR, SHIFT, SCALE = 1e-2, 1.0, 2.5


class LogMel(nn.Module):
    """Waveform (B, S) to log-mel frames (B, F, M), always in float32."""

    filters: Tensor  # (size / 2 + 1, M)
    window: Tensor

    def __init__(
        self, sample_rate: int, num_bins: int, window_ms: float, hop_ms: float, low: float, high: float | None = None
    ):
        """ValueError: a band outside 0 .. sample_rate / 2, or bins so narrow that they hold no frequency."""
        super().__init__()
        high = sample_rate / 2 if high is None else high
        if not 0 <= low < high <= sample_rate / 2:
            raise ValueError(
                f"frontend mel_low={low}, mel_high={high}: allowed is 0 <= low < high <= {sample_rate / 2} "
                "(half of sample_rate)"
            )
        width = round(sample_rate * window_ms / 1000)
        self.hop = round(sample_rate * hop_ms / 1000)
        if width < 2 or self.hop < 1:
            raise ValueError(
                f"frontend mel_window_ms={window_ms}, mel_hop_ms={hop_ms}: {width} and {self.hop} samples at "
                f"{sample_rate} Hz is too few"
            )
        self.size = fft_size(width)
        # computed even where the model is built on the meta device
        with torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bins, an error below
            filters = melscale_fbanks(self.size // 2 + 1, low, high, num_bins, sample_rate)  # (size / 2 + 1, M)
            # cloned: torch returns a slice of a longer one, which safetensors refuses to load into
            window = torch.hann_window(width).clone()
        if (filters.amax(0) == 0).any():
            raise ValueError(
                f"frontend mel_bins={num_bins} is too many for a window of {window_ms} ms at {sample_rate} Hz: "
                "some bins would be empty"
            )
        self.register_buffer("filters", filters)  # persistent: from_pretrained would bring others back as garbage
        self.register_buffer("window", window)

    def forward(self, waves: Tensor) -> Tensor:
        """(B, S) to (B, F, M)."""
        with torch.autocast(waves.device.type, enabled=False):
            window = self.window.float()
            spectrum = torch.stft(
                waves.float(), self.size, self.hop, len(window), window, center=False, return_complex=True
            )
            power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)  # (B, F, size / 2 + 1)
            return ((power @ self.filters.float() + FLOOR).log() + SHIFT) / SCALE  # (B, F, M)


def fft_size(width: int) -> int:
    """The power of two at or above the window's width."""
    return 1 << (width - 1).bit_length()
