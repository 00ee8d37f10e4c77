"""ABX of units within recordings: the file, the cutting and the means against loops, and the report on real sound."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.items import Unit, places_of, units_of
from d2v.evaluation.report import Subject, check_reports, make_reports
from d2v.evaluation.reports.abx import distances
from d2v.evaluation.reports.abx_items import EACH, chosen, item_errors, whole_tokens
from d2v.evaluation.splits import label_splits
from d2v.modalities.speech import DataConfig, FrontendConfig, Samples
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.trunk_config import TrunkConfig

HEAD = "#file onset offset #phone prev-phone next-phone speaker"
RATE = 8000
TONES = {"A": 300.0, "B": 1200.0, "C": 2600.0}


def slow_errors(units: list[Unit], distance: np.ndarray) -> dict[str, float]:
    """Triple by triple."""
    cells: dict = {}
    for a, b, x in product(range(len(units)), repeat=3):
        one, other, third = units[a], units[b], units[x]
        same = one.context == other.context == third.context and one.speaker == other.speaker
        if not same or one.phone == other.phone or one.phone != third.phone or a == x:
            continue
        kind = "within" if third.speaker == one.speaker else "across"
        gap = distance[a, x] - distance[b, x]
        key = (one.phone, other.phone), one.speaker, (one.context, third.speaker)
        cells.setdefault(kind, {}).setdefault(key[0], {}).setdefault(key[1], {}).setdefault(key[2], []).append(
            1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        )
    result = {}
    for kind, pairs in cells.items():
        of_pairs = []
        for speakers in pairs.values():
            of_pairs.append(np.mean([np.mean([np.mean(x) for x in by.values()]) for by in speakers.values()]))
        result[kind] = float(np.mean(of_pairs))
    return result


def test_the_means_are_those_of_all_triples():
    generator, units = np.random.default_rng(0), []
    for _ in range(40):
        phone, speaker, context = generator.choice(["p", "q", "r"]), generator.choice(["s", "t", "u"]), str(_ % 2)
        units.append(Unit("f", 0.0, 1.0, str(phone), (context, ""), str(speaker)))
    tokens = [torch.nn.functional.normalize(torch.randn(2 + n % 3, 3), dim=1) for n in range(40)]
    expected = slow_errors(units, distances(tokens))
    found = item_errors(list(zip(units, tokens, strict=True)), np.random.default_rng(0))
    assert set(expected) == {"within", "across"} and found == pytest.approx(expected, abs=1e-9)


def test_few_of_each_are_chosen_and_none_that_nothing_is_compared_with():
    units = [Unit("f", n, n + 1, phone, ("", ""), "s") for n in range(30) for phone in "pq"]
    alone = Unit("f", 0, 1, "z", ("x", "y"), "s")
    drawn = chosen([*units, alone], np.random.default_rng(0))
    assert len(drawn) == 2 * EACH and alone not in drawn


def test_the_file_is_read(tmp_path: Path):
    file = tmp_path / "some.item"
    file.write_text(f"{HEAD}\na/b 0.5 0.75 AH B K s1\n\nc 1 2 K AH B s2\n", encoding="utf-8")
    assert units_of(file) == [Unit("a/b", 0.5, 0.75, "AH", ("B", "K"), "s1"), Unit("c", 1, 2, "K", ("AH", "B"), "s2")]
    file.write_text("file onset offset phone\nc 1 2 K\n", encoding="utf-8")
    assert units_of(file) == [Unit("c", 1, 2, "K", ("", ""), "")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column 'file'"),
        ("file onset offset\na 0 1\n", "no column 'phone'"),
        (f"{HEAD}\na 1 1 p q r s\n", "line 2: 'a 1 1 p q r s': it must begin at 0 s or later, and end after that"),
        (f"{HEAD}\na nan 1 p q r s\n", "line 2"),
        (f"{HEAD}\na x 1 p q r s\n", "line 2: .*could not convert"),
        (f"{HEAD}\na 0 1 p q r\n", "line 2: .*6 cells under 7 columns"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str, said: str):
    file = tmp_path / "some.item"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        units_of(file)


def test_recordings_are_found_by_path_or_name():
    ids = ["x/one.wav", "y/two.wav", "y/three.wav", "z/three.wav"]
    assert places_of({"x/one", "two"}, ids) == {"x/one": 0, "two": 1}
    assert places_of({"y/two.wav", "one.wav", "nowhere"}, ids) == {"y/two.wav": 1, "one.wav": 0}
    with pytest.raises(ValueError, match=r"'three' may be y/three.wav or z/three.wav: name it by its path"):
        places_of({"three"}, ids)
    with pytest.raises(ValueError, match=r"none of its 2 recordings is in the data: such as 'a'"):
        places_of({"b", "a"}, ids)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder of recordings in which each speaker says tones in turn, and the lines of their file."""
    folder, generator, lines = tmp_path_factory.mktemp("spoken"), np.random.default_rng(0), [HEAD]
    for speaker, shift in (("s1", 1.0), ("s2", 1.02)):
        for take in range(3):
            wave, start = [], 0.0
            for phone in "ABCABC":
                seconds = generator.uniform(0.1, 0.2)
                time = np.arange(round(seconds * RATE)) / RATE
                wave.append(0.3 * np.sin(2 * np.pi * TONES[phone] * shift * time))
                lines.append(f"{speaker}_{take} {start:.4f} {start + seconds:.4f} {phone} - - {speaker}")
                start += seconds
            noisy = np.concatenate(wave) + 0.01 * generator.standard_normal(sum(map(len, wave)))
            soundfile.write(folder / f"{speaker}_{take}.wav", noisy, RATE)
    return folder, lines


def subject_of(folder: Path, items: str, seconds: float = 20.0) -> Subject:
    """Recordings read by a model of random weights."""
    frontend = FrontendConfig(kind="mel", sample_rate=RATE, conv_dim=16, pos_kernel=3, pos_depth=1, pos_groups=1)
    data = DataConfig(path=str(folder), max_seconds=seconds)
    samples = Samples(data, frontend, split="train", folder=folder)
    torch.manual_seed(0)
    model = D2vModel(D2vConfig({"speech": vars(frontend)}, vars(TrunkConfig(dim=16, depth=1, num_heads=2))))
    settings = EvaluateConfig(label="", items=items, reports=["abx_items"], layer="local")
    train, _ = label_splits(samples, None, settings)
    return Subject("mine", {"mine": model}, train, None, settings, folder)


def test_the_report_hears_tones_apart(spoken, tmp_path: Path):
    folder, lines = spoken
    file = tmp_path / "tones.item"
    gone = ["lost 0 0.1 A - - s1", "s1_0 0.001 0.002 A - - s1", "s1_0 100 101 A - - s1"]
    file.write_text("\n".join([*lines, *gone]), encoding="utf-8")
    (finding,) = make_reports(subject_of(folder, str(file)), ["abx_items"]).values()
    assert set(finding.numbers["mine"]) == {"within", "across"}
    assert finding.numbers["mine"]["within"] < 5 and finding.numbers["mine"]["across"] < 20
    assert "1 of 7 recordings are not in the data: lost" in finding.lines[0]
    assert "36 units; 2 without tokens of their own; chance 50" in finding.lines[1]
    shuffled = [line.split() for line in lines[1:]]
    phones = np.random.default_rng(1).permutation([cells[3] for cells in shuffled])
    relabelled = [" ".join([*cells[:3], phone, *cells[4:]]) for cells, phone in zip(shuffled, phones, strict=True)]
    file.write_text("\n".join([HEAD, *relabelled]), encoding="utf-8")
    (finding,) = make_reports(subject_of(folder, str(file)), ["abx_items"]).values()
    assert finding.numbers["mine"]["within"] > 35


def test_recordings_that_are_not_read_at_once_have_the_same_number_of_tokens(spoken):
    folder, _ = spoken
    whole, cut = subject_of(folder, ""), subject_of(folder, "", seconds=0.4)
    unreadable: dict[str, str] = {}
    expected = dict(whole_tokens(whole, whole.encoder, whole.train.indices, unreadable))
    found = dict(whole_tokens(cut, cut.encoder, cut.train.indices, unreadable))
    assert not unreadable and {key: x.shape for key, x in found.items()} == {
        key: x.shape for key, x in expected.items()
    }
    torch.testing.assert_close(found[0][3:-3], expected[0][3:-3], rtol=0, atol=0.3)


def test_what_the_report_needs_is_asked_before(spoken, tmp_path: Path):
    folder, lines = spoken
    with pytest.raises(ValueError, match=r"abx_items needs evaluate.items"):
        check_reports(subject_of(folder, ""), ["abx_items"])
    with pytest.raises(ValueError, match=r"evaluate.items .*nowhere.item cannot be read"):
        check_reports(subject_of(folder, str(tmp_path / "nowhere.item")), ["abx_items"])
    file = tmp_path / "one.item"
    file.write_text("\n".join(lines[:2]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no two phones of one speaker and context"):
        make_reports(subject_of(folder, str(file)), ["abx_items"])
