"""CONTRIBUTING.md names the files that a batch passes, from file to loss: those and no others, at most twelve."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from d2v import plugins
from d2v.config.loading import load_config
from d2v.finetuning.config import load
from d2v.finetuning.model import build_model
from d2v.finetuning.objective import Supervised

PASSED_BY = {"d2v/models/cpu.py"}  # what a GPU never sees
TRUNK = tiny.TRUNK
SMALL = {
    "image": ("model.frontends.image.image_size=32", "model.frontends.image.patch_size=4", "data.min_block=4"),
    "speech": ("data.max_seconds=2",),
    "text": ("data.vocab_size=300",),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Eight files of each modality; images in two classes."""
    root, draw = tmp_path_factory.mktemp("walk"), np.random.default_rng(0)
    for name in ("image/a", "image/b", "speech", "text"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "image" / "ab"[number % 2] / f"{number}.png")
        soundfile.write(root / "speech" / f"{number}.wav", 0.1 * draw.standard_normal(32000), 16000)
        lines = [f"line {line} of file {number} has some words" for line in range(60)]
        (root / "text" / f"{number}.txt").write_text("\n".join(lines))
    return root


def files_passed(root: Path, work: Callable[[], object]) -> set[str]:
    """The project's files of which a function is called."""
    files = set()

    def note(frame, event: str, _) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    paths = {Path(file).resolve() for file in files}
    named = {path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)}
    return {name for name in named if name.startswith(("d2v/", "modalities/"))} - PASSED_BY


def walk_in_contributing(root: Path, title: str) -> set[str]:
    """The files of the numbered list below a heading."""
    text = (root / "CONTRIBUTING.md").read_text("utf-8")
    (part,) = re.findall(rf"^### {re.escape(title)}$(.*?)(?=^#|\Z)", text, flags=re.M | re.S)
    return set(re.findall(r"^\d+\. `([^`]+)`", part, flags=re.M))


@pytest.mark.parametrize("modality", tiny.MODALITIES)
def test_one_batch_of_pretraining(modality, folders, root, tmp_path):
    overrides = [*TRUNK, *SMALL[modality], "train.batch_size=4", f"data.path={folders / modality}", "data.split=train"]
    config = load_config(
        root / "configs" / modality / "data2vec_base.yaml", [*overrides, f"run.dir={tmp_path}", "evaluate.path=''"]
    )
    batches, objective = tiny.batches_of(config), tiny.objective_of(config)
    passed = files_passed(root, lambda: objective(batches(0, 0, 1)[0]))
    assert passed == walk_in_contributing(root, f"A batch of {modality}") and len(passed) <= 12


def test_one_batch_of_fine_tuning(folders, root, tmp_path):
    argv = [str(root / "configs" / "image" / "finetune_base.yaml"), *TRUNK[:-1], *SMALL["image"][:2]]
    argv += [f"data.path={folders / 'image'}", "data.split=train", "data.validation_split=''", "data.test_split=''"]
    config, task = load([*argv, "train.batch_size=4", f"run.dir={tmp_path}", "train.accumulate=1"])
    data = task.open(config, tmp_path, lambda name, why: None, lambda line: None)
    objective = Supervised(build_model(config, task.model, data.head, None), config.train)
    passed = files_passed(root, lambda: objective(data.batches(0, 0, 1)[0]))
    assert passed == walk_in_contributing(root, "A batch of fine-tuning, of images") and len(passed) <= 12


def test_a_walk_is_of_files_that_exist(root):
    text = (root / "CONTRIBUTING.md").read_text("utf-8")
    assert all((root / name).is_file() for name in re.findall(r"^\d+\. `([^`]+)`", text, flags=re.M))
    assert plugins.available("d2v.modalities") == tiny.MODALITIES
