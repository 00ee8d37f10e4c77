"""python tests/first_hour.py [steps=60] [keep=FOLDER]: a new user's first commands, from the wheel, on plain folders.

Builds the wheel, installs it with its libraries in an empty environment, makes a folder of photographs, of recordings
and of reviews, and types the README's commands for each, away from the checkout: what is found, pretrain, evaluate,
embed, search, fine-tune, convert, load with AutoModel. Prints what each took and which settings it needed beyond
data.path and run.dir; `steps` shortens both trainings (0: the recipes' own length). Exit code 1: one failed.
"""

import csv
import math
import os
import subprocess
import sys
import tempfile
import time
import venv
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {  # modality: recipes of pretraining and of fine-tuning, and the folder
    "image": ("image/data2vec_tiny", "image/finetune_tiny", "photos"),
    "speech": ("speech/data2vec_tiny", "speech/finetune_tiny", "recordings"),
    "text": ("text/data2vec_tiny", "text/finetune_tiny", "reviews"),
}
FREE = ("data.path", "run.dir", "model", "out", "id", "train.steps", "train.warmup_steps", "train.freeze_steps")
LOAD = """
import sys, torch, d2v
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(type(model).__name__, sum(p.numel() for p in model.parameters()))
"""


def main(argv: list[str]) -> int:
    """`argv`: key=value."""
    given = dict(argument.split("=", 1) for argument in argv)
    steps = int(given.get("steps", 60))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(given.get("keep") or scratch)
        start = time.monotonic()
        binaries = install(home)
        print(f"wheel built and installed in an empty environment: {time.monotonic() - start:.0f} s", flush=True)
        photos(home / "photos")
        recordings(home / "recordings")
        reviews(home / "reviews")
        failed = 0
        for modality in RECIPES:
            for command in commands(modality, steps):
                failed += not performed(command, home, binaries)
        print(f"{failed} failed; {time.monotonic() - start:.0f} s in all")
    return int(bool(failed))


def install(home: Path) -> Path:
    """The wheel in a new environment; where its programs are."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(home / "wheel"), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = (home / "wheel").glob("*.whl")
    venv.create(home / "venv", with_pip=True)
    binaries = home / "venv" / "bin"
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", f"{wheel}[onnx]"], check=True)
    return binaries


def commands(modality: str, steps: int) -> list[list[str]]:
    """What a user types, after `d2v`; the last one is Python's."""
    pretrain, finetune, folder = RECIPES[modality]
    run, data = f"runs/{folder}", f"data.path={folder}/"
    short = [f"train.steps={steps}", f"train.warmup_steps={steps // 10}"] if steps else []
    table = f"{folder}.parquet"
    return [
        ["data", pretrain, data],
        ["pretrain", pretrain, data, f"run.dir={run}", *short],
        ["evaluate", pretrain, f"model={run}/export", data],
        ["embed", pretrain, f"model={run}/export", data, f"out={table}"],
        ["search", table, f"id={first_id(modality)}"],
        ["finetune", finetune, f"model={run}/export", data, f"run.dir={run}_classes", *short],
        ["convert", f"{run}/export", f"{folder}.onnx"],
        ["load", f"{run}/export"],
    ]


def first_id(modality: str) -> str:
    """The name of a sample in the table of features."""
    return {"image": "circle/0.jpg", "speech": "high/0.wav", "text": "train:0"}[modality]


def performed(command: list[str], home: Path, binaries: Path) -> bool:
    """Types it, and says how it went."""
    kept = ("HOME", "LANG", "PIP_FIND_LINKS", "XDG_CACHE_HOME", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PATH": f"{binaries}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    words = [str(binaries / "d2v"), *command]
    if command[0] == "load":
        words = [str(binaries / "python"), "-c", LOAD, command[1]]
    start = time.monotonic()
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
    more = [word for word in command[1:] if "=" in word and word.split("=")[0] not in FREE]
    said = (
        f"exit {done.returncode}, {time.monotonic() - start:5.0f} s, settings beyond data.path and run.dir: {len(more)}"
    )
    print(f"{said}: d2v {' '.join(command)}", flush=True)
    if done.returncode or "Traceback" in done.stderr:
        print(done.stdout[-1500:], done.stderr[-3000:], sep="\n", flush=True)
        return False
    return True


def photos(folder: Path, count: int = 40) -> None:
    """JPEG files of circles and squares, in folders of these names."""
    from PIL import Image, ImageDraw

    for name in ("circle", "square"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (96 + number, 80), (5 * number, 90, 200 - 4 * number))
            draw, left, top = ImageDraw.Draw(image), 5 + number % 30, 5 + number % 25
            shape = draw.ellipse if name == "circle" else draw.rectangle
            shape((left, top, left + 35, top + 35), fill=(250 - 6 * number, 3 * number, 40))
            image.save(folder / name / f"{number}.jpg")


def recordings(folder: Path, count: int = 40) -> None:
    """Wave files of high and of low tones, in folders of these names."""
    for name, pitch in (("high", 900), ("low", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            with wave.open(str(folder / name / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 16000, 0, "NONE", ""))
                tone = [math.sin(2 * math.pi * (pitch + 7 * number) * t / 16000) for t in range(16000)]
                file.writeframes(b"".join(int(9000 * x).to_bytes(2, "little", signed=True) for x in tone))


def reviews(folder: Path, count: int = 400) -> None:
    """A table of texts with labels."""
    words = {"good": "a fine warm funny film with great actors", "bad": "a dull cold slow film with poor actors"}
    folder.mkdir(parents=True)
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(count):
            label = ("good", "bad")[number % 2]
            chosen = words[label].split()
            shift = number % len(chosen)
            rows.writerow([" ".join([*chosen[shift:], str(number), *chosen[:shift]] * 3), label])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
