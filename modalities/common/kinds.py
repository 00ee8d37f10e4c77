"""Which files are images, sound, text or tables: by their extension, or without one by what they begin with."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

AUDIO = (
    *(".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64"),
    *(".aifc", ".rf64", ".snd", ".sph", ".nist", ".voc"),
)
IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".npy"),
    *(".avif", ".jfif", ".jpe", ".j2k", ".pbm", ".pnm", ".dib", ".tga"),
)
TEXTS = (".txt",)
TABLES = (".parquet", ".tar", ".csv", ".tsv", ".jsonl", ".json")
SNIFFED = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # formats that say what they are
CURES = {  # what to do with files that cannot be read
    **dict.fromkeys(
        (".aac", ".m4a", ".m4b", ".mp4", ".wma", ".amr", ".webm", ".shn", ".ape"), "convert to wav or flac"
    ),
    **dict.fromkeys((".heic", ".heif", ".cr2", ".nef", ".dng", ".svg", ".psd"), "convert to jpg or png"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack"),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".rtf", ".epub"), "convert to txt"),
    **dict.fromkeys(TABLES, "data.path=FILE reads a table"),
}
UNNAMED = "files without extension"


def extension(path: Path) -> str:
    """In lower case; "" for a name without one, or with a number in its place, as in IMG.0001."""
    suffix = path.suffix.lower()
    return "" if re.fullmatch(r"\.\d*", suffix) else suffix


def is_of(path: Path, extensions: Sequence[str]) -> bool:
    """Whether a file is of a kind, AUDIO, IMAGES or TEXTS: a text without an extension is not known as one."""
    suffix = extension(path)
    if suffix:
        return suffix in extensions
    if extensions == IMAGES:
        return _is_image(path)
    return extensions == AUDIO and _is_sound(path)


def _is_image(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError  # only images need it

    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with Image.open(path, formats=SNIFFED):
            return True
    except Image.DecompressionBombError:
        return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def _is_sound(path: Path) -> bool:
    import soundfile  # only sound needs it

    try:
        return path.is_file() and soundfile.info(str(path)).frames > 0
    except (soundfile.LibsndfileError, OSError):
        return False


def summary(files: Iterable[Path]) -> str:
    """How many files of which extension, the most first, with a name and a cure: "2 .aac (a.aac, ...; ...)"."""
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(extension(file) or UNNAMED, []).append(file)
    kinds = []
    for suffix, some in sorted(by_suffix.items(), key=lambda item: -len(item[1]))[:8]:
        cure = CURES.get(suffix, "give it one" if suffix == UNNAMED else "")
        if suffix in TABLES and len(some) > 1:
            cure = f"data.path='FOLDER/**/*{suffix}' reads tables"
        kinds.append(f"{len(some)} {suffix} ({named(some, 1)}{'; ' if cure else ''}{cure})")
    return ", ".join(kinds) + (", ..." if len(by_suffix) > 8 else "")


def named(files: Sequence[Path], most: int = 3) -> str:
    """The names of the first files."""
    return ", ".join(file.name for file in files[:most]) + (", ..." if len(files) > most else "")
