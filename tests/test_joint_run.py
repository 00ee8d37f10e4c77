"""Joint runs: several modalities around one student and one teacher, against each modality's own run."""

import functools
import json
import signal
import weakref
from pathlib import Path

import colours
import numpy as np
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator

from d2v.config.joint import load_joint
from d2v.models.alignment import D2vForAlignment
from d2v.models.encoder import D2vModel
from d2v.reading import Reader
from d2v.training.checkpoint import checkpoints_in
from d2v.training.joint_batches import JointBatches
from d2v.training.joint_health import JointHealth
from d2v.training.joint_run import build_joint, pretrain_joint
from d2v.training.joint_weights import weigh
from d2v.training.loop import Loop
from d2v.training.online_probe import ProbeConfig
from d2v.training.pretraining import online_probe
from d2v.training.sharding import check_shards
from d2v.training.verdict import Verdict
from scripts import evaluate, pretrain

TRUNK = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_dim": 64}
FRONTENDS = {
    "image": {
        "image_size": 8,
        "patch_size": 2,
        "channels": 1,
        "class_token": False,
        "relative_bias": False,
        "positions": "sincos",
    },
    "speech": {
        "kind": "mel",
        "sample_rate": 8000,
        "mel_bins": 8,
        "conv_dim": 16,
        "mel_high": 3900.0,
        "pos_kernel": 3,
        "pos_depth": 1,
        "pos_groups": 2,
    },
    "text": {"max_positions": 32},
}
DATA = {
    "image": {"path": "demo", "mean": [0.3], "std": [0.38], "min_block": 2, "color_jitter": 0.0},
    "speech": {"path": "demo", "mask_prob": 0.5, "mask_length": 3},
    "text": {"path": "", "vocab_size": 300, "block_size": 32},
}
METHOD = {"name": "data2vec", "top_k": 2}
TEACHER = {"ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_steps": 5}
TRAIN = {"steps": 6, "lr": 1e-3, "warmup_steps": 2, "seed": 3}
RUN = {"log_every": 1, "save_every": 3, "keep": 9, "health_every": 6, "health_samples": 12}


@functools.cache
def sentences() -> str:
    """A file of a few hundred lines."""
    generator, path = np.random.default_rng(0), tiny.scratch() / "sentences.txt"
    lines = [" ".join(f"word{n}" for n in generator.integers(0, 60, size=12)) for _ in range(300)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def data_of(part: str) -> dict:
    return {**DATA[part], "path": sentences()} if part == "text" else DATA[part]


def config_of(folder: Path, *overrides: str, parts: tuple[str, ...] = ("image", "text")) -> list[str]:
    """The command line of a run."""
    values = {
        "model": {"frontends": {name: FRONTENDS[name] for name in parts}, "trunk": TRUNK},
        "data": {name: data_of(name) for name in parts},
        "objective": {"name": "joint", "parts": dict.fromkeys(parts, METHOD), **TEACHER},
        "train": {**TRAIN, "batch_size": {name: 4 for name in parts}},
        "run": {**RUN, "dir": str(folder)},
    }
    path = folder.with_name(f"{folder.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, default_flow_style=None))
    return [str(path), *overrides]


def alone(folder: Path, part: str, *overrides: str) -> list[str]:
    """The command line of a run of one part."""
    values = {
        "model": {"frontends": {part: FRONTENDS[part]}, "trunk": TRUNK},
        "data": data_of(part),
        "objective": {**METHOD, **TEACHER},
        "train": {**TRAIN, "batch_size": 4},
        "run": {**RUN, "dir": str(folder)},
    }
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(values, default_flow_style=None))
    return [str(path), *overrides]


def last(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint."""
    return tiny.checkpoint_tensors(folder, int(checkpoints_in(folder / "checkpoints")[-1].name))


def losses(folder: Path) -> list[dict]:
    """The records that hold a loss."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


# Against a run of one modality alone.


@pytest.mark.parametrize("mix", ["together", "turns"])
def test_without_the_weights_of_the_others_a_part_is_its_own_run_to_the_bit(mix, tmp_path):
    """Images, which are the first part, begin with the weights that they have alone."""
    pretrain.main(alone(tmp_path / "alone", "image"))
    pretrain.main(config_of(tmp_path / "joint", "objective.weights.text=0", f"objective.mix={mix}"))
    own, joint = last(tmp_path / "alone"), last(tmp_path / "joint")
    shared = [name for name in own if name.startswith(("student.", "teacher."))]
    assert shared and all(torch.equal(own[name], joint[name]) for name in shared)
    beside = [name for name in own if name.startswith("predictor.")]
    assert beside and all(torch.equal(own[name], joint[f"parts.image.{name}"]) for name in beside)
    of_own, of_joint = losses(tmp_path / "alone"), losses(tmp_path / "joint")
    assert [r["loss"] for r in of_own] == [r["loss"] for r in of_joint] == [r["image/loss"] for r in of_joint]
    assert [r["target_std"] for r in of_own] == [r["image/target_std"] for r in of_joint]


def test_a_step_of_all_is_the_weighted_sum_of_the_parts_means(tmp_path):
    config = load_joint(
        *split(config_of(tmp_path / "run", "objective.weights.text=0.5", "objective.parts.text.top_k=1"))
    )
    objective, batches = opened(config, tmp_path / "run")
    objective.begin_step(0, 6)
    views, _ = batches(0, 0, 1)
    loss = objective(views)
    expected = 0
    for name, weight in (("image", 1.0), ("text", 0.5)):
        own = objective.parts[name]([view for view in views if view.part == name])
        expected = expected + weight * own.total / own.count
        assert loss.metrics[f"{name}/loss"] == own.total / own.count
    assert loss.count == 1 and torch.allclose(loss.total, expected)
    loss.total.backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in objective.named_parameters() if p.requires_grad}
    assert not any(
        name.startswith("parts.") and ("student" in name or "teacher" in name) for name in objective.state_dict()
    )


class Kept:
    """A tensor that autograd keeps for the backward pass, and lets go with the graph."""

    def __init__(self, x: torch.Tensor):
        self.x = x


def most_kept(run) -> int:
    """The most bytes that autograd keeps at a time within `run`, but for parameters."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    most = 0

    def pack(x: torch.Tensor) -> Kept:
        nonlocal most
        kept = Kept(x)
        if not isinstance(x, torch.nn.Parameter):
            alive.add(kept)
        most = max(most, sum({one.x.untyped_storage().data_ptr(): one.x.nbytes for one in alive}.values()))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
        run()
    return most


def test_a_step_takes_the_memory_of_its_largest_part(tmp_path):
    config = load_joint(*split(config_of(tmp_path / "run")))
    objective, batches = opened(config, tmp_path / "run")
    objective.begin_step(0, 6)
    views = [view.located() for view in batches(0, 0, 1)[0]]
    alone = {name: most_kept(lambda group=group: objective(group)) for name, group in objective.of_part(views).items()}
    assert most_kept(lambda: objective(views)) > 1.2 * max(alone.values())
    loop = Loop(objective, batches, train=config.train, run=config.run, accelerator=Accelerator(cpu=True))
    assert most_kept(lambda: loop._step(iter([(views, [], 0.0)]))) < 1.05 * max(alone.values())


def test_joint_runs_are_not_sharded(tmp_path):
    objective, _ = opened(load_joint(*split(config_of(tmp_path / "run"))), tmp_path / "run")
    with pytest.raises(ValueError, match=r"train.sharding is fsdp; joint reads parameters outside .* must be none"):
        check_shards(objective)


def split(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[0], arguments[1:]


def opened(config, folder: Path):
    """The objective of a config, and its batches."""
    from d2v.training import joint_run

    folder.mkdir(parents=True, exist_ok=True)
    joint_run._prepare(config, folder)
    accelerator = Accelerator(cpu=True)
    parts = {part: joint_run._open(config, part, accelerator) for part in config.data}
    objective = build_joint(config, {name: len(part.samples) for name, part in parts.items()})
    return objective.train(), JointBatches({name: part.batches for name, part in parts.items()}, objective.mix)


# Resuming, and two processes.


@pytest.mark.parametrize("mix", ["together", "turns"])
def test_a_run_that_goes_on_ends_as_if_nothing_had_been(mix, tmp_path):
    """Turns of 2 : 1 are in the middle of a cycle after four steps; with dropout."""
    more = [f"objective.mix={mix}", "model.trunk.dropout=0.1", "run.save_every=1"]
    more += ["objective.shares.image=2"] if mix == "turns" else []
    arguments = config_of(tmp_path / "whole", *more)
    pretrain.main(arguments)
    pretrain.main([*arguments, f"run.dir={tmp_path / 'cut'}"])
    cut = tmp_path / "cut" / "checkpoints"
    for step in (5, 6):
        for file in (cut / f"{step:08}").iterdir():
            file.unlink()
        (cut / f"{step:08}").rmdir()
    pretrain.main([*arguments, f"run.dir={tmp_path / 'cut'}"])
    tiny.assert_same(last(tmp_path / "cut"), last(tmp_path / "whole"))


SGD = ("train.optimizer=sgd", "train.lr=0.01", "train.schedule=constant", "train.steps=4")
RUNS = {
    "together": ("objective.weights.text=0.5",),
    "turns": ("objective.mix=turns", "objective.shares.text=2"),
    "auto": ("objective.weights=auto", "objective.measured_steps=2"),
}


def two_processes(root: Path) -> None:
    """What each of two processes does."""
    # it ends the group, and more runs follow
    Accelerator.end_training = lambda self: None  # type: ignore[method-assign]
    for name, more in RUNS.items():
        pretrain_joint(load_joint(root / f"one_{name}.yaml", [*SGD, *more, f"run.dir={root / f'two_{name}'}"]))
    pretrain_joint(
        load_joint(root / "one_turns.yaml", [*SGD, *RUNS["turns"], "train.steps=6", f"run.dir={root / 'two_turns'}"])
    )


def test_two_processes_are_one(tmp_path):
    """Three runs, and one of turns that goes on in the middle of a cycle."""
    for name in RUNS:
        config_of(tmp_path / f"one_{name}")
    processes = tiny.start(two_processes, tmp_path, world=2)
    for name, more in RUNS.items():
        pretrain_joint(load_joint(tmp_path / f"one_{name}.yaml", [*SGD, *more]))
    pretrain_joint(load_joint(tmp_path / "one_turns.yaml", [*SGD, *RUNS["turns"], "train.steps=6"]))
    assert tiny.wait(processes) == [0, 0]
    for name in RUNS:
        one, two = (tiny.load(path) for path in (weights_of(tmp_path / f"{kind}_{name}") for kind in ("one", "two")))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(
                two[key], one[key], rtol=1e-4, atol=2e-6, msg=lambda m, key=key, name=name: f"{name} {key}: {m}"
            )


@pytest.mark.slow
def test_two_killed_processes_go_on_as_if_nothing_had_been(tmp_path):
    """Killed in the middle of a cycle of turns of 2 : 1; with dropout, which differs between processes."""
    more = ["objective.mix=turns", "objective.shares.image=2", "model.trunk.dropout=0.1", "train.steps=8"]
    more += ["run.save_every=4", "run.keep=9"]
    whole, killed = (config_of(tmp_path / name, *more) for name in ("whole", "killed"))
    dying, running = (
        tiny.start(tiny.run_until_killed, killed, 5, world=2),
        tiny.start(tiny.run, whole, world=2),
    )
    assert -signal.SIGKILL in tiny.wait(dying) and tiny.wait(running) == [0, 0]
    assert [path.name for path in checkpoints_in(tmp_path / "killed" / "checkpoints")] == ["00000004"]
    assert tiny.wait(tiny.start(tiny.run, killed, world=2)) == [0, 0]
    tiny.assert_same(last(tmp_path / "killed"), last(tmp_path / "whole"))
    assert tiny.losses(tmp_path / "killed") == tiny.losses(tmp_path / "whole")


def weights_of(folder: Path) -> Path:
    return checkpoints_in(folder / "checkpoints")[-1] / "model.safetensors"


# Weights that are measured.


def test_auto_makes_the_gradients_of_all_parts_equally_long(tmp_path):
    config = load_joint(
        *split(config_of(tmp_path / "run", "objective.weights=auto", parts=("image", "text", "speech")))
    )
    objective, batches = opened(config, tmp_path / "run")
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    said = weigh(objective, batches, Accelerator(cpu=True), 2)
    assert said.startswith("objective.weights: image ")
    norms = {name: [] for name in objective.parts}
    for step in range(2):
        for name, norm in objective.trunk_norms(batches(step, 0, 1)[0]).items():
            norms[name].append(float(norm))
    means = np.array([np.mean(norms[name]) for name in objective.parts])
    np.testing.assert_allclose(objective.weights.numpy() * means, np.median(means), rtol=1e-4)
    changed = [name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["weights"] and all(p.grad is None for p in objective.parameters())


def test_measured_weights_are_those_of_the_run_when_it_goes_on(tmp_path):
    arguments = config_of(tmp_path / "run", "objective.weights=auto", "objective.measured_steps=1", "train.steps=2")
    arguments.append("train.schedule=constant")
    pretrain.main(arguments)
    weights = last(tmp_path / "run")["weights"]
    assert not torch.equal(weights, torch.ones(2))
    pretrain.main([*arguments, "train.steps=3"])
    assert torch.equal(last(tmp_path / "run")["weights"], weights)


# What a run writes.


def test_the_export_reads_every_modality_and_the_verdict_names_the_worst(tmp_path, capsys):
    pretrain.main(config_of(tmp_path / "run", parts=("image", "speech", "text")))
    said = capsys.readouterr().out
    assert "image: " in said and "speech: " in said and "verdict: " in said
    model = D2vModel.from_pretrained(tmp_path / "run" / "export")
    assert list(model.config.frontends) == ["image", "speech", "text"]
    assert model(pixel_values=torch.randn(2, 1, 8, 8)).last_hidden_state.shape == (2, 16, 32)
    assert model(input_ids=torch.randint(5, 100, (2, 7))).last_hidden_state.shape == (2, 7, 32)
    assert len(model(input_values=torch.randn(2, 8000)).last_hidden_state) == 2
    assert (tmp_path / "run" / "export" / "text" / "tokenizer_config.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"image/student_rank", "speech/student_rank", "text/teacher_rank"} <= records[0].keys()


def test_probes_change_nothing_and_give_what_a_probe_of_the_export_gives(tmp_path):
    settings = {"path": "demo", "max_samples": 60, "k": 3, "every": 4, "test_split": "test"}
    pretrain.main(config_of(tmp_path / "run", f"run.probe.image={settings}"))
    pretrain.main(config_of(tmp_path / "plain"))
    tiny.assert_same(last(tmp_path / "run"), last(tmp_path / "plain"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    curve = {record["step"]: record for record in records if "image/probe_student_knn" in record}
    assert list(curve) == [0, 4, 6]

    config = load_joint(config_of(tmp_path / "run", f"run.probe.image={settings}")[0]).reading("image")
    config.run.probe = ProbeConfig(**settings)
    probe = online_probe(config, tiny.plugins.load("d2v.modalities", "image"), tmp_path / "run", Reader())
    sides = {name: D2vModel.from_pretrained(place) for name, place in tiny.sides(tmp_path / "run").items()}
    found = probe(sides["student"], sides["teacher"], torch.device("cpu"))
    assert found == {name: pytest.approx(curve[6][f"image/{name}"], abs=1e-9) for name in found}


def test_each_part_has_its_share_of_the_wait_for_data(tmp_path):
    pretrain.main(config_of(tmp_path / "run"))
    for record in losses(tmp_path / "run"):
        assert min(record["image/data_wait"], record["text/data_wait"]) > 0
        assert record["image/data_wait"] + record["text/data_wait"] == pytest.approx(record["data_wait"])


class Says:
    """A check whose verdict is given."""

    def __init__(self, state: str):
        self.state = state

    def judge(self, records: list[dict]) -> Verdict:
        return Verdict(self.state, f"{len(records)} records", "do better")  # type: ignore[arg-type]


def test_the_verdict_is_the_worst_of_the_modalities():
    def of(**states: str) -> Verdict:
        checks = {name: Says(state) for name, state in states.items()}
        return JointHealth(checks).judge([{"step": 0}])  # type: ignore[misc]

    assert of(image="healthy", text="collapsed", speech="collapsing")[:2] == ("collapsed", "text: 1 records")
    assert of(image="too early", text="healthy").state == "too early"
    assert of(image="healthy", text="healthy")[:2] == ("healthy", "image: 1 records; text: 1 records")


# One line before the first step.


ERRORS = {
    "objective.parts.image.top_kk=2": r"unknown key 'objective.parts.image.top_kk'.*did you mean 'top_k'",
    "objective.parts.image.top_k=9": r"part image: objective.parts.image.top_k is 9; the trunk has 2 layers",
    "data.image.paht=x": r"unknown key 'data.image.paht'.*did you mean 'path'",
    "data.image.path=nowhere": r"part image: data.image.path 'nowhere' is no local file or folder",
    "data.image.path=''": "part image: data.image.path is required",
    "train.batch_size=8": r"train.batch_size is '?8'?; a joint run has one for each part",
    "train.batch_size.image=0": r"train.batch_size.image is 0; it must be at least 1",
    "train.batch_size.image=x": r"train.batch_size.image is 'x'; it must be a whole number",
    "train.batch_size.sound=3": r"train.batch_size names image, text, sound; the parts are image, text",
    "train.batch_size.image=100000": "fewer than one batch: train.batch_size.image is 100000",
    "objective.weights.sound=1": "objective.weights names 'sound', which is no part; the parts are image, text",
    "objective.weights={image: 0, text: 0}": "objective.weights is 0 for every part",
    "objective.weights.image=-1": "objective.weights.image is -1; it must be a number of 0 or more",
    "objective.weights=all": "objective.weights is 'all'; it must name parts and their weights, or auto",
    "objective.shares.image=2": r"objective.shares is .*, which objective.mix=together does not read",
    "objective.mix=turn": "objective.mix is 'turn'; it may be together, turns",
    "objective.parts.image.ema_decay=0.5": "objective.parts.image.ema_decay is 0.5, and nothing reads it: one teacher",
    "objective.parts.sound={name: mae}": "d2v.modalities has no 'sound'",
    "objective.parts.speech={name: data2vec}": r"train.batch_size names image, text; the parts are image, text, speech",
    "objective.parts.image.name=nothing": "d2v.objectives has no 'nothing'",
    "model.frontends.image.patch_sise=2": r"unknown key 'model.frontends.image.patch_sise'",
    "model.frontends.speech.sample_rate=8000": r"unknown key 'model.frontends.speech'",
    "run=3": "run must hold keys of JointRunConfig",
    "run.probe=3": "run.probe is '?3'?; a joint run has one for each modality, such as run.probe.image.path=FOLDER",
    "run.probe.path=x": "unknown key 'run.probe.path'.*it may be image, text",
    "run.probe.image.path=nowhere": "part image: run.probe.image.path .nowhere. is no local file or folder",
    "run.probe={image: {path: a, every: 2}, text: {path: b, every: 3}}": "run.probe.text.every is 3 and",
}


@pytest.mark.parametrize("argument", ERRORS)
def test_one_line_before_the_first_step(argument, tmp_path):
    with pytest.raises(ValueError, match=ERRORS[argument]) as caught:
        pretrain.main(config_of(tmp_path / "run", argument))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_share_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"objective.shares.image is 0; it must be a whole number of at least 1"):
        pretrain.main(config_of(tmp_path / "run", "objective.mix=turns", "objective.shares.image=0"))


# Pairs in a joint run.


def with_pairs(folder: Path, table: Path, *overrides: str) -> list[str]:
    """The command line of a run of images and texts, each alone and as rows of a table."""
    values = {
        "model": {"frontends": {name: FRONTENDS[name] for name in ("image", "text")}, "trunk": TRUNK},
        "data": {
            "image": {**DATA["image"], "path": str(table)},
            "text": {**DATA["text"], "path": str(table)},
            "image+text": {
                "path": str(table),
                "image": {name: DATA["image"][name] for name in ("mean", "std", "color_jitter")},
                "text": {"block_size": 32},
            },
        },
        "objective": {
            "name": "joint",
            "parts": {"image": METHOD, "text": METHOD, "image+text": {"name": "siglip", "projection_dim": 8}},
            **TEACHER,
        },
        "train": {**TRAIN, "batch_size": {"image": 4, "text": 4, "image+text": 8}},
        "run": {**RUN, "dir": str(folder)},
    }
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(values, default_flow_style=None))
    return [str(path), *overrides]


def test_pairs_are_a_part_of_a_joint_run_and_the_export_has_their_space(tmp_path, capsys):
    table = colours.write_world(tmp_path / "world", 8)
    arguments = with_pairs(tmp_path / "run", table, "train.lr=5e-3")
    pretrain.main(arguments)
    assert {"image/loss", "text/loss", "image+text/loss"} <= losses(tmp_path / "run")[-1].keys()
    export = tmp_path / "run" / "export"
    model = D2vForAlignment.from_pretrained(export)
    assert list(model.projections) == ["image", "text"]
    assert D2vModel.from_pretrained(export)(pixel_values=torch.randn(2, 1, 8, 8)).x.shape == (2, 16, 32)
    capsys.readouterr()
    found = evaluate.main([*arguments, f"model={export}", "part=image+text"])
    said = capsys.readouterr().out
    assert (
        "recall@1" in said and "random init" in said and (tmp_path / "run/evaluation/image+text/retrieval.png").exists()
    )
    assert found["image+text"]["scores"][str(export)]["image to text"]["queries"] == 32


def test_a_joint_run_starts_from_an_encoder_of_each_modality(tmp_path):
    """The trunk is the first one's; what is frozen stays; a width that differs is one line."""
    table = colours.write_world(tmp_path / "world", 8)
    short = ["train.steps=1", "train.warmup_steps=0", f"data.path={table}"]
    for name in ("image", "text"):
        pretrain.main(alone(tmp_path / f"alone_{name}", name, *short, "train.lr=0.01"))
    froms = [f"train.init_from.{name}={tmp_path / f'alone_{name}'}/export" for name in ("image", "text")]
    arguments = with_pairs(tmp_path / "run", table, *froms, "train.steps=1", "train.warmup_steps=0")
    frozen = ["objective.parts.image+text.freeze=[trunk,frontends]", "objective.weights={image: 0, text: 0}"]
    pretrain.main([*arguments, *frozen])
    joint = D2vModel.from_pretrained(tmp_path / "run/export").state_dict()
    own = {name: D2vModel.from_pretrained(tmp_path / f"alone_{name}/export").state_dict() for name in ("image", "text")}
    for key, value in joint.items():
        source = own["text"] if key.startswith("frontends.text") else own["image"]
        assert torch.equal(value, source[key]), key
    wide = [*alone(tmp_path / "wide", "text", *short), "model.trunk.dim=64"]
    pretrain.main(wide)
    with pytest.raises(ValueError, match=r"train.init_from.text: the encoder is 64 wide, and model.trunk.dim is 32"):
        pretrain.main([*arguments, f"run.dir={tmp_path / 'other'}", f"train.init_from.text={tmp_path / 'wide'}"])


def test_pairs_alone_are_a_run(tmp_path):
    table = colours.write_world(tmp_path / "world", 4)
    path, *_ = with_pairs(tmp_path / "run", table)
    values = yaml.safe_load(Path(path).read_text())
    for name in ("image", "text"):
        del values["data"][name], values["objective"]["parts"][name], values["train"]["batch_size"][name]
    for name in TEACHER:
        del values["objective"][name]
    values["data"]["image+text"]["text"]["vocab_size"] = 280
    Path(path).write_text(yaml.safe_dump(values))
    pretrain.main([path])
    assert (tmp_path / "run/export/text/tokenizer.json").is_file()
    assert D2vForAlignment.from_pretrained(tmp_path / "run/export").task.modalities == ["image", "text"]
