"""Addresses: what lies on a server is fetched whole, once, again if it changed, and a server that fails is one line."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from PIL import Image

from d2v import cache, plugins
from d2v.modalities.common import remote
from scripts import data as data_script


class Server(SimpleHTTPRequestHandler):
    """Gives files, of which it counts how often; the first answers of those in `failing` are errors."""

    asked: ClassVar[dict[str, int]] = {}
    failing: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked[name] = self.asked.get(name, 0) + 1
        if self.failing.get(name, 0):
            self.failing[name] -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address by which it is served; the cache is empty, and no try waits."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT", 0.0)
    monkeypatch.setattr(Server, "asked", {})
    monkeypatch.setattr(Server, "failing", {})
    folder = tmp_path / "served"
    folder.mkdir()
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{web.server_port}"
    web.shutdown()


def images(folder: Path, number: int) -> list[np.ndarray]:
    """Some files."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    found = [draw.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(number)]
    for place, pixels in enumerate(found):
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return found


def opened(path: str):
    modality = plugins.load("d2v.modalities", "image")
    return modality.Samples(modality.DataConfig(path=path), modality.FrontendConfig(), split="train", folder=Path())


def test_numbered_shards_are_fetched_once_and_read_as_the_folder(server, tmp_path):
    served, address = server
    pixels = images(tmp_path / "images", 6)
    data_script.main(["pack", str(tmp_path / "images"), str(tmp_path / "packed")])
    (shard,) = (tmp_path / "packed").glob("*.tar")
    for number in range(2):
        (served / f"part-{number:03d}.tar").write_bytes(shard.read_bytes())
    for _ in range(2):  # the second time nothing is fetched
        samples = opened(f"{address}/part-{{000..001}}.tar")
        assert len(samples.ids) == 12
        assert all(np.array_equal(samples.image(place), pixels[place % 6]) for place in range(12))
        assert Server.asked == {"part-000.tar": 1, "part-001.tar": 1}


def test_a_file_that_changed_is_fetched_again(server):
    served, address = server
    (served / "a.csv").write_text("text,label\none,1\n")
    first = Path(remote.fetched(f"{address}/a.csv"))
    assert first.read_bytes() == (served / "a.csv").read_bytes() and first.name == "a.csv"
    (served / "a.csv").write_text("text,label\none more,1\n")
    assert Path(remote.fetched(f"{address}/a.csv")).read_bytes() == (served / "a.csv").read_bytes()


def test_folders_and_patterns_of_other_file_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for name in ("a/0.txt", "a/1.txt", "b/2.txt", "b/3.md"):
        memory.pipe(f"/box/{name}", name.encode())
    folder = Path(remote.fetched("memory://box"))
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} == {
        "a/0.txt",
        "a/1.txt",
        "b/2.txt",
        "b/3.md",
    }
    some = Path(remote.fetched("memory://box/*/*.txt"))
    assert {file.read_text() for file in some.rglob("*.txt")} == {"a/0.txt", "a/1.txt", "b/2.txt"}
    memory.rm("/box/b/3.md")
    assert not (Path(remote.fetched("memory://box")) / "b" / "3.md").exists()
    assert (
        remote.fetched(["memory://box", "here"]) == [str(folder), "here"] and remote.fetched("org/name") == "org/name"
    )


def test_some_failures_are_mended_by_other_tries_and_more_are_one_line(server):
    served, address = server
    (served / "a.csv").write_text("text\none\n")
    Server.failing["a.csv"] = remote.TRIES - 1
    assert Path(remote.fetched(f"{address}/a.csv")).read_text() == "text\none\n"
    (served / "b.csv").write_text("text\none\n")
    Server.failing["b.csv"] = 99
    with pytest.raises(
        ValueError, match=rf"data.path {address}/b.csv cannot be fetched, after 4 tries: .*503"
    ) as error:
        remote.fetched(f"{address}/b.csv")
    assert "\n" not in str(error.value) and not list(cache.place().rglob("*b.csv*"))


def test_a_server_that_is_gone_leaves_what_was_fetched(server, caplog):
    served, address = server
    (served / "a.csv").write_text("text\none\n")
    (served / "b.csv").write_text("text\ntwo\n")
    first = remote.fetched(f"{address}/a.csv")
    (served / "a.csv").unlink()
    assert remote.fetched(f"{address}/a.csv") == first and "what was fetched before is read" in caplog.text
    Path(first).unlink()
    with pytest.raises(ValueError, match="cannot be fetched"):
        remote.fetched(f"{address}/a.csv")


def test_a_transfer_that_is_cut_is_tried_again_and_never_read(server, monkeypatch):
    served, address = server
    (served / "a.csv").write_text("text\n" + "word\n" * 100)
    listing, calls = remote._listing, []

    def cutting(asked: str):
        system, found = listing(asked)
        whole = system.get_file

        def cut(path, place):
            whole(path, place)
            calls.append(path)
            if len(calls) == 1:
                Path(place).write_bytes(Path(place).read_bytes()[:50])

        monkeypatch.setattr(system, "get_file", cut)
        return system, found

    monkeypatch.setattr(remote, "_listing", cutting)
    assert Path(remote.fetched(f"{address}/a.csv")).read_bytes() == (served / "a.csv").read_bytes() and len(calls) == 2


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere://box/a", "Protocol not known: nowhere"),
        ("memory://nothing/here", "cannot be fetched: there is no such file"),
    ],
)
def test_what_cannot_be_had_is_one_line(address, said, tmp_path, monkeypatch):
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=said) as error:
        opened(address)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"data.path {address}")
