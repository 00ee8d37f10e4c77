"""A setting that nothing reads is an error: every one, changed alone, changes a run or is refused."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import types
import typing

import pytest
import tiny
import torch
from torch import nn

from d2v.config.loading import load_config
from d2v.config.schema import Config, TrainConfig
from d2v.finetuning import config as finetuning
from d2v.settings import check_readers, hints_of, section, setting
from d2v.training import checkpoint, optim, schedules
from d2v.training.run_log import History

# One mechanism.


@dataclasses.dataclass
class Inner:
    size: int = setting(1, "How large.", least=0, only={"out.kind": "b"})


@dataclasses.dataclass
class Outer:
    kind: str = setting("a", "Which.", among=("a", "b"))
    names: list[str] = setting([], "Some.")
    rate: float = setting(0.5, "Of b.", least=0, only={"kind": "b"})
    many: int = setting(
        2, "Of names, and of b.", least=0, only=[{"names": True}, {"kind": "b"}], why="there are no names"
    )
    none: int = setting(3, "Without names.", least=0, only={"names": False})
    large: float = setting(0.0, "Of large rates.", least=0, only={"rate": lambda rate: rate > 1})
    inner: Inner = section(Inner, "More.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.7}, "out.rate is 0.7, which out.kind=a does not read: leave it out, or give it its default, 0.5"),
        (
            {"many": 5},
            "out.many is 5, and nothing reads it: there are no names: leave it out, or give it its default, 2",
        ),
        ({"none": 5, "names": ["x"]}, r"out.none is 5, and nothing reads it: out.names is \['x'\]: leave it out"),
        ({"large": 1.0}, "out.large is 1.0, and nothing reads it: out.rate is 0.5: leave it out"),
        ({"inner": Inner(2)}, "out.inner.size is 2, which out.kind=a does not read"),
        ({"rate": 0.7, "kind": "b", "many": 5}, None),
        ({"many": 5, "names": ["x"]}, None),
        ({"large": 1.0, "rate": 2.0, "kind": "b"}, None),
        ({"inner": Inner(2), "kind": "b"}, None),
    ],
)
def test_what_is_set_and_not_read_names_both_settings(settings, message):
    if message is None:
        check_readers({"out": Outer(**settings)})
        return
    with pytest.raises(ValueError, match=message):
        check_readers({"out": Outer(**settings)})


@pytest.mark.parametrize(
    ("modality", "arguments", "message"),
    [
        ("image", ["train.hold=0.5"], "train.hold is 0.5, which train.schedule=cosine does not read"),
        ("image", ["train.schedule=constant", "train.floor=0.5"], "train.floor is 0.5, which train.schedule=constant"),
        ("image", ["train.warmup_steps=0", "train.start=0.5"], "train.start is 0.5, .* train.warmup_steps is 0"),
        ("image", ["train.layer_decay_frontends=false"], "layer_decay_frontends is False, .*layer_decay is 1.0"),
        (
            "speech",
            ["model.frontends.speech.kind=mel", "model.frontends.speech.conv_strides=[5,2,2,2,2,2,1]"],
            "conv_s",
        ),
        (
            "speech",
            ["model.frontends.speech.kind=waveform", "model.frontends.speech.mel_bins=3"],
            "mel_bins is 3, which",
        ),
        ("image", ["model.trunk.prenet_depth=1"], "prenet_depth is 1, which objective.name=data2vec does not read"),
        (
            "image",
            ["objective.feed_tokens=true"],
            "feed_tokens is True, and nothing reads it: objective.shared is empty",
        ),
        (
            "text",
            ["model.frontends.text.embedding_norm=true"],
            "embedding_norm is True, and nothing reads it: data2vec 1",
        ),
        ("image", ["evaluate.few_draws=5"], "evaluate.few_draws is 5, and nothing reads it: evaluate.reports is empty"),
        ("image", ["run.probe.k=5"], "run.probe.k is 5, and nothing reads it: run.probe.path is empty"),
        (
            "image",
            ["model.trunk.init=default", "model.trunk.init_std=0.5"],
            "init_std is 0.5, which model.trunk.init=def",
        ),
        ("image/swav_tiny", ["objective.queue_share=0.5"], "queue_share is 0.5, .*queue_size is 0"),
        (
            "image/dino_tiny",
            ["objective.warmup_share=0", "objective.start_temperature=1"],
            "start_temp",
        ),
        ("image", ["data.mask_length=5"], "data.mask_length is 5, which data.mask_kind=beit does not read"),
    ],
)
def test_settings_of_another_choice_are_refused(modality, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_config(tiny.ROOT / "configs" / f"{modality if '/' in modality else f'{modality}/demo'}.yaml", arguments)


@pytest.mark.parametrize(
    ("modality", "argument", "message"),
    [
        ("image", "data.mix_prob=0.5", "data.mix_prob is 0.5, and nothing reads it: data.mixup is 0.0"),
        ("image", "task.activation=none", "task.activation is none, and nothing reads it: task.dense_dim is 0"),
        ("image", "task.mask_noise=0.1", "task.mask_noise is 0.1, and nothing reads it: data.mask_prob is None"),
        ("speech", "data.channel_length=3", "data.channel_length is 3, and nothing reads it: data.channel_prob is 0.0"),
        (
            "speech",
            "data.decode.lm_weight=3",
            "data.decode.lm_weight is 3.0, and nothing reads it: data.decode.lm is em",
        ),
    ],
)
def test_settings_of_fine_tuning_of_another_choice_are_refused(modality, argument, message):
    path = tiny.ROOT / "configs" / modality / "finetune_tiny.yaml"
    with pytest.raises(ValueError, match=message):
        finetuning.load([str(path), "data.path=x", "run.dir=y", argument])


RECIPES = [path for name in tiny.MODALITIES for path in sorted((tiny.ROOT / "configs" / name).glob("[a-z]*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_sets_what_is_read_alone(path):
    if path.stem.startswith(("finetune", "detect")):
        assert finetuning.load([str(path), "data.path=x", "run.dir=y"])
    else:
        assert load_config(path)


# What was wrong.


def test_tri_stage_with_the_default_hold_falls_after_a_long_warm_up():
    rates = [schedules.tri_stage(step, 100, 10, floor=0.05, start=0.01) for step in range(101)]
    assert rates[10] == rates[91] == 1 and rates[92] < 1 and rates[100] == pytest.approx(0.05)
    published = [schedules.tri_stage(step, 400000, 12000) for step in (12000, 372000, 386000, 400000)]
    assert published == pytest.approx([1, 1, 0.1, 0.01])
    with pytest.raises(ValueError, match=r"train\.hold is 1\.0; it must be at least 0 and below 1"):
        TrainConfig(schedule="tri_stage", floor=0.1, hold=1.0)


def test_a_linear_layer_of_one_output_is_decayed_as_others_are():
    module = nn.ModuleDict({"one": nn.Linear(4, 1), "some": nn.Linear(4, 2), "conv": nn.Conv1d(1, 1, 3)})
    module["norm"] = nn.LayerNorm(4)
    module["prototypes"] = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False))
    decayed, others = optim.parameter_groups(module, 0.1)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(one)] for one in decayed["params"]} == {
        "one.weight",
        "some.weight",
        "conv.weight",
        "prototypes.parametrizations.weight.original1",
    }
    assert {names[id(one)] for one in others["params"]} == {
        "one.bias",
        "some.bias",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "prototypes.parametrizations.weight.original0",
    }


def test_a_run_that_stops_on_collapse_has_saved_what_it_was(tmp_path):
    config = tiny.config_of("image", tmp_path, "run.stop_on_collapse=true", "run.health_every=5")
    loop = tiny.loop_of(config)
    loop._collapsed = lambda: True
    loop()
    assert [path.name for path in checkpoint.checkpoints_in(tmp_path / "checkpoints")] == ["00000005"]


def test_damaged_records_of_a_run_are_passed_over(tmp_path):
    lines = [
        '{"loss": 1}',
        "[1]",
        "3",
        '"x"',
        '{"step": "1"}',
        '{"step": 1, "loss": "x"}',
        '{"step": 1, "loss": 2}',
        "{",
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert History(tmp_path / "metrics.jsonl", 5, write=True).records == [{"step": 1, "loss": 2}]


# The walk.

WHY = {  # settings that may be changed without a trace in three steps on clean data
    "data.max_bad_share": "of bad files",
    "data.check_files": "of bad files",
    "data.min_size": "of small images",
    "data.cache_hours": "memory against time",
    "data.min_seconds": "of short clips",
    "data.eval_crop": "of evaluation and health checks",
    "objective.norm_over_padding": "of padding, which images do not have",
    "objective.reference_padding": "of padding, which images do not have",
    "objective.feed_tokens": "what shared parts would compute again is taken from the student",
    "model.trunk.prenet_depth": "forbids targets of these blocks",
    "model.frontends.speech.reference_padding": "of padding behind the shorter of two clips",
    "model.frontends.speech.reference_padded_input": "of padding behind the shorter of two clips",
    "data.max_seconds": "of long clips, which the demo does not have",
    "data.min_masks": "of short clips and a small share",
    "data.vocab_size": "of more text than the demo has",
    "model.frontends.text.reference_padded_input": "of padding, which packed blocks do not have",
    "model.frontends.text.init": "of the samples that a new run begins with; see tests/test_cooccurrence.py",
    "data.min_tokens": "of rows of a few tokens, which the demo does not have; see tests/test_text.py",
    "objective.start_temperature": "of a warm-up, of which three steps have nothing",
    "train.mixed_precision": "hardware",
    "train.checkpoint_activations": "memory against time",
    "train.sharding": "of several processes",
    "train.compile": "time at the start against time of a step; tests/test_compiling.py compares the losses",
    "train.max_bad_steps": "of steps that are not finite",
}
NAMES = {  # texts and lists of them that have no other value here
    "data.path",
    "data.split",
    "data.label",
    "objective.codes",
    "data.text",
    "data.tokenizer",
    "data.views",
    "objective.name",
    "objective.shared",
    "objective.freeze",
    "objective.frozen",
    "train.init_from",
    "model.frontends.image.backbone",
}


def others(one: dataclasses.Field, kind: typing.Any, value: typing.Any) -> list:
    """Values that a field might have instead."""
    allowed = one.metadata["allowed"]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if allowed.among and kind is str:
        return [choice for choice in allowed.among if choice != value]
    if kind is bool:
        return [not value]
    if kind is int:
        near = [1, 2, 5] if value is None else [value - 1, value // 2, value + 1, 1, 2, value * 2]
        return [other for other in near if other != value and allowed.passes(other)]
    if kind is float:
        near = [0.3, 50.0] if value is None else [value / 2, value * 2, 0.001, value + 0.25, 0.5, 0.1, 2.0, 0.0, 0.9]
        return [other for other in near if other != value and allowed.passes(other)]
    if typing.get_origin(kind) is list and typing.get_args(kind)[0] in (int, float):
        number = typing.get_args(kind)[0]
        if value is None:
            return [[0.3, 0.4]]
        halved = [number(value[0] * 0.5), *value[1:]]
        return [halved, *([number(entry * by) for entry in value] for by in (2, 0.9)), [number(e + 1) for e in value]]
    if typing.get_origin(kind) is list and allowed.among:
        return [[choice] for choice in allowed.among if [choice] != value]
    return []


def outcome(config: Config) -> tuple:
    """What three steps leave: records, weights, and what is said of the data."""
    config.run.dir = tempfile.mkdtemp(dir=tiny.scratch())
    loop = tiny.loop_of(config)
    loop.objective.check_masks(loop.micro_batches.batches(0, 0, config.train.batch_size)[0])
    loop()
    checksum = hashlib.sha256()
    for name, tensor in sorted(loop.objective.state_dict().items()):
        checksum.update(name.encode() + tensor.contiguous().float().numpy().tobytes())
    shutil.rmtree(config.run.dir)
    records = [(record["loss"], record["lr"], record["grad_norm"]) for record in loop.history.records]
    return records, checksum.hexdigest(), tiny.samples_of(config).report.lines()


def silent(modality: str, objective: str, part: str) -> list[str]:
    """Settings of sections that begin with `part` that can be changed, and change nothing."""
    given = [tiny.using(objective), "train.steps=3", "train.clip=0.01"]
    base = tiny.config_of(modality, "unused", *given)
    first = outcome(tiny.config_of(modality, "unused", *given))
    sections = {f"model.frontends.{modality}": base.frontend, "model.trunk": base.model.trunk}
    sections |= {name: vars(base)[name] for name in ("data", "objective", "train")}
    sections |= {"objective.decoder": base.objective.decoder} if "decoder" in vars(base.objective) else {}
    found = []
    for where, settings in sections.items():
        for one in dataclasses.fields(settings) if where.startswith(part) else ():
            key, hint = f"{where}.{one.name}", hints_of(type(settings))[one.name]
            if key in WHY or key in NAMES or "allowed" not in one.metadata:
                continue
            if not changes(modality, given, key, others(one, hint, getattr(settings, one.name)), first):
                found.append(key)
    return found


def changes(modality: str, given: list[str], key: str, values: list, first: tuple) -> bool:
    """Whether one of some values of a setting changes a run, or all of them are refused by name."""
    refusals, accepted = [], 0
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value)
        try:
            found = outcome(tiny.config_of(modality, "unused", *given, f"{key}={text}"))
        except ValueError as error:
            assert "\n" not in str(error)
            refusals.append(str(error))
            continue
        if found != first:
            return True
        accepted += 1
    word = key.rpartition(".")[2].partition("_")[0]  # local_views is refused by what local_size must be
    return accepted == 0 and any(word in refusal for refusal in refusals)


@pytest.fixture
def unsaved(monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: None)


@pytest.mark.parametrize("part", tiny.first(["train", "objective", "model", "data"], of=2))
def test_every_setting_of_a_run_changes_it_or_is_refused(part, unsaved):
    assert silent("image", "data2vec", part) == []


WALKS = [
    (modality, objective) for modality in tiny.MODALITIES for objective in ("data2vec", "data2vec2", "byol", "ibot")
]


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "objective"), WALKS)
def test_every_setting_of_a_method_and_modality_changes_it_or_is_refused(modality, objective, unsaved):
    assert silent(modality, objective, "") == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", tiny.OBJECTIVES)
def test_every_setting_of_a_method_changes_it_or_is_refused(objective, unsaved):
    modality = next(name for name in tiny.MODALITIES if tiny.fits(name, objective))
    assert silent(modality, objective, "objective") == []


def test_reasons_are_of_settings_that_exist():
    known = set()
    for modality in tiny.MODALITIES:
        for objective in ("data2vec", "data2vec2", "mocov3", "dino", "beit", "dinosr"):
            if not tiny.fits(modality, objective):
                continue
            config = tiny.config_of(modality, "unused", tiny.using(objective))
            for where, settings in (
                (f"model.frontends.{modality}", config.frontend),
                ("model.trunk", config.model.trunk),
                *((name, vars(config)[name]) for name in ("data", "objective", "train")),
            ):
                known |= {f"{where}.{one.name}" for one in dataclasses.fields(settings)}
    assert set(WHY) | NAMES <= known
