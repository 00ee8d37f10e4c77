"""Equal to the tensors recorded from the reference's image port.

tests/test_huggingface.py compares with stock transformers classes.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from d2v.modalities.image.frontend import relative_index
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.transformer import TrunkConfig
from d2v.objectives.data2vec import Config, Data2Vec
from d2v.types import Mask, View

# The reference's image port, recorded: end of block, no norm of each layer, layer norm of the average, smooth L1 with
# beta 2 over sqrt(D); its teacher is the blocks and the bias table, fed with the student's tokens; its head is never
# applied, hence the identity here.

PORT = {
    "cls_emb": "frontends.image.class_token",
    "mask_emb": "frontends.image.mask_token",
    r"patch_embed\.conv\.(\w+)": r"frontends.image.patch_embed.\1",
    r"rel_pos_bias\.relative_position_bias_table": "frontends.image.bias_table",
    r"norm\.(\w+)": r"trunk.final_norm.\1",
    r"blocks\.(\d+)\.(norm\d)\.(\w+)": r"trunk.blocks.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.(.+)": r"trunk.blocks.\1.attention.\2",
    r"blocks\.(\d+)\.mlp\.0\.(\w+)": r"trunk.blocks.\1.mlp.fc1.\2",
    r"blocks\.(\d+)\.mlp\.2\.(\w+)": r"trunk.blocks.\1.mlp.fc2.\2",
    r"blocks\.(\d+)\.gamma_(\d)": r"trunk.blocks.\1.scale\2",
}


def renamed(name: str, table: dict[str, str]) -> str | None:
    return next((match.expand(new) for old, new in table.items() if (match := re.fullmatch(old, name))), None)


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
    encoder = D2vModel(
        D2vConfig(frontends={"image": {"image_size": c["image_size"], "patch_size": c["patch_size"]}}, trunk=trunk)
    )
    config = Config(
        top_k=c["average_top_k_layers"],
        layers="block",
        layer_norms=[],
        final_norms=["layer"],
        loss_beta=c["loss_beta"],
        loss_scale="sqrt",
        ema_decay=c["ema_decay"],
        ema_end_decay=c["ema_end_decay"],
        ema_anneal_steps=c["ema_anneal_end_step"],
        feed_tokens=True,
        shared=[f"frontends.image.{part}" for part in ("patch_embed", "mask_token", "class_token")],
    )
    student = port_weights(tensors["student"], encoder.state_dict())
    encoder.load_state_dict(student)
    objective = Data2Vec(encoder, config)
    objective.teacher["encoder"].load_state_dict({**student, **port_weights(tensors["teacher"], student)})
    torch.nn.init.eye_(objective.predictor.layers[0].weight)
    torch.nn.init.zeros_(objective.predictor.layers[0].bias)
    return objective.train(), View(
        "image", {"pixel_values": tensors["inputs"]["img"]}, None, Mask(tensors["inputs"]["mask"])
    )


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
    assert int(loss.count) == recorded["loss"]["sample_size"] and loss.total.item() == pytest.approx(
        recorded["loss"]["sum"], rel=1e-5
    )
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
