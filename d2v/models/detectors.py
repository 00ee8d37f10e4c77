"""torchvision's detectors on a pyramid of maps: their losses as sum and count, and what they find.

B samples, C channels, S image size, D width, n boxes of an image, F places on the maps that a box was matched to.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import MultiScaleRoIAlign

from d2v.models.pyramid import Pyramid

# The metric reads all that is found, so that little is left out; torchvision's FCOS keeps scores above 0.2.
LEAST_SCORE = 0.05
Targets = list[dict[str, Tensor]]  # of each image: boxes (n, 4) from left, top to right, bottom; labels (n,) from 0
Found = list[dict[str, Tensor]]  # the same and scores (n,), best first


class Fcos(FCOS):
    """FCOS (arXiv 2006.09214): each place of a map says a class, four distances and how central it is."""

    def __init__(self, pyramid: Pyramid, num_classes: int, strides: list[int]):
        anchors = _anchors([[stride] for stride in strides], ratios=(1.0,))
        head = SummedHead(pyramid.out_channels, 1, num_classes)
        super().__init__(pyramid, num_classes, anchor_generator=anchors, head=head, score_thresh=LEAST_SCORE)

    def learn(self, x: Tensor, pixels: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss of the encoder's map (B, D, H, W) of images (B, C, S, S)."""
        maps = list(self.backbone(x).values())
        sizes = [one.shape[-2] * one.shape[-1] for one in maps]
        found = self.compute_loss(targets, self.head(maps), self.anchor_generator(_listed(pixels), maps), sizes)
        return found["total"], found["count"]

    def detect(self, x: Tensor, pixels: Tensor) -> Found:
        """What is seen in the encoder's map (B, D, H, W) of images (B, C, S, S)."""
        maps = list(self.backbone(x).values())
        sizes = [one.shape[-2] * one.shape[-1] for one in maps]
        outputs = {name: list(value.split(sizes, dim=1)) for name, value in self.head(maps).items()}
        images = _listed(pixels)
        anchors = [list(one.split(sizes)) for one in self.anchor_generator(images, maps)]
        return self.postprocess_detections(outputs, anchors, images.image_sizes)


class SummedHead(FCOSHead):
    """FCOS's head, whose loss is a sum and its count: F of each image, and 1 for one that has none.

    torchvision divides by F of all images at once, which is the same where each has a box.
    """

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """total () and count ()."""
        means = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        matched = (torch.stack(matched_idxs) >= 0).sum(dim=1)  # (B,)
        total = torch.stack(list(means.values())).sum() * matched.sum().clamp(min=1)
        return {"total": total, "count": matched.clamp(min=1).sum()}


class FasterRcnn(FasterRCNN):
    """Faster R-CNN (arXiv 1506.01497): proposals from all maps, each then read again."""

    def __init__(self, pyramid: Pyramid, num_classes: int, strides: list[int]):
        anchors = _anchors([[8 * stride] for stride in strides], ratios=(0.5, 1.0, 2.0))
        regions = MultiScaleRoIAlign([str(number) for number in range(len(strides) - 1)], 7, sampling_ratio=2)
        super().__init__(pyramid, num_classes + 1, rpn_anchor_generator=anchors, box_roi_pool=regions)

    def learn(self, x: Tensor, pixels: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss of the encoder's map (B, D, H, W) of images (B, C, S, S).

        An image counts once: of each as many anchors and proposals are drawn. ValueError: not in training mode, where
        nothing is drawn.
        """
        if not self.training:
            raise ValueError("the loss of task.detector=faster_rcnn is of training mode: call train() first")
        maps, images = self.backbone(x), _listed(pixels)
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]  # its class 0 is background
        proposals, losses = self.rpn(images, maps, shifted)
        _, others = self.roi_heads(maps, proposals, images.image_sizes, shifted)
        mean = torch.stack([*losses.values(), *others.values()]).sum()
        return mean * len(x), mean.new_tensor(len(x))

    def detect(self, x: Tensor, pixels: Tensor) -> Found:
        """What is seen in the encoder's map (B, D, H, W) of images (B, C, S, S)."""
        maps, images = self.backbone(x), _listed(pixels)
        proposals, _ = self.rpn(images, maps)
        found, _ = self.roi_heads(maps, proposals, images.image_sizes)
        return [{**one, "labels": one["labels"] - 1} for one in found]


DETECTORS: dict[str, Any] = {"fcos": Fcos, "faster_rcnn": FasterRcnn}


def _listed(pixels: Tensor) -> Any:
    """Images (B, C, S, S) as torchvision's detectors ask for them."""
    sides = [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
    return SimpleNamespace(tensors=pixels, image_sizes=sides)


def _anchors(sizes: list[list[int]], ratios: tuple[float, ...]) -> AnchorGenerator:
    """Anchors of these sides on each map."""
    with torch.device("cpu"):  # they are plain tensors, which must exist where a model is built without memory
        return AnchorGenerator(tuple(map(tuple, sizes)), (ratios,) * len(sizes))
