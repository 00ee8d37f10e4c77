"""One file among good ones, damaged: data of every kind, a model's files, a run's files."""

import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import soundfile
from PIL import Image

from fuzz.journeys import (
    MODALITIES,
    Outcome,
    Template,
    embedding,
    emptied,
    journey,
    pretraining,
    wrong_run,
    wrong_table,
)

HEAD = 512  # bytes in which most damage is done: headers say what the rest means
SOUNDS = {  # ending -> format and coding of libsndfile
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_24"),
    "au": ("AU", "FLOAT"),
    "caf": ("CAF", "ALAC_16"),
    "w64": ("W64", "FLOAT"),
}


def case(template: Template, seed: int, folder: Path) -> tuple[str, Outcome]:
    """What was damaged and how the journey ended."""
    generator = np.random.default_rng((2, seed))
    kind = str(generator.choice(["media", "table", "model", "run"], p=[0.5, 0.2, 0.15, 0.15]))
    attack = {"media": on_media, "table": on_table, "model": on_model, "run": on_run}[kind]
    return attack(template, generator, folder)


def damaged(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    """Bytes changed in one way, and its name."""
    data = bytearray(content)
    end = min(len(data), HEAD) if generator.random() < 0.7 else len(data)
    place = int(generator.integers(0, max(end, 1)))
    way = str(generator.choice(list(WAYS)))
    return WAYS[way](data, place, generator), f"{way} at {place}"


def _flip(data: bytearray, place: int, generator: np.random.Generator) -> bytes:
    for _ in range(int(generator.integers(1, 9))):
        if data:
            data[int(generator.integers(0, min(len(data), place + 64)))] ^= 1 << int(generator.integers(0, 8))
    return bytes(data)


def _high(data: bytearray, place: int, generator: np.random.Generator) -> bytes:
    return bytes(data[:place] + b"\xff" * 4 + data[place + 4 :])


WAYS: dict[str, Callable[[bytearray, int, np.random.Generator], bytes]] = {
    "bits flipped": _flip,
    "cut off": lambda data, place, generator: bytes(data[:place]),
    "empty": lambda data, place, generator: b"",
    "zeros": lambda data, place, generator: bytes(data[:place] + bytes(16) + data[place + 16 :]),
    "ones": _high,
    "noise put in": lambda data, place, generator: bytes(data[:place] + generator.bytes(8) + data[place:]),
    "a piece twice": lambda data, place, generator: bytes(data[:place] + data[max(0, place - 40) :]),
    "a piece lost": lambda data, place, generator: bytes(data[:place] + data[place + 40 :]),
    "something else": lambda data, place, generator: generator.bytes(200),
    "zipped": lambda data, place, generator: zlib.compress(bytes(data)),
}


def picture(generator: np.random.Generator) -> tuple[bytes, str]:
    """An image in some format, and its ending."""
    pixels = generator.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    file, ending = (
        io.BytesIO(),
        str(generator.choice(["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "npy", "16", "1", "rgba"])),
    )
    if ending == "npy":
        np.save(file, pixels)
    elif ending == "16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(file, ending := "png")
    elif ending in ("1", "rgba"):
        Image.fromarray(pixels).convert(ending.upper()).save(file, ending := "png")
    else:
        Image.fromarray(pixels).save(file, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
    return file.getvalue(), ending


def sound(generator: np.random.Generator) -> tuple[bytes, str]:
    """A recording in some format, and its ending."""
    ending = str(generator.choice(list(SOUNDS)))
    rate, channels = int(generator.choice([8000, 11025, 16000, 44100])), int(generator.choice([1, 2]))
    file = io.BytesIO()
    soundfile.write(
        file, generator.normal(scale=0.1, size=(rate, channels)), rate, SOUNDS[ending][1], format=SOUNDS[ending][0]
    )
    return file.getvalue(), ending


def on_media(template: Template, generator: np.random.Generator, folder: Path) -> tuple[str, Outcome]:
    """A damaged image or recording among good ones, embedded or trained on."""
    modality = str(generator.choice(["image", "speech"]))
    content, ending = (picture if modality == "image" else sound)(generator)
    content, said = damaged(content, generator)
    data = folder / "data"
    shutil.copytree(template.data(modality), data)
    good = {path.relative_to(data).as_posix() for path in data.rglob("*.*")}
    (data / "a" / f"bad.{ending}").write_bytes(content)
    return finish(template, modality, data, folder, generator, good, f"{modality} .{ending}: {said}")


def on_table(template: Template, generator: np.random.Generator, folder: Path) -> tuple[str, Outcome]:
    """A damaged table, of texts or beside images."""
    kind = str(generator.choice(["csv", "tsv", "jsonl", "json", "parquet", "txt", "metadata.csv", "metadata.jsonl"]))
    data = emptied(folder / "data")
    rows = [{"text": f"one two three {number} four", "label": "ab"[number % 2]} for number in range(12)]
    if kind.startswith("metadata"):
        shutil.copytree(template.data("image"), data, dirs_exist_ok=True)
        files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.*"))
        rows = [{"file_name": name, "label": "xy"[number % 2]} for number, name in enumerate(files)]
    table, path = datasets.Dataset.from_list(rows), data / (kind if "." in kind else f"train.{kind}")
    if kind == "parquet":
        table.to_parquet(path)
    elif kind == "txt":
        path.write_text("\n".join(row["text"] for row in rows))
    elif kind.endswith(("jsonl", "json")):
        path.write_text("\n".join(map(json.dumps, rows)) if kind.endswith("l") else json.dumps(rows))
    else:
        separator = "\t" if kind == "tsv" else ","
        path.write_text(
            "\n".join(separator.join(row.values()) for row in [dict(zip(rows[0], rows[0], strict=True)), *rows])
        )
    content, said = damaged(path.read_bytes(), generator)
    path.write_bytes(content)
    modality = "image" if kind.startswith("metadata") else "text"
    return finish(template, modality, data, folder, generator, set(), f"{kind}: {said}")


def finish(
    template: Template,
    modality: str,
    data: Path,
    folder: Path,
    generator: np.random.Generator,
    good: set[str],
    said: str,
) -> tuple[str, Outcome]:
    """Embeds the data, or trains on it with or without a check of the files."""
    if generator.random() < 0.6:
        out = folder / "out.parquet"
        arguments = embedding(template, modality, data, out, "data.max_bad_share=0.5")
        return f"embed {said}", journey("embed", arguments, lambda printed: odd(printed) or wrong_table(out, good))
    checks = "true" if modality == "text" or generator.random() < 0.5 else "false"
    more = ["data.max_bad_share=0.5", *([f"data.check_files={checks}"] if modality != "text" else [])]
    arguments = pretraining(template, modality, folder / "run", "data2vec", f"data.path={data}", *more)
    outcome = journey("pretrain", arguments, lambda printed: odd(printed) or wrong_run(folder / "run", printed))
    return f"pretrain check_files={checks} {said}", outcome


def odd(printed: str) -> str | None:
    """Amounts of data that cannot be."""
    for word in ("nan hours", "inf hours", ", -"):
        if word in printed:
            return f"the report says {word!r}"
    return None


def on_model(template: Template, generator: np.random.Generator, folder: Path) -> tuple[str, Outcome]:
    """A damaged file of an export, by which files are embedded."""
    modality = str(generator.choice(MODALITIES))
    broken = folder / "broken"
    shutil.copytree(template.run(modality) / "export", broken)
    path, said = damage_one(broken, generator)
    out = folder / "out.parquet"
    arguments = embedding(template, modality, template.data(modality), out)
    arguments = [f"model={broken}" if argument.startswith("model=") else argument for argument in arguments]
    return f"embed by {modality} {path}: {said}", journey("embed", arguments, lambda printed: wrong_table(out, set()))


def on_run(template: Template, generator: np.random.Generator, folder: Path) -> tuple[str, Outcome]:
    """A damaged file of a run's folder, which is gone on with."""
    modality = str(generator.choice(MODALITIES))
    run = folder / "run"
    shutil.copytree(template.run(modality), run)
    if generator.random() < 0.7:  # as if it had been stopped before its last step
        shutil.rmtree(run / "checkpoints" / "00000002")
    path, said = damage_one(run, generator)
    arguments = pretraining(template, modality, run)
    return f"resume {modality} {path}: {said}", journey(
        "pretrain", arguments, lambda printed: wrong_run(run, printed, whole=False)
    )


def damage_one(folder: Path, generator: np.random.Generator) -> tuple[Path, str]:
    """Damages one file below a folder, each as likely as any other."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[int(generator.integers(len(paths)))]
    content, said = damaged(path.read_bytes(), generator)
    path.write_bytes(content)
    return path.relative_to(folder), said
