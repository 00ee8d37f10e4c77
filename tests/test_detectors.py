"""Detectors by themselves: against torchvision's, loss by parts, scales, what no other format holds."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN

from d2v import D2vConfig, D2vForObjectDetection
from d2v.interop.huggingface.conversion import to_transformers
from d2v.interop.onnx import export_onnx
from d2v.types import View


def detector(**task) -> D2vForObjectDetection:
    trunk = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
    settings = {"pyramid_dim": 32, "scales": [2.0, 1.0, 0.5], **task}
    frontends = {"image": {"image_size": 48, "patch_size": 8}}
    return D2vForObjectDetection(D2vConfig(frontends=frontends, trunk=trunk, task=settings, num_labels=2))


def labelled_view() -> View:
    labels = torch.full((3, 2, 5), -1.0)
    labels[0] = torch.tensor([[2, 3, 30, 40, 1], [20, 3, 46, 30, 0.0]])
    labels[1, 0] = torch.tensor([5, 5, 20, 21, 0.0])  # the third has none
    return View("image", {"pixel_values": torch.randn(3, 3, 48, 48)}, labels=labels)


class Whole(nn.Module):
    """The encoder and its pyramid as torchvision's own detectors ask for them."""

    out_channels = 32

    def __init__(self, model: D2vForObjectDetection):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.model.encoder(pixel_values=pixels).x.transpose(1, 2).unflatten(2, (6, 6))
        return self.model.head.backbone(x)


@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn"])
def test_losses_and_boxes_are_those_of_torchvisions_whole_detector(kind):
    model, view = detector(detector=kind), labelled_view()
    still = {"min_size": 48, "max_size": 48, "image_mean": [0.0] * 3, "image_std": [1.0] * 3, "size_divisible": 1}
    if kind == "fcos":
        stock = FCOS(Whole(model), 2, anchor_generator=model.head.anchor_generator, score_thresh=0.05, **still)
    else:
        inner = {
            "rpn_anchor_generator": model.head.rpn.anchor_generator,
            "box_roi_pool": model.head.roi_heads.box_roi_pool,
        }
        stock = FasterRCNN(Whole(model), 3, **inner, **still)
    own = {name: value for name, value in model.head.state_dict().items() if not name.startswith("backbone")}
    assert not stock.load_state_dict(own, strict=False).unexpected_keys
    images, first = list(view.inputs["pixel_values"][:2]), int(kind == "faster_rcnn")
    assert view.labels is not None
    targets = []
    for one in view.labels[:2]:
        one = one[one[:, 4] >= 0]
        targets.append({"boxes": one[:, :4], "labels": one[:, 4].long() + first})
    torch.manual_seed(1)
    expected = sum(stock.train()(images, targets).values())
    torch.manual_seed(1)
    for _ in images:
        torch.empty(1).uniform_()  # of the stock detector, which draws the size of each image
    some = View("image", {"pixel_values": torch.stack(images)}, labels=view.labels[:2])
    total, count = model.train().learn(some)
    torch.testing.assert_close(total / count, expected)
    assert count > 10 if kind == "fcos" else count == 2
    found = model.eval()(pixel_values=torch.stack(images))
    for place, theirs in enumerate(stock.eval()(images)):
        torch.testing.assert_close(found.boxes[place], theirs["boxes"])
        torch.testing.assert_close(found.scores[place], theirs["scores"])
        assert torch.equal(found.labels[place] + first, theirs["labels"])


def test_the_loss_is_a_sum_over_images_whatever_the_parts():
    model, view = detector(), labelled_view()
    assert view.labels is not None
    total, count = model.learn(view)
    parts = []
    for rows in (slice(0, 1), slice(1, 3), slice(2, 3)):
        pixels = view.inputs["pixel_values"][rows]
        parts.append(model.learn(View("image", {"pixel_values": pixels}, labels=view.labels[rows])))
    torch.testing.assert_close(total, parts[0][0] + parts[1][0])
    assert count == parts[0][1] + parts[1][1]
    assert parts[2][1] == 1 and parts[2][0] > 0  # an image without boxes is learned from, and counts once
    parts[2][0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_scales_give_maps_of_their_sizes(dtype):
    model, view = detector(scales=[4.0, 2.0, 1.0, 0.5]), labelled_view()
    x = torch.randn(1, 32, 6, 6)
    assert [tuple(m.shape) for m in model.head.backbone(x).values()] == [(1, 32, n, n) for n in (24, 12, 6, 3, 2)]
    sizes = [round(float(a[0, 2] - a[0, 0])) for a in model.head.anchor_generator.cell_anchors]
    assert sizes == [2, 4, 8, 16, 32]
    if dtype is not None:
        with torch.autocast("cpu", dtype):
            assert torch.isfinite(torch.div(*model.learn(view)))


def test_other_formats_have_no_place_for_a_detector(tmp_path):
    with pytest.raises(ValueError, match="has no counterpart of D2vForObjectDetection"):
        to_transformers(detector())
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="no ONNX file of a detector is written: how many boxes it finds is known"):
        export_onnx(detector(), tmp_path / "model.onnx")
