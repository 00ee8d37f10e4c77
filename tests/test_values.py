"""Every number has bounds, nothing that is not finite passes, and what no memory holds is refused before it is made."""

import importlib
import inspect
import math
import pkgutil
import typing
from dataclasses import fields, is_dataclass

import pytest
import tiny
import torch

import d2v
from d2v import plugins
from d2v.config.loading import load_config
from d2v.config.schema import RunConfig, TrainConfig
from d2v.finetuning.config import TuneConfig
from d2v.models.transformer import TrunkConfig
from d2v.settings import check_values, default_of, hints_of
from scripts import pretrain

DEMO = str(tiny.ROOT / "configs" / "image" / "demo.yaml")


def kinds() -> list[type]:
    """All dataclasses of settings in d2v and its modalities, found by looking."""
    found = {}
    packages = [d2v, *(plugins.load("d2v.modalities", name) for name in tiny.MODALITIES)]
    packages += [importlib.import_module("d2v.modalities.common")]
    for package in packages:
        for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for kind in vars(importlib.import_module(entry.name)).values():
                if inspect.isclass(kind) and is_dataclass(kind) and any("allowed" in f.metadata for f in fields(kind)):
                    found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return list(found.values())


def type_of(kind: type, name: str) -> type:
    """Of a field, or of its entries."""
    hint = hints_of(kind)[name]
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return type_of_hint(parts[0] if parts else hint)


def type_of_hint(hint) -> type:
    return typing.get_args(hint)[0] if typing.get_args(hint) else hint


ALL = [(kind, one) for kind in kinds() for one in fields(kind) if "allowed" in one.metadata]
NUMBERS = [(kind, one) for kind, one in ALL if type_of(kind, one.name) in (int, float)]
BOOLS = [(kind, one) for kind, one in ALL if type_of(kind, one.name) is bool]


def refused(kind: type, name: str, value) -> bool:
    """Whether a value of a field is refused in one line that names it."""
    settings = kind()
    entries = default_of(next(one for one in fields(kind) if one.name == name))
    setattr(settings, name, [value] * max(1, len(entries)) if isinstance(entries, list) else value)
    try:
        check_values(settings, "here")
    except ValueError as error:
        assert f"here.{name} is " in str(error) and "\n" not in str(error)
        return True
    return False


def test_there_are_fields():
    assert len(NUMBERS) > 150 and len(BOOLS) > 20


def test_every_number_declares_a_lower_bound_and_has_a_finite_upper_one():
    for kind, one in NUMBERS:
        allowed = one.metadata["allowed"]
        assert allowed.least is not None or allowed.above is not None, f"{kind} {one.name} has no lower bound"
        assert math.isfinite(allowed.limit), f"{kind} {one.name}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 10**30, 10**12, -(10**12), True, "3"])
def test_no_number_is_one_that_is_not_finite_or_huge(value):
    passed = [f"{kind.__qualname__}.{one.name}" for kind, one in NUMBERS if not refused(kind, one.name, value)]
    assert not passed


def test_minus_one_passes_only_where_it_is_declared():
    for kind, one in NUMBERS:
        allowed = one.metadata["allowed"]
        low = allowed.least if allowed.least is not None else allowed.above
        assert refused(kind, one.name, -1) == (low > -1 or allowed.above == -1)


@pytest.mark.parametrize("value", [10**7, 2, 1, 0, 0.0, "true", None, [True]])
def test_a_bool_is_true_or_false(value):
    passed = [f"{kind.__qualname__}.{one.name}" for kind, one in BOOLS if not refused(kind, one.name, value)]
    assert not passed


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (TrainConfig, {"clip": -1.0}),
        (TrainConfig, {"weight_decay": -1.0}),
        (TrainConfig, {"eps": math.inf}),
        (TrainConfig, {"lr": 0.0}),
        (TrainConfig, {"start": -1.0}),
        (TrainConfig, {"hold": math.nan}),
        (TrainConfig, {"betas": [0.9]}),
        (TrainConfig, {"betas": [0.9, 1.0]}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"steps": 2.5}),
        (TrainConfig, {"accumulate": 65}),
        (TrainConfig, {"clip_each": 10**7}),
        (RunConfig, {"health_every": -1}),
        (RunConfig, {"health_samples": 0}),
        (TuneConfig, {"validate_every": -1}),
        (TrunkConfig, {"num_heads": 0}),
        (TrunkConfig, {"depth": 10**7}),
    ],
)
def test_values_that_make_no_sense_are_refused_by_constructors_too(kind, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        kind(**settings)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.clip=-1", "train.clip is -1.0; it must be 0 or more"),
        ("train.eps=.inf", "train.eps is inf; it must be 0 or more"),
        ("train.lr=0", "train.lr is 0.0; it must be a positive number"),
        ("train.lr=.nan", "train.lr is nan; it must be a positive number"),
        ("data.max_bad_share=.nan", "data.max_bad_share is nan; it must be at least 0 and at most 1"),
        ("objective.head_layers=-1", "objective.head_layers is -1; it must be at least 1"),
        ("train.decay_all=10000000", "train.decay_all: it is '10000000'; it must be true or false"),
        ("run.overwrite=2", "run.overwrite: it is '2'; it must be true or false"),
        ("train.betas=[0.9]", r"train.betas is \[0.9\]; it must have 2 entries"),
        ("model.trunk.num_heads=0", "model.trunk.num_heads is 0; it must be at least 1"),
        ("train.accumulate=100000", "train.accumulate is 100000; it must be at most train.batch_size, "),
        ("run.health_samples=0", "run.health_samples is 0; it must be at least 2"),
        ("model.trunk.depth=10000000", "model.trunk.depth is 10000000; it must be 0 or more, and at most 200"),
        ("train.steps=1e3", "train.steps: it is '1e3'; it must be a whole number"),
        ("run.workers=100000", "run.workers is 100000; it must be 0 or more, and at most 256"),
    ],
)
def test_a_value_of_the_command_line_that_makes_no_sense_is_named(argument, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(DEMO, [argument])
    assert "\n" not in str(caught.value)


# Memory.


@pytest.mark.parametrize(
    ("objective", "more", "message"),
    [
        ("data2vec", ("model.trunk.dim=1000000", "model.trunk.num_heads=10"), "model.trunk.dim is 1000000: weights, "),
        ("data2vec", ("model.trunk.mlp_dim=10000000", "model.trunk.depth=100"), "model.trunk.mlp_dim is 10000000: "),
        ("data2vec", ("model.frontends.image.channels=10000", "model.trunk.dim=512000"), "model.trunk.dim is 512000: "),
        ("moco", ("objective.queue_size=100000000", "objective.out_dim=128"), "objective.queue_size is 100000000: "),
        ("dino", ("objective.num_prototypes=100000000", "objective.bottleneck_dim=256"), "objective.num_prototypes is"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_made(objective, more, message, monkeypatch):
    from d2v.training import setup, sizes

    monkeypatch.setattr(sizes, "memory_of", lambda device: 32 * 10**9)
    config = tiny.config_of("image", "unused", tiny.using(objective), *more)
    with pytest.raises(ValueError, match=f"{message}.* and there are 32 GB; lower it"):
        sizes.check_memory(config, lambda config: setup.build_objective(config, 100), torch.device("cpu"))


@pytest.mark.parametrize("objective", ["data2vec", "data2vec2", "moco", "instdisc", "ibot"])
def test_what_is_needed_is_what_is_there_once_it_is_made(objective):
    from d2v.training import setup, sizes

    config = tiny.config_of("image", "unused", tiny.using(objective))
    before = torch.get_rng_state()
    needed = sizes._needed(config, lambda config: setup.build_objective(config, 100))
    assert torch.equal(torch.get_rng_state(), before)
    made = setup.build_objective(config, 100)
    assert not any(tensor.is_meta for tensor in [*made.parameters(), *made.buffers()])
    trained = sum(one.nbytes for one in made.parameters() if one.requires_grad)
    assert needed == sum(one.nbytes for one in [*made.parameters(), *made.buffers()]) + 3 * trained


def test_a_run_that_is_too_large_leaves_no_folder(tmp_path):
    for more in ("model.trunk.depth=10000000", "model.trunk.mlp_dim=10000000000", "train.batch_size=1000000000000"):
        with pytest.raises(ValueError, match=more.partition("=")[0]):
            pretrain.main(tiny.arguments("image", tmp_path / "run", more))
    with pytest.raises(ValueError, match=r"model\.trunk\.mlp_dim is 10000000: .* GB; lower it"):
        pretrain.main(tiny.arguments("image", tmp_path / "run", "model.trunk.mlp_dim=10000000", "model.trunk.dim=7680"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch):
    from d2v.training import sizes
    from d2v.types import View

    config = tiny.config_of("image", "unused", "train.batch_size=1000000")
    views = [View("image", {"pixel_values": torch.zeros(1, 3, 64, 64)})]
    monkeypatch.setattr(sizes, "memory_of", lambda device: 32 * 10**9)
    with pytest.raises(ValueError, match=r"train\.batch_size is 1000000: 1000000 samples at once would need 49.2 GB"):
        sizes.check_batch(config, views, 1, torch.device("cpu"))
    sizes.check_batch(config, views, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"train\.batch_size is 1000000, of 2000000 micro-batches"):
        sizes.check_batch(config, views, 2000000, torch.device("cpu"))


def test_a_bank_with_fewer_rows_than_samples_is_refused():
    from d2v.training.setup import build_objective

    config = tiny.config_of("image", "unused", tiny.using("instdisc"), "objective.num_samples=5")
    with pytest.raises(ValueError, match=r"objective\.num_samples is 5, but the data has 100 usable samples"):
        build_objective(config, 100)
    assert len(build_objective(config, 5).bank.rows) == 5
