"""Scenes and digits that d2v makes: the same each time, true to their captions, and read as a user's own data."""

import csv
import hashlib
import re
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.ndimage import find_objects
from scipy.ndimage import label as components
from sklearn.linear_model import LogisticRegression

from d2v import plugins
from d2v.config.loading import load_config
from d2v.files import filled
from d2v.modalities.common.generated import captions, digits, digits_folder, drawing, scenes, speech
from d2v.modalities.common.generated.folder import MADE
from d2v.modalities.image.detection.config import DetectionConfig
from d2v.modalities.image.detection.source import open_boxes
from d2v.modalities.speech import espeak, sentences, synth
from scripts import data

SPLITS = ("train", "test", "combinations")
SMALL = ("train=40", "test=24")
# What captions are made of, written down once more: a reader of English, who knows nothing of the grammar.
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
RELATIONS = {
    **{"left of": "left of", "to the left of": "left of", "right of": "right of", "to the right of": "right of"},
    **{"above": "above", "over": "above", "below": "below", "under": "below"},
}
THING = re.compile(r"a (\w+) (\w+) (circle|square|triangle|star|cross|ring)")


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def understood(text: str) -> tuple[list[tuple[str, str, str]], str]:
    """The things of a caption, and the relation of the first to the second."""
    things = [(SIZES[size], colour, shape) for size, colour, shape in THING.findall(text)]
    between = re.search(r"(?:circle|square|triangle|star|cross|ring) (.+?) a ", text)
    return things, RELATIONS[between[1]] if between else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small folder of scenes."""
    folder = tmp_path_factory.mktemp("made") / "scenes"
    data.main(["scenes", str(folder), *SMALL])
    return folder


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    """Digits by a few voices, once each."""
    folder = tmp_path_factory.mktemp("made") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "VOICES", {"train": 4, "test": 2})
        patch.setattr(digits_folder, "TAKES", {"train": 1, "test": 1})
        data.main(["digits", str(folder)])
    return folder


# Scenes.


def test_the_same_arguments_give_the_same_bytes_and_leave_global_generators_alone(made: Path, tmp_path: Path):
    np.random.seed(77)
    before = np.random.get_state()[1].copy()
    data.main(["scenes", str(tmp_path / "again"), *SMALL])
    assert (np.random.get_state()[1] == before).all()
    assert contents(tmp_path / "again") == contents(made)
    data.main(["scenes", str(tmp_path / "other"), "train=5", "test=5", "seed=1"])
    first = [table(folder / "train.csv")[0]["text"] for folder in (made, tmp_path / "other")]
    assert first[0] != first[1]


def test_a_scene_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path):
    data.main(["scenes", str(tmp_path / "few"), "train=3", "test=3"])
    for split in SPLITS:
        few, many = table(tmp_path / "few" / f"{split}.csv"), table(made / f"{split}.csv")[:3]
        assert [row["text"] for row in few] == [row["text"] for row in many]
        for one, other in zip(few, many, strict=True):
            for kind in ("image", "audio"):
                assert (tmp_path / "few" / one[kind]).read_bytes() == (made / other[kind]).read_bytes()


def test_rows_and_files_are_as_many_as_asked_and_of_the_size(made: Path):
    for split, count in (("train", 40), ("test", 24), ("combinations", 24)):
        rows = table(made / f"{split}.csv")
        assert len(rows) == count == len({row["text"] for row in rows})
        for row in rows:
            assert Image.open(made / row["image"]).size == (32, 32)
            assert soundfile.info(made / row["audio"]).samplerate == synth.RATE
    assert {len(list((made / kind).rglob("*.*"))) for kind in ("images", "audio", "masks")} == {88}


def test_held_out_pairs_are_in_combinations_alone_and_in_each_of_them(made: Path):
    held_out = set(scenes.HELD_OUT)
    assert {colour for colour, _ in held_out} == set(scenes.COLOURS)
    assert {shape for _, shape in held_out} == set(scenes.SHAPES) and len(held_out) == 8
    for split in SPLITS:
        for row in table(made / f"{split}.csv"):
            pairs = [(colour, shape) for _, colour, shape in understood(row["text"])[0]]
            assert sum(pair in held_out for pair in pairs) == (split == "combinations")


def test_no_two_scenes_of_a_split_say_the_same():
    drawn = list(scenes.different(400, np.random.default_rng(0), held_out=False))
    meanings = set()
    for scene in drawn:
        first, second, *others = *scene.things, None, None
        told = {"right of": ("left of", second, first), "below": ("above", second, first)}
        meanings.add((told.get(scene.relation, (scene.relation, first, second)), tuple(others)))
    assert len(meanings) == 400
    assert {len(scene.things) for scene in drawn} == {1, 2, 3}
    assert {scene.relation for scene in drawn} == {"", *scenes.RELATIONS}


@pytest.mark.parametrize("kind", [speech.FORMANT, "variants"])
def test_voices_of_test_are_not_those_of_training(kind: str, made: Path):
    if kind == speech.FORMANT:
        speakers = {split: {row["speaker"] for row in table(made / f"{split}.csv")} for split in SPLITS}
        assert speakers["train"].isdisjoint(speakers["test"] | speakers["combinations"])
        voices = speech.speech(kind, np.random.default_rng(0)).voices
        sounds = [voice[1:] for some in voices.values() for voice in some]
        assert len(set(sounds)) == 40 and [len(some) for some in voices.values()] == [30, 10]
    else:
        assert len(set(espeak.VARIANTS)) == len(espeak.VARIANTS) == sum(speech.VOICES.values())


def test_captions_say_what_is_in_the_picture(made: Path):
    """Colour, shape and size of each thing, and the relation, are read back from picture, mask and boxes."""
    boxes: dict[str, list[dict[str, str]]] = {}
    for box in table(made / "boxes.csv"):
        boxes.setdefault(box["file"], []).append(box)
    palette = np.array(list(scenes.COLOURS.values()))
    for split in SPLITS:
        for row in table(made / f"{split}.csv"):
            pixels = np.asarray(Image.open(made / row["image"])).astype(float)
            mask = np.asarray(Image.open(made / "masks" / row["image"]))
            seen, middles = [], []
            for box in boxes[row["image"]]:
                left, top, right, bottom = (int(box[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
                number = 1 + scenes.SHAPES.index(box["label"])
                paint = np.median(pixels[top:bottom, left:right][mask[top:bottom, left:right] == number], axis=0)
                colour = list(scenes.COLOURS)[np.abs(palette - paint).sum(axis=1).argmin()]
                size = "small" if max(right - left, bottom - top) <= 0.31 * 32 else "large"
                seen.append((size, colour, box["label"]))
                middles.append(np.array([left + right, top + bottom]) / 2)
                assert (box["size"], box["colour"], box["split"]) == (size, colour, split)
            things, relation = understood(row["text"])
            assert seen == things and relation == row["relation"] and len(things) == int(row["things"])
            for place, thing in enumerate(things, 1):
                assert tuple(row[f"{name}{place}"] for name in ("size", "colour", "shape")) == thing
            if relation:
                x, y = middles[1] - middles[0]
                far = {"left of": x, "right of": -x, "above": y, "below": -y}
                assert max(far, key=far.__getitem__) == relation


def test_boxes_are_the_ends_of_the_things_in_the_masks(made: Path):
    by_file: dict[str, set[tuple[int, ...]]] = {}
    for box in table(made / "boxes.csv"):
        sides = tuple(int(box[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        by_file.setdefault(box["file"], set()).add((*sides, 1 + scenes.SHAPES.index(box["label"])))
    assert len(by_file) == 88
    for file, boxes in by_file.items():
        mask = np.asarray(Image.open(made / "masks" / file))
        parts, count = components(mask, np.ones((3, 3)))
        found = set()
        for number, (rows, columns) in enumerate(find_objects(parts), 1):
            (kind,) = set(mask[parts == number].tolist())
            found.add((columns.start, rows.start, columns.stop, rows.stop, kind))
        assert found == boxes and count == len(boxes)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_shape_is_what_its_outline_says(shape: str):
    """Areas of the unit shapes, by their formulas: of the star ten triangles with corners at 1 and a half."""
    axis = (np.arange(800) + 0.5) / 400 - 1
    area = drawing.INSIDE[shape](axis[None], axis[:, None]).sum() / 400**2
    expected = {
        "circle": np.pi * 0.92**2,
        "square": 1.44**2,
        "triangle": 3 * np.sqrt(3) / 4,
        "star": 10 * 0.5 * 0.5 * np.sin(np.pi / 5),
        "cross": 2 * 1.9 * 0.6 - 0.6**2,
        "ring": np.pi * (0.95**2 - 0.5**2),
    }
    assert area == pytest.approx(expected[shape], abs=0.01)


def test_scenes_of_other_sizes():
    generator = np.random.default_rng(0)
    for side in (24, 50, 128):
        for scene in scenes.different(8, generator, held_out=True):
            picture = drawing.draw(scene, side, generator)
            assert picture.pixels.shape == (side, side, 3) and len(picture.boxes) == len(scene.things)
            assert set(np.unique(picture.mask)) - {0} == {1 + scenes.SHAPES.index(thing[2]) for thing in scene.things}


# Speech.


def test_every_letter_has_a_sound_of_its_own_and_every_word_of_captions_is_of_letters():
    assert set(sentences.PHONES) == set(string.ascii_lowercase) == {*"abcdefghijklmnopqrstuvwxyz"}
    assert len(set(sentences.PHONES.values())) == 26
    generator = np.random.default_rng(0)
    for scene in scenes.different(200, generator, held_out=False):
        assert re.fullmatch("[a-z ]+", captions.caption(scene, generator))


def test_words_are_told_apart_by_a_linear_reader_of_spectra_that_never_heard_the_voice():
    generator = np.random.default_rng(0)
    names = [str(number) for number in range(12)]
    voices = sentences.voices(names, generator)
    features, labels = [], []
    for voice in voices:
        for label, word in enumerate(scenes.SHAPES):
            wave = sentences.say(word, voice, generator)
            cut = wave[: len(wave) // 128 * 128].reshape(-1, 128) * np.hanning(128)
            spectra = np.log(np.abs(np.fft.rfft(cut))[:, 1:] + 1e-3)  # (frames, 64)
            loud = np.flatnonzero(spectra.mean(axis=1) > spectra.mean())
            places = np.linspace(loud[0], loud[-1], 10).round().astype(int)
            some = spectra[places].reshape(10, 16, 4).mean(axis=2)
            features.append((some - some.mean()).ravel())
            labels.append(label)
    x, y = np.array(features), np.array(labels)
    reader = LogisticRegression(C=0.01, max_iter=300).fit(x[:54], y[:54])  # nine voices
    assert reader.score(x[54:], y[54:]) > 0.6  # chance is 0.17


def test_without_espeak_there_is_one_line(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, espeak.PACKAGE, None)
    with pytest.raises(ValueError, match=r"espeakng-loader, which is not installed: pip install 'd2v\[espeak\]'"):
        data.main(["scenes", str(tmp_path / "new"), "voice=espeak", "train=1", "test=1"])
    assert not list(tmp_path.iterdir())


def test_espeak_says_the_same_each_time(tmp_path: Path):
    pytest.importorskip(espeak.PACKAGE)
    for name in ("a", "b"):
        data.main(["scenes", str(tmp_path / name), "voice=espeak", "train=8", "test=4"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    rows = table(tmp_path / "a" / "train.csv")
    assert {soundfile.info(tmp_path / "a" / row["audio"]).samplerate for row in rows} == {espeak.RATE}
    assert all(1 < soundfile.info(tmp_path / "a" / row["audio"]).duration < 8 for row in rows)


# Reading.


@pytest.mark.parametrize("split", SPLITS)
def test_every_modality_reads_as_many_rows_from_the_folder(made: Path, split: str, tmp_path: Path):
    for modality in ("image", "speech", "text"):
        arguments = [
            f"data.path={made}",
            f"data.split={split}",
            *(["data.vocab_size=300"] if modality == "text" else []),
        ]
        config = load_config(f"{modality}/data2vec2_tiny", arguments)
        module = plugins.load("d2v.modalities", modality)
        module.prepare(config.data, config.frontend, tmp_path, 0)
        samples = module.Samples(config.data, config.frontend, split=split, folder=tmp_path)
        rows = table(made / f"{split}.csv")
        assert len(samples) == len(rows) and samples.column("text").tolist() == [row["text"] for row in rows]
        assert samples.report.splits == [*SPLITS]
        if modality == "image":
            found = samples.masks(range(4), str(made / "masks"))
            expected = [np.asarray(Image.open(made / "masks" / row["image"])) for row in rows[:4]]
            assert (found == np.stack(expected)).all()


def test_boxes_are_read_for_detection(made: Path):
    rows = [row for row in table(made / "boxes.csv") if row["split"] == "test"]
    found = open_boxes(DetectionConfig(path=str(made)), "test")
    assert len(found) == 24 and sorted({Path(file).parent.name for file in found["file"]}) == ["test"]
    assert sum(map(len, found["names"])) == len(rows)
    assert found["names"][0] == [row["label"] for row in rows if row["file"] == rows[0]["file"]]
    assert found["boxes"][0][0] == [float(rows[0][side]) for side in ("xmin", "ymin", "xmax", "ymax")]


# Digits.


def test_digits_have_the_same_classes_in_all_modalities_and_nothing_of_train_in_test(numbers: Path):
    names = set(digits.NAMES)
    pictures = {split: list((numbers / "image" / split).rglob("*.png")) for split in ("train", "test")}
    assert [len(some) for some in pictures.values()] == [1397, 400]
    assert {path.parent.name for some in pictures.values() for path in some} == names
    assert {path.name for path in pictures["train"]}.isdisjoint(path.name for path in pictures["test"])
    spoken = {split: table(numbers / "speech" / split / "metadata.csv") for split in ("train", "test")}
    assert [len(rows) for rows in spoken.values()] == [40, 20]
    speakers = {split: {row["speaker"] for row in rows} for split, rows in spoken.items()}
    assert speakers["train"].isdisjoint(speakers["test"])
    texts = {split: table(numbers / "text" / f"{split}.csv") for split in ("train", "test")}
    assert {row["text"] for row in texts["train"]}.isdisjoint(row["text"] for row in texts["test"])
    for rows in (*spoken.values(), *texts.values()):
        assert {row["label"] for row in rows} == names
    for row in [*texts["train"], *texts["test"]]:
        (word,) = [word for word in row["text"].split() if word in names or word.isdigit()]
        assert row["label"] in (word, digits.NAMES[int(word)] if word.isdigit() else word)


def test_digits_are_read_by_every_modality(numbers: Path, tmp_path: Path):
    for modality, count in (("image", 400), ("speech", 20), ("text", 240)):
        arguments = [f"data.path={numbers / modality}", *(["data.vocab_size=300"] if modality == "text" else [])]
        config = load_config(f"{modality}/data2vec2_tiny", arguments)
        module = plugins.load("d2v.modalities", modality)
        module.prepare(config.data, config.frontend, tmp_path, 0)
        samples = module.Samples(config.data, config.frontend, split="test", folder=tmp_path)
        assert len(samples) == count and sorted(samples.classes) == sorted(digits.NAMES)


def test_digits_are_the_same_each_time(numbers: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(speech, "VOICES", {"train": 4, "test": 2})
    monkeypatch.setattr(digits_folder, "TAKES", {"train": 1, "test": 1})
    np.random.seed(5)
    data.main(["digits", str(tmp_path / "again")])
    assert contents(tmp_path / "again") == contents(numbers)


def test_recordings_are_copied_and_each_speaker_is_in_one_split(tmp_path: Path, capsys):
    source, tone = tmp_path / "fsdd", np.sin(np.arange(800))
    source.mkdir()
    for digit in range(10):
        for speaker in ("ann", "bob_b", "cy"):
            soundfile.write(source / f"{digit}_{speaker}_0.wav", tone * (digit + 1) / 20, 8000)
    (source / "3_ann_1.wav").write_bytes(b"no sound")
    soundfile.write(source / "song.flac", tone, 8000)
    data.main(["digits", str(tmp_path / "out"), f"speech={source}"])
    said = capsys.readouterr().out
    assert "speech: 20 recordings by 2 speakers in train, 10 recordings by 1 speakers in test" in said
    assert "left out, as they cannot be read or name no digit and speaker: 2: 3_ann_1.wav, song.flac" in said
    speakers = {}
    for split in ("train", "test"):
        rows = table(tmp_path / "out" / "speech" / split / "metadata.csv")
        speakers[split] = {row["speaker"] for row in rows}
        for row in rows:
            file = tmp_path / "out" / "speech" / split / row["file_name"]
            digit = digits.NAMES.index(row["label"])
            assert file.read_bytes() == (source / f"{digit}_{row['speaker']}_0.wav").read_bytes()
    assert speakers["train"].isdisjoint(speakers["test"]) and len(speakers["train"] | speakers["test"]) == 3


def test_recordings_of_a_table_with_columns(shared: Path):
    found, said = digits.recordings(str(shared / "data" / "fsdd"))
    assert len(found) == 3000 and not said and len({one.speaker for one in found}) == 6
    assert {one.digit for one in found} == {*range(10)} and {one.suffix for one in found} == {".flac"}


# Where it is written, and what is refused.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scenes"], r"usage: d2v data scenes OUT \[key=value \.\.\.\]; d2v data --help names the keys"),
        (["scenes", "{0}/a", "{0}/b"], "usage: d2v data scenes OUT"),
        (["scenes", "{0}/a", "siz=32"], r"unknown key 'scenes.siz' .*; did you mean 'size'\?"),
        (["scenes", "{0}/a", "train=some"], "scenes.train: it is 'some'; it must be a whole number"),
        (["scenes", "{0}/a", "train=0"], "scenes.train is 0; it must be at least 1"),
        (["scenes", "{0}/a", "size=8"], "scenes.size is 8; it must be at least 24"),
        (["scenes", "{0}/a", "size=5000"], "scenes.size is 5000; it must be at least 24, and at most 1024"),
        (["scenes", "{0}/a", "voice=harp"], "scenes.voice is 'harp'; it may be formant, espeak"),
        (["scenes", "{0}/full"], "full is not empty, and would be filled: choose another place"),
        (["scenes", "{0}/full/file"], "file is a file; a folder would be written there"),
        (["digits", "{0}/a", "speech={0}/none"], "speech '.*none' does not exist"),
        (["digits", "{0}/a", "speech={0}/full"], r"speech .*full has no audio files: found 1 files without extension"),
        (["digits", "{0}/a", "speech={0}/one"], r"speech=.*one has one speaker, ann; two or more are needed"),
        (["digits", "{0}/a", "speech={0}/songs"], r"speech=.*songs has no digits by speakers \(1 recordings\)"),
        (["digits", "{0}/a", "train=3"], "unknown key 'digits.train' .*; it may be speech, seed"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_written(arguments: list[str], line: str, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name in ("one/7_ann_0.wav", "songs/song.wav"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, np.sin(np.arange(800)), 8000)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=line) as error:
        data.main([argument.format(tmp_path) for argument in arguments])
    assert "\n" not in str(error.value) and contents(tmp_path) == before and not (tmp_path / "a").exists()


def test_the_same_command_again_changes_nothing_and_another_is_refused(made: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    data.main(["scenes", str(made), *SMALL])
    assert "is as this command makes it: nothing was changed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"was made by other settings \(scenes\.seed: 0 -> 3\); choose another place"):
        data.main(["scenes", str(made), *SMALL, "seed=3"])
    with pytest.raises(ValueError, match=r"was made by other settings .*digits\.seed"):
        data.main(["digits", str(made)])
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before and (made / MADE).is_file()


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyboardInterrupt), filled(tmp_path / "empty") as draft:
        (draft / "half").write_text("half")
        raise KeyboardInterrupt
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]
    left = tmp_path / ".new.d2v-tmp"  # of a command that was killed
    left.mkdir()
    (left / "half").write_text("half")
    with filled(tmp_path / "new") as draft:
        (draft / "whole").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["whole"] and not left.exists()


def test_help_names_every_key():
    config, digits_config = (kind for kind, _ in data.GENERATED.values())
    for kind, keys in (("scenes", config.__annotations__), ("digits", digits_config.__annotations__)):
        (usage,) = re.findall(rf"^d2v data {kind} OUT (.*)$", data.__doc__ or "", flags=re.M)
        assert re.findall(r"\[(\w+)=", usage) == [*keys]
