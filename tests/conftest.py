"""What every test gets: one thread, no network, fixed seeds, and the example data where it lies beside the checkout."""

import os
import tempfile

# before transformers and datasets are imported: they read these once
os.environ.update(
    D2V_CACHE=tempfile.mkdtemp(prefix="d2v-cache-"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
# Files that take longest, in this order; started last, one of them would keep a single worker busy at the end.
LONGEST = (
    "pretrain",
    "distributed",
    "stopping",
    "length",
    "config",
    "joint_run",
    "journeys",
    "forecast",
    "collapse",
    "onnx",
    "travels",
    "finetune",
    "no_effect",
    "probe",
    "page",
    "benchmarks",
    "latent_distributed",
    "contrastive",
    "convert",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, all others as they were."""
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_unconfigure() -> None:
    """What was kept goes."""
    shutil.rmtree(os.environ["D2V_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same global random states."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs draw theirs in a test that is marked so."""
    import tiny  # after the settings above

    with tiny.pictures(wanted=request.node.get_closest_marker("pictures") is not None):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Example data and recorded tensors beside the checkout; skips without them."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the example data in {folder}")
    return folder
