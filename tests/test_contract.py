"""Equal to others: stock transformers classes with the same weights, and the tensors recorded from the reference's image port."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
)

from d2v.configuration import D2vConfig
from d2v.layers import TrunkConfig
from d2v.modeling import D2vModel
from d2v.objectives.data2vec import Config, Data2Vec
from d2v.types import Mask, View
from modalities.image.frontend import relative_index

TRUNK = TrunkConfig(depth=3, dim=32, num_heads=4, mlp_dim=64)
# theirs (a regular expression for the whole key) -> ours; q, k and v are joined in the order of the table
BLOCKS = {
    "image": {
        r"layernorm_before\.(\w+)": r"norm1.\1", r"layernorm_after\.(\w+)": r"norm2.\1", "lambda_1": "scale1", "lambda_2": "scale2",
        r"attention\.output\.dense\.(\w+)": r"attention.proj.\1",
        r"intermediate\.dense\.(\w+)": r"mlp.fc1.\1", r"output\.dense\.(\w+)": r"mlp.fc2.\1",
    },
    "text": {
        r"attention\.output\.LayerNorm\.(\w+)": r"norm1.\1", r"output\.LayerNorm\.(\w+)": r"norm2.\1",
        r"attention\.output\.dense\.(\w+)": r"attention.proj.\1",
        r"intermediate\.dense\.(\w+)": r"mlp.fc1.\1", r"output\.dense\.(\w+)": r"mlp.fc2.\1",
    },
    "speech": {
        r"layer_norm\.(\w+)": r"norm1.\1", r"final_layer_norm\.(\w+)": r"norm2.\1", r"attention\.out_proj\.(\w+)": r"attention.proj.\1",
        r"feed_forward\.intermediate_dense\.(\w+)": r"mlp.fc1.\1", r"feed_forward\.output_dense\.(\w+)": r"mlp.fc2.\1",
    },
}  # fmt: skip
REST = {
    "image": {
        r"embeddings\.(cls_token)": "frontends.image.class_token", r"embeddings\.(mask_token)": "frontends.image.mask_token",
        r"embeddings\.patch_embeddings\.projection\.(\w+)": r"frontends.image.patch_embed.\1", r"layernorm\.(\w+)": r"trunk.final_norm.\1",
        r"encoder\.relative_position_bias\.relative_position_bias_table": "frontends.image.bias_table",
    },
    "text": {
        r"embeddings\.word_embeddings\.weight": "frontends.text.tokens.weight", r"embeddings\.LayerNorm\.(\w+)": r"trunk.input_norm.\1",
        r"embeddings\.position_embeddings\.weight": "frontends.text.position_table.weight",
    },
    "speech": {
        "masked_spec_embed": "frontends.speech.mask_token", r"feature_projection\.layer_norm\.(\w+)": r"frontends.speech.norm.\1",
        r"feature_projection\.projection\.(\w+)": r"frontends.speech.projection.\1", r"encoder\.layer_norm\.(\w+)": r"trunk.input_norm.\1",
        r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight": r"frontends.speech.extractor.layers.\1.weight",
        r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)": r"frontends.speech.extractor.layers.\1.norm.\2",
        r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.(\w+)": r"frontends.speech.positions_conv.\1.\2",
    },
}  # fmt: skip
LAYER = r"encoder\.layers?\.(\d+)\.(.*)"


def renamed(name: str, table: dict[str, str]) -> str | None:
    return next((match.expand(new) for old, new in table.items() if (match := re.fullmatch(old, name))), None)


def copy_weights(theirs: torch.nn.Module, ours: D2vModel, modality: str) -> None:
    """Random weights, the same in both; nothing may be left over in ours."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + 0.02 * (parameter.ndim == 1))
    state, found, joined = theirs.state_dict(), {}, {}
    for name, value in state.items():
        layer = re.fullmatch(LAYER, name)
        part = re.search(r"(query|key|value|[qkv]_proj)\.(\w+)$", name)
        if layer and part:
            joined[int(layer[1]), part[2], "qkv".index(part[1][0])] = value
            continue
        new = renamed(layer[2], BLOCKS[modality]) if layer else renamed(name, REST[modality])
        if new is not None:
            found[f"trunk.blocks.{layer[1]}.{new}" if layer else new] = value
    for number in range(len(ours.trunk.blocks)):
        place = f"trunk.blocks.{number}.attention"
        found[f"{place}.qkv.weight"] = torch.cat([joined[number, "weight", i] for i in range(3)])
        if (number, "bias", 1) in joined:
            found[f"{place}.qkv.bias"] = torch.cat([joined[number, "bias", i] for i in range(3)])
        else:
            found |= {f"{place}.q_bias": joined[number, "bias", 0], f"{place}.v_bias": joined[number, "bias", 2]}
    expected = ours.state_dict()
    ours.load_state_dict({name: value.reshape(expected[name].shape) for name, value in found.items()})


def pairs(modality: str) -> tuple[D2vModel, torch.nn.Module]:
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    if modality == "image":
        vision = Data2VecVisionConfig(
            **size, image_size=24, patch_size=4, use_mask_token=True, use_shared_relative_position_bias=True,
            use_mean_pooling=False, layer_norm_eps=1e-6, layer_scale_init_value=0.1,
        )  # fmt: skip
        trunk = TrunkConfig(depth=3, dim=32, num_heads=4, mlp_dim=64, pre_norm=True, layer_scale=0.1, qkv_bias="qv", norm_eps=1e-6,
                            input_norm=False, final_norm=True)  # fmt: skip
        theirs, frontend = Data2VecVisionModel(vision, add_pooling_layer=False), {"image_size": 24, "patch_size": 4}
    elif modality == "text":
        text = Data2VecTextConfig(**size, vocab_size=50, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)
        theirs = Data2VecTextModel(text, add_pooling_layer=False)
        frontend, trunk = {"vocab_size": 50, "max_positions": 32, "mask_token_id": 49}, TRUNK
    else:
        conv = {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}
        theirs = Data2VecAudioModel(Data2VecAudioConfig(**size, **conv, mask_time_prob=0.5))
        frontend, trunk = {"conv_dim": 16, "pos_kernel": 5, "pos_depth": 3, "pos_groups": 4, "reference_padding": True}, TRUNK
    ours = D2vModel(D2vConfig(frontends={modality: frontend}, trunk=trunk))
    copy_weights(theirs, ours, modality)
    if modality == "text":  # token types are zero in data2vec
        torch.nn.init.zeros_(theirs.embeddings.token_type_embeddings.weight)
    return ours.eval(), theirs.eval()


def same(ours: D2vModel, theirs, inputs: dict, mask: dict, hidden, padding=None, extra: int = 0) -> None:
    """Ends of all blocks and the output."""
    view = ours.view(**inputs)
    found = ours(view, None if hidden is None else Mask(hidden), layers="block")
    expected = theirs(**inputs, **mask, output_hidden_states=True)
    real = torch.ones(found.x.shape[:2]).bool() if padding is None else ~padding
    assert len(found.layers) == len(expected.hidden_states) - 1 == 3
    for layer, theirs_layer in zip(found.layers, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(layer[real], theirs_layer[:, extra:][real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.x[real], expected.last_hidden_state[:, extra:][real], rtol=1e-5, atol=1e-5)
    if extra:
        torch.testing.assert_close(found.extra, expected.last_hidden_state[:, :extra], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_image_equals_transformers():
    ours, theirs = pairs("image")
    pixels, hidden = torch.randn(2, 3, 24, 24), torch.rand(2, 36) < 0.5
    same(ours, theirs, {"pixel_values": pixels}, {}, None, extra=1)
    same(ours, theirs, {"pixel_values": pixels}, {"bool_masked_pos": hidden}, hidden, extra=1)


@torch.no_grad()
def test_text_equals_transformers():
    ours, theirs = pairs("text")
    ids = torch.randint(4, 49, (3, 12))
    same(ours, theirs, {"input_ids": ids}, {}, None)
    padding = torch.arange(12) >= torch.tensor([12, 9, 4])[:, None]
    ids[padding] = 1
    inputs = {"input_ids": ids, "attention_mask": (~padding).long()}
    same(ours, theirs, inputs, {}, None, padding)
    hidden = (torch.rand(3, 12) < 0.4) & ~padding
    found = ours(ours.view(**inputs), Mask(hidden)).x
    expected = theirs(input_ids=ids.masked_fill(hidden, 49), attention_mask=inputs["attention_mask"]).last_hidden_state
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_speech_equals_transformers():
    ours, theirs = pairs("speech")
    waves = torch.randn(2, 4000)
    tokens = ours.embed(ours.view(input_values=waves)).shape[1]
    same(ours, theirs, {"input_values": waves}, {}, None)
    hidden = torch.rand(2, tokens) < 0.5
    same(ours, theirs, {"input_values": waves}, {"mask_time_indices": hidden}, hidden)
    attention_mask = (torch.arange(4000) < torch.tensor([4000, 2500])[:, None]).long()
    waves = waves * attention_mask
    inputs = {"input_values": waves, "attention_mask": attention_mask}
    padding = ours.view(**inputs).padding
    assert padding.any()
    same(ours, theirs, inputs, {}, None, padding)


# The reference's image port, recorded: end of block, no norm of each layer, layer norm of the average, smooth L1 with beta 2 over sqrt(D);
# its teacher is the blocks and the bias table, fed with the student's tokens; its head is never applied, hence the identity here.

PORT = {
    "cls_emb": "frontends.image.class_token", "mask_emb": "frontends.image.mask_token",
    r"patch_embed\.conv\.(\w+)": r"frontends.image.patch_embed.\1",
    r"rel_pos_bias\.relative_position_bias_table": "frontends.image.bias_table", r"norm\.(\w+)": r"trunk.final_norm.\1",
    r"blocks\.(\d+)\.(norm\d)\.(\w+)": r"trunk.blocks.\1.\2.\3", r"blocks\.(\d+)\.attn\.(.+)": r"trunk.blocks.\1.attention.\2",
    r"blocks\.(\d+)\.mlp\.0\.(\w+)": r"trunk.blocks.\1.mlp.fc1.\2", r"blocks\.(\d+)\.mlp\.2\.(\w+)": r"trunk.blocks.\1.mlp.fc2.\2",
    r"blocks\.(\d+)\.gamma_(\d)": r"trunk.blocks.\1.scale\2",
}  # fmt: skip


def port_weights(tensors: dict, like: dict) -> dict:
    """Renamed and in our shapes; the head and the index are left out, all else must be known."""
    found = {}
    for name, value in tensors.items():
        if name.startswith("final_proj") or name.endswith("relative_position_index"):
            continue
        new = renamed(name.removeprefix("encoder."), PORT)
        assert new is not None, name
        found[new] = value.reshape(like[new].shape)
    return found


@pytest.fixture
def golden(shared):
    folder = shared / "goldens" / "d2v1_vision"
    if not folder.is_dir():
        pytest.skip(f"needs the recorded tensors in {folder}")
    recorded = json.loads((folder / "config.json").read_text())
    tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return recorded, tensors


def port(recorded: dict, tensors: dict) -> tuple[Data2Vec, View]:
    c = recorded["config"]
    mlp_dim = tensors["student"]["encoder.blocks.0.mlp.0.bias"].numel()
    trunk = TrunkConfig(
        depth=c["depth"], dim=c["embed_dim"], num_heads=c["num_heads"], mlp_dim=mlp_dim, pre_norm=True,
        layer_scale=c["layer_scale_init_value"], qkv_bias="qv", norm_eps=1e-5, input_norm=False, final_norm=True,
    )  # fmt: skip
    encoder = D2vModel(D2vConfig(frontends={"image": {"image_size": c["image_size"], "patch_size": c["patch_size"]}}, trunk=trunk))
    config = Config(
        top_k=c["average_top_k_layers"], layers="block", layer_norms=[], final_norms=["layer"], loss_beta=c["loss_beta"], loss_scale="sqrt",
        ema_decay=c["ema_decay"], ema_end_decay=c["ema_end_decay"], ema_anneal_steps=c["ema_anneal_end_step"], feed_tokens=True,
        shared=[f"frontends.image.{part}" for part in ("patch_embed", "mask_token", "class_token")],
    )  # fmt: skip
    student = port_weights(tensors["student"], encoder.state_dict())
    encoder.load_state_dict(student)
    objective = Data2Vec(encoder, config)
    objective.teacher["encoder"].load_state_dict({**student, **port_weights(tensors["teacher"], student)})
    torch.nn.init.eye_(objective.predictor.layers[0].weight)
    torch.nn.init.zeros_(objective.predictor.layers[0].bias)
    return objective.train(), View("image", {"pixel_values": tensors["inputs"]["img"]}, None, Mask(tensors["inputs"]["mask"]))


def close(found, expected, what: str = "") -> None:
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5, what


def test_port_blocks_targets_loss_and_gradients(golden):
    recorded, tensors = golden
    objective, view = port(recorded, tensors)
    outputs, student = tensors["outputs"], objective.student["encoder"]
    index = tensors["student"]["encoder.rel_pos_bias.relative_position_index"]
    assert torch.equal(relative_index(6, 6, True, torch.device("cpu")), index)
    tokens = student.embed(view).detach()
    for kind, name in (("ffn", "fc"), ("block", "x")):
        layers = objective.teacher["encoder"](view, tokens=tokens, layers=kind).layers
        for number, layer in enumerate(layers):
            close(layer, outputs[f"teacher_layer_{name}.{number}"], f"{name}.{number}")
    hidden = view.mask.hidden
    close(objective.target(view, tokens)[hidden], outputs["target"])
    close(student(view, view.mask).x[hidden], outputs["pred"])
    loss = objective([view])
    assert int(loss.count) == recorded["loss"]["sample_size"] and loss.total.item() == pytest.approx(recorded["loss"]["sum"], rel=1e-5)
    assert float(loss.metrics["target_std"]) == pytest.approx(recorded["scalars"]["target_var"], rel=1e-4)
    assert float(loss.metrics["prediction_std"]) == pytest.approx(recorded["scalars"]["pred_var"], rel=1e-4)
    loss.total.backward()
    gradients = port_weights(tensors["grads"], student.state_dict())
    assert gradients.keys() == dict(student.named_parameters()).keys()
    for name, parameter in student.named_parameters():
        close(parameter.grad, gradients[name], name)


def test_port_teacher_after_one_update(golden):
    recorded, tensors = golden
    objective, _ = port(recorded, tensors)
    decay = objective.ema_decay(recorded["ema"]["single_step_at_num_updates"])
    assert decay == pytest.approx(recorded["ema"]["decay_used"], rel=1e-12)
    objective.update_teacher(decay)
    teacher = objective.teacher["encoder"].state_dict()
    for name, value in port_weights(tensors["teacher_after_ema"], teacher).items():
        close(teacher[name], value, name)
