"""What README.md and docs/ say holds.

Each command runs on tiny data, keys and links exist, generated pages are current.
"""

import dataclasses
import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tiny import MODALITIES, OBJECTIVES, ROOT, averages_layers, compares_views, small, small_heads

from d2v.config.joint import is_joint
from d2v.config.loading import from_dict, load_values
from scripts import data

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"\s# not run: \w")
WORDS = ("the", "house", "of", "winter", "was", "old", "and", "he", "read", "on", "without", "a", "word", "about", "it")

spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert spec is not None and spec.loader is not None
generate: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language of all pages, each once."""
    found = [block[2] for page in PAGES for block in BLOCK.finditer(page.read_text("utf-8")) if block[1] == language]
    return list(dict.fromkeys(found))


def commands() -> list[str]:
    """The command lines of all pages, each once; those that are marked as not run too."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return list(dict.fromkeys(re.sub(r"(?<=\S)  +(?=[^# ])", " ", line) for line in lines))


COMMANDS = [command for command in commands() if not NOT_RUN.search(command)]


# A folder in which the paths of the pages exist, on tiny data.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """The working directory."""
    place, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    (place / "configs").symlink_to(ROOT / "configs")
    data.main(["scenes", str(place / "archive"), "train=12", "test=4"])
    _photos(place / "photos")
    _photos(place / "new_photos")
    _boxes(place / "blood")
    _recordings(place / "recordings", {})
    _recordings(place / "read", {"text": ["a cat", "a dog"]})
    _recordings(place / "spoken", {"label": ["yes", "no"]})
    _texts(place)
    os.chdir(place)
    performed.cache_clear()
    yield place
    os.chdir(before)


def _photos(place: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")


def _boxes(place: Path) -> None:
    _photos(place)
    rows = [f"{name}/{number}.png,{name},{number},4,{number + 9},20" for name in ("cat", "dog") for number in range(12)]
    (place / "boxes.csv").write_text("\n".join(["file,label,xmin,ymin,xmax,ymax", *rows]))


def _recordings(place: Path, columns: dict[str, list[str]]) -> None:
    generator = np.random.default_rng(0)
    place.mkdir()
    lines = [",".join(["file_name", *columns])]
    for number in range(16):
        soundfile.write(place / f"{number}.wav", 0.1 * generator.standard_normal(12000), 8000)
        lines.append(",".join([f"{number}.wav", *(values[number % 2] for values in columns.values())]))
    if columns:
        (place / "metadata.csv").write_text("\n".join(lines))


def _texts(place: Path) -> None:
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(WORDS, 12)) for _ in range(160)]
    (place / "books").mkdir()
    (place / "books" / "novel.txt").write_text("\n".join(sentences))
    (place / "reviews").mkdir()
    for split, some in (("train", sentences[:60]), ("test", sentences[60:80])):
        rows = [f"{sentence},{('good', 'bad')[number % 2]}" for number, sentence in enumerate(some)]
        (place / "reviews" / f"{split}.csv").write_text("\n".join(["text,label", *rows]))


# What makes a command tiny.


def smaller(script: str, arguments: list[str]) -> list[str]:
    """Overrides that make a run of a script short and its model small."""
    if script == "evaluate":
        values = load_values(arguments[0], [])
        parts = [f".{part}" for part in values["objective"]["parts"]] if is_joint(values) else [""]
        short = ("random_seeds=1", "probe_steps=2", "k=[2]")
        return [f"evaluate{part}.{setting}" for part in parts for setting in short]
    if arguments[:1] == ["scenes"]:
        return ["train=6", "test=3"]
    if script not in ("pretrain", "finetune_image", "finetune_speech", "finetune_text", "finetune"):
        return []
    values = load_values(arguments[0], [argument for argument in arguments[1:] if not argument.startswith("model=")])
    if is_joint(values):
        return smaller_joint(values)
    short = ["train.steps=2", "train.warmup_steps=1", "train.batch_size=8", "run.log_every=1", "run.save_every=2"]
    if script != "pretrain":
        return [*short, *(["train.freeze_steps=1"] if "freeze_steps" in str(values) else [])]  # or of one kind
    short += ["run.health_samples=8", "run.health_every=2"]
    return [*short, *smaller_model(values)]


def smaller_joint(values: dict[str, Any]) -> list[str]:
    """The same of a joint run."""
    found = ["train.steps=2", "train.warmup_steps=1", "run.log_every=1", "run.save_every=2"]
    found += ["run.health_samples=8", "run.health_every=2"]
    found += [f"model.trunk.{setting}" for setting in ("dim=32", "depth=2", "num_heads=2", "mlp_dim=64")]
    for part, settings in values["objective"]["parts"].items():
        found.append(f"train.batch_size.{part}=4")
        found += [f"objective.parts.{part}.top_k=2"] if "top_k" in settings else []
    return found


def smaller_model(values: dict[str, Any]) -> list[str]:
    """Overrides that make the networks of a pretraining config small, and the vocabulary that it learns."""
    name, found = values["objective"]["name"], []
    if values["model"]["trunk"].get("depth"):
        found += [f"model.trunk.{setting}" for setting in ("dim=32", "depth=2", "num_heads=2", "mlp_dim=64")]
    if "vocab_size" in values["data"]:
        found.append("data.vocab_size=300")
    if compares_views(name):
        return [*found, *small_heads(name, values["objective"])]
    return [*found, *(["objective.top_k=2"] if averages_layers(name) else []), *small(name)]


@functools.cache
def performed(command: str) -> str:
    """Runs a command in this process, once, after those that make the runs that it reads; what it says."""
    words = shlex.split(command)
    for read in {match[0] for word in words if not word.startswith("run.dir=") for match in _runs(word)}:
        performed(maker(read))
    if words[0] != "d2v":
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    _, script, *arguments = words
    with redirect_stdout(io.StringIO()) as said:
        importlib.import_module(f"scripts.{script}").main([*arguments, *smaller(script, arguments)])
    missing = [str(place) for place in made_by(arguments) if not place.exists()]
    assert not missing, f"{command} has not made {missing}"
    return said.getvalue()


def made_by(arguments: list[str]) -> list[Path]:
    """What a command writes, of what its words name: a last word without a key is a place."""
    places = [] if "=" in arguments[-1] else [Path(arguments[-1])]
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "run.dir":
            places.append(Path(value) / "export" / "config.json")
        if key in ("out", "objective.codes"):
            places.append(Path(value))
    return places


def maker(run: str) -> str:
    """The command that makes a run."""
    return next(command for command in COMMANDS if f"run.dir={run}" in shlex.split(command))


def _runs(text: str) -> Iterator[re.Match]:
    return re.finditer(r"runs/\w+", text)


def _marks(command: str) -> tuple:
    """The export to ONNX takes half a minute; tests/test_onnx.py has smaller ones."""
    if "detect_" in command and importlib.util.find_spec("faster_coco_eval") is None:
        return (pytest.mark.skip(reason="needs pip install 'd2v[detection]'"),)
    return (pytest.mark.slow,) if ".onnx" in command else ()


@pytest.mark.parametrize("command", [pytest.param(command, marks=_marks(command)) for command in COMMANDS])
def test_command(command: str, folder: Path):
    assert performed(command).strip()


@pytest.mark.parametrize("code", blocks("python"))
def test_code(code: str, folder: Path):
    for run in {match[0] for match in _runs(code)}:
        performed(maker(run))
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(code, "docs", "exec"), names)
    assert all(value.isfinite().all() for value in names.values() if isinstance(value, torch.Tensor))


def test_commands_are_found():
    assert len(COMMANDS) > 15 and len(blocks("python")) > 3
    assert any(command.startswith("make demo") for command in commands())


# Keys, links, generated pages.


@functools.cache
def keys() -> set[str]:
    """All settings, and the sections that hold them."""
    found = [section for m in MODALITIES for o in OBJECTIVES for section in generate.sections(m, o)]
    found += generate.finetuning_sections()
    for modality in MODALITIES:
        found += [generate.Section("data", kind) for kind in generate.labelled(modality)]
    names = {row.key for section in found for row in generate.rows(section)}
    names |= set(re.findall(r"^\| `([\w.+]+)`", generate.joint_page(), re.MULTILINE))
    for part in MODALITIES:  # of a joint run
        names |= {name.replace("data.", f"data.{part}.") for name in names if name.startswith("data.")}
        names |= {f"objective.{what}.{part}" for what in ("parts", "weights", "shares")}
        names |= {f"train.{what}.{part}" for what in ("batch_size", "init_from")}
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def test_the_keys_that_pages_name_exist():
    pattern = re.compile(r"(?<![\w./<])(?:model|data|objective|train|run|evaluate|embed|task)\.[a-z][\w.]*\b(?!\()")
    for page in PAGES:
        for found in pattern.findall(page.read_text("utf-8")):
            is_file = found.endswith((".py", ".csv", ".md"))
            assert is_file or found in keys(), f"{page.name} names {found}, which is no setting"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_generated_pages_are_current(tmp_path: Path):
    generate.write(tmp_path, methods=False)
    made = {path.relative_to(tmp_path): path.read_text("utf-8") for path in tmp_path.rglob("*.md")}
    there = [*(DOCS / "settings").glob("*.md"), *(DOCS / "api").glob("*.md")]
    stale = {path.relative_to(DOCS) for path in there} ^ made.keys()
    stale |= {path for path, text in made.items() if not stale and (DOCS / path).read_text("utf-8") != text}
    assert not stale, f"run python docs/generate.py: {', '.join(map(str, sorted(stale)))}"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_table_has_all_keys_that_a_config_has(modality: str):
    for objective in OBJECTIVES:
        values = {"model": {"frontends": {modality: {}}}, "objective": {"name": objective}}
        config = dataclasses.asdict(from_dict(values))
        text = generate.method_page(modality, objective)
        assert set(_flat(config)) == set(re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE))


def _flat(values: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(values, dict):
        yield prefix
        return
    for key, value in values.items():
        yield from _flat(value, f"{prefix}.{key}".lstrip("."))


def test_what_a_setting_may_be_is_said():
    from d2v.settings import setting

    @dataclasses.dataclass
    class Config:
        count: int = setting(3, "How many | things.", least=1)
        kind: str = setting("a", "Which.", among=("a", "b"))
        pair: list[float] = setting([0.1, 1.0], "From, to.", above=0, count=2)
        share: float | None = setting(None, "Or nothing.", least=0)
        plain: bool = False

    found = [(row.default, row.may_be) for row in generate.rows(generate.Section("train", Config))]
    assert found == [
        ("`3`", "at least 1"),
        ("`a`", "a, b"),
        ("`[0.1, 1.0]`", "a list of 2, each a positive number"),
        ("`null`", "0 or more, or null"),
        ("`false`", "true or false"),
    ]
    assert r"| `train.count` | `3` | at least 1 | How many \| things. |" in generate.table(
        generate.rows(generate.Section("train", Config))
    )
