"""Whether words are read in context: cross entropy of hidden words beside the entropy of how frequent they are.

    python benchmarks/word_loss.py RUN... [path=DATA] [split=SPLIT] [steps=20]

RUN: the folder of a run of mlm or mlm_latent; DATA and SPLIT: texts that it did not read, if not given its own, hidden
as its own were. <s> and </s>, which their place tells, are left out of both figures. A model that knows nothing but how
frequent words are reaches the entropy at best: it is that of the very words that were hidden, so a few too low.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from d2v import plugins
from d2v.config.loading import load_config
from d2v.objectives.common.masked import chosen
from d2v.training.checkpoint import checkpoints_in
from d2v.training.setup import build_objective
from d2v.types import View, numbers_of


@torch.no_grad()
def losses(objective: torch.nn.Module, view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropies and ids of the words at all chosen places, (n,) each."""
    encoder = objective.student["encoder"]
    where, frontend = chosen(view.mask), encoder.frontend(view.modality)
    logits = objective.head(encoder(view, view.mask, only=numbers_of(where)).x, frontend.vocabulary())  # (n, V)
    ids = view.inputs[frontend.main_input][where]
    return F.cross_entropy(logits.float(), ids, reduction="none"), ids


def entropy(ids: np.ndarray) -> float:
    """In nats, of drawing one of ids (n,)."""
    share = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(share * np.log(share)).sum())


def measure(run: Path, given: dict[str, str]) -> tuple[float, float, int]:
    """The loss, the entropy, and of how many words. SystemExit: the run has no head for words, or no checkpoint."""
    checkpoints = checkpoints_in(run / "checkpoints")
    changed = [f"data.{name}={given[name]}" for name in ("path", "split") if name in given]
    config = load_config(run / "config.yaml", changed)
    if config.objective.name not in ("mlm", "mlm_latent") or not checkpoints:
        raise SystemExit(f"{run} is no run of mlm or mlm_latent with a checkpoint")
    modality = plugins.load("d2v.modalities", config.modality)
    samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=run)
    objective = build_objective(config, len(samples)).eval()
    objective.load_state_dict(load_file(checkpoints[-1] / "model.safetensors"))
    batches = modality.batches(samples, config.data, config.frontend, config.train.batch_size, 1, lambda *_: None)
    found = []
    for step in range(int(given.get("steps", 20))):
        (view,), _ = batches(step, 0, 1)
        found.append(losses(objective, view))
    values, ids = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    words = np.isin(ids, samples.ordinary)
    return float(values[words].mean()), entropy(ids[words]), int(words.sum())


def main(argv: list[str]) -> None:
    """Prints a line for each run. SystemExit: none is named."""
    runs = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if not runs or set(given) - {"path", "split", "steps"}:
        raise SystemExit(__doc__)
    for run in runs:
        loss, unigrams, count = measure(Path(run), given)
        print(f"{run}: {loss:.3f} nats, {unigrams - loss:.3f} below the entropy {unigrams:.3f} of {count} hidden words")


if __name__ == "__main__":
    main(sys.argv[1:])
