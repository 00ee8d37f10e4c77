"""d2v search: words, pictures and sounds against what d2v embed wrote of any of them, and its picture of first hits."""

import json
from pathlib import Path

import aligned
import colours
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from d2v.evaluation.index import read_index
from d2v.models.alignment import D2vForAlignment
from scripts import embed, search

QUERIES = {"image": "files/{}0.png", "speech": "files/{}0.wav", "text": "a {} square"}
NAMES = {"image": "files/{}", "speech": "files/{}", "text": "train:"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with table.csv, its files, a model in export/ and another in other/, and an index of each modality."""
    folder = tmp_path_factory.mktemp("world")
    samples = aligned.samples_of(colours.write_world(folder, 6), folder / "prepared")
    aligned.export(aligned.model_of(samples), samples, folder / "prepared", folder / "export")
    aligned.export(aligned.model_of(samples, 1), samples, folder / "prepared", folder / "other")
    aligned.write_configs(folder)
    for name in aligned.FRONTENDS:
        out = [f"out={folder / name}.parquet", f"data.path={folder / 'table.csv'}"]
        embed.main([str(folder / f"{name}.yaml"), f"model={folder / 'export'}", *out])
        plain = [f"out={folder / name}_plain.parquet", "embed.layers=[last]"]
        embed.main([str(folder / f"{name}.yaml"), f"model={folder / 'export'}", *out[1:], *plain])
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch) -> None:
    monkeypatch.chdir(world)


def found(capsys, *argv: str) -> list[list[str]]:
    """Cosine, id and words of each hit."""
    capsys.readouterr()
    search.main(list(argv))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("picture: ")
    return [line.split(maxsplit=2) for line in lines[:-1]]


@pytest.mark.parametrize("held", aligned.FRONTENDS)
@pytest.mark.parametrize("asked", aligned.FRONTENDS)
def test_each_modality_finds_each_other(asked: str, held: str, world, capsys):
    labels = [line.split(",")[3] for line in (world / "table.csv").read_text().splitlines()[1:]]
    rows = {name: row for row, name in enumerate(read_index(world / f"{held}.parquet").ids)}
    colour = "red" if asked < held else "blue"
    hits = found(capsys, f"{held}.parquet", f"query={QUERIES[asked].format(colour)}", "k=6")
    assert [labels[rows[name]] for _, name, *_ in hits] == [colour] * 6
    assert float(hits[0][0]) > 0.9
    assert held != "text" or all(words == [f"a {colour} square"] for _, _, *words in hits)


def test_a_table_says_how_it_was_made_and_holds_what_the_model_projects(world):
    index = read_index(world / "speech.parquet")
    assert index.projected and index.about["modality"] == "speech" and index.about["model"] == str(world / "export")
    assert np.linalg.norm(index.features, axis=1) == pytest.approx(1, abs=1e-5) and index.features.shape == (24, 4)
    samples = aligned.samples_of(world / "table.csv", world / "prepared")["speech"]
    model = D2vForAlignment.from_pretrained(world / "export").eval()
    with torch.no_grad():
        assert index.features[5] == pytest.approx(model.project(samples.view([5]))[0].numpy(), abs=1e-5)
    plain = read_index(world / "speech_plain.parquet")
    assert not plain.projected and plain.features.shape == (24, 32)


def test_plain_features_are_sought_by_their_own_modality(capsys):
    hits = found(capsys, "image_plain.parquet", "query=files/green3.png", "k=3")
    assert hits[0] == ["1.000", "files/green3.png"] and hits == found(
        capsys, "image_plain.parquet", "id=files/green3.png", "k=3"
    )


def test_the_picture_shows_query_and_hits(world, capsys, monkeypatch):
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: saved.append(self) or save(self, *args, **more))
    found(capsys, "image.parquet", "query=a yellow square", "k=7")
    assert Image.open(world / "image_search.png").format == "PNG"
    (figure,) = saved
    assert len(figure.axes) == 8  # the query, five hits behind it, two below
    assert figure.axes[0].texts[0].get_text() == "a yellow square"
    pixels = figure.axes[1].images[0].get_array()
    assert pixels[..., :2].mean() > 180 and pixels[..., 2].mean() < 80
    found(capsys, "image.parquet", "query=a red square")  # takes the place of its own picture
    Path("mine.png").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.png exists"):
        search.main(["image.parquet", "query=a red square", "out=mine.png"])
    assert Path("mine.png").read_text() == "mine"
    with pytest.raises(ValueError, match=r"out=hits.jpg must end in .png"):
        search.main(["image.parquet", "query=a red square", "out=hits.jpg"])


def test_one_word_and_a_file_of_words_are_queries(capsys):
    Path("words.txt").write_text("a green\nsquare\n")
    assert search.kind_of("words.txt")[0] == search.kind_of("green")[0] == search.kind_of("a/b of c")[0] == "text"
    assert len(found(capsys, "image.parquet", "query=green", "k=2")) == 2
    hits = found(capsys, "image.parquet", "query=words.txt", "k=2")
    assert hits == found(capsys, "image.parquet", "query=a green\nsquare", "k=2")


def test_files_that_have_moved(world, capsys, tmp_path, monkeypatch):
    """Of an index that lies elsewhere, without its files: names are drawn, until they are found again."""
    table = pq.read_table("image.parquet")
    about = json.loads(table.schema.metadata[b"d2v"])
    about["data"]["path"] = about["model"] = "/nowhere/at/all"
    gone = tmp_path / "image.parquet"
    pq.write_table(table.replace_schema_metadata({"d2v": json.dumps(about)}), gone)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="made by the model /nowhere/at/all, which is gone; model=PATH"):
        search.main(["image.parquet", "query=a red square"])
    search.main(["image.parquet", "query=a red square", f"model={world / 'export'}", "k=2"])
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("the picture has names only: data.path '/nowhere/at/all' does not exist")
    search.main(
        ["image.parquet", "query=a red square", f"model={world / 'export'}", f"data.path={world / 'table.csv'}", "k=2"]
    )
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["image.parquet"], "usage: d2v search"),
        (["image.parquet", "query=a", "id=b"], "usage: d2v search"),
        (["image.parquet", "query=red0.png"], r"query=red0.png looks like a file, and there is none \(looked for /"),
        (["image.parquet", "query=files/red"], "query=files/red looks like a file, and there is none"),
        (["image.parquet", "query=export/model.safetensors"], "neither a picture nor a sound that is read, nor .txt"),
        (["image.parquet", "query= "], "has no words"),
        (["image_plain.parquet", "query=a red square"], "holds features of image that are not projected, so that a"),
        (["image_plain.parquet", "query=files/red0.wav"], "a query of speech cannot be compared with them"),
        (["image.parquet", "query=a red square", "model=other"], "other is another model"),
        (["image_plain.parquet", "query=files/red0.png", "model=other"], "other is another model"),
        (["image.parquet", "query=broken.png"], "query=.*broken.png cannot be read by image: UnidentifiedImageError"),
        (["empty.parquet", "query=a red square"], "has no rows: there is nothing to search"),
        (["foreign.parquet", "query=a red square"], "does not say which model made it"),
        (["odd.parquet", "query=a red square"], "does not say what this version of d2v embed writes"),
        (["none.parquet", "query=a red square"], "none.parquet does not exist: `d2v embed CONFIG"),
    ],
)
def test_what_cannot_be_sought_is_one_line(argv: list[str], said: str):
    table = pq.read_table("image.parquet")
    pq.write_table(table.slice(0, 0), "empty.parquet")
    pq.write_table(table.replace_schema_metadata(None), "foreign.parquet")
    pq.write_table(table.replace_schema_metadata({"d2v": '{"model": "x"}'}), "odd.parquet")
    Path("broken.png").write_text("no picture")
    with pytest.raises(ValueError, match=said) as caught:
        search.main(argv)
    assert "\n" not in str(caught.value)


def test_a_model_that_aligns_others_is_named(world):
    """Speech has a frontend, and no projection."""
    model = D2vForAlignment.from_pretrained(world / "export")
    model.projections.pop("speech")
    D2vForAlignment.of(model.encoder, model.projections).save_pretrained(world / "two")
    with pytest.raises(ValueError, match="two aligns image, text: a query of speech cannot be compared"):
        search.main(["image.parquet", "query=files/red0.wav", "model=two"])


def test_projected_is_asked_of_a_model_that_projects(world):
    command = [
        str(world / "image.yaml"),
        f"model={world / 'plain'}",
        f"data.path={world / 'table.csv'}",
        "out=x.parquet",
    ]
    D2vForAlignment.from_pretrained(world / "export").encoder.save_pretrained(world / "plain")
    with pytest.raises(ValueError, match="this model aligns no modalities"):
        embed.main([*command, "embed.layers=[projected]"])
    embed.main(command)
    assert read_index(Path("x.parquet")).about["embed"]["layers"] == ["last"]
    for settings, said in (
        (["embed.layers=[projected,last]"], 'may hold "last", "local" or numbers of blocks'),
        (["embed.layers=[projected]", "embed.pool=first"], "is of embed.pool=mean only"),
    ):
        with pytest.raises(ValueError, match=said):
            embed.main([*command, *settings])
