"""A part of a recording as a file of its own, for shards."""

import io
from pathlib import Path

import numpy as np
import soundfile

from d2v.modalities.speech.audio import Part, as_recorded

BITS = {"PCM_S8": 16, "PCM_U8": 16, "PCM_16": 16, "PCM_24": 24}  # of FLAC, that hold what a file of this kind does
FLAC_CHANNELS = 8  # at most


def cut(media: bytes | Path, part: Part) -> bytes:
    """A file of which `audio.decode` gives what it gives of the part, to the bit.

    FLAC where samples are whole numbers of at most 24 bits, else WAV of floats. UnreadableError: as `audio.decode`.
    """
    wave, rate, kind = as_recorded(media, part)
    bits, file = BITS.get(kind, 0), io.BytesIO()
    if bits and wave.shape[1] <= FLAC_CHANNELS:
        whole = (wave * 2.0 ** (bits - 1)).astype(np.int32) << (32 - bits)  # soundfile writes the upper bits
        soundfile.write(file, whole, rate, format="FLAC", subtype=f"PCM_{bits}")
    else:
        soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
