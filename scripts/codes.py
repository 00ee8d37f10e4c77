"""Learns codes of tokens by k-means, for objective.name=beit: of the pixels of patches, or of log-mel frames.

d2v codes CONFIG data.path=PATH objective.codes=FILE [key=value ...]
d2v pretrain CONFIG data.path=PATH objective.codes=FILE [key=value ...]

CONFIG is of the method that will read them; objective.num_codes says how many. FILE also holds a fingerprint of the
data: a run on other data refuses it. run.overwrite=true replaces a file that is there.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v import plugins
from d2v.config.cli import run_cli
from d2v.config.find import find_config
from d2v.config.loading import load_config
from d2v.config.schema import Config
from d2v.files import check_new, record_results
from d2v.objectives.common.codes import save_centers
from d2v.objectives.common.regression import NORMS
from d2v.protocols import ScoredSplit
from d2v.reading import Reader
from d2v.training.same_data import marks_of

TOKENS_OF_A_CODE = 100  # more change centers little
FEWEST_TOKENS = 50_000


def main(argv: list[str]) -> None:
    """`argv`: CONFIG and overrides. ValueError: whatever the user can mend."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v codes CONFIG data.path=PATH objective.codes=FILE [key=value ...]")
    config = load_config(find_config(argv[0]), argv[1:])
    settings, modality = vars(config.objective), plugins.load("d2v.modalities", config.modality)
    if "codes" not in settings:
        raise ValueError(f"objective.name is {config.objective.name}, which reads no codes: beit does")
    if not settings["codes"]:
        raise ValueError("objective.codes is empty: name the file that is to be written")
    file = Path(settings["codes"])
    check_new(file, config.run.overwrite)
    with tempfile.TemporaryDirectory() as folder:
        modality.prepare(config.data, config.frontend, Path(folder), config.train.seed)
        trunk = config.model.trunk
        frontend = modality.Frontend(config.frontend, trunk.dim, trunk.num_heads)
        frontend.content_dim()  # says what has none
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=Path(folder))
        print("\n".join(samples.report.lines()))
        tokens = some_tokens(config, frontend, samples)  # (n, P)
    centers, explained = k_means(tokens, config.objective.num_codes, config.train.seed)
    digest = marks_of(config.data.path, [ScoredSplit(samples, np.arange(len(samples)), ())])["digest"]
    record_results([file])
    save_centers(file, centers, {"data": digest, "path": str(config.data.path), "norm": config.objective.norm})
    print(f"{file}: {len(centers)} codes of {len(tokens)} tokens, which explain {explained:.0%} of their variance")


def some_tokens(config: Config, frontend: Any, samples: Any) -> Tensor:
    """Tokens of samples in a random order, normed as the method norms them, as many as centers need, (n, P).

    ValueError: fewer than there are to be codes, or samples that cannot be read.
    """
    wanted = max(FEWEST_TOKENS, TOKENS_OF_A_CODE * config.objective.num_codes)
    order = np.random.default_rng(config.train.seed).permutation(len(samples))
    batches = np.split(np.arange(len(order)), range(config.evaluate.batch_size, len(order), config.evaluate.batch_size))
    found: list[Tensor] = []
    for _, view in Reader(config.data.max_bad_share).views(samples, order, batches):
        with torch.no_grad():
            content = NORMS[config.objective.norm](frontend.content(**view.inputs), view.padding)  # (B, T, P)
        found.append(content.flatten(0, 1) if view.padding is None else content[~view.padding])
        if sum(map(len, found)) >= wanted:
            break
    tokens = torch.cat(found)[:wanted]
    if len(tokens) < config.objective.num_codes:
        raise ValueError(
            f"data.path {config.data.path} has {len(tokens)} tokens, fewer than objective.num_codes, "
            f"{config.objective.num_codes}"
        )
    return tokens


def k_means(tokens: Tensor, num_codes: int, seed: int) -> tuple[Tensor, float]:
    """Centers (C, P) of tokens (n, P), and which share of their variance lies between them."""
    from sklearn.cluster import MiniBatchKMeans  # seconds that --help need not wait

    rows = tokens.numpy()
    size = max(10_000, 2 * num_codes)  # HuBERT's
    found = MiniBatchKMeans(num_codes, batch_size=size, n_init=3, random_state=seed, max_iter=50).fit(rows)  # type: ignore[arg-type]
    around = float(np.square(rows - rows.mean(axis=0)).sum())
    return torch.from_numpy(found.cluster_centers_).float(), 1 - float(found.inertia_) / max(around, 1e-12)


if __name__ == "__main__":
    run_cli(main)
