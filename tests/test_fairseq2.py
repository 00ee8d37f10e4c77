"""load_fairseq of data2vec 2.0 against tensors recorded from the reference, and its refusals."""

import json

import pytest
from safetensors.torch import load_file

from d2v.interop.fairseq import load_fairseq
from d2v.types import Mask, View

TOLERANCE = 1e-5
NAMES = ["d2v2_image", "d2v2_audio", "d2v2_text"]


def golden(shared, name):
    folder = shared / "goldens" / name
    if not folder.is_dir():
        pytest.skip(f"needs the recorded tensors in {folder}")
    parts = ("student", "teacher", "inputs", "outputs", "grads", "teacher_after_ema")
    return json.loads((folder / "config.json").read_text()), {part: load_file(folder / f"{part}.safetensors") for part in parts}


def checkpoint(config, tensors, **others):
    """As fairseq saves it; `others` replace the student's tensors or the teacher."""
    teacher = others.pop("teacher", tensors["teacher"])
    model = {**config["config"], "_name": "data2vec_multi"}
    return {"cfg": {"model": model, "task": {}}, "model": {**tensors["student"], **others, "_ema": teacher}}


def view_of(name, inputs):
    hidden = inputs["mask"].bool()  # (N, T)
    keep = hidden.int().argsort(dim=1, stable=True)[:, : int((~hidden[0]).sum())]
    if name == "d2v2_image":
        return View("image", {"pixel_values": inputs["img"]}, None, Mask(hidden, keep))
    if name == "d2v2_text":
        return View("text", {"input_ids": inputs["source"]}, None, Mask(hidden, keep))
    return View("speech", {"input_values": inputs["source"]}, inputs["feature_padding_mask"], Mask(hidden, keep))


def relative(a, b):
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_reference(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True).train()
    view, outputs, student = view_of(name, tensors["inputs"]), tensors["outputs"], objective.student["encoder"]
    tokens = student.embed(view)
    target = objective.target(view, tokens.detach())
    assert relative(target, outputs["target_full"]) < TOLERANCE
    assert relative(target.repeat_interleave(3, dim=0)[view.mask.hidden], outputs["target"]) < TOLERANCE
    for kind, recorded in (("ffn", "teacher_layer_result"), ("block", "teacher_layer_x")):
        fed = tokens if objective.config.feed_tokens else None
        layers = objective.teacher["encoder"](view, tokens=fed, layers=kind, first=objective.student["encoder"].trunk.config.prenet_depth).layers
        for number, layer in enumerate(layers):
            assert relative(layer, outputs[f"{recorded}.{number}"]) < TOLERANCE
    features = student(view, view.mask, tokens=tokens)
    prediction = objective.decoder(features.x, view.mask)
    assert relative(prediction, outputs["pred"]) < TOLERANCE
    if name == "d2v2_image":
        assert relative(features.extra[:, 0], outputs["cls_pred"]) < TOLERANCE
    loss = objective([view])
    assert int(loss.count) == config["loss"]["sample_size"]
    assert loss.total.item() == pytest.approx(config["loss"]["sum"], rel=TOLERANCE)
    for ours, theirs in (("target_std", "target_var"), ("prediction_std", "pred_var")):
        assert float(loss.metrics[ours]) == pytest.approx(config["scalars"][theirs], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_reference(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True).train()
    objective([view_of(name, tensors["inputs"])]).total.backward()
    # gradients go through the same table as weights: an objective that is loaded from them holds them under our names
    expected = load_fairseq(checkpoint(config, tensors, **tensors["grads"]))
    compared = 0
    for (ours, parameter), (_, gradient) in zip(objective.named_parameters(), expected.named_parameters(), strict=True):
        if parameter.requires_grad:
            assert parameter.grad is not None, ours
            assert relative(parameter.grad, gradient) < TOLERANCE, ours
            compared += 1
    assert compared == len(tensors["grads"])


@pytest.mark.parametrize("name", NAMES)
def test_teacher_after_one_update(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors))
    step = config["ema"]["single_step_at_num_updates"]
    assert objective.ema_decay(step) == pytest.approx(config["ema"]["decay_used"], rel=1e-12)
    objective.update_teacher(objective.ema_decay(step))
    after = load_fairseq(checkpoint(config, tensors, teacher=tensors["teacher_after_ema"]))
    for (ours, mine), (_, theirs) in zip(objective.teacher.named_parameters(), after.teacher.named_parameters(), strict=True):
        assert relative(mine, theirs) < TOLERANCE, ours
