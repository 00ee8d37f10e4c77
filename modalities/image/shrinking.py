"""A large picture as a smaller file, for shards: a photograph takes longer to decode than a step to read it."""

import io

from PIL import Image, ImageOps

from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.image import augment

QUALITY = 95  # of JPEG, with the colours of every pixel
LOSSY = ("JPEG", "MPO", "WEBP")
JPEG_MODES = ("L", "RGB", "CMYK")
MODES = {"1": "L", "P": "RGBA"}  # in which pixels cannot be averaged, as what they can
EXACT = 2  # times the wanted size that JPEG's own reduction leaves, so that the last one averages pixels


def shrunk(media: bytes, side: int) -> bytes | None:
    """The first picture of a file with a shorter side of `side` pixels, turned as its EXIF says.

    JPEG of what was JPEG or WebP, else PNG; None: it stays as it is, as it is no larger, has more than 8 bits, or is a
    TIFF of other bands than one or three.
    UnreadableError: it is damaged.
    """
    try:
        if media.startswith(b"\x93NUMPY"):
            return None
        with Image.open(io.BytesIO(media)) as image:
            shorter = min(image.size)
            bands = image.format == "TIFF" and image.mode not in ("1", "L", "P", "RGB")
            if shorter <= side or image.mode[0] in "IF" or augment.is_cut(image) or bands:
                return None
            kind, wanted = image.format, [round(length * side / shorter) for length in image.size]
            image.draft(image.mode, (EXACT * wanted[0], EXACT * wanted[1]))
            smaller = image.convert(MODES.get(image.mode, image.mode)).resize(wanted, Image.Resampling.BICUBIC)
        picture = ImageOps.exif_transpose(smaller)
        file = io.BytesIO()
        if kind in LOSSY and picture.mode in JPEG_MODES:
            picture.save(file, "jpeg", quality=QUALITY, subsampling=0)
        else:
            picture.save(file, "png")
    except augment.UNREADABLE as error:
        raise UnreadableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return file.getvalue()
