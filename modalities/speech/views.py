"""Views of clips, for methods that compare them: random crops and, on top, one or all of five effects.

Another speed, a room, noise, another loudness, and gaps.

S audio samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import fftconvolve  # torchaudio's takes lengths as they come: five to eight times slower
from torch import Tensor
from torchaudio.functional import add_noise, gain, resample

from d2v.modalities.common.checks import check_settings, in_order
from d2v.modalities.speech.audio import anywhere
from d2v.settings import check_fields, setting

VIEWS = ("crop", "speed", "reverb", "noise", "gain", "mask", "all")
EFFECTS = VIEWS[1:-1]  # of "all" in this order: speaker, room, other sounds, microphone, transmission
SLOW, FAST = 9, 11  # tenths of a clip's speed (Ko et al., Interspeech 2015)
DIRECT = (0.0, 10.0)  # dB of direct sound over reverberation
GAPS = 2  # as SpecAugment's time masks (arXiv 1904.08779, table 1)


@dataclass
class AugmentConfig:
    """How views are cut and changed; every view draws anew, and each effect by itself."""

    share: list[float] = setting(
        [0.5, 1.0],
        "Least and greatest share of its clip that a crop holds, drawn uniformly.",
        least=0,
        most=1,
        count=2,
        only={"data.views": True},
    )
    # whatever is long gives crops of one length
    seconds: float = setting(
        1.0,
        "The longest that a crop is (COLA, arXiv 2010.10915, has 0.96).",
        above=0,
        limit=1_000_000,
        only={"data.views": True},
    )
    chance: float = setting(
        0.5,
        "Chance of each effect that a view's name stands for.",
        above=0,
        most=1,
        only={"data.views": (*EFFECTS, "all")},
        why="data.views has no effects",
    )
    reverb: list[float] = setting(
        [0.1, 0.5],
        "Of reverb: least and greatest time in seconds in which a room's sound falls by 60 dB.",
        above=0,
        most=10,
        count=2,
        only={"data.views": ("reverb", "all")},
        why="data.views has neither reverb nor all",
    )
    snr: list[float] = setting(
        [5.0, 20.0],
        "Of noise: least and greatest dB over the noise, which is white or, as often, another clip of the data.",
        least=-100,
        most=100,
        count=2,
        only={"data.views": ("noise", "all")},
        why="data.views has neither noise nor all",
    )
    gain: float = setting(
        6.0,
        "Of gain: the most dB up or down.",
        above=0,
        most=60,
        only={"data.views": ("gain", "all")},
        why="data.views has neither gain nor all",
    )
    mask: float = setting(
        0.2,
        "Of mask: the longest of two gaps, as a share of the view.",
        above=0,
        below=0.5,
        only={"data.views": ("mask", "all")},
        why="data.views has neither mask nor all",
    )

    def __post_init__(self):
        """ValueError: a value out of range."""
        check_fields(self, "data.augment")
        check_settings(
            self,
            ("share", in_order(self.share, 0, 1) and self.share[1] > 0, "[least, most], between 0 and 1"),
            ("reverb", in_order(self.reverb, 0, 10), "[least, most] in seconds, above 0 and at most 10"),
            ("snr", in_order(self.snr, -100, 100), "[least, most] in dB, between -100 and 100"),
            where="data.augment",
        )


def effects_of(name: str) -> tuple[str, ...]:
    """The effects that a name in data.views stands for."""
    return EFFECTS if name == "all" else tuple(effect for effect in EFFECTS if effect == name)


class Views:
    """Makes the views of a wave that data.views names; all that is drawn comes from the generators passed in."""

    def __init__(self, names: Sequence[str], augment: AugmentConfig, *, rate: int, shortest: int):
        """`shortest`: fewest samples that a view may have; no clip has fewer."""
        self.names, self.augment, self.rate = names, augment, rate
        self._shortest = -(-shortest * FAST // 10)  # samples of a clip that are enough at any speed
        self._longest = round(augment.seconds * rate)

    def width(self, sizes: np.ndarray) -> int:
        """The most samples that a view of clips of `sizes` (B,) can have."""
        largest = int(sizes.max())
        largest = min(largest, max(int(self.augment.share[1] * largest), self._shortest))
        slowest = SLOW if any("speed" in effects_of(name) for name in self.names) else 10
        return min(-(-10 * largest // slowest), self._longest)

    def __call__(
        self, wave: np.ndarray, generator: np.random.Generator, other: Callable[[np.random.Generator], np.ndarray]
    ) -> list[np.ndarray]:
        """The views of a wave, (S,) float32 each; `other` draws a wave that may serve as noise."""
        views = []
        for name, drawing in zip(self.names, generator.spawn(len(self.names)), strict=True):
            views.append(self._made(name, wave, drawing, other))
        return views

    def _made(
        self,
        name: str,
        wave: np.ndarray,
        generator: np.random.Generator,
        other: Callable[[np.random.Generator], np.ndarray],
    ) -> np.ndarray:
        augment = self.augment
        chosen = [effect for effect in effects_of(name) if generator.random() < augment.chance]
        view = self._cropped(wave, generator, change_speed="speed" in chosen)
        if "reverb" in chosen:
            response = room(generator, generator.uniform(*augment.reverb), generator.uniform(*DIRECT), self.rate)
            view = torch.from_numpy(fftconvolve(view.numpy(), response)[: len(view)])
        if "noise" in chosen:
            view = noisy(view, self._noise(generator, len(view), other), generator.uniform(*augment.snr))
        if "gain" in chosen:
            view = gain(view, generator.uniform(-augment.gain, augment.gain))
        if "mask" in chosen:
            view = with_gaps(view, generator, augment.mask)
        return view.numpy()

    def _cropped(self, wave: np.ndarray, generator: np.random.Generator, *, change_speed: bool) -> Tensor:
        """A random part of a wave, at another speed if asked for, (S,); the shortest waves are only slowed down."""
        tenths = int(generator.choice((SLOW, FAST))) if change_speed else 10
        tenths = SLOW if tenths == FAST and len(wave) < self._shortest else tenths
        size = max(int(generator.uniform(*self.augment.share) * len(wave)), self._shortest)
        part = torch.from_numpy(anywhere(wave, min(size, -(-self._longest * tenths // 10)), generator))
        return part if tenths == 10 else resample(part, tenths, 10)[: self._longest]

    def _noise(
        self, generator: np.random.Generator, size: int, other: Callable[[np.random.Generator], np.ndarray]
    ) -> Tensor:
        """`size` samples of white noise or of another clip, repeated if it is shorter."""
        if generator.random() < 0.5:
            return torch.from_numpy(generator.standard_normal(size, dtype=np.float32))
        return torch.from_numpy(np.resize(anywhere(other(generator), size, generator), size))


def room(generator: np.random.Generator, seconds: float, direct: float, rate: int) -> np.ndarray:
    """Impulse response (R,) of unit energy: direct sound, and `direct` dB below it noise (Polack's model).

    The noise falls by 60 dB in `seconds`.
    """
    time = np.arange(max(1, round(seconds * rate))) / (seconds * rate)
    tail = generator.standard_normal(len(time)) * 10 ** (-3 * time)
    response = np.concatenate([[1], tail / np.linalg.norm(tail) * 10 ** (-direct / 20)])
    return (response / np.linalg.norm(response)).astype(np.float32)


def noisy(wave: Tensor, noise: Tensor, snr: float) -> Tensor:
    """A wave with noise `snr` dB below it, two (S,); as it is where either is silent, and no ratio can be taken."""
    if not wave.any() or not noise.any():
        return wave
    # squares of near silence underflow in float32
    return add_noise(wave.double(), noise.double(), torch.tensor(snr, dtype=torch.double)).float()


def with_gaps(wave: Tensor, generator: np.random.Generator, most: float) -> Tensor:
    """A wave with gaps of zeros, each up to the share `most` of it, drawn uniformly; they may overlap."""
    wave = wave.clone()
    for _ in range(GAPS):
        size = int(generator.uniform(0, most) * len(wave))
        start = int(generator.integers(len(wave) - size + 1))
        wave[start : start + size] = 0
    return wave
