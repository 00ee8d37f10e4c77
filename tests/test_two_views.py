"""Barlow Twins, VICReg, LeJEPA, VISReg, SimDINO and W-MSE whole, and data2vec with a guard: against slow steps, over two
processes, and what they refuse. tests/test_spread.py has the losses on rows."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from test_spread import slow_barlow, slow_rate, slow_sigreg, slow_vicreg, slow_visreg, slow_whitened
from torch import Tensor
from torch.nn.functional import normalize
from two_views import BATCH, CASES, MODULES, objective, trained, views_of

from d2v.objectives.common.gaussian import directions
from d2v.objectives.common.multi_view import generator_of_step, summary


def two_processes(folder: Path) -> None:
    """What each of two does."""
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.save({case: trained(case, rank, 2) for case in CASES}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes has."""
    folder = tmp_path_factory.mktemp("two")
    assert tiny.wait(tiny.start(two_processes, folder, world=2)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, two):
    """Losses, gradients and all state of three steps."""
    one = trained(case)
    assert any(key.startswith("gradient.0.student.encoder") and value.abs().max() > 1e-3 for key, value in one.items())
    for found in two:
        assert found[case].keys() == one.keys()
        assert {value.dtype for key, value in one.items() if "gradient" in key} == {torch.float64}
        for key, value in one.items():
            torch.testing.assert_close(
                found[case][key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
