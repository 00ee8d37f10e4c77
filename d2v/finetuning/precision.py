"""Average precision of boxes as COCO defines it, by torchmetrics and faster-coco-eval.

n boxes that were found in an image, m that it has.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

NEEDED = "boxes are scored by torchmetrics and faster-coco-eval: pip install 'd2v[detection]'"


def check_installed() -> None:
    """ValueError: what scores boxes is not there."""
    try:
        import faster_coco_eval  # noqa: F401
        import torchmetrics.detection  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{NEEDED} ({error})") from None


def average_precision(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """Found (n, 6) and true (m, 5) boxes of each image -> AP at an overlap of 0.5, and its mean from 0.5 to 0.95.

    Left, top, right, bottom, then score and class, or class. Each is the mean over the classes that occur in truth, of
    the 100 best of an image.
    """
    from torchmetrics.detection import MeanAveragePrecision  # seconds that who finds nothing need not wait

    # Scores are of the main process alone: the others would wait for nothing.
    metric = MeanAveragePrecision(backend="faster_coco_eval", sync_on_compute=False)
    for boxes, truth in zip(found, wanted, strict=True):
        boxes, truth = torch.from_numpy(np.asarray(boxes)), torch.from_numpy(np.asarray(truth))
        predicted: dict[str, Any] = {"boxes": boxes[:, :4], "scores": boxes[:, 4], "labels": boxes[:, 5].long()}
        metric.update([predicted], [{"boxes": truth[:, :4], "labels": truth[:, 4].long()}])
    scores = metric.compute()
    return {"ap50": max(0.0, float(scores["map_50"])), "ap": max(0.0, float(scores["map"]))}
