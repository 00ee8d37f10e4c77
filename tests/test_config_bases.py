"""`base: other.yaml`: what a file inherits, what it does not, and what is wrong with a base in one line."""

from pathlib import Path

import pytest
from tiny import ROOT

from d2v.config.bases import chain, merged
from d2v.config.loading import differences, from_dict, load_config, load_values, save_yaml

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
WHOLE = """
model:
  frontends:
    image: {image_size: 8, patch_size: 2, class_token: false}
  trunk: {depth: 3, dim: 32, num_heads: 2, mlp_dim: 64}
data: {path: demo, mean: [0.3], std: [0.4]}
objective: {name: data2vec, top_k: 2, ema_decay: 0.9}
train: {steps: 7, betas: [0.9, 0.95], lr: 2.0e-3}
"""


def written(folder: Path, **files: str) -> Path:
    """Writes files named <name>.yaml; the first one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_dictionaries_are_merged_deep_and_all_else_is_replaced():
    base = {"a": {"b": {"c": 1, "d": 2}, "list": [1, 2], "e": 5}, "f": 6, "section": {"g": 7}}
    over = {"a": {"b": {"c": 3}, "list": [4], "e": {"h": 8}}, "f": None, "section": None, "new": {}}
    assert merged(base, over) == {
        "a": {"b": {"c": 3, "d": 2}, "list": [4], "e": {"h": 8}},
        "f": None,
        "section": {"g": 7},  # a section of which nothing but its name is left says nothing
        "new": {},
    }
    assert base == {"a": {"b": {"c": 1, "d": 2}, "list": [1, 2], "e": 5}, "f": 6, "section": {"g": 7}}


def test_a_file_says_only_what_differs(tmp_path):
    own = "base: whole.yaml\nmodel:\n  trunk: {depth: 2}\ntrain: {betas: [0.8, 0.9]}\nevaluate: {k: [5]}\n"
    path = written(tmp_path, own=own, whole=WHOLE)
    values, whole = load_config(path).as_dict(), load_config(tmp_path / "whole.yaml").as_dict()
    changed = differences(whole, values, tuple(whole))
    assert sorted(change.split(":")[0] for change in changed) == ["evaluate.k", "model.trunk.depth", "train.betas"]
    assert (values["model"]["trunk"]["depth"], values["train"]["betas"], values["evaluate"]["k"]) == (
        2,
        [0.8, 0.9],
        [5],
    )


def test_the_command_line_counts_more_than_a_file_and_that_more_than_its_base(tmp_path):
    path = written(tmp_path, own="base: whole.yaml\ntrain: {lr: 3.0e-3}\n", whole=WHOLE)
    assert load_config(path).train.lr == 3e-3 and load_config(path, ["train.lr=1"]).train.lr == 1.0
    with pytest.raises(ValueError, match=r"unknown key 'base'.*own.yaml or the command line"):
        load_config(path, ["base=whole.yaml"])


def test_a_base_may_have_a_base_and_lies_where_its_own_file_says(tmp_path):
    (tmp_path / "shared").mkdir()
    written(tmp_path / "shared", middle="base: ../whole.yaml\ntrain: {steps: 8, seed: 4}\n")
    path = written(tmp_path, own="base: shared/middle.yaml\ntrain: {steps: 9}\n", whole=WHOLE)
    train = load_config(path).train
    assert (train.steps, train.seed, train.lr) == (9, 4, 2e-3)
    assert [file.name for file, _ in chain(path)] == ["own.yaml", "middle.yaml", "whole.yaml"]


def test_base_is_in_no_config_that_is_saved_or_compared(tmp_path):
    path = written(tmp_path, own="base: whole.yaml\nrun: {dir: here}\n", whole=WHOLE)
    config = load_config(path)
    save_yaml(config.as_dict(), tmp_path / "saved.yaml")
    assert "base" not in load_values(path) and "base" not in config.as_dict()
    assert "base:" not in (tmp_path / "saved.yaml").read_text()
    assert load_config(tmp_path / "saved.yaml").as_dict() == config.as_dict() == from_dict(load_values(path)).as_dict()


def test_another_objective_inherits_no_settings_of_the_base_s(tmp_path):
    """Both have ema_decay; data2vec has top_k besides, which BYOL does not know."""
    path = written(
        tmp_path, own="base: whole.yaml\nobjective: {name: byol}\ndata: {views: [simclr, simclr]}\n", whole=WHOLE
    )
    assert load_values(path)["objective"] == {"name": "byol"}
    assert load_config(path).objective.ema_decay != 0.9
    same = written(tmp_path, same="base: whole.yaml\nobjective: {name: data2vec, top_k: 1}\n")
    assert load_values(same)["objective"] == {"name": "data2vec", "top_k": 1, "ema_decay": 0.9}
    unnamed = written(tmp_path, unnamed="base: whole.yaml\nobjective: {top_k: 1}\n")
    assert load_values(unnamed)["objective"] == {"name": "data2vec", "top_k": 1, "ema_decay": 0.9}


def test_a_base_without_an_objective_s_name_is_for_the_default_one(tmp_path):
    base = WHOLE.replace("name: data2vec, ", "")
    other = written(tmp_path, other="base: whole.yaml\nobjective: {name: byol}\n", whole=base)
    assert load_values(other)["objective"] == {"name": "byol"}
    named = written(tmp_path, named="base: whole.yaml\nobjective: {name: data2vec}\n")
    assert load_values(named)["objective"] == {"name": "data2vec", "top_k": 2, "ema_decay": 0.9}


def test_another_modality_s_base_is_refused(tmp_path):
    path = written(tmp_path, own="base: whole.yaml\nmodel: {frontends: {text: {}}}\n", whole=WHOLE)
    with pytest.raises(
        ValueError, match=r"own.yaml is for text, its base .*whole.yaml for image: .*same modality"
    ) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    path = written(tmp_path, own="base: part.yaml\nmodel: {frontends: {text: {}}}\n", part="train: {steps: 3}\n")
    assert load_config(path).train.steps == 3 and load_config(path).modality == "text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: nowhere.yaml",
            r"own.yaml: base is 'nowhere.yaml', but there is no file .*nowhere.yaml; base is the path of one",
        ),
        ("base: .", r"own.yaml: base is '.', but there is no file"),
        ("base: 3", r"own.yaml: base is 3; base is the path of one YAML file, relative to the file that names it"),
        ("base:", r"own.yaml: base is None; base is the path of one YAML file"),
        ("base: ''", r"own.yaml: base is ''; base is the path of one YAML file"),
        ("base: [whole.yaml]", r"own.yaml: base is \['whole.yaml'\]; base is the path of one YAML file"),
        ("base: {path: whole.yaml}", r"own.yaml: base is {'path': 'whole.yaml'}; base is the path of one"),
        ("base: own.yaml", r"bases go in a circle: .*own.yaml -> .*own.yaml; base is the path of one"),
        ("base: round.yaml", r"circle: .*own.yaml -> .*round.yaml -> .*own.yaml; base is the path of one"),
        ("base: broken.yaml", r"broken.yaml cannot be read"),
        ("base: list.yaml", r"list.yaml must hold sections"),
    ],
)
def test_a_wrong_base_is_named(text, message, tmp_path):
    written(tmp_path, whole=WHOLE, round="base: ./own.yaml\n", broken="model: [", list="- a\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_config(written(tmp_path, own=f"{text}\n{WHOLE}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("steps: 7", "stpes: 7"),
            r"unknown key 'train.stpes' \(\S*whole.yaml or the command line\); did you mean 'steps'\?",
        ),
        (("train:", "trian:"), r"unknown key 'trian' \(\S*whole.yaml or the command line\)"),
        (("depth: 3", "dept: 3"), r"unknown key 'model.trunk.dept' \(\S*whole.yaml or the command line\)"),
        (("steps: 7", "steps: many"), r"whole.yaml: train.steps: .*'many'"),
        (("top_k: 2", "topk: 2"), r"unknown key 'objective.topk' \(\S*whole.yaml or the command line\)"),
    ],
)
def test_a_wrong_key_is_said_to_be_in_the_base_that_has_it(change, message, tmp_path):
    path = written(tmp_path, own="base: whole.yaml\nrun: {dir: here}\n", whole=WHOLE.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_config(path)
    with pytest.raises(ValueError, match=r"'train.spets' \(\S*own.yaml or the command line\)"):
        load_config(written(tmp_path, own="base: whole.yaml\ntrain: {spets: 3}\n", whole=WHOLE))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_files_have_at_most_two_bases_and_name_no_data_outside(path):
    assert len(chain(path)) <= 3
    assert ".." not in str(load_values(path)) and "../" not in path.read_text()
