"""load_fairseq of data2vec 2.0 against tensors recorded from the reference, and its refusals."""

import json

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from d2v.interop.fairseq import load_fairseq, save_fairseq
from d2v.interop.fidelity import check_same
from d2v.models.configuration import D2vConfig
from d2v.models.decoder import DecoderConfig
from d2v.models.encoder import D2vModel
from d2v.models.transformer import TrunkConfig
from d2v.objectives.data2vec import Config, Data2Vec
from d2v.objectives.data2vec2 import Config as Config2
from d2v.objectives.data2vec2 import Data2Vec2
from d2v.types import Mask, View

TOLERANCE = 1e-5
NAMES = ["d2v2_image", "d2v2_audio", "d2v2_text"]


def golden(shared, name):
    folder = shared / "goldens" / name
    if not folder.is_dir():
        pytest.skip(f"needs the recorded tensors in {folder}")
    parts = ("student", "teacher", "inputs", "outputs", "grads", "teacher_after_ema")
    return json.loads((folder / "config.json").read_text()), {
        part: load_file(folder / f"{part}.safetensors") for part in parts
    }


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
        layers = objective.teacher["encoder"](
            view, tokens=fed, layers=kind, first=objective.student["encoder"].trunk.config.prenet_depth
        ).layers
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
    if name != "d2v2_audio":  # without padding there is no quirk
        assert torch.equal(load_fairseq(checkpoint(config, tensors)).train()([view]).total, loss.total)
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
    for (ours, mine), (_, theirs) in zip(
        objective.teacher.named_parameters(), after.teacher.named_parameters(), strict=True
    ):
        assert relative(mine, theirs) < TOLERANCE, ours


def slow_blocks(state, prefix, depth, x, padding):
    """The reference's post-norm blocks, row by row: padded tokens are attended by none and computed as all others.

    (B, T, D) and (B, T) -> the end of the last and the FFN output of each.
    """
    D = x.shape[-1]  # noqa: N806
    results = []
    for number in range(depth):
        part = {
            key.removeprefix(f"{prefix}{number}."): w
            for key, w in state.items()
            if key.startswith(f"{prefix}{number}.")
        }
        rows = []
        for row, hidden in zip(x, padding, strict=True):
            q, k, v = (
                (row @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]).view(-1, 3, 4, D // 4).permute(1, 2, 0, 3)
            )
            logits = (q @ k.transpose(1, 2) / (D // 4) ** 0.5).masked_fill(hidden, float("-inf"))
            mixed = (logits.softmax(dim=-1) @ v).transpose(0, 1).reshape(-1, D)
            rows.append(row + mixed @ part["attn.proj.weight"].T + part["attn.proj.bias"])
        x = F.layer_norm(torch.stack(rows), (D,), part["norm1.weight"], part["norm1.bias"])
        hidden = F.gelu(x @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"])
        results.append(hidden @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"])
        x = F.layer_norm(x + results[-1], (D,), part["norm2.weight"], part["norm2.bias"])
    return x, results


def slow_text(tensors, ids, mask):
    """data2vec 2.0 on padded texts, from the reference's weights alone (facts B0, B1.3, B3, B5, B6): targets (B, T, D),
    predictions (n, D) and the summed loss.

    Padded tokens hold what the norm makes of zero: they are not zeroed, and count in the targets' instance norm.
    """
    student, text = tensors["student"], "modality_encoders.TEXT."
    local = {key.removeprefix(f"{text}local_encoder."): w for key, w in student.items() if "local_encoder" in key}
    padding = ids == 1
    places = ((~padding).long().cumsum(dim=1) * ~padding) + 1
    x = local["embed_tokens.weight"][ids] + local["embed_positions.weight"][places]
    x = F.layer_norm(x, x.shape[-1:], local["layernorm_embedding.weight"], local["layernorm_embedding.bias"])
    _, layers = slow_blocks(tensors["teacher"], "", 3, x, padding)
    normed = [
        (y - y.mean(dim=1, keepdim=True)) / (y.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt() for y in layers[1:]
    ]
    target = sum(normed) / 2
    predictions, wanted = [], []
    for row, hidden in enumerate(mask):
        sample = row // 3
        kept = ~hidden
        y, _ = slow_blocks(student, "blocks.", 3, x[sample][kept][None], padding[sample][kept][None])
        places = torch.zeros_like(x[sample])
        places[kept] = y[0]
        for number in range(2):
            conv = f"{text}decoder.blocks.{number}.0."
            out = F.conv1d(places.T[None], student[f"{conv}weight"], student[f"{conv}bias"], padding=4)[0].T
            places = F.gelu(F.layer_norm(out, out.shape[-1:]))
        head = f"{text}decoder.proj."
        inner = F.gelu(places @ student[f"{head}0.weight"].T + student[f"{head}0.bias"])
        predictions.append((inner @ student[f"{head}2.weight"].T + student[f"{head}2.bias"])[hidden])
        wanted.append(target[sample][hidden])
    return target, torch.cat(predictions), (torch.cat(predictions) - torch.cat(wanted)).square().sum()


@torch.no_grad()
def test_padded_texts_are_the_references(shared):
    """No recorded text is padded: the slow version, which the unpadded record holds to the reference."""
    config, tensors = golden(shared, "d2v2_text")
    inputs, outputs = tensors["inputs"], tensors["outputs"]
    target, prediction, total = slow_text(tensors, inputs["source"], inputs["mask"].bool())
    assert relative(target, outputs["target_full"]) < TOLERANCE and relative(prediction, outputs["pred"]) < TOLERANCE
    assert total.item() == pytest.approx(config["loss"]["sum"], rel=TOLERANCE)
    ids = inputs["source"].clone()
    ids[1, 18:], ids[2, 12:] = 1, 1
    view = view_of("d2v2_text", {**inputs, "source": ids})._replace(padding=ids == 1)
    target, prediction, total = slow_text(tensors, ids, view.mask.hidden)
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True).train()
    tokens = objective.student["encoder"].embed(view)
    assert relative(objective.target(view, tokens), target) < TOLERANCE
    features = objective.student["encoder"](view, view.mask, tokens=tokens)
    assert relative(objective.decoder(features.x, view.mask), prediction) < TOLERANCE
    assert objective([view]).total.item() == pytest.approx(total.item(), rel=TOLERANCE)
    # without the quirks a text's targets do not depend on the padding beside it
    plain = load_fairseq(checkpoint(config, tensors)).train()
    alone = View("text", {"input_ids": ids[2:, :12]})
    expected = plain.target(alone, plain.student["encoder"].embed(alone))
    found = plain.target(view, plain.student["encoder"].embed(view))[2:, :12]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Written back, continued, and refused.


def flat(state):
    """A state dict with the nested teacher's keys beside the others."""
    nested = {key: value for key, value in state.items() if isinstance(value, dict)}
    return {k: v for k, v in state.items() if k not in nested} | {
        f"{n}/{k}": v for n, inner in nested.items() for k, v in inner.items()
    }


def any_checkpoint(shared, name):
    """Of both versions."""
    config, tensors = golden(shared, name)
    if name.startswith("d2v2"):
        return config, checkpoint(config, tensors)
    kind = name.replace("d2v1_", "data2vec_")
    ema = "encoder._ema" if name == "d2v1_text" else "_ema"
    return config, {
        "cfg": {"model": {**config["config"], "_name": kind}},
        "model": {**tensors["student"], ema: tensors["teacher"]},
    }


@pytest.mark.parametrize("name", [*NAMES, "d2v1_audio", "d2v1_text"])
def test_written_back_it_is_the_same(shared, name, tmp_path):
    _, good = any_checkpoint(shared, name)
    objective = load_fairseq(good)
    save_fairseq(objective, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    expected, found = flat(good["model"]), flat(back["model"])
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6 if "positions" in key else 0, msg=key)
    again = load_fairseq(tmp_path / "back.pt")
    assert (
        again.config == objective.config
        and again.student["encoder"].trunk.config == objective.student["encoder"].trunk.config
    )
    assert again.student["encoder"].config.frontends == objective.student["encoder"].config.frontends
    tiny.assert_same(again.state_dict(), objective.state_dict())


@pytest.mark.parametrize("own", [False, True])
def test_speech_with_a_prenet_and_scales_per_block(own, tmp_path):
    """Names of the large models, with the teacher's own extractor and without; the same loss before and after."""
    frontend = {
        "conv_dim": 8,
        "conv_kernels": [10, 3],
        "conv_strides": [5, 4],
        "pos_kernel": 3,
        "pos_depth": 2,
        "pos_groups": 4,
    }
    frontend |= {"mask_token": False, "alibi": "head", "alibi_layers": 3}
    trunk = TrunkConfig(
        depth=3, prenet_depth=1, dim=16, num_heads=2, mlp_dim=32, prenet_layer_drop=0.2, input_dropout=0.3
    )
    encoder = D2vModel(D2vConfig(frontends={"speech": frontend}, trunk=trunk))
    shared = [] if own else [f"frontends.speech.{part}" for part in ("extractor", "norm", "projection")]
    decoder = DecoderConfig(dim=8, groups=2, noise=0.0)
    objective = Data2Vec2(encoder, Config2(top_k=2, shared=shared, feed_tokens=not own, decoder=decoder)).eval()
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    objective.update_teacher(0.5)
    save_fairseq(objective, tmp_path / "prenet.pt")
    saved = torch.load(tmp_path / "prenet.pt", weights_only=True)["model"]
    prefix = "modality_encoders.AUDIO."
    assert saved[f"{prefix}alibi_scale"].shape == saved["_ema"][f"{prefix}alibi_scale"].shape == (3, 1, 2, 1, 1)
    assert (
        f"{prefix}context_encoder.blocks.0.attn.qkv.weight" in saved
        and {"blocks.1.norm1.bias"} <= saved.keys()
        and "blocks.2.norm1.bias" not in saved
    )
    assert (f"{prefix}project_features.2.weight" in saved["_ema"]) == own
    again = load_fairseq(tmp_path / "prenet.pt").eval()
    tiny.assert_same(again.state_dict(), objective.state_dict())
    assert again.student["encoder"].trunk.config == trunk and again.config == objective.config
    keep = torch.stack([torch.randperm(40)[:20] for _ in range(4)])
    hidden = torch.ones(4, 40, dtype=torch.bool).scatter(1, keep, False)
    view = View("speech", {"input_values": torch.randn(2, 800)}, None, Mask(hidden, keep))
    assert torch.equal(again([view]).total, objective([view]).total)


def test_images_of_data2vec_1_are_read_and_written_in_the_beit_format(tmp_path):
    trunk = TrunkConfig(
        depth=3,
        dim=16,
        num_heads=2,
        mlp_dim=32,
        pre_norm=True,
        layer_scale=0.1,
        qkv_bias="qv",
        norm_eps=1e-6,
        input_norm=False,
        final_norm=True,
    )
    encoder = D2vModel(D2vConfig(frontends={"image": {"image_size": 12, "patch_size": 4}}, trunk=trunk))
    objective = Data2Vec(
        encoder,
        Config(top_k=2, layers="block", layer_norms=["layer"], final_norms=["layer"], loss_beta=2.0, loss_scale="mean"),
    )
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += torch.randn_like(parameter)
    save_fairseq(objective, tmp_path / "beit.pth")
    found = torch.load(tmp_path / "beit.pth", weights_only=True)
    state = found["model"]
    assert state["mask_token"].shape == state["cls_token"].shape == (1, 1, 16)
    assert state["rel_pos_bias.relative_position_bias_table"].shape == (5 * 5 + 3, 2)
    assert torch.equal(state["blocks.2.gamma_1"], encoder.trunk.blocks[2].scale1) and torch.equal(
        state["lm_head.bias"], objective.predictor.layers[0].bias
    )
    assert (
        state.keys() == found["model_ema"].keys()
        and {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "norm.weight"} <= state.keys()
    )
    again = load_fairseq(tmp_path / "beit.pth")
    tiny.assert_same(again.state_dict(), objective.state_dict())
    assert again.student["encoder"].config.frontends["image"]["image_size"] == 12 and again.config.loss_beta == 2.0
    with pytest.raises(ValueError, match="mask_token"):
        load_fairseq({"model": {k: v for k, v in state.items() if k != "mask_token"}})
    with pytest.raises(ValueError, match=r"model is incomplete: it has no key cls_token"):
        load_fairseq({"model": {k: v for k, v in state.items() if k != "cls_token"}})
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight of shape \(16, 48\); it must have 4 dimensions"):
        load_fairseq({"model": {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}})
    without = load_fairseq({"model": state})
    assert torch.equal(
        without.teacher["encoder"].trunk.blocks[0].scale1, objective.student["encoder"].trunk.blocks[0].scale1
    )


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_where_the_checkpoint_left_off(shared, name):
    config, tensors = golden(shared, name)
    objective = load_fairseq(checkpoint(config, tensors), reference_quirks=True).train()
    view = view_of(name, tensors["inputs"])
    optimizer = torch.optim.AdamW(
        (p for p in objective.parameters() if p.requires_grad), lr=1e-3, betas=(0.9, 0.98), eps=1e-6
    )
    losses = []
    for step in range(20):
        loss = objective([view])
        (loss.total / loss.count).backward()
        losses.append(float(loss.total.detach() / loss.count))
        optimizer.step()
        optimizer.zero_grad()
        objective.update_teacher(objective.ema_decay(step + 1))
    assert losses[0] == pytest.approx(config["loss"]["per_sample"], rel=1e-5)
    assert losses[-1] < losses[0]


def broken(good, **changes):
    return {**good, "model": {k: v for k, v in {**good["model"], **changes}.items() if v is not None}}


def with_settings(good, where=(), **changes):
    """A copy with other settings in a nested section; None takes one away."""
    cfg = json.loads(json.dumps(good["cfg"]))
    section = cfg["model"]
    for part in where:
        section = section[part]
    section.update(changes)
    for key in [key for key, value in changes.items() if value == "away"]:
        del section[key]
    return {**good, "cfg": cfg}


def test_refusals_name_the_first_offender(shared):
    _, good = any_checkpoint(shared, "d2v2_audio")
    prefix = "modality_encoders.AUDIO."
    for changes, message in (
        (
            {f"{prefix}alibi_scale": None},
            rf"model is incomplete: it has no key {prefix}alibi_scale, which gives .*\(4,\)",
        ),
        ({"blocks.1.attn.qkv.weight": None}, r"no key blocks.1.attn.qkv.weight, .*\(192, 64\)"),
        ({f"{prefix}decoder.proj.bias": None}, rf"no key {prefix}decoder.proj.bias"),
        ({"quantizer.vars": torch.zeros(1)}, "'quantizer.vars' is not part of this architecture"),
        ({"blocks.3.norm1.weight": torch.zeros(64)}, "'blocks.3.norm1.weight' is not part"),
        (
            {"blocks.0.mlp.fc1.bias": torch.zeros(3)},
            r"blocks.0.mlp.fc1.bias, .* of shape \(3,\); the config asks for \(256,\)",
        ),
        ({"blocks.0.mlp.fc1.bias": 3.0}, "'blocks.0.mlp.fc1.bias' holds a float, not a tensor"),
        (
            {"modality_encoders.IMAGE.extra_tokens": torch.zeros(1, 1, 64)},
            "modality_encoders for AUDIO, IMAGE; this reads one of",
        ),
        (
            {"_ema": {k: v for k, v in good["model"]["_ema"].items() if k != "blocks.0.norm1.bias"}},
            "_ema is incomplete: it has no key blocks.0.norm1.bias",
        ),
        ({"_ema": {**good["model"]["_ema"], "stranger": torch.zeros(1)}}, "'stranger'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_fairseq(broken(good, **changes))
        assert "\n" not in str(caught.value)
    audio = ("modalities", "audio")
    for bad, message in (
        (with_settings(good, layer_norm_first=True), "cfg.model.layer_norm_first is True; only False"),
        (with_settings(good, depth="away"), "cfg.model lacks the setting 'depth'"),
        (
            with_settings(good, audio, extractor_mode="default"),
            "cfg.model.modalities.audio.extractor_mode is 'default'",
        ),
        (with_settings(good, audio, num_extra_tokens=2), "modalities.audio.num_extra_tokens is 2; only 0"),
        (
            with_settings(good, (*audio, "decoder"), add_positions_all=True),
            "modalities.audio.decoder.add_positions_all is True",
        ),
        (
            with_settings(good, audio, feature_encoder_spec="len([])"),
            "feature_encoder_spec 'len\\(\\[\\]\\)' is no list",
        ),
        (with_settings(good, modalities=None), "cfg.model.modalities is None; it must be a dict"),
        (with_settings(good, ("modalities",), audio=None), "cfg.model.modalities.audio is None; it must be a dict"),
        (with_settings(good, audio, decoder=None), "cfg.model.modalities.audio.decoder is None; it must be a dict"),
        (with_settings(good, ema_encoder_only=True), "ema_encoder_only is True; for audio only False"),
        (
            with_settings(good, _name="data2vec_multy"),
            "cfg.model._name is 'data2vec_multy'; this reads data2vec_audio, data2vec_text, data2vec_multi",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_fairseq(bad)
    _, image = any_checkpoint(shared, "d2v2_image")
    with pytest.raises(ValueError, match=r"fixed_positional_encoder\.positions are not sine"):
        load_fairseq(
            broken(image, **{"modality_encoders.IMAGE.fixed_positional_encoder.positions": torch.zeros(1, 36, 64)})
        )
    _, text = any_checkpoint(shared, "d2v2_text")
    with pytest.raises(ValueError, match=r"no key modality_encoders.TEXT.local_encoder.embed_positions.weight"):
        load_fairseq(broken(text, **{"modality_encoders.TEXT.local_encoder.embed_positions.weight": None}))


def test_projections_of_unequal_shape_are_named(shared):
    _, good = any_checkpoint(shared, "d2v1_audio")
    with pytest.raises(
        ValueError, match=r"blocks.0.attention.qkv.weight is made of projections of one shape; .*k \(3, 3\)"
    ):
        load_fairseq(broken(good, **{"encoder.layers.0.self_attn.k_proj.weight": torch.zeros(3, 3)}))


def test_a_file_with_other_objects_says_which(tmp_path):
    import argparse

    torch.save({"cfg": argparse.Namespace(a=1), "model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"it holds argparse.Namespace.*refused; save its 'cfg' as nested dicts"):
        load_fairseq(tmp_path / "foreign.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a checkpoint's dict"):
        load_fairseq(tmp_path / "list.pt")


def test_what_is_dropped_and_started_anew_is_said(shared, caplog):
    _, good = any_checkpoint(shared, "d2v1_text")
    model = {key: value for key, value in good["model"].items() if key != "encoder._ema"} | {
        "encoder.lm_head.bias": torch.zeros(100)
    }
    objective = load_fairseq({**good, "model": model, "last_optimizer_state": {}, "args": None})
    assert "last_optimizer_state, args" in caplog.text and "optimizer and the step start anew" in caplog.text
    assert "encoder.lm_head.bias" in caplog.text and "no teacher: it starts anew" in caplog.text
    tiny.assert_same(objective.teacher.state_dict(), objective.student.state_dict())


def test_old_names_of_data2vec_2(shared):
    _, good = any_checkpoint(shared, "d2v2_image")
    prefix = "modality_encoders.IMAGE."
    old = {
        key.replace("positional_encoder.positions", "positional_encoder.pos_embed"): value
        for key, value in good["model"].items()
    }
    found = load_fairseq({**good, "model": {**old, f"{prefix}encoder_mask": torch.zeros(1)}})
    tiny.assert_same(found.state_dict(), load_fairseq(good).state_dict())


def test_what_the_reference_does_not_have_is_not_written(tmp_path):
    objective = tiny.objective_of(tiny.config_of("speech", tmp_path, tiny.using("data2vec2")))
    with pytest.raises(ValueError, match="reads the waveform"):
        save_fairseq(objective, tmp_path / "mel.pt")
    image = tiny.objective_of(tiny.config_of("image", tmp_path, tiny.using("data2vec2")))
    image.config.loss_scale = "mean"
    with pytest.raises(ValueError, match="loss_scale is 'mean'; fairseq's data2vec has sqrt, sum"):
        save_fairseq(image, tmp_path / "mean.pt")
    layers = tiny.objective_of(tiny.config_of("image", tmp_path, tiny.using("data2vec2"), "objective.targets=layers"))
    with pytest.raises(ValueError, match=r"objective.targets is layers .*; fairseq's data2vec 2.0 has the mean and 0"):
        save_fairseq(layers, tmp_path / "layers.pt")
    assert not list(tmp_path.iterdir())


IMAGE = {"image_size": 12, "patch_size": 4}
BEIT = {
    "pre_norm": True,
    "layer_scale": 0.1,
    "qkv_bias": "qv",
    "norm_eps": 1e-6,
    "input_norm": False,
    "final_norm": True,
}
TARGETS = {
    "layers": "block",
    "layer_norms": ["layer"],
    "final_norms": ["layer"],
    "loss_beta": 2.0,
    "loss_scale": "mean",
}
WORDS = {"vocab_size": 20, "mask_token_id": 19, "max_positions": 8}
WAVES = {
    "conv_dim": 8,
    "conv_kernels": [10, 3],
    "conv_strides": [5, 4],
    "pos_kernel": 3,
    "pos_depth": 2,
    "pos_groups": 4,
}


def small(modality, frontend, trunk=None, **settings):
    """An objective of 1.0, two blocks of width 16."""
    sizes = {"depth": 2, "dim": 16, "num_heads": 2, "mlp_dim": 32}
    encoder = D2vModel(D2vConfig(frontends={modality: frontend}, trunk=TrunkConfig(**sizes, **(trunk or {}))))
    return Data2Vec(encoder, Config(**{"top_k": 2, **settings}))


def small2(frontend):
    """An objective of text of 2.0."""
    encoder = D2vModel(
        D2vConfig(
            frontends={"text": frontend}, trunk=TrunkConfig(depth=2, dim=16, num_heads=2, mlp_dim=32, input_norm=False)
        )
    )
    shared = [f"frontends.text.{part}" for part in ("tokens", "position_table", "norm")]
    return Data2Vec2(encoder, Config2(top_k=2, shared=shared, feed_tokens=True, decoder=DecoderConfig(dim=8, groups=2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small("text", {**WORDS, "alibi": "head"}), "model.frontends.text.alibi=head: it reads back as none"),
        (
            lambda: small("text", {**WORDS, "mask_token_id": 4}),
            "model.frontends.text.mask_token_id=4: it reads back as 19",
        ),
        (lambda: small("text", WORDS, {"pre_norm": True}), "model.trunk.pre_norm=True: it reads back as False"),
        (lambda: small("text", WORDS, {"norm_eps": 1e-6}), "model.trunk.norm_eps=1e-06: it reads back as 1e-05"),
        (lambda: small("text", WORDS, layers="block"), "objective.layers=block: it reads back as ffn"),
        (
            lambda: small("text", WORDS, shared=["trunk.input_norm"]),
            r"objective.shared=\['trunk.input_norm'\]: it reads back as \[\]",
        ),
        (
            lambda: small(
                "speech", {**WAVES, "mask_token": False}, feed_tokens=True, shared=["frontends.speech.extractor"]
            ),
            "this objective: .* frontends.speech.mask_token",
        ),
        (
            lambda: small("image", {**IMAGE, "positions": "sincos"}, BEIT, **TARGETS),
            "model.frontends.image.positions=sincos: .* have none",
        ),
        (
            lambda: small("image", {**IMAGE, "mask_token": False}, BEIT, **TARGETS),
            "model.frontends.image.mask_token=False: .* have True",
        ),
        (
            lambda: small("image", IMAGE, {**BEIT, "norm_eps": 1e-5}, **TARGETS),
            "model.trunk.norm_eps=1e-05: it reads back as 1e-06",
        ),
        (lambda: small("image", IMAGE, BEIT, head_layers=2, **TARGETS), "objective.head_layers=2: .* have 1"),
        (
            lambda: small2({**WORDS, "embedding_norm": True, "alibi": "head"}),
            "model.frontends.text.alibi=head: it reads back as none",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_named_and_not_written(make, message, tmp_path):
    with pytest.raises(ValueError, match=f"fairseq's format cannot hold {message}"):
        save_fairseq(make(), tmp_path / "lost.pt")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_reads_back_otherwise_is_named():
    written, back = small("text", WORDS), small("text", WORDS)
    back.load_state_dict(written.state_dict())
    check_same(written, back)
    name = "student.encoder.trunk.blocks.0.mlp.fc2.bias"
    with torch.no_grad():
        back.get_parameter(name)[3] += 1e-6
    with pytest.raises(ValueError, match=rf"cannot hold {name}: it reads back with other values"):
        check_same(written, back)
    del back.student["encoder"].trunk.blocks[0].mlp.fc2
    with pytest.raises(ValueError, match=r"cannot hold student.encoder.trunk.blocks.0.mlp.fc2.\w+: .* without it"):
        check_same(written, back)


def test_a_key_that_a_writer_lacks_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("d2v.interop.fairseq.data2vec.targets_of", lambda config: {}["loss"])
    with pytest.raises(ValueError, match="cannot hold this objective: it has no loss"):
        save_fairseq(small("text", WORDS), tmp_path / "lost.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*NAMES, "d2v1_audio", "d2v1_text"])
def test_quirks_are_no_reason_not_to_write_and_chance_is_left_alone(shared, name, tmp_path):
    objective = load_fairseq(any_checkpoint(shared, name)[1], reference_quirks=True)
    before = torch.get_rng_state()
    save_fairseq(objective, tmp_path / "back.pt")
    assert torch.equal(torch.get_rng_state(), before)
    tiny.assert_same(load_fairseq(tmp_path / "back.pt").state_dict(), objective.state_dict())
