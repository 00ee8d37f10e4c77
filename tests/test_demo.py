"""The demo: data that is drawn, the same everywhere, apart between splits; and its last screen."""

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
from sklearn.neighbors import KNeighborsClassifier

from d2v.config.loading import load_config
from d2v.modalities.image import patterns
from d2v.modalities.speech import anagrams, synth
from d2v.modalities.text import topics
from d2v.protocols import NoSplitError
from d2v.training.explained import EXPLAINED
from d2v.training.verdict import Verdict
from scripts import demo

# drawn anew each time
DATA: dict[str, Any] = {
    "image": patterns.dataset.__wrapped__,
    "speech": anagrams.dataset.__wrapped__,
    "text": topics.dataset.__wrapped__,
}


@pytest.mark.parametrize("modality", tiny.first(DATA))
def test_demo_data_is_drawn_alike_each_time_and_no_split_repeats_another(modality: str):
    column = {"image": "image", "speech": "audio", "text": "text"}[modality]
    rows = {split: list(map(str, DATA[modality](split)[column])) for split in ("train", "validation", "test")}
    assert list(map(str, DATA[modality]("test")[column])) == rows["test"]
    every = [row for some in rows.values() for row in some]
    assert len(set(every)) == len(every)
    assert all(len(set(DATA[modality](split)["label"])) == demo.CLASSES for split in rows)
    with pytest.raises(NoSplitError, match=r"data.split 'dev': the demo has the splits train, validation, test"):
        DATA[modality]("dev")


@pytest.mark.parametrize("modality", DATA)
def test_demo_data_takes_two_seconds_of_a_processor_at_most(modality: str):
    start = time.process_time()
    DATA[modality]("train")
    assert time.process_time() - start < 6  # two of a processor that has nothing else to do


def test_no_pixel_tells_a_pattern():
    labels = np.arange(600) % 10
    train, test = (patterns.draw(labels, np.random.default_rng(seed)).reshape(600, -1) / 255 for seed in (7, 8))
    assert KNeighborsClassifier(5).fit(train, labels).score(test, labels) < 0.35  # 0.1 is chance
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    assert np.abs(means - means.mean(axis=0)).mean() < 0.05  # the average picture of each class is the same


def test_all_anagrams_have_the_same_sounds_and_voices_of_one_split_only():
    assert len({"".join(sorted(word)) for word in anagrams.WORDS}) == 1 and len(set(anagrams.WORDS)) == demo.CLASSES
    speakers = [set(anagrams.dataset(split)["speaker"]) for split in ("train", "validation", "test")]
    assert not speakers[0] & speakers[2] and not speakers[1] & speakers[2]
    wave, rate = soundfile.read(io.BytesIO(anagrams.dataset("test")[3]["audio"]["bytes"]))
    assert rate == synth.RATE and 0.8 < len(wave) / rate < 2.2


def test_words_of_the_synthesiser_are_as_before_and_longer_ones_have_all_their_vowels():
    two = synth.say("ia", 120, 1.0, np.random.default_rng(3))
    four = synth.say("iaiu", 120, 1.0, np.random.default_rng(3))
    assert len(two) == 3360 and np.allclose(two[:3], [0.01626453, 0.00079576, -0.0323519], atol=1e-6)
    assert abs(len(four) / len(two) - 2) < 2 * synth.FRAME / len(two)  # to whole frames


def test_a_topic_has_words_of_its_own_in_each_place():
    owner: dict[str, str] = {}
    for topic, parts in topics.TOPICS.items():
        assert len(parts) == len(topics.PLACES)
        for word in " ".join(parts).split():
            assert owner.setdefault(word, topic) == topic, word
    row = topics.dataset("train")[0]
    own = [word for word in row["text"].split() if owner.get(word) == list(topics.TOPICS)[row["label"]]]
    assert row["text"].count(" .") == 2 and len(own) >= 2


def outcomes(pretrained: float = 60.0) -> dict[str, demo.Outcome]:
    scores = {"raw input": (12.0, 14.0), "random init": (22.0, 20.0), "pretrained": (pretrained, 80.0)}
    of = {}
    for name in demo.CONFIGS:
        of[name] = demo.Outcome(Path("runs") / f"demo_{name}", scores, Verdict("healthy", ""), 300)
    return of


def recalls() -> dict[str, float]:
    return {f"{one} to {other}": 88.8 for one in demo.CONFIGS for other in demo.CONFIGS if one != other}


def test_the_last_screen_fits_a_terminal_and_explains_each_number():
    lines = demo.screen(outcomes(), recalls(), Path("runs"), 181.4)
    assert len(lines) <= 36 and max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "181 seconds" in text and "d2v pretrain image/data2vec_tiny data.path=photos/" in text
    for name in ("chance", "raw input", "random init", "pretrained", "k-NN", "probe", "verdict"):
        assert EXPLAINED[name] in " ".join(text.split())
    for name in demo.CONFIGS:
        row = next(line for line in lines if line.startswith(name) and "|" in line)
        assert [float(cell) for cell in row.replace("|", " ").split()[1:]] == [12, 14, 22, 20, 60, 80, 10]
        assert str(Path("runs") / f"demo_{name}" / "report.html") in text
    assert "not ahead" not in text


def test_the_last_screen_says_where_training_did_not_win():
    text = " ".join("\n".join(demo.screen(outcomes(pretrained=22.0), {}, Path("runs"), 5)).split())
    assert text.count("not ahead by k-NN after 300 steps: give it more") == 3


@pytest.mark.parametrize("modality", demo.CONFIGS)
def test_a_demo_tests_on_what_chose_no_setting(modality: str):
    config = load_config(demo.CONFIGS[modality], [])
    assert config.data.path.startswith("demo-") and config.train.seed == 1  # settings were chosen with seed 0
    assert config.evaluate.train_split == "train" and config.evaluate.test_split == "auto"


def test_a_demo_ends_with_its_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    small = [
        "train.steps=20",
        "train.warmup_steps=1",
        "train.batch_size=4",
        "model.trunk.depth=1",
        "run.health_samples=40",
    ]
    given = [*small, "evaluate.max_test=40", "evaluate.max_train=40", "evaluate.random_seeds=1"]
    for script in (demo.pretrain, demo.evaluate):
        whole = script.main
        monkeypatch.setattr(script, "main", lambda argv, whole=whole: whole([argv[0], *given, *argv[1:]]))
    demo.main(["text", f"runs={tmp_path}"])
    said = capsys.readouterr().out
    last = said[said.index("Percent of held-out samples") :]
    assert "verdict too early" in last and str(tmp_path / "demo_text" / "report.html") in last
    assert (tmp_path / "demo_text" / "report.html").is_file()


def test_the_readme_quotes_the_last_screen():
    page = (tiny.ROOT / "README.md").read_text("utf-8")
    quoted = page[page.index("Percent of held-out samples") :].partition("```")[0]

    def form(text: str) -> str:
        return re.sub(r" *[0-9.]+", " #", text).strip()

    assert form(quoted) == form("\n".join(demo.screen(outcomes(), recalls(), Path("runs"), 181)))
