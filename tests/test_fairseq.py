"""load_fairseq against tensors recorded from the reference, and its refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file

from d2v.interop.fairseq import load_fairseq
from d2v.interop.fairseq.settings import parsed
from d2v.modalities.text.batches import hidden_only
from d2v.modalities.text.frontend import FrontendConfig
from d2v.types import Mask, View

TOLERANCE = 1e-5


def golden(shared, name):
    folder = shared / "goldens" / name
    config = json.loads((folder / "config.json").read_text())
    names = ("student", "teacher", "inputs", "outputs", "grads", "teacher_after_ema")
    return config, {part: load_file(folder / f"{part}.safetensors") for part in names}


def checkpoint(config, tensors):
    ema = {"d2v1_audio": "_ema", "d2v1_text": "encoder._ema"}[config["name"]]
    model = {
        **config["config"],
        "_name": {"d2v1_audio": "data2vec_audio", "d2v1_text": "data2vec_text"}[config["name"]],
    }
    return {"cfg": {"model": model, "task": {}}, "model": {**tensors["student"], ema: tensors["teacher"]}}


def view_of(config, inputs):
    if config["name"] == "d2v1_audio":
        padding = inputs["feature_padding_mask"]
        return View(
            "speech", {"input_values": inputs["source"]}, padding if padding.any() else None, Mask(inputs["mask"])
        )
    ids = torch.where(inputs["mask"], inputs["target_tokens"], inputs["src_tokens"])
    padding = inputs["padding_mask"]
    return View("text", {"input_ids": ids, "attention_mask": (~padding).long()}, padding, Mask(inputs["mask"]))


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("name", ["d2v1_audio", "d2v1_text"])
def test_equal_to_the_reference(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True)
    objective.train()
    view = view_of(config, tensors["inputs"])
    student, hidden = objective.student["encoder"], view.mask.hidden
    target = objective.target(view, student.embed(view).detach())[hidden]
    prediction = objective.predictor(student(view, view.mask).x[hidden])
    assert relative(target, tensors["outputs"]["target"]) < TOLERANCE
    assert relative(prediction, tensors["outputs"]["pred"]) < TOLERANCE
    loss = objective([view])
    assert int(loss.count) == config["loss"]["sample_size"]
    assert loss.total.item() == pytest.approx(config["loss"]["sum"], rel=TOLERANCE)
    assert float(loss.metrics["target_std"]) == pytest.approx(
        config["scalars"].get("target_var", float(loss.metrics["target_std"])), rel=1e-4
    )
    loss.total.backward()
    # gradients go through the same table as weights: an objective that is loaded from them holds them under our names
    expected = load_fairseq({**checkpoint(config, tensors), "model": {**tensors["student"], **tensors["grads"]}})
    for (ours, parameter), (_, gradient) in zip(objective.named_parameters(), expected.named_parameters(), strict=True):
        if parameter.requires_grad:
            assert parameter.grad is not None, ours
            assert relative(parameter.grad, gradient) < TOLERANCE, ours


@pytest.mark.parametrize("name", ["d2v1_audio", "d2v1_text"])
def test_teacher_after_one_update(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors))
    step = config["ema"]["single_step_at_num_updates"]
    assert objective.ema_decay(step) == pytest.approx(config["ema"]["decay_used"], rel=1e-12)
    objective.update_teacher(objective.ema_decay(step))
    key = "_ema" if name == "d2v1_audio" else "encoder._ema"
    after = load_fairseq(
        {**checkpoint(config, tensors), "model": {**tensors["student"], key: tensors["teacher_after_ema"]}}
    )
    for (ours, mine), (_, theirs) in zip(
        objective.teacher.named_parameters(), after.teacher.named_parameters(), strict=True
    ):
        assert relative(mine, theirs) < TOLERANCE, ours


def test_reference_teacher_sees_only_the_hidden_tokens(shared):
    """fairseq issue 4881: positions are counted over the hidden tokens, and nothing else is attended."""
    config, tensors = golden(shared, "d2v1_text")
    view = view_of(config, tensors["inputs"])
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True)
    whole = objective([view]).total
    quirk = objective([view, hidden_only(view, FrontendConfig(vocab_size=100, mask_token_id=99))]).total
    assert relative(quirk, whole) > 1e-3
    hidden = view.mask.hidden[:1]  # alone and without padding, the hidden tokens of a row give its targets
    ids = view.inputs["input_ids"][:1][hidden][None]
    row = View("text", {"input_ids": ids})
    alone = objective.target(row, objective.student["encoder"].embed(row))[0]
    gapped = hidden_only(view, FrontendConfig(vocab_size=100, mask_token_id=99))
    assert relative(objective.target(gapped, objective.student["encoder"].embed(gapped))[:1][hidden], alone) < TOLERANCE


def test_layers_of_the_teacher(shared):
    config, tensors = golden(shared, "d2v1_audio")
    objective = load_fairseq(checkpoint(config, tensors))
    view = view_of(config, tensors["inputs"])
    tokens = objective.student["encoder"].embed(view)
    for kind, name in (("ffn", "teacher_layer_fc"), ("block", "teacher_layer_x")):
        layers = objective.teacher["encoder"](view, tokens=tokens, layers=kind).layers
        for number, layer in enumerate(layers):
            assert relative(layer, tensors["outputs"][f"{name}.{number}"]) < TOLERANCE


def broken(checkpoint, **changes):
    return {**checkpoint, "model": {k: v for k, v in {**checkpoint["model"], **changes}.items() if v is not None}}


def test_refusals_name_the_first_offender(shared, tmp_path):
    config, tensors = golden(shared, "d2v1_audio")
    good = checkpoint(config, tensors)
    with pytest.raises(ValueError, match="mask_token"):
        load_fairseq(broken(good, mask_emb=None))
    with pytest.raises(ValueError, match="quantizer"):
        load_fairseq(broken(good, **{"quantizer.vars": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"projection.weight of shape \(3, 3\)"):
        load_fairseq(broken(good, **{"post_extract_proj.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match="wav2vec2"):
        load_fairseq({"cfg": {"model": {"_name": "wav2vec2"}}, "model": {}})
    with pytest.raises(ValueError, match="extractor_mode is 'default'"):
        load_fairseq({"cfg": {"model": {**good["cfg"]["model"], "extractor_mode": "default"}}, "model": good["model"]})
    with pytest.raises(ValueError, match="no checkpoint"):
        load_fairseq(tmp_path / "nowhere.pt")
    torch.save({"cfg": object()}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="refused"):
        load_fairseq(tmp_path / "foreign.pt")
    torch.save(good, tmp_path / "good.pt")
    assert load_fairseq(tmp_path / "good.pt").config.top_k == config["config"]["average_top_k_layers"]
    (tmp_path / "short.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"short.pt cannot be read"):
        load_fairseq(tmp_path / "short.pt")


def test_conv_layers_are_read_without_evaluation():
    assert parsed("[(512, 10, 5)] + [(512, 3, 2)] * 2") == [(512, 10, 5), (512, 3, 2), (512, 3, 2)]
    for wrong in (
        "__import__('os').getcwd()",
        None,
        "[3]",
        "[(1, 2, 3)] + 3",
        "[(1, 2)]",
        "(1, 2, 3)",
        "[(1, 2, True)]",
        "[",
    ):
        with pytest.raises(ValueError, match=r"conv_feature_layers .* is no list of"):
            parsed(wrong)


def test_sections_that_are_none_are_named(shared):
    config, tensors = golden(shared, "d2v1_text")
    good = checkpoint(config, tensors)
    model = good["cfg"]["model"]
    for bad, message in (
        (["data2vec_text"], r"cfg.model is \['data2vec_text'\]; it must be a dict"),
        ("data2vec_text", "cfg.model is 'data2vec_text'; it must be a dict"),
        ({**model, "transformer": None}, "cfg.model.transformer is None; it must be a dict"),
        (
            {**model, "transformer": {**model["transformer"], "encoder": 3}},
            "cfg.model.transformer.encoder is 3; it must be a dict",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_fairseq({**good, "cfg": {"model": bad}})
    config, tensors = golden(shared, "d2v1_audio")
    good = checkpoint(config, tensors)
    with pytest.raises(ValueError, match=r"cfg.model.conv_feature_layers None is no list of"):
        load_fairseq({**good, "cfg": {"model": {**good["cfg"]["model"], "conv_feature_layers": None}}})
