"""From one sampling rate to another, whole clips or pieces of long ones, in memory that no pair of rates blows up.

S audio samples.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.signal import firwin, resample_poly
from torchaudio.functional import resample

LARGEST_KERNEL = 2**20  # numbers of torchaudio's kernel: 80 x 475 from 44.1 to 8 kHz, 8000 x 44175 from 44.101 kHz
LARGEST_FACTOR = 200_000  # of rates without a common divisor; the filter has 32 times as many numbers
SLOWEST = 100  # times below the wanted rate: an hour would become gigabytes
ZEROS = 16  # of the filter on either side
WIDTH, ROLLOFF = 6, 0.99  # torchaudio's defaults, on which depends how far its kernel reaches


class Resampler:
    """From `given` to `wanted` samples a second: blocks of `down` samples become `up`."""

    def __init__(self, given: int, wanted: int):
        """ValueError: two rates that would need gigabytes."""
        common = math.gcd(given, wanted)
        self.given, self.wanted = given, wanted
        self.up, self.down = wanted // common, given // common
        largest = max(self.up, self.down)
        reach = math.ceil(WIDTH * self.down / (min(self.up, self.down) * ROLLOFF))
        self._poly = self.up * (self.down + 2 * reach) > LARGEST_KERNEL
        if wanted > SLOWEST * given or (self._poly and largest > LARGEST_FACTOR):
            raise ValueError(f"a sampling rate of {given} Hz cannot be brought to {wanted} Hz")
        if self._poly:
            reach = math.ceil(ZEROS * largest / self.up)
        self._reach = 0 if given == wanted else reach  # samples at the given rate that an output sees on either side

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """(S,) float32 -> float32 at the wanted rate."""
        if self.given == self.wanted or not len(wave):
            return wave
        if self._poly:
            return resample_poly(wave, self.up, self.down, window=_low_pass(max(self.up, self.down))).astype(np.float32)
        return resample(torch.from_numpy(wave), self.given, self.wanted).numpy()

    def length(self, samples: int) -> int:
        """How many samples at the wanted rate `samples` at the given one become."""
        return -(-samples * self.up // self.down)

    def piece(self, read: Callable[[int, int], np.ndarray], start: int, stop: int, end: int) -> np.ndarray:
        """Samples `start` to `stop` at the wanted rate, as they are in the whole clip resampled.

        `read(first, last)`: those at the given rate, of which the clip has `end`.
        """
        block = start // self.up
        before = min(-(-self._reach // self.down), block)  # whole blocks, so that outputs fall where they would
        first = (block - before) * self.down
        last = min(-(-stop // self.up) * self.down + self._reach, end)
        skipped = (block - before) * self.up
        return self(read(first, last))[start - skipped : stop - skipped]


@lru_cache(8)  # of 50 MB at most
def _low_pass(largest: int) -> np.ndarray:
    return firwin(2 * ZEROS * largest + 1, 0.95 / largest, window=("kaiser", 8.0))
