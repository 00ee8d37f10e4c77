"""What a joint run's pairs are worth: held-out rows of one modality sought by the other's."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2v import plugins
from d2v.config.schema import Config
from d2v.evaluation.class_names import class_names
from d2v.evaluation.config import AUTO
from d2v.evaluation.load_encoder import open_alignment
from d2v.evaluation.pairs import Side, retrieval_report, write_report
from d2v.files import check_new, record_results, written
from d2v.models.alignment import D2vForAlignment
from d2v.protocols import NoSplitError
from d2v.training.weights import checkpoint_of, folder_of_model
from d2v.types import View


def evaluate_pairs(config: Config, model: str, *, in_run: bool) -> dict[str, Any]:
    """Recall in both directions, beside the random init's; printed, and written to evaluation/ beside the model.

    The split is evaluate.test_split: test, or where there is none, the one that was trained on. ValueError: whatever
    the user can mend.
    """
    folder = folder_of_model(Path(model))
    target = (Path(config.run.dir) if in_run else folder.parent) / "evaluation" / f"{config.part}.json"
    check_new(target, config.run.overwrite)
    aligned = _aligned(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = D2vForAlignment(aligned.config).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    samples, split = _samples(config, aligned, folder.parent)
    print(*samples.report.lines(), f"scored: split {split!r}", sep="\n")
    sides = _sides(config, samples)
    models = {model: aligned.to(device), "random init": random.to(device)}
    report = retrieval_report(models, *sides, batch_size=config.evaluate.batch_size, device=device)
    print(report.table, *report.lines, sep="\n")
    write_report(report, target.with_suffix(""))
    record_results([target])
    result = {"model": model, "split": split, "scores": report.numbers}
    with written(target) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")
    return result


class Some:
    """Samples at some places among others, as Samples."""

    def __init__(self, samples: Any, places: np.ndarray):
        self._samples, self._places = samples, places
        self.ids = [samples.ids[place] for place in places]
        self.lengths = None if samples.lengths is None else samples.lengths[places]

    def __len__(self) -> int:
        return len(self._places)

    def view(self, indices: Iterable[int]) -> View:
        """The view of some of them."""
        return self._samples.view(self._places[np.asarray([*indices])].tolist())

    def picture(self, index: int) -> Any:
        """One as a person sees it. ValueError: it can no longer be read."""
        return self._samples.picture(int(self._places[index]))


def _sides(config: Config, samples: Any) -> list[Side]:
    """Both sides row by row, or with their classes; of these those that both have."""
    if config.data.by == "row":
        return [_rows_of(samples.side(name), samples.matched(name), name) for name in samples.names]
    named = {}
    for name in samples.names:
        side = samples.side(name)
        named[name] = np.array(class_names(side, plugins.pairs().side_of(config.data, name).label), dtype=object)
    first, second = named.values()
    common = {*first} & {*second} - {None}
    sides = []
    for name, labels in named.items():
        places = np.flatnonzero([label in common for label in labels])
        sides.append(Side(name, Some(samples.side(name), places), labels[places].astype(str)))
    return sides


def _rows_of(side: Any, places: np.ndarray, name: str) -> Side:
    """Some samples of a side, and which of them are of the same file, where they are of files."""
    files = side.files() if hasattr(side, "files") else None
    return Side(name, Some(side, places), files=None if files is None else files[places])


def _aligned(model: str) -> D2vForAlignment:
    """ValueError: there is none, not whole, or one of another kind."""
    try:
        aligned = open_alignment(model)
    except ValueError as error:
        raise ValueError(f"model={model}: {error}{checkpoint_of(Path(model))}") from None
    if aligned is None:
        raise ValueError(
            f"model={model} has no space for pairs: give the export/ of a joint run with parts such as image+text"
            f"{checkpoint_of(Path(model))}"
        )
    return aligned


def _samples(config: Config, model: D2vForAlignment, run: Path) -> tuple[Any, str]:
    """The pairs that are scored, read as the model reads them, and their split."""
    pairs, frontends = plugins.pairs(), {}
    for name in config.model.frontends:
        kind = plugins.load("d2v.modalities", name).FrontendConfig
        frontends[name] = kind(**model.config.frontends[name])
    wanted = "test" if config.evaluate.test_split == AUTO else config.evaluate.test_split or config.data.split
    with suppress(NoSplitError):
        return pairs.Samples(config.data, frontends, split=wanted, folder=run), wanted
    return pairs.Samples(config.data, frontends, split=config.data.split, folder=run), config.data.split
