"""One place has many spellings: of every setting that is a path they are one, and a name of digits stays as it is."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from d2v.config.differences import located
from d2v.config.find import find_config
from d2v.config.loading import load_config, save_yaml
from d2v.finetuning import config as finetuning
from d2v.finetuning.config import load
from d2v.settings import places_in
from d2v.training.run_folder import check_settings
from scripts import embed, evaluate

SPELLINGS = {
    "trailing slash": "here/",
    "two slashes": "here//",
    "dot": "./here",
    "dot inside": "x/../here",
    "absolute": "{cwd}/here",
    "absolute, trailing slash": "{cwd}/here/",
    "home": "~/here",
    "link": "link",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, which is the home folder too; `link` leads to `here` in it."""
    for name in ("here", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "here.txt").write_text("a b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def of_pretraining(modality: str, place: str, value: str):
    return load_config(f"{modality}/data2vec_tiny", [f"{place}={value}", "run.dir=run"]), {}


def of_fine_tuning(config: str, place: str, value: str):
    more = ["data.decode.beam=2", "data.decode.lm=x"] if "decode" in place else []
    return load([config, *more, f"{place}={value}", "run.dir=run"])[0], {"sections": finetuning.RESULT_SECTIONS}


def settings() -> list:
    """Each setting that is a path and may not change while a run goes on, of each kind of config."""
    found = []
    for modality in tiny.MODALITIES:
        config, _ = of_pretraining(modality, "run.dir", "run")
        found += [(of_pretraining, modality, name) for name in places_in(config) if name.startswith(("data", "train"))]
    for name in ("image/finetune_tiny", "text/finetune_tiny", "speech/finetune_tiny"):
        config, _ = of_fine_tuning(name, "run.dir", "run")
        found += [(of_fine_tuning, name, place) for place in places_in(config) if not place.startswith("run.")]
    return found


def test_all_places_are_known():
    """Those that a test of spellings must reach."""
    names = {name for _, _, name in settings()}
    assert names == {"data.path", "data.tokenizer", "train.init_from", "data.decode.lm", "data.decode.lexicon"}
    config, _ = of_pretraining("image", "run.dir", "run")
    assert {"run.dir", "run.probe.path", "evaluate.path", "evaluate.masks"} < set(places_in(config))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize(("make", "config", "place"), settings())
def test_another_spelling_of_a_place_is_no_other_run(make, config: str, place: str, spelling: str, here: Path):
    first, sections = make(config, place, "here")
    Path("run").mkdir()
    save_yaml(first.as_dict(), Path("run/config.yaml"))
    again, _ = make(config, place, spelling.format(cwd=here))
    check_settings(Path("run"), again, "auto", **sections)


@pytest.mark.parametrize(("make", "config", "place"), settings())
def test_another_place_is_another_run(make, config: str, place: str, here: Path):
    first, sections = make(config, place, "here")
    Path("run").mkdir()
    save_yaml(first.as_dict(), Path("run/config.yaml"))
    for others in ("elsewhere", "here/inside", "~"):
        another, _ = make(config, place, others)
        with pytest.raises(ValueError, match=rf"holds a run of another config \({place}: here -> "):
            check_settings(Path("run"), another, "auto", **sections)


def test_of_a_list_of_places_too(here: Path):
    first, _ = of_pretraining("image", "data.path", "[here,x]")
    Path("run").mkdir()
    save_yaml(first.as_dict(), Path("run/config.yaml"))
    again, _ = of_pretraining("image", "data.path", "[./here/,~/x]")
    check_settings(Path("run"), again, "auto")
    turned, _ = of_pretraining("image", "data.path", "[x,here]")
    with pytest.raises(ValueError, match=r"data.path"):
        check_settings(Path("run"), turned, "auto")


def test_the_word_demo_is_no_folder(here: Path):
    (here / "demo").mkdir()
    assert located("demo") != located("./demo") == str(here / "demo") and located("") == ""


def photos(folder: Path, number: int = 12) -> Path:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in range(number):
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def command(place: str, run: str, *more: str) -> list[str]:
    small = (*tiny.TRUNK, *tiny.SHORT, "train.steps=2", "run.save_every=1")
    return ["image/data2vec_tiny", f"data.path={place}", *small, f"run.dir={run}", *more]


def test_a_run_goes_on_by_another_spelling(here: Path, capsys):
    photos(here / "photos")
    (here / "linked").symlink_to("photos")
    tiny.run(command("photos", "~/runs/first"))  # not a folder of the name ~
    assert (here / "runs" / "first" / "export").is_dir() and not (here / "~").exists()
    for place in ("photos/", "./photos", str(here / "photos"), "~/photos//", "linked"):
        tiny.run(command(place, "./runs/first/"))
        assert "finished: nothing is changed" in capsys.readouterr().out


def test_parts_of_an_embedding_too(here: Path, monkeypatch):
    photos(here / "photos")
    tiny.run(command("photos", "run"))
    made: list[int] = []
    part = embed.Shards.add
    monkeypatch.setattr(
        embed.Shards, "add", lambda self, number, *more: (made.append(number), part(self, number, *more))
    )
    monkeypatch.setattr(embed.Shards, "join", lambda self, about=None: None)  # the parts stay
    for model, place in (("run", "photos"), ("./run/", "./photos/"), ("~/run", str(here / "photos"))):
        embed.main(["image/data2vec_tiny", f"model={model}", f"data.path={place}", "out=features.parquet"])
    assert made == [0]


NAMES = ["0123", "1e3", "yes", "null", "12:30:00", "1.50", "0x1f", "2026-11-28", "true"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_is_written(name: str, here: Path, monkeypatch):
    """On the command line, in a file, and for what is no setting: model and out."""
    config = load_config("image/data2vec_tiny", [f"run.dir={name}", f"data.path={name}", f"train.init_from={name}"])
    assert (config.run.dir, config.data.path, config.train.init_from) == (name, name, name)
    if name not in ("yes", "null", "true"):  # in a file these are words of YAML: quotes make them texts
        base = f"base: {find_config('image/data2vec_tiny')}\n"
        Path("mine.yaml").write_text(f"{base}data:\n  path: {name}\nrun:\n  dir: {name}\n")
        config = load_config("mine.yaml")
        assert (config.run.dir, config.data.path) == (name, name)
    seen = {}
    monkeypatch.setattr(evaluate, "evaluate", lambda config, models, **more: seen.update(models=models))
    evaluate.main(["image/data2vec_tiny", f"model={name},~/x", f"data.path={name}"])
    assert seen["models"] == [name, f"{here}/x"]
    with pytest.raises(ValueError, match=rf"out=out/{name} must end in|model={name}"):
        embed.main(["image/data2vec_tiny", f"model={name}", f"data.path={name}", f"out=out/{name}"])


def test_a_run_in_a_folder_whose_name_is_a_number(here: Path):
    photos(here / "0123")
    tiny.run(command("0123", "1e3"))
    assert (here / "1e3" / "export" / "config.json").is_file() and not (here / "83").exists()
    saved = load_config(str(here / "1e3" / "config.yaml"))
    assert (saved.run.dir, saved.data.path) == ("1e3", "0123")
