"""The task model that finds objects: an encoder whose tokens lie in a grid, and a detector on a pyramid of its map.

B samples, T content tokens, D width, S image size, M most boxes of a sample, n boxes that were found.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import initialization
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from d2v.models.configuration import D2vConfig
from d2v.models.task_models import TaskModel
from d2v.settings import check_values, setting
from d2v.types import View

DETECTORS = ("fcos", "faster_rcnn")
SCALES = (4.0, 2.0, 1.0, 0.5)  # that a map may have, in sides of the encoder's


@dataclass
class DetectorConfig:
    """Which detector stands on the encoder, and on maps of which sizes."""

    detector: str = setting("fcos", "torchvision's, which is trained from scratch.", among=DETECTORS)
    scales: list[float] = setting(
        list(SCALES),
        "Sides of the pyramid's maps, in sides of the encoder's (4, 2, 1, 0.5), finest first; one more follows, of "
        "half the last.",
        least=SCALES[-1],
        most=SCALES[0],
    )
    pyramid_dim: int = setting(256, "Width of the pyramid's maps; a multiple of 32.", least=32, limit=1_000_000)

    def __post_init__(self):
        """ValueError: a detector, scale or width that there is none of."""
        check_values(self, "task")
        falling = all(first > second for first, second in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or not set(self.scales) <= set(SCALES) or not falling:
            raise ValueError(f"task.scales is {self.scales}; it must be one or more of {list(SCALES)}, largest first")
        if self.pyramid_dim % 32:
            raise ValueError(f"task.pyramid_dim is {self.pyramid_dim}; it must be a multiple of 32, as norms need it")


@dataclass
class DetectionOutput(ModelOutput):
    """What D2vForObjectDetection returns: in training mode with labels the loss, else what it found in each sample."""

    loss: Tensor | None = None
    boxes: list[Tensor] | None = None  # (n, 4) left, top, right, bottom, in pixels of the input
    scores: list[Tensor] | None = None  # (n,), best first
    labels: list[Tensor] | None = None  # (n,) numbers of config.id2label


class D2vForObjectDetection(TaskModel):
    """Boxes of the objects in each image, with a class and a score."""

    task_class = DetectorConfig
    output_class = DetectionOutput

    def __init__(self, config: D2vConfig):
        """ValueError: as TaskModel; an encoder whose tokens lie in no grid, or of two modalities."""
        super().__init__(config)
        if len(config.frontends) > 1:
            raise ValueError(f"boxes are of one modality; this encoder reads {', '.join(config.frontends)}")
        (self._modality,) = config.frontends
        if self.encoder.frontend(self._modality).grid is None:
            raise ValueError(f"boxes need tokens that lie in a grid; those of {self._modality} are a sequence")
        self.head = self._new_head()
        self.post_init()

    def _new_head(self) -> Any:
        """A detector as torchvision starts one."""
        from d2v.models import detectors, pyramid  # torchvision, for which those who find nothing need not wait

        task, frontend = self.task, self.encoder.frontend(self._modality)
        pixels = frontend.config.image_size // frontend.grid[0]  # of a side of a token
        strides = [max(1, round(pixels / scale)) for scale in (*task.scales, task.scales[-1] / 2)]
        maps = pyramid.Pyramid(self.encoder.trunk.config.dim, task.pyramid_dim, task.scales)
        return detectors.DETECTORS[task.detector](maps, self.config.num_labels, strides)

    def init_head(self) -> None:
        """As torchvision and torch do it."""
        with torch.device("cpu"):
            fresh = dict(self._new_head().named_parameters())
        for name, parameter in self.head.named_parameters():
            initialization.copy_(parameter, fresh[name])

    @can_return_tuple
    def forward(self, view: View | Tensor | None = None, labels: Tensor | None = None, **inputs: Any) -> Any:
        """What is found in a view, or in raw inputs by Hugging Face's names; see DetectionOutput.

        Labels: (B, M, 5), see `learn`. ValueError: inputs that no frontend takes.
        """
        view = self.encoder.view(view, **inputs)
        labels = view.labels if labels is None else labels
        if self.training and labels is not None:
            return DetectionOutput(loss=torch.div(*self.learn(view._replace(labels=labels))))
        x, pixels = self._map(view)
        with torch.autocast(x.device.type, enabled=False):
            found = self.head.detect(x, pixels)
        columns: dict[str, Any] = {name: [one[name] for one in found] for name in ("boxes", "scores", "labels")}
        return DetectionOutput(**columns)

    def learn(self, view: View) -> tuple[Tensor, Tensor]:
        """Sum and count of the detector's loss of a labelled view.

        Labels (B, M, 5): left, top, right, bottom and class of each box, all -1 after the last.
        """
        assert view.labels is not None
        targets = []
        for boxes in view.labels.float():
            boxes = boxes[boxes[:, 4] >= 0]
            targets.append({"boxes": boxes[:, :4], "labels": boxes[:, 4].long()})
        x, pixels = self._map(view)
        with torch.autocast(x.device.type, enabled=False):
            return self.head.learn(x, pixels, targets)

    def answers(self, view: View) -> list[np.ndarray]:
        """What is found in each sample, (n, 6): left, top, right, bottom, score, class."""
        found = self(view._replace(labels=None))
        rows = []
        for boxes, scores, labels in zip(found.boxes, found.scores, found.labels, strict=True):
            rows.append(torch.cat([boxes, scores[:, None], labels[:, None].to(boxes)], dim=1).float().cpu().numpy())
        return rows

    def _map(self, view: View) -> tuple[Tensor, Tensor]:
        """The encoder's last map (B, D, rows, columns) in float32, and the images (B, C, S, S)."""
        frontend = self.encoder.frontend(view.modality)
        x = self.encode(view).x.transpose(1, 2).unflatten(2, frontend.grid)
        return x.float(), view.inputs[frontend.main_input]
