"""report.html of a run: everything is in it, nothing is fetched, nothing of the user's becomes markup."""

import base64
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image

from d2v.training.explained import EXPLAINED
from d2v.training.page import Shown, Summary, nearest, write_page
from scripts import finetune

PICTURE = re.compile(r'src="data:image/png;base64,([^"]+)"')
VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Tags that are open, and the names of all that were."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def pictures(page: str) -> list[np.ndarray]:
    """The pixels of all pictures in a page."""
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in PICTURE.findall(page)]


class Odd:
    """Samples whose names and texts are markup."""

    ids: ClassVar = ["<script>alert(1)</script>", 'a"onerror="x', "{brace}", "&amp;", "e", "f", "broken"]

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, index: int):
        if index == 6:
            raise ValueError("cannot identify <image> file")
        return "<b>bold</b> </pre>" if index % 2 else Image.fromarray(np.eye(9, dtype=np.uint8) * (9 * index + 20))


def summary(**changed) -> Summary:
    given = {
        "title": "<i>run</i>", "state": "healthy", "reason": "rank < 3 & more", "advice": "",
        "headings": ("<s>", "init", "end"), "numbers": [("<u>", "", "1")],
        "report": ["image: 7 of 7 <usable>"], "settings": "run: {dir: </pre><script>}", "commands": ["d2v embed a<b"],
    }  # fmt: skip
    return Summary(**(given | changed))


def test_names_and_texts_do_not_reach_markup(tmp_path: Path):
    write_page(tmp_path, summary(), [Shown(Odd(), list(range(7)), torch.randn(7, 4))])
    page = (tmp_path / "report.html").read_text("utf-8")
    parser = Balanced()
    parser.feed(page)
    assert not parser.open and not {"script", "b", "i", "u", "s", "image", "usable"} & parser.seen
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "cannot identify &lt;image&gt; file" in page


def test_neighbours_are_by_the_cosine_without_the_mean_and_the_query_comes_first():
    features = torch.randn(20, 5) + 9
    rows = nearest(features, [3, 7], 4)
    centred = features - features.mean(dim=0)
    for query, row in zip([3, 7], rows, strict=True):
        cosines = torch.cosine_similarity(centred[query], centred, dim=1)
        assert row[0] == query and row[1:] == [n for n in cosines.argsort(descending=True).tolist() if n != query][:4]


def test_features_that_are_not_finite_leave_the_rows_of_neighbours_out(tmp_path: Path):
    write_page(tmp_path, summary(state="collapsed", advice="lower train.lr"), [Shown(Odd(), [], None)])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Nearest samples" not in page and "lower train.lr" in page


@pytest.fixture(scope="module", params=tiny.first(tiny.MODALITIES))
def run(request) -> Path:
    """The folder of a whole run."""
    return tiny.finished(request.param)


def sections(page: str) -> dict[str, str]:
    """What is below each heading."""
    parts = page.split("<h2>")[1:]
    return {html.unescape(part.partition("</h2>")[0]): part.partition("</h2>")[2] for part in parts}


def check_whole(run: Path, *titles: str) -> dict[str, str]:
    """The sections of a page, of which none is empty, no picture constant, and nothing fetched."""
    page = (run / "report.html").read_text("utf-8")
    parser = Balanced()
    parser.feed(page)
    assert not parser.open and not parser.seen & {"script", "link", "iframe"}
    assert len(page) < 2e6
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in re.sub(PICTURE, "", page)
    assert "url(" not in page and "@import" not in page
    found = sections(page)
    assert set(found) >= set(titles)
    assert all(len(re.sub("<[^>]*>", "", part).strip()) > 10 or "<img" in part for part in found.values())
    assert all(pixels.std() > 0 for pixels in pictures(page))
    return found


def test_the_page_of_a_run_is_whole_and_fetches_nothing(run: Path):
    found = check_whole(run, "Numbers", "Data", "Nearest samples, by the student's features", "Go on", "Settings")
    near = found["Nearest samples, by the student's features"]
    assert ("Curves" in found) == (run / "curves.png").is_file()
    assert "d2v embed" in found["Go on"] and "too early" in (run / "report.html").read_text("utf-8")
    if "text" not in run.name:
        assert len(pictures(found["Data"])) == 12 and len(pictures(near)) == 4 * 6
    else:
        assert found["Data"].count('class="text"') == 12 and near.count('class="text"') == 4 * 6
    if "speech" in run.name:
        assert all(pixels.shape[1] > pixels.shape[0] for pixels in pictures(found["Data"]))  # spectrograms


def test_every_number_of_a_page_is_explained_by_the_sentence_that_the_demo_shows(run: Path):
    numbers = sections((run / "report.html").read_text("utf-8"))["Numbers"]
    rows = re.findall(r'<tr><td>(\w+)</td>.*?<td class="hint">(.*?)</td></tr>', numbers)
    assert {"student_rank", "student_knn", "loss", "grad_norm"} <= {name for name, _ in rows}
    assert all(said for _, said in rows)
    assert html.unescape(dict(rows)["student_knn"]).endswith(EXPLAINED["k-NN"])


def test_maps_are_of_encoders_whose_tokens_lie_in_a_grid(run: Path):
    found = sections((run / "report.html").read_text("utf-8"))
    shown = {"Patches", "Attention"} & set(found)
    assert shown == ({"Patches", "Attention"} if "image" in run.name else set())
    assert all(len(pictures(found[title])) == 1 for title in shown)


def test_a_whole_network_of_timm_has_a_page_without_maps(tmp_path: Path):
    folder = tmp_path / "run"
    network = ["model.frontends.image={image_size: 32, backbone: test_resnet, small_stem: false}", "model.trunk.dim=96"]
    data = ["data.path=demo", "data.split=train", "evaluate.path=''", *tiny.small_heads("simclr")]
    steps = [
        "train.steps=2",
        "train.warmup_steps=1",
        "train.batch_size=4",
        "run.health_every=1",
        "run.health_samples=16",
    ]
    config = str(tiny.ROOT / "configs" / "image" / "simclr_tiny.yaml")
    tiny.pretrain.main([config, *network, *data, *steps, f"run.dir={folder}"])
    found = check_whole(folder, "Numbers", "Data", "Settings")
    assert not {"Patches", "Attention"} & set(found)
    assert "simclr" in found["Settings"]  # which has no teacher


@pytest.mark.pictures
def test_a_run_of_fine_tuning_has_a_page(tmp_path: Path):
    folder = tmp_path / "run"
    model = tiny.finished("image") / "export"
    data = ["data.path=demo", "data.test_split=test", "data.mean=[0.3]", "data.std=[0.38]"]
    steps = ["train.steps=4", "train.warmup_steps=1", "train.batch_size=8", "run.log_every=1", "run.save_every=4"]
    config = str(tiny.ROOT / "configs" / "image" / "finetune_tiny.yaml")
    finetune.main([config, f"model={model}", *data, *steps, f"run.dir={folder}"])
    found = check_whole(folder, "Numbers", "Curves", "Data", "Go on", "Settings")
    confused = "Which classes are taken for which, test"
    assert (
        "accuracy" in found["Numbers"] and "<th>test</th>" in found["Numbers"] and len(pictures(found[confused])) == 1
    )
    assert "AutoModelForImageClassification" in found["Go on"] and len(pictures(found["Data"])) == 12


def test_a_finished_command_repeated_changes_nothing(run: Path, capsys: pytest.CaptureFixture):
    modality = run.name.split("_")[1]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    tiny.pretrain.main(tiny.arguments(modality, run, tiny.using("data2vec"), *tiny.DROPOUT))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert "holds this run, finished: nothing is changed" in said and "verdict: too early" in said


@pytest.mark.pictures
def test_a_run_that_was_killed_before_its_page_gets_all_of_it(run: Path, tmp_path: Path, capsys):
    folder, modality = tmp_path / "run", run.name.split("_")[1]
    shutil.copytree(run, folder)
    sections = re.findall("<h2>([^<]*)</h2>", (folder / "report.html").read_text("utf-8"))
    records = (folder / "metrics.jsonl").read_bytes()
    drawn = {file.name for file in folder.glob("*.png")}
    for file in [*folder.glob("*.png"), folder / "report.html"]:
        file.unlink()
    shutil.rmtree(folder / "export")
    tiny.pretrain.main(tiny.arguments(modality, folder, tiny.using("data2vec"), *tiny.DROPOUT))
    assert re.findall("<h2>([^<]*)</h2>", (folder / "report.html").read_text("utf-8")) == sections
    assert {file.name for file in folder.glob("*.png")} == drawn and "curves.png" in drawn
    assert (folder / "metrics.jsonl").read_bytes() == records
    tiny.assert_same(*(tiny.load(one / "export" / "model.safetensors") for one in (folder, run)))
    assert f"report in {folder / 'report.html'}, curves in {folder / 'curves.png'}" in capsys.readouterr().out


def test_a_browser_shows_the_page(run: Path, tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium, such as Debian's package")
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1600", f"--screenshot={shot}"]
    subprocess.run([browser, *options, (run / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5 and (pixels < 128).mean() > 0.005


def test_a_setting_that_is_newer_than_a_run_had_its_default(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """A run of an earlier version goes on, unless the new setting is given another value."""
    folder, modality = tmp_path / "run", run.name.split("_")[1]
    shutil.copytree(run, folder)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["model"]["frontends"][modality]["init_std" if modality != "speech" else "reference_padding"]
    del values["train"]["decay_all"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    command = tiny.arguments(modality, folder, tiny.using("data2vec"), *tiny.DROPOUT)
    if modality != "image":  # whose demo gives init_std another value than the default
        tiny.pretrain.main(command)
        assert "finished: nothing is changed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run of another config \(.*train\.decay_all: False -> True"):
        tiny.pretrain.main([*command, "train.decay_all=true"])
