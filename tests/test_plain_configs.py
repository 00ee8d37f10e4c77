"""No recipe is bound to a data set: each opens a plain folder as it stands, and says in a line what it takes."""

import re
from pathlib import Path

import colours
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image

from d2v.config.find import CONFIGS, config_names
from d2v.config.joint import load_joint
from d2v.config.loading import load_config, load_values
from d2v.modalities import image, speech, text
from d2v.split_names import uses
from d2v.training.health import HealthCheck
from scripts import data, pretrain

OF_DATA = {  # settings that a data set has, not a recipe
    "data": ("path", "split", "label", "transcript", "text", "text_pair", "group", "validation_split", "test_split"),
    "evaluate": ("path", "train_split", "test_split", "max_train", "max_test", "label", "group", "masks"),
}
RECIPES = [name for name in config_names() if not name.startswith(("data/", "joint/")) and "/demo" not in name]
JOINT = [name for name in config_names() if name.startswith("joint/") and "/demo" not in name]
OVERLAYS = [name for name in config_names() if name.startswith("data/")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Three files of each modality, and of each with two classes."""
    root, draw = tmp_path_factory.mktemp("plain"), np.random.default_rng(0)
    for folder, place in (("mine", ""), ("classes", "a/"), ("classes", "b/")):
        for number in range(3):
            for modality in tiny.MODALITIES:
                (root / folder / modality / place).mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / "image" / place / f"{number}.png")
            soundfile.write(root / folder / "speech" / place / f"{number}.wav", draw.standard_normal(36000) / 10, 16000)
            lines = "\n".join(f"line {line} of file {number} has some words" for line in range(20))
            (root / folder / "text" / place / f"{number}.txt").write_text(lines)
    for number in range(6):
        place = root / "boxes" / "image" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), (number, 90, 0)).save(place)
    rows = "".join(f"{number}.png,cell,2,3,30,30\n" for number in range(6))
    (root / "boxes" / "image" / "boxes.csv").write_text(f"file,label,xmin,ymin,xmax,ymax\n{rows}")
    (root / "classes" / "text" / "table.csv").write_text("text,label\n" + "a good film,a\na bad film,b\n" * 3)
    return root


def is_tuning(name: str) -> bool:
    """Whether a recipe is one of `d2v finetune`."""
    return "finetune" in name or "detect" in name


def given(values: dict, section: str) -> set[str]:
    """The settings that a config has of a section, and of those of one kind of labels."""
    found = set(values.get(section) or {})
    for of_kind in (values.get("kinds") or {}).values():
        found |= set(of_kind.get(section) or {})
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_nothing_that_is_of_a_data_set(name):
    values = load_values(name)
    assert not [f"{part}.{key}" for part, keys in OF_DATA.items() for key in given(values, part) & {*keys}]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_opens_a_plain_folder_as_it_stands(name, plain, capsys):
    modality, tuning = name.split("/")[0], is_tuning(name)
    path = plain / ("boxes" if "detect" in name else "classes" if tuning else "mine") / modality
    path = path / "table.csv" if tuning and modality == "text" else path
    data.main([name, f"data.path={path}", *(["train.batch_size=4"] if tuning else [])])
    said = capsys.readouterr().out
    assert re.search(r"(\d+) of \1 samples usable", said) and "typical " in said
    if "detect" in name:  # whose splits are those of its boxes
        assert "boxes of split 'train': from the table boxes.csv" in said
        return
    assert "no splits: all of it is trained on" in said
    assert not tuning or "but for 10% of it, which chooses the best model" in said


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_in_a_header_is_of_configs_that_exist(name):
    (line,) = re.findall(rf"^# command: +(.*{name}.*)$", (CONFIGS / f"{name}.yaml").read_text(), re.M)[:1]
    named = re.findall(r"(?<= )(?:image|speech|text|data)/\w+(?= |$)", line)
    assert named[0] == name and set(named) <= {*config_names()}
    overlays = [overlay for overlay in named if overlay.startswith("data/")]
    if is_tuning(name):
        from d2v.finetuning.config import load

        assert load([name, *overlays])[0].data
    else:
        assert load_config(name, overlays).modality == name.split("/")[0]
    if name.endswith(("_base", "_large", "_cifar")) and "data.path=" not in line:
        assert load_values(name, overlays)["data"]["path"]


@pytest.mark.parametrize("name", JOINT)
def test_a_joint_recipe_opens_a_plain_folder_for_each_part(name, plain, tmp_path, capsys):
    """Pairs open a table."""
    config, table = load_joint(name), colours.write_world(tmp_path / "world", 6)
    assert not any(part.path for part in config.data.values())
    data.main([name, *(f"data.{part}.path={table if '+' in part else plain / 'mine' / part}" for part in config.data)])
    said = capsys.readouterr().out
    assert all(f"{part}:\n" in said for part in config.data) and said.count("samples usable") == len(config.data)
    header = (CONFIGS / f"{name}.yaml").read_text().split("model:")[0]
    assert all(word in header for word in (f"# command:  d2v pretrain {name}", "# hardware:", "hours:", "expected:"))


def test_each_overlay_is_in_the_header_of_a_recipe():
    headers = "\n".join((CONFIGS / f"{name}.yaml").read_text() for name in [*RECIPES, *OVERLAYS])
    assert OVERLAYS and not [name for name in OVERLAYS if f" {name}" not in headers]


# What becomes of splits.


@pytest.mark.parametrize(
    ("splits", "taken", "more", "said"),
    [
        ([], {"train": "is trained on"}, [], "no splits: all of it is trained on"),
        (["train"], {"train": "is trained on", "test": "is scored"}, [], "no splits: all of it is trained on"),
        ([], {"train[:10]": "is trained on"}, [], "no splits: train[:10] of it is trained on"),
        (
            ["Training", "val", "Testing"],
            {"train": "is trained on", "test": "is scored"},
            ["data.x=y takes it"],
            "splits: Training is trained on; Testing is scored; not read: val (data.x=y takes it)",
        ),
        (
            ["train", "dev", "test"],
            {"train+dev": "is trained on", "test": "is scored"},
            [],
            "splits: train and dev is trained on; test is scored",
        ),
        (["train", "test"], {"train[:5]+test": "is trained on"}, [], "splits: train[:5]+test is trained on"),
    ],
)
def test_what_becomes_of_each_split(splits, taken, more, said):
    assert uses(splits, taken, more) == said


def divided(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8 * number + 40, 40), (number * 50, 9, 9)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def test_sub_folders_of_splits_are_explained(tmp_path, capsys):
    path = f"data.path={divided(tmp_path)}"
    data.main(["image/data2vec_tiny", path])
    assert "splits: train is trained on; test is scored by `d2v evaluate`; not read: val\n" in capsys.readouterr().out
    short = ["train.batch_size=2"]
    data.main(["image/finetune_tiny", path, *short])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "splits: train is trained on, but for 10% of it, which chooses the best model; not read: val, test "
        "(data.test_split=test scores it at the end; data.validation_split=validation data.validation_share=0 chooses "
        "the best model by it)"
    )
    advised = ["data.test_split=test", "data.validation_split=validation", "data.validation_share=0"]
    data.main(["image/finetune_tiny", path, *short, *advised])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "splits: train is trained on; val chooses the best model; test is scored at the end"
    )


# Sizes beside what is read.


def images(folder: Path, *sizes: tuple[int, int]) -> str:
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 9, 9)).save(folder / f"{number}.png")
    return str(folder)


def report_of_images(path: str, folder: Path, **frontend):
    frontend = image.FrontendConfig(**frontend)
    return image.Samples(image.DataConfig(path=path), frontend, split="train", folder=folder).report


def test_images_are_said_to_be_larger_than_what_is_read(tmp_path):
    path = images(tmp_path, (640, 480), (600, 400), (700, 500), (10, 12))
    found = report_of_images(path, tmp_path, image_size=32, patch_size=4)
    assert found.lines()[1] == "typical size: 620 x 440 pixels, read at 32 x 32, in 64 patches of 4 x 4"
    assert found.advice == (
        "images are 13 times as large as that: model.frontends.image.image_size=128 "
        "model.frontends.image.patch_size=16 reads more of them, in as many patches"
    )
    found = report_of_images(path, tmp_path, image_size=32, backbone="resnet18")
    assert found.sizes == "typical size: 620 x 440 pixels, read at 32 x 32" and "16 times the cost" in found.advice
    assert not report_of_images(path, tmp_path, image_size=128, patch_size=16).advice  # 3 times


def test_the_advice_on_images_can_be_taken(tmp_path):
    found = report_of_images(images(tmp_path, (400, 400)), tmp_path, image_size=32, patch_size=4)
    advised = [word for word in found.advice.split() if "=" in word]
    config = load_config("image/data2vec_tiny", [*advised, f"data.path={tmp_path}"])
    assert (config.frontend.image_size, config.frontend.patch_size) == (128, 16)


def test_recordings_of_another_rate_and_longer_ones_are_said(tmp_path):
    for number, seconds in enumerate((1, 2, 6)):
        soundfile.write(
            tmp_path / f"{number}.wav", np.random.default_rng(0).standard_normal(seconds * 16000) / 9, 16000
        )
    settings = speech.DataConfig(path=str(tmp_path), max_seconds=5.0)
    frontend = speech.FrontendConfig(kind="mel", sample_rate=8000, mel_high=3900.0)
    found = speech.Samples(settings, frontend, split="train", folder=tmp_path).report
    assert found.lines()[1] == (
        "typical length: 2.0 s, up to 5 s are read at once, 1 are longer; at 16000 Hz, read at 8000 Hz"
    )
    assert found.advice == (
        "tones above 4000 Hz are not heard; model.frontends.speech.sample_rate=16000 "
        "model.frontends.speech.mel_high=7900 hears them"
    )
    same = speech.Samples(settings, speech.FrontendConfig(), split="train", folder=tmp_path).report
    assert same.sizes.endswith("; at 16000 Hz") and not same.advice


def test_texts_longer_than_a_block_are_said(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["a b", "c d", "a b c d " * 30]))
    config, frontend = text.DataConfig(path=str(tmp_path), vocab_size=270, block_size=16), text.FrontendConfig()
    text.prepare(config, frontend, tmp_path / "run", 0)
    found = text.Samples(config, frontend, split="train", folder=tmp_path / "run").report
    assert re.fullmatch(r"typical text: \d tokens, up to 16 are read at once; 1 texts are longer", found.sizes)


def test_a_base_recipe_names_the_setting_that_leaves_short_clips_out(plain, tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.random.default_rng(0).standard_normal(16000) / 9, 16000)
    message = r"0\.wav: 1\.000 s, at least 2\.000 s are needed \(data\.min_seconds\)"
    with pytest.raises(ValueError, match=message):
        data.main(["speech/data2vec_base", f"data.path={tmp_path}"])


@pytest.mark.parametrize("name", ["image/data2vec_tiny", "speech/moco_tiny", "text/data2vec_tiny"])
def test_too_few_files_for_a_batch_are_told_the_largest_that_fits(name, plain, tmp_path):
    command = [name, f"data.path={plain / 'mine' / name.split('/')[0]}", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"fewer than one batch: train\.batch_size is \d+, and may be (\d+) or less"):
        pretrain.main([*command, "run.health_samples=2"])


# Health checks.


class Cells:
    """Samples of a column, as far as a health check looks at them."""

    classes = None

    def __init__(self, **columns: list):
        self.columns, self.ids = columns, [str(number) for number in range(6)]

    def __len__(self) -> int:
        return 6

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise ValueError(f"the data has no column {name!r}; its columns are {', '.join(self.columns)}")
        return np.array(self.columns[name], dtype=object)


@pytest.mark.parametrize(
    ("columns", "group", "said"),
    [
        ({"file": [*"abcdef"]}, "", "spread and rank of 6 samples; no k-NN, as the data has no column 'label'"),
        ({"label": [*"aabbc", None]}, "", "spread and rank of 6 samples; no k-NN, as 1 of them have no 'label'"),
        ({"label": [*"aaaaaa"]}, "", "spread and rank of 6 samples; no k-NN, as 'label' has one value"),
        (
            {"label": [*"abcdef"]},
            "",
            "spread and rank of 6 samples; no k-NN, as 'label' has another value for each of them",
        ),
        (
            {"label": [*"aabbcc"]},
            "",
            "spread, rank and k-NN by 'label' of 6 samples, no group kept apart (evaluate.group)",
        ),
        (
            {"label": [*"aabbcc"], "speaker": [*"xyxyxy"]},
            "speaker",
            "spread, rank and k-NN by 'label' of 6 samples, neighbours of another speaker (evaluate.group)",
        ),
    ],
)
def test_health_checks_say_what_they_measure(columns, group, said):
    check = HealthCheck(Cells(**columns), limit=100, label="label", group=group)
    assert check.said == f"health checks: {said}" and (check.labels is None) == ("no k-NN" in said)
