"""What README.md and docs/ have a newcomer type, on a flat folder, class folders, train and test folders, and a table.

Every command with the recipe as typed; overrides are of length and of the size of the model alone.
"""

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from PIL import Image
from transformers import AutoModel

from d2v.training.loop import Loop
from scripts import convert, data, embed, evaluate, finetune, pretrain, search

LAYOUTS = ("flat", "classes", "splits", "table")
PLACES = [  # each layout in one modality, in turn
    pytest.param(modality, layout, marks=() if n % len(tiny.MODALITIES) == m else pytest.mark.slow)
    for m, modality in enumerate(tiny.MODALITIES)
    for n, layout in enumerate(LAYOUTS)
]
SMALL = {
    "image": ("model.frontends.image.image_size=16", "model.frontends.image.patch_size=8", "data.min_block=1"),
    "speech": ("model.frontends.speech.conv_dim=16",),
    "text": (),
}
LENGTH = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=4", "run.log_every=1", "run.save_every=2")
CHECKS = ("run.health_every=2", "run.health_samples=16")
SCORES = ("evaluate.random_seeds=1", "evaluate.probe_steps=2", "evaluate.k=[2]")
COUNT, WORDS = 24, ("the", "house", "of", "winter", "was", "old", "and", "he", "read", "on", "without", "a", "word")


def picture(file: Path, generator: np.random.Generator) -> None:
    Image.fromarray(generator.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(file)


def recording(file: Path, generator: np.random.Generator) -> None:
    soundfile.write(file, 0.1 * generator.standard_normal(24000), 16000)


def text(file: Path, generator: np.random.Generator) -> None:
    file.write_text("\n".join(" ".join(generator.choice(WORDS, 12)) for _ in range(10)))


WRITE = {"image": (picture, "png"), "speech": (recording, "wav"), "text": (text, "txt")}


def made(folder: Path, modality: str, layout: str) -> Path:
    """Files in a layout; what data.path is."""
    generator, (write, suffix) = np.random.default_rng(0), WRITE[modality]
    rows = []
    for number in range(COUNT * (1 + 2 * (modality == "text" and layout == "table"))):
        name, split = ("cat", "dog")[number % 2], "test" if number % 4 > 1 else "train"
        place = {"classes": Path(name), "splits": Path(split, name), "table": Path("files")}.get(layout, Path())
        (folder / place).mkdir(parents=True, exist_ok=True)
        if layout == "table" and modality == "text":
            rows.append((" ".join(generator.choice(WORDS, 12)), name))
            continue
        write(folder / place / f"{number}.{suffix}", generator)
        rows.append((f"files/{number}.{suffix}", name))
    if layout != "table":
        return folder
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([({"image": "image", "speech": "file", "text": "text"}[modality], "label"), *rows])
    return folder / "table.csv"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory; runs draw no pictures, which take seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Loop, "plot", lambda self: None)
    monkeypatch.setattr("d2v.training.pretraining._write_page", lambda *_: None)
    return tmp_path


def trains_on(layout: str) -> str:
    return "splits: train is trained on" if layout == "splits" else "no splits: all of it is trained on"


@pytest.mark.parametrize(("modality", "layout"), PLACES)
def test_every_command_of_the_first_hour(modality, layout, place, capsys):
    recipe, has_labels = f"{modality}/data2vec_tiny", layout != "flat"
    given = f"data.path={made(place / 'mine', modality, layout)}"

    data.main([recipe, given])
    said = capsys.readouterr().out
    assert trains_on(layout) in said and said.count("\n") <= 7
    assert {"image": "typical size: 96 x 80", "speech": "typical length: 1.5 s", "text": "typical text: "}[
        modality
    ] in said
    assert ("test is scored by `d2v evaluate`" in said) == (layout == "splits")

    trunk = [*tiny.TRUNK, *SMALL[modality]]
    pretrain.main([recipe, given, "run.dir=run", *trunk, *LENGTH, *CHECKS])
    said = capsys.readouterr().out
    assert trains_on(layout) in said and "verdict: " in said
    assert ("k-NN by 'label'" in said) == has_labels
    assert ("no k-NN, as the data has no column 'label'" in said) != has_labels

    result = evaluate.main([recipe, "model=run/export", given, *SCORES])
    said = capsys.readouterr().out
    assert bool(result["rows"]) == has_labels and ("geometry" in said) != has_labels
    assert bool(result["test_samples"]) == (layout == "splits")

    embed.main([recipe, "model=run/export", given, "out=features.parquet"])
    said, table = capsys.readouterr().out, pq.read_table("features.parquet")
    assert ("splits: train is embedded; not read: test" in said) == (layout == "splits")
    rows = COUNT // (1 + (layout == "splits"))
    if modality == "text":  # ten lines a file; where folders are classes, a file is a text
        rows = {"flat": 10 * COUNT, "table": 3 * COUNT}.get(layout, rows)
    assert len(table) == rows
    search.main(["features.parquet", f"id={table['id'][0]}"])
    assert capsys.readouterr().out.count("\n") > 2

    tune = [f"{modality}/finetune_tiny", "model=run/export", given, "run.dir=tuned", *LENGTH]
    if not has_labels:
        with pytest.raises(ValueError, match=r"has nothing to learn|has no column") as caught:
            finetune.main(tune)
        assert "\n" not in str(caught.value) and "folders" in str(caught.value)
        assert not Path("tuned/config.yaml").exists()
    else:
        scores = finetune.main(tune)
        said = capsys.readouterr().out
        assert 0 <= scores["validation"]["accuracy"] <= 1 and "but for 10% of it, which chooses the best model" in said
        assert ("not read: test (data.test_split=test scores it at the end)" in said) == (layout == "splits")
        assert AutoModel.from_pretrained("tuned/export").config.model_type == "d2v"
    assert AutoModel.from_pretrained("run/export").config.model_type == "d2v"


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image", "speech"])
def test_a_first_model_becomes_onnx(modality, place):
    pytest.importorskip("onnxruntime")
    given = f"data.path={made(place / 'mine', modality, 'classes')}"
    pretrain.main([f"{modality}/data2vec_tiny", given, "run.dir=run", *tiny.TRUNK, *SMALL[modality], *LENGTH, *CHECKS])
    convert.main(["run/export", "model.onnx"])
    assert Path("model.onnx").stat().st_size > 1000


# Letters or classes of speech.


def spoken(folder: Path, columns: dict[str, list[str]]) -> Path:
    """Forty recordings and a table of them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = [["file", *columns]]
    for number in range(40):
        recording(folder / f"{number}.wav", generator)
        rows.append([f"{number}.wav", *(values[number % len(values)] for values in columns.values())])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


TEXTS, SAME, CLASSES = ["a cat", "a dog", "no cat", "no dog"], ["yes", "no"], ["y", "n"]


@pytest.mark.parametrize(
    ("columns", "said", "learned"),
    [
        (
            {"label": CLASSES},
            "learns classes: the column 'label' (data.label); data.transcript=COLUMN learns letters",
            2,
        ),
        ({"text": TEXTS}, "learns letters: the column 'text' (data.transcript); data.label=COLUMN learns classes", 10),
        ({"sentence": TEXTS}, "learns letters: the column 'sentence' (data.transcript); data.label=COLUMN", 10),
        ({"label": CLASSES, "text": TEXTS}, "learns letters: .* column 'label' too; data.label=label learns these", 10),
        (
            {"label": CLASSES, "text": SAME},
            "learns classes: .* says the same of all in a class; data.transcript=text",
            2,
        ),
    ],
)
def test_speech_learns_letters_or_classes_by_what_the_data_has(columns, said, learned, place, capsys):
    given = f"data.path={spoken(place / 'mine', columns)}"
    finetune.main(["speech/finetune_tiny", given, "run.dir=tuned", *tiny.TRUNK[:-1], *LENGTH, "train.freeze_steps=1"])
    assert re.search(said.replace("(", r"\(").replace(")", r"\)"), capsys.readouterr().out)
    assert AutoModel.from_pretrained("tuned/export").config.num_labels == learned


def test_texts_beside_recordings_are_their_transcripts(place, capsys):
    spoken(place / "mine", {}).unlink()
    for number in range(40):
        (place / "mine" / f"{number}.txt").write_text(f"{TEXTS[number % 4]}\n")
    data.main(["speech/finetune_tiny", f"data.path={place / 'mine'}"])
    said = capsys.readouterr().out
    assert "learns letters: the column 'text'" in said and "letters: 7: a c d g n o t" in said
    assert "beside recordings: 40 .txt" in said and "not read" not in said


@pytest.fixture
def librispeech(place) -> Path:
    """As it is distributed: subsets, speakers, chapters, and a list of transcripts for each chapter."""
    generator = np.random.default_rng(0)
    for number, subset in enumerate(("train-clean-100", "train-other-500", "dev-clean", "test-clean", "test-other")):
        for speaker in (number, 10 + number):
            chapter = place / "LibriSpeech" / subset / str(speaker) / "7"
            chapter.mkdir(parents=True)
            lines = []
            for clip in range(8):
                recording(chapter / f"{speaker}-7-000{clip}.flac", generator)
                lines.append(f"{speaker}-7-000{clip} {TEXTS[clip % 4].upper()}")
            (chapter / f"{speaker}-7.trans.txt").write_text("\n".join(lines) + "\n")
    (place / "LibriSpeech" / "SPEAKERS.TXT").write_text("14 | F | ...")
    return place / "LibriSpeech"


def test_librispeech_is_divided_as_it_is_distributed(librispeech, place, capsys):
    data.main(["speech/data2vec_tiny", f"data.path={librispeech}"])
    said = capsys.readouterr().out
    assert "32 of 32 samples usable" in said and "classes: 4: 0 8, 1 8, 10 8, 11 8" in said  # speakers
    assert "splits: train-clean-100 and train-other-500 is trained on; test-clean and test-other is scored by" in said
    assert "not read: dev-clean" in said
    data.main(["speech/data2vec_tiny", f"data.path={librispeech.parent}", "data.split=train-other-500"])
    assert "16 of 16 samples usable" in capsys.readouterr().out


def test_librispeechs_transcripts_are_learnt(librispeech, capsys):
    more = [f"data.path={librispeech}", "data.split=train-clean-100", "data.validation_split=validation"]
    more += ["data.test_split=test-clean+test-other", "data.validation_share=0"]
    data.main(["speech/finetune_tiny", *more])
    said = capsys.readouterr().out
    assert "learns letters: the column 'text'" in said and "letters: 7: A C D G N O T" in said
    assert (
        "train-clean-100 is trained on; dev-clean chooses the best model; test-clean and test-other is scored" in said
    )
    assert "not read: train-other-500" in said


def test_common_voices_tables_find_their_clips(place, capsys):
    spoken(place / "cv", {"sentence": TEXTS})
    (place / "cv" / "clips").mkdir()
    for file in (place / "cv").glob("*.wav"):
        file.rename(place / "cv" / "clips" / file.name)
    rows = (place / "cv" / "table.csv").read_text().replace(",", "\t").replace("file", "path").splitlines()
    (place / "cv" / "table.csv").unlink()
    for name, some in (("train", rows[1:31]), ("dev", rows[31:36]), ("test", rows[36:]), ("other", rows[1:5])):
        (place / "cv" / f"{name}.tsv").write_text("\n".join([rows[0], *some]) + "\n")
    data.main(["speech/finetune_tiny", f"data.path={place / 'cv' / 'train.tsv'}"])
    assert "30 of 30 samples usable" in capsys.readouterr().out
    more = ["data.validation_split=dev", "data.validation_share=0", "data.test_split=test"]
    data.main(["speech/finetune_tiny", f"data.path={place / 'cv' / '*.tsv'}", *more])
    said = capsys.readouterr().out
    assert "learns letters: the column 'sentence'" in said and "30 of 30 samples usable" in said
    assert "splits: train is trained on; dev chooses the best model; test is scored at the end" in said


def test_the_other_kind_is_one_setting(place, capsys):
    given = f"data.path={spoken(place / 'mine', {'label': CLASSES, 'text': TEXTS})}"
    data.main(["speech/finetune_tiny", given, "data.label=label"])
    assert "learns classes: the column 'label' (data.label)\n" in capsys.readouterr().out
    data.main(["speech/finetune_tiny", given, "data.transcript=text"])
    assert "learns letters: the column 'text' (data.transcript)\n" in capsys.readouterr().out


def test_speech_without_either_is_told_what_to_give(place):
    given = f"data.path={spoken(place / 'mine', {'speaker': CLASSES})}"
    message = r"neither classes \(sub-folders, or a column 'label'\) nor transcripts .* its columns are file, speaker;"
    with pytest.raises(ValueError, match=message):
        finetune.main(["speech/finetune_tiny", given, "run.dir=tuned"])


@pytest.mark.parametrize(("given", "kind"), [("data.label=label", "classes"), ("data.transcript=text", "letters")])
def test_settings_of_one_kind_lie_below_those_that_are_given(given, kind, tmp_path):
    from d2v.finetuning.config import load

    config, _ = load(["speech/finetune_tiny", given, f"run.dir={tmp_path}"])
    assert (config.train.steps, config.train.batch_size) == {"classes": (400, 32), "letters": (1000, 4)}[kind]
    assert config.train.weight_decay == 0.01  # of both
    config, _ = load(["speech/finetune_tiny", given, f"run.dir={tmp_path}", "train.batch_size=7", "train={lr: 0.5}"])
    assert (config.train.batch_size, config.train.lr) == (7, 0.5)
