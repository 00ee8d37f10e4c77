"""Methods that contrast with negatives as they are trained.

By two processes as by one, resumed, and with settings that do not fit.
"""

import math
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from contrasting import BATCH, CASES, QUEUE, batch, encoder, objective, one_step, trained

from d2v.objectives import instdisc, mochi, moco, simclr


def two_processes(folder: Path) -> None:
    """What each of two does: every case, and the wrong settings that only several processes can have."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save({name: trained(name, rank, 2) for name in CASES}, folder / f"{rank}.pt")
    with pytest.raises(ValueError, match="norm_groups is 3; it must be 1 or a multiple of the number of processes, 2"):
        moco.build(encoder(True), moco.Config(**{**QUEUE, "queue_size": 24}, norm_groups=3)).check_batch(12, 2)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("pair")
    assert tiny.wait(tiny.start(two_processes, folder, world=2)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, pair):
    one = trained(name)
    for two in (found[name] for found in pair):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for found, expected in zip(two["gradients"], one["gradients"], strict=True):
            assert found.keys() == expected.keys()
            for key in expected:
                largest = float(
                    expected[key].abs().max()
                )  # what rounding is relative to; where a norm makes it 0, to others
                torch.testing.assert_close(
                    found[key],
                    expected[key],
                    rtol=0,
                    atol=1e-3 * largest + 1e-5,
                    msg=lambda text, key=key: f"{key}: {text}",
                )
        assert two["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            torch.testing.assert_close(two["state"][key], value, rtol=1e-3, atol=2e-5, msg=key)
    remembered = [key for key in one["state"] if key.startswith(("queue.", "bank.", "normaliser"))]
    assert remembered or name.startswith("simclr")
    assert all(torch.equal(pair[0][name]["state"][key], pair[1][name]["state"][key]) for key in remembered)
    fresh = objective(name).state_dict()
    assert all(
        not torch.equal(one["state"][key], fresh[key])
        for key in remembered
        if key not in ("queue.position", "normaliser")
    )


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_and_shown(name):
    _, gradients, loss = one_step(objective(name), 3)
    assert loss.total.dtype == torch.float32 and loss.total.ndim == 0 and int(loss.count) == BATCH
    assert all(value.ndim == 0 and value.isfinite() for value in loss.metrics.values())
    assert {
        "accuracy",
        "negatives",
        "alignment",
        "uniformity",
        "target_spread",
        "prediction_spread",
    } == loss.metrics.keys()
    still = [key for key, gradient in gradients.items() if not gradient.any()]
    assert [key for key in still if not key.endswith("attention.qkv.bias")] == [], "no gradient"
    assert not any("mask_token" in key for key in gradients)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_exact(name):
    """What is drawn is of the step; what is remembered is in the state dict."""
    whole, resumed = objective(name), None
    for step in range(5):
        if step == 3:
            resumed = objective(name)
            resumed.load_state_dict(whole.state_dict())
            torch.manual_seed(99)
            torch.rand(7)
        expected = one_step(whole, step)
    assert resumed is not None
    one_step(resumed, 3)
    found = one_step(resumed, 4)
    assert found[0] == expected[0] and all(
        torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items()
    )


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (moco.Config, {"temperature": 0.0}, "objective.temperature is 0.0; it must be a positive number"),
        (moco.Config, {"temperature": math.nan}, "objective.temperature is nan"),
        (moco.Config, {"queue_size": 0}, "objective.queue_size is 0"),
        (moco.Config, {"ema_decay": 1.5}, "objective.ema_decay is 1.5"),
        (moco.Config, {"hidden_dim": -1}, "objective.hidden_dim is -1; it must be 0 or more"),
        (moco.Config, {"norm_groups": 0}, "objective.norm_groups is 0"),
        (mochi.Config, {"hardest": 0}, "objective.hardest is 0; it must be at least 1"),
        (
            mochi.Config,
            {"queue_size": 512},
            "objective.hardest is 1024; it must be between 1 and objective.queue_size, 512",
        ),
        (mochi.Config, {"mixed": -1}, "objective.mixed is -1"),
        (mochi.Config, {"mixed": 0, "mixed_with_query": 0}, "both 0"),
        (mochi.Config, {"temperature": -1.0}, "objective.temperature is -1.0"),
        (instdisc.Config, {"loss": "ce"}, "objective.loss is 'ce'; it may be nce, softmax"),
        (instdisc.Config, {"negatives": 0}, "objective.negatives is 0; nce needs 1 or more"),
        (instdisc.Config, {"negatives": -1, "loss": "softmax"}, "objective.negatives is -1"),
        (instdisc.Config, {"bank_momentum": 1.0}, "objective.bank_momentum is 1.0"),
        (simclr.Config, {"temperature": 0.0}, "objective.temperature is 0.0"),
        (simclr.Config, {"num_layers": 0}, "objective.num_layers is 0"),
        (simclr.Config, {"num_layers": 1, "hidden_dim": 4}, "objective.hidden_dim is 4, .* a head of one layer"),
        (simclr.Config, {"hidden_dim": -4}, "objective.hidden_dim is -4; it must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(config, wrong, message):
    config()
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_batches_and_views_that_do_not_fit():
    plain, symmetric, grouped = (objective(name) for name in ("moco", "moco_symmetric_grouped", "moco_v1_grouped"))
    plain.check_batch(32, 1)
    for size in (12, 64):
        with pytest.raises(ValueError, match=f"queue_size is 32; it must be a multiple of the {size} keys of a step"):
            plain.check_batch(size, 1)
    with pytest.raises(ValueError, match=r"multiple of the 64 keys of a step \(train.batch_size 32\)"):
        symmetric.check_batch(32, 1)
    with pytest.raises(ValueError, match=r"train.batch_size is 4, of which batch norm takes 4 equal groups"):
        grouped.check_batch(4, 1)
    with pytest.raises(ValueError, match=r"train.accumulate is 2"):
        plain.check_batch(8, 2)
    with pytest.raises(ValueError, match="norm_groups is 2; this encoder has no batch norm"):
        moco.build(encoder(), moco.Config(**QUEUE, norm_groups=2))
    views = batch(0)
    padded = [view._replace(padding=torch.zeros(BATCH, 4, dtype=torch.bool)) for view in views]
    plain.check(padded)
    with pytest.raises(ValueError, match="norm_groups is 4, which needs samples of one length"):
        grouped.check(padded)
    for model in (plain, objective("simclr")):
        with pytest.raises(ValueError, match=r"compares 2 views of a sample; data.views makes 1"):
            model.check(views[:1])
