"""fairseq's data2vec 1.0 checkpoints (speech and text) as Objectives: tables of renamed keys, no fairseq needed.

Containers and names: a .pt file, or a dict {"cfg": {"model": ..., "task": ...}, "model": state dict}, with the teacher nested as `_ema`.
"""

import ast
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v import plugins
from d2v.configuration import D2vConfig
from d2v.layers import TrunkConfig
from d2v.modeling import D2vModel
from d2v.objective import Objective

# what a setting of the reference must be, because nothing else was ever published with data2vec
REQUIRED = {
    "data2vec_audio": {
        "extractor_mode": "layer_norm",
        "conv_bias": False,
        "activation_fn": "gelu",
        "layer_type": "transformer",
        "quantize_targets": False,
        "quantize_input": False,
        "target_glu": False,
        "pos_enc_type": "abs",
        "final_dim": 0,
    },
    "data2vec_text": {"transformer.activation_fn": "gelu", "transformer.encoder.learned_pos": True, "transformer.no_scale_embedding": True},
}


def load_fairseq(checkpoint: str | Path | dict, reference_quirks: bool = False) -> Objective:
    """The objective of a data2vec_audio or data2vec_text checkpoint: student, teacher and predictor.

    `reference_quirks` computes what the reference computes where that is not the paper's sense: instance norm and the deeper position
    layers count padded frames. (The bug of its text teacher, fairseq issue 4881, is in what its task hands to the model: give a second
    view to reproduce it, as the text modality's `reference_teacher_input` does.) ValueError: another architecture or setting, or the
    first key that is missing, left over, or of another shape; nothing is half loaded.
    """
    checkpoint = checkpoint if isinstance(checkpoint, dict) else _read(Path(checkpoint))
    if not isinstance(checkpoint.get("cfg"), dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"a fairseq checkpoint holds 'cfg' and 'model'; this one holds {', '.join(map(str, checkpoint)) or 'nothing'}")
    model, state = _plain(checkpoint["cfg"].get("model") or {}), dict(checkpoint["model"])
    kind = model.get("_name") or _guess(state)
    if kind not in REQUIRED:
        raise ValueError(f"cfg.model._name is {kind!r}; this reads {', '.join(REQUIRED)}")
    for name, wanted in REQUIRED[kind].items():
        if (given := _setting(model, name, wanted)) != wanted:
            raise ValueError(f"cfg.model.{name} is {given!r}; only {wanted!r} is known to data2vec's published models")
    convert = {"data2vec_audio": _speech, "data2vec_text": _text}[kind]
    return convert(model, state, reference_quirks)


def _speech(cfg: dict, state: dict, quirks: bool) -> Objective:
    conv = _conv_layers(cfg["conv_feature_layers"])
    dims = {width for width, _, _ in conv}
    if len(dims) != 1:
        raise ValueError(f"cfg.model.conv_feature_layers {cfg['conv_feature_layers']} has layers of different widths {sorted(dims)}")
    depth = int(cfg["pos_conv_depth"])
    if depth < 2:
        raise ValueError(f"cfg.model.pos_conv_depth is {depth}; data2vec stacks several layers (5)")
    frontend = {
        "conv_dim": dims.pop(),
        "conv_kernels": [kernel for _, kernel, _ in conv],
        "conv_strides": [stride for _, _, stride in conv],
        "pos_kernel": max(3, int(cfg["conv_pos"]) // depth),
        "pos_depth": depth,
        "pos_groups": int(cfg["conv_pos_groups"]),
        "reference_padding": quirks,
    }
    pre_norm = bool(cfg.get("layer_norm_first", False))
    trunk = TrunkConfig(
        depth=cfg["encoder_layers"],
        dim=cfg["encoder_embed_dim"],
        num_heads=cfg["encoder_attention_heads"],
        mlp_dim=cfg["encoder_ffn_embed_dim"],
        pre_norm=pre_norm,
        input_norm=not pre_norm,
        final_norm=pre_norm,
        dropout=cfg.get("dropout", 0.1),
        attention_dropout=cfg.get("attention_dropout", 0.1),
        activation_dropout=cfg.get("activation_dropout", 0.0),
        layer_drop=cfg.get("encoder_layerdrop", 0.0),
    )
    shared = ["frontends.speech." + part for part in ("extractor", "norm", "projection", "mask_token")]
    if cfg.get("ema_layers_only", False):
        shared.append("frontends.speech.positions_conv")
    objective = _build("speech", frontend, trunk, {**_targets(cfg, "ffn"), "shared": shared, "feed_tokens": True, "norm_over_padding": quirks})
    teacher = state.pop("_ema", None)
    state = {re.sub(r"^final_proj\.0\.", "final_proj.", key): value for key, value in state.items()}
    norm = "trunk.final_norm" if pre_norm else "trunk.input_norm"
    encoder = [
        (r"encoder\.pos_conv\.(\d+)\.0\.", r"frontends.speech.positions_conv.\1."),
        (r"encoder\.layer_norm\.", norm + "."),
        (r"encoder\.layers\.(\d+)\.", r"trunk.blocks.\1."),
    ]
    table = [
        (r"mask_emb$", "frontends.speech.mask_token"),
        (r"feature_extractor\.conv_layers\.(\d+)\.0\.weight", r"frontends.speech.extractor.layers.\1.weight"),
        (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"frontends.speech.extractor.layers.\1.norm."),
        (r"layer_norm\.", "frontends.speech.norm."),
        (r"post_extract_proj\.", "frontends.speech.projection."),
        *encoder,
    ]
    return _load(objective, state, teacher, table, [(old.removeprefix(r"encoder\."), new) for old, new in encoder], ("final_proj.", "layers.0."))


def _text(cfg: dict, state: dict, quirks: bool) -> Objective:
    transformer = cfg["transformer"]
    encoder = transformer["encoder"]
    if encoder.get("normalize_before", False):
        raise ValueError("cfg.model.transformer.encoder.normalize_before is True; data2vec's text encoder is post-norm")
    state = {re.sub(r"^decoder\.", "encoder.", k).replace(".emb_layer_norm.", ".layernorm_embedding."): v for k, v in state.items()}
    words = state.get("encoder.sentence_encoder.embed_tokens.weight")
    positions = state.get("encoder.sentence_encoder.embed_positions.weight")
    if words is None or positions is None:
        raise ValueError("the first missing key is encoder.sentence_encoder.embed_tokens.weight or embed_positions.weight")
    # fairseq's dictionary: <s> 0, <pad> 1, </s> 2, <unk> 3, words, and <mask> appended last
    frontend = {"vocab_size": len(words), "mask_token_id": len(words) - 1, "max_positions": len(positions) - 2}
    trunk = TrunkConfig(
        depth=encoder["layers"],
        dim=encoder["embed_dim"],
        num_heads=encoder["attention_heads"],
        mlp_dim=encoder["ffn_embed_dim"],
        dropout=transformer.get("dropout", 0.1),
        attention_dropout=transformer.get("attention_dropout", 0.1),
        activation_dropout=transformer.get("activation_dropout", 0.0) or transformer.get("relu_dropout", 0.0),
        layer_drop=encoder.get("layerdrop", 0.0),
    )
    shared = ["frontends.text", "trunk.input_norm"] if cfg.get("ema_transformer_layers_only", False) else []
    objective = _build(
        "text",
        frontend,
        trunk,
        {
            **_targets(cfg, "ffn"),
            "head_layers": int(cfg.get("head_layers", 1)),
            "shared": shared,
            "norm_over_padding": quirks,
        },
    )
    teacher = state.pop("encoder._ema", None)
    state = {k: v for k, v in state.items() if not k.endswith(".version") and not k.startswith(("encoder.lm_head.", "classification_heads."))}
    inner = [
        (r"embed_tokens\.", "frontends.text.tokens."),
        (r"embed_positions\.", "frontends.text.position_table."),
        (r"layernorm_embedding\.", "trunk.input_norm."),
        (r"layers\.(\d+)\.", r"trunk.blocks.\1."),
    ]
    table = [(r"encoder\.sentence_encoder\." + old, new) for old, new in inner]
    return _load(objective, state, teacher, table, inner, ("encoder.regression_head.", "layers."))


BLOCK = [
    (r"\.self_attn\.out_proj\.", ".attention.proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.fc([12])\.", r".mlp.fc\1."),
    (r"\.final_layer_norm\.", ".norm2."),
]


def _targets(cfg: dict, layers: str) -> dict[str, Any]:
    """The objective's settings, in the reference's order of norms: batch, instance, group, layer; layer, instance for the average."""
    names = [name for name in ("batch", "instance", "group", "layer") if cfg.get(f"{name}_norm_target_layer", False)]
    scale = cfg.get("loss_scale")
    if scale is not None and scale > 0 and scale != 1:
        raise ValueError(f"cfg.model.loss_scale is {scale}; it may be null (divide by sqrt of the width) or 1")
    return {
        "top_k": cfg["average_top_k_layers"],
        "layers": layers,
        "layer_norms": names,
        "final_norms": [name for name in ("layer", "instance") if cfg.get(f"{name}_norm_targets", False)],
        "loss_beta": float(cfg.get("loss_beta", 0.0)),
        "loss_scale": "sum" if scale == 1 else "sqrt",
        "ema_decay": cfg["ema_decay"],
        "ema_end_decay": cfg["ema_end_decay"],
        "ema_anneal_steps": int(cfg["ema_anneal_end_step"]),
    }


def _build(modality: str, frontend: dict, trunk: TrunkConfig, settings: dict) -> Objective:
    plugin = plugins.load("d2v.objectives", "data2vec")
    frontend_config = plugins.load("modalities", modality).FrontendConfig(**frontend)
    return plugin.build(D2vModel(D2vConfig(frontends={modality: frontend_config}, trunk=trunk)), plugin.Config(**settings))


def _load(objective: Objective, state: dict, teacher: dict | None, table: list, teacher_table: list, heads: tuple[str, str]) -> Objective:
    """Fills student, predictor and teacher; where the checkpoint has no teacher (or lacks a part that is shared), the student's is copied."""
    head, layers = heads
    predictor = {layers + key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
    student = _renamed({key: value for key, value in state.items() if not key.startswith(head)}, table)
    _fill(objective.student["encoder"], student, "model.")
    _fill(objective.predictor, predictor, "model." + head)
    if teacher is not None:
        teacher = {key: value for key, value in teacher.items() if not key.endswith("version")}
        shared = {key: value for key, value in student.items() if objective.is_copied(f"encoder.{key}")}
        student = {**shared, **_renamed(teacher, teacher_table)}
    _fill(objective.teacher["encoder"], student, "_ema.")
    return objective


def _renamed(state: dict[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Our names; query, key and value are stacked into one. ValueError: the first key that no rule of the table knows."""
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        new = next((re.sub("^" + old, to, key) for old, to in table if re.match(old, key)), None)
        if new is None:
            raise ValueError(f"key {key!r} is not part of this architecture; is the checkpoint of another model?")
        for old, to in BLOCK:
            new = re.sub(old, to, new)
        match = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", new)
        if match:
            projections.setdefault(f"{match[1]}.attention.qkv.{match[3]}", {})[match[2]] = value
        else:
            renamed[new] = value
    for name, parts in projections.items():
        if len(parts) != 3:
            raise ValueError(f"{name} needs q, k and v projections; the checkpoint has {', '.join(sorted(parts))}")
        renamed[name] = torch.cat([parts[part] for part in "qkv"])
    return renamed


def _fill(module: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    """ValueError: the first missing, unexpected or ill-shaped key, before anything is copied."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise ValueError(f"{where} is incomplete: nothing in it gives {name}, {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            raise ValueError(f"{where} has {name} of shape {tuple(state[name].shape)}; the config asks for {tuple(tensor.shape)}")
    extra = sorted(state.keys() - own.keys())
    if extra:
        raise ValueError(f"{where} has a key that the config gives no place: {extra[0]}")
    module.load_state_dict({name: value.float() for name, value in state.items()})


def _read(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"no checkpoint {path.absolute()}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own for a damaged or a foreign file
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors and settings: {reason}. A file that holds other Python objects is refused; "
            "save its 'cfg' as nested dicts and its 'model' as tensors with the software that wrote it"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a checkpoint's dict")
    return loaded


def _plain(config: Any) -> dict:
    return {key: _plain(value) if isinstance(value, dict) else value for key, value in config.items()}


def _setting(config: dict, name: str, default: Any) -> Any:
    for part in name.split("."):
        if part not in config:
            return default
        config = config[part]
    return config


def _guess(state: dict) -> str | None:
    """The model's kind by its keys, for configs that do not name it."""
    if any(key.startswith("encoder.sentence_encoder.") for key in state):
        return "data2vec_text"
    return "data2vec_audio" if "post_extract_proj.weight" in state and "mask_emb" in state else None


def _conv_layers(text: str) -> list[tuple[int, int, int]]:
    """[(width, kernel, stride)] from the reference's Python expression, e.g. "[(512,10,5)] + [(512,3,2)] * 4", without evaluating it."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            left, right = value(node.left), value(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        if isinstance(node, ast.List | ast.Tuple):
            items = [value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise ValueError(f"cfg.model.conv_feature_layers {text!r} is no list of (width, kernel, stride)")

    try:
        return value(ast.parse(text, mode="eval"))
    except SyntaxError:
        raise ValueError(f"cfg.model.conv_feature_layers {text!r} is no list of (width, kernel, stride)") from None
