"""A step of every objective on every modality on a `cuda` device that is not there: see tests/on_device.py.

All operators find their inputs on one device, and nothing in the step waits for it.
"""

import contextlib

import colours
import pytest
import test_joint_run as joint
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from on_device import CUDA, FakeDevice, moved

from d2v import plugins
from d2v.config.joint import load_joint
from d2v.training.loop import Loop

# one of each way to a loss; pytest -m slow has all pairs
OFTEN = [
    ("image", "data2vec"),
    ("image", "dino"),
    ("image", "mae"),
    ("image", "moco"),
    ("speech", "data2vec2"),
    ("speech", "ibot"),
    ("speech", "wav2vec2"),
    ("text", "data2vec"),
    ("text", "electra"),
]
# which of the pairs run in half precision too; fp16 without its scaler, which waits by design
HALF = [
    ("image", "data2vec", torch.bfloat16),
    ("speech", "data2vec2", torch.float16),
]
MORE = [(modality, name, dtype) for modality, name in tiny.PAIRS for dtype in (torch.bfloat16, torch.float16)]


@pytest.fixture
def on_cuda(monkeypatch):
    """Turns accelerate's device into that one; its processes stay as they are."""
    PartialState()

    def begin() -> None:
        for state in (PartialState, AcceleratorState):
            monkeypatch.setitem(state._shared_state, "device", CUDA)

    return begin


def step(modality: str, name: str, folder, begin, dtype: torch.dtype | None, *more: str) -> list[str]:
    """What the CPU waited for in a step as the loop does it, under autocast to `dtype`."""
    settings = vars(plugins.load("d2v.objectives", name).Config())
    shallow = ["model.trunk.depth=1", *(["objective.top_k=1"] if "top_k" in settings else [])]
    dropout = [key for key in tiny.dropout(name) if "layer_drop" not in key]
    config = tiny.config_of(modality, folder, tiny.using(name), *dropout, *shallow, *more)
    return waits_of(config, tiny.objective_of(config), tiny.batches_of(config), begin, dtype)


def waits_of(config, objective, batches, begin, dtype: torch.dtype | None) -> list[str]:
    """The same of an objective and its batches."""
    views, ids = batches(0, 0, 1)
    views = [view.located() for view in views]
    with FakeDevice() as device:
        objective = moved(objective)
        loop = Loop(
            objective, batches, train=config.train, run=config.run, accelerator=Accelerator(device_placement=False)
        )
        begin()
        loop.model.train()
        if dtype is not None:
            loop.model.forward = torch.autocast("cuda", dtype)(loop.model.forward)
        there = [view.to(CUDA) for view in views]
        device.waits.clear()
        loop._step(iter([(there, ids, 0.0)]))
        moments = [state for state in loop.optimizer.state.values() if state]
        assert moments and all(value.device == CUDA for state in moments for value in state.values())
        assert all(x.device == CUDA for x in (*objective.parameters(), *objective.buffers()))
    return device.waits


@pytest.mark.parametrize(
    ("modality", "name"),
    [pytest.param(*pair, marks=() if pair in OFTEN else pytest.mark.slow) for pair in tiny.PAIRS],
)
def test_nothing_in_a_step_waits_for_the_device(modality, name, tmp_path, on_cuda):
    assert step(modality, name, tmp_path, on_cuda, None) == []


@pytest.mark.parametrize(
    ("modality", "name", "dtype"),
    [*HALF, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE if one not in HALF)],
)
def test_nor_in_half_precision(modality, name, dtype, tmp_path, on_cuda):
    assert step(modality, name, tmp_path, on_cuda, dtype) == []


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pairs", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_nor_in_a_step_of_a_joint_run_with_pairs(pairs, dtype, tmp_path, on_cuda):
    table = colours.write_world(tmp_path / "world", 8)
    method = f"objective.parts.image+text={{name: {pairs}, projection_dim: 8}}"
    config = load_joint(*joint.split(joint.with_pairs(tmp_path / "run", table, method)))
    objective, batches = joint.opened(config, tmp_path / "run")
    assert waits_of(config, objective, batches, on_cuda, dtype) == []


def test_what_waits_is_listed_and_what_is_mixed_fails():
    with FakeDevice() as device:
        x = torch.ones(3, 4, device=CUDA)
        host = torch.ones(4)
        assert host.sum().item() == 4 and not device.waits
        torch.randn(3, device=CUDA, generator=torch.Generator(CUDA).manual_seed(1))
        x.index_select(0, host[:2].long().to(CUDA, non_blocking=True))
        assert not device.waits
        with pytest.raises(Exception, match="two devices"):
            x + host
        for waits in (
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: x.tolist(),
            lambda: x[x > 0],
            lambda: (x > 0).nonzero(),
            lambda: x.cpu(),
            lambda: host.to(CUDA),
            lambda: torch.tensor(3.0, device=CUDA),
        ):
            device.waits.clear()
            with contextlib.suppress(Exception):  # for numbers that are not there
                waits()
            assert device.waits
