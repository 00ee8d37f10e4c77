"""Stock Data2Vec and ViT models: equal in every layer, and the same out and in again.

What cannot be held is refused by name.
"""

import re
from dataclasses import fields

import pytest
import torch
import transformers as hf
from torch import Tensor

from d2v import plugins
from d2v.config.loading import load_config
from d2v.interop.huggingface import from_transformers, to_transformers
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification
from d2v.models.transformer import TrunkConfig
from d2v.types import Mask

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
AUDIO = {
    **SIZE,
    "conv_dim": [16] * 7,
    "num_conv_pos_embedding_groups": 4,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embeddings": 3,
}
TEXT = {**SIZE, "vocab_size": 50, "max_position_embeddings": 34}
IMAGE = {**SIZE, "image_size": 24, "patch_size": 4}
LABELS = {"id2label": {0: "no", 1: "yes", 2: "so"}, "label2id": {"no": 0, "yes": 1, "so": 2}}
# class -> configs, of default epsilon or another, with all that is optional or without
CASES = {
    "audio": (hf.Data2VecAudioModel, AUDIO),
    "audio, even kernel, no mask, 1e-6": (
        hf.Data2VecAudioModel,
        {**AUDIO, "conv_pos_kernel_size": 4, "mask_time_prob": 0.0, "layer_norm_eps": 1e-6},
    ),
    "letters": (
        hf.Data2VecAudioForCTC,
        {**AUDIO, "vocab_size": 11, "pad_token_id": 3, "final_dropout": 0.3, "mask_feature_prob": 0.2},
    ),
    "utterances": (
        hf.Data2VecAudioForSequenceClassification,
        {**AUDIO, **LABELS, "classifier_proj_size": 7, "layer_norm_eps": 1e-6},
    ),
    "text": (hf.Data2VecTextModel, TEXT),
    "text, one type, 1e-6": (
        hf.Data2VecTextModel,
        {**TEXT, "type_vocab_size": 1, "layer_norm_eps": 1e-6, "bos_token_id": None},
    ),
    "sentences": (
        hf.Data2VecTextForSequenceClassification,
        {**TEXT, **LABELS, "problem_type": "multi_label_classification"},
    ),
    "numbers": (
        hf.Data2VecTextForSequenceClassification,
        {**TEXT, "num_labels": 1, "classifier_dropout": 0.3, "type_vocab_size": 1},
    ),
    "vision": (hf.Data2VecVisionModel, IMAGE),
    "vision, shared bias, 1e-6": (
        hf.Data2VecVisionModel,
        {
            **IMAGE,
            "use_mask_token": True,
            "use_shared_relative_position_bias": True,
            "use_mean_pooling": False,
            "layer_norm_eps": 1e-6,
        },
    ),
    "vision, own biases, no scale": (
        hf.Data2VecVisionModel,
        {**IMAGE, "use_relative_position_bias": True, "layer_scale_init_value": 0.0},
    ),
    "pictures": (hf.Data2VecVisionForImageClassification, {**IMAGE, **LABELS, "use_relative_position_bias": True}),
    "pictures, class token": (
        hf.Data2VecVisionForImageClassification,
        {**IMAGE, **LABELS, "use_absolute_position_embeddings": True, "use_mean_pooling": False},
    ),
    "vit": (hf.ViTModel, IMAGE),
    "vit, no biases, 1e-6": (hf.ViTModel, {**IMAGE, "qkv_bias": False, "layer_norm_eps": 1e-6}),
    "vit pictures": (hf.ViTForImageClassification, {**IMAGE, **LABELS}),
}


def stock(case: str) -> torch.nn.Module:
    """Random weights everywhere, norms, biases and tables too."""
    kind, settings = CASES[case]
    model = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + 0.5 * (parameter.ndim == 1 and "orm" in name))
    return model


def inputs_of(model: torch.nn.Module, length: int) -> list[tuple[dict, Tensor | None]]:
    """Inputs of a stock model, without and with padding, and which tokens of the latter are padding."""
    if "patch_size" in model.config.to_dict():
        return [({"pixel_values": torch.randn(2, 3, 24, 24)}, None)]
    name = "input_values" if "conv_dim" in model.config.to_dict() else "input_ids"
    size = (3, 4000 + 320 * (length % 2)) if name == "input_values" else (3, length)
    values = torch.randn(size) if name == "input_values" else torch.randint(4, 49, size)
    real = torch.arange(size[1]) < torch.tensor([size[1], size[1] * 2 // 3, size[1] // 3])[:, None]
    padded = torch.where(real, values, 0 if name == "input_values" else 1)
    return [({name: values}, None), ({name: padded, "attention_mask": real.long()}, ~real)]


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-3  # not one number everywhere
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def same(
    ours: D2vModel, theirs: torch.nn.Module, inputs: dict, mask: Mask | None = None, hidden: dict | None = None
) -> None:
    """The ends of all blocks and the output, of content tokens and class token, where there is no padding."""
    view = ours.view(**inputs)
    found, expected = ours(view, mask, layers="block"), theirs(**inputs, **(hidden or {}), output_hidden_states=True)
    extra = 0 if found.extra is None else 1
    real = torch.ones(found.x.shape[:2], dtype=torch.bool) if view.padding is None else ~view.padding
    assert len(found.layers) == len(expected.hidden_states) - 1 == 3
    for layer, theirs_layer in zip(
        (*found.layers, found.x), (*expected.hidden_states[1:], expected.last_hidden_state), strict=True
    ):
        close(layer[real], theirs_layer[:, extra:][real])
    if extra:
        close(found.extra, expected.last_hidden_state[:, :1])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equal_in_every_layer(case):
    theirs = stock(case)
    ours = from_transformers(theirs, reference_quirks=True)
    assert not ours.training
    encoder = ours if isinstance(ours, D2vModel) else ours.encoder
    for length in (11, 12):
        for inputs, padding in inputs_of(theirs, length):
            same(encoder, theirs.base_model, inputs)
            assert padding is None or encoder.view(**inputs).padding.any()
            if encoder is not ours:
                found, expected = ours(**inputs).logits, theirs(**inputs).logits
                real = torch.ones(found.shape[:-1], dtype=torch.bool)
                if found.ndim == 3 and padding is not None:  # letters of padding are blanks in ours
                    real = ~encoder.view(**inputs).padding
                close(found[real], expected[real])


@pytest.mark.parametrize("case", ["audio", "text", "vision, shared bias, 1e-6"])
@torch.no_grad()
def test_equal_in_every_layer_where_tokens_are_hidden(case):
    theirs = stock(case)
    ours = from_transformers(theirs)
    inputs, _ = inputs_of(theirs, 11)[0]
    hidden = torch.rand(ours.embed(ours.view(**inputs)).shape[:2]) < 0.5
    if case == "text":  # it is given the mask token, the last of the vocabulary
        found, expected = (
            ours(ours.view(**inputs), Mask(hidden)).x,
            theirs(input_ids=inputs["input_ids"].masked_fill(hidden, 49)),
        )
        close(found, expected.last_hidden_state)
    else:
        name = "mask_time_indices" if case == "audio" else "bool_masked_pos"
        same(ours, theirs, inputs, Mask(hidden), {name: hidden})


@torch.no_grad()
def test_speech_alone_is_the_same_without_the_references_quirk_and_padded_it_is_itself():
    theirs = stock("audio")
    ours = from_transformers(theirs)
    (alone, _), (padded, _) = inputs_of(theirs, 11)
    same(ours, theirs, alone)
    first = ours(**padded).x[1]
    single = ours(input_values=padded["input_values"][1:2, : int(padded["attention_mask"][1].sum())]).x[0]
    torch.testing.assert_close(first[: len(single)], single, rtol=1e-5, atol=1e-5)
    theirs_first = theirs(**padded).last_hidden_state[1]
    assert (theirs_first[: len(single)] - single).abs().max() > 1e-3  # theirs depend on the batch


def states(model: torch.nn.Module) -> dict[str, Tensor]:
    """Without the pooler, which no model of ours has."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}


def assert_same_state(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    found, expected = states(found), states(expected)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("case", CASES)
def test_in_and_out_again_is_the_identity(case):
    theirs = stock(case)
    if theirs.config.to_dict().get("type_vocab_size") == 2:  # folded into the positions, see below
        return
    if "type_vocab_size" in theirs.config.to_dict():
        torch.nn.init.zeros_(theirs.base_model.embeddings.token_type_embeddings.weight)  # as in data2vec
    back = to_transformers(from_transformers(theirs))
    assert type(back) is type(theirs) and not back.training
    assert_same_state(back, theirs)
    assert back.config.to_dict() == theirs.config.to_dict()


@torch.no_grad()
def test_token_types_become_part_of_the_positions():
    theirs = stock("text")
    back = to_transformers(from_transformers(theirs))
    assert back.config.type_vocab_size == 1 and not back.embeddings.token_type_embeddings.weight.any()
    (inputs, _) = inputs_of(theirs, 12)[1]
    real = inputs["attention_mask"].bool()
    close(back(**inputs).last_hidden_state[real], theirs(**inputs).last_hidden_state[real])
    assert_same_state(to_transformers(from_transformers(back)), back)


# What ours may be, beside the defaults.
OURS = {
    "speech": {"conv_dim": 16, "pos_groups": 4, "pos_kernel": 4, "sample_rate": 8000},
    "text": {"vocab_size": 50, "mask_token_id": 7, "max_positions": 32, "position_std": 0.5},
    "image": {"image_size": 24, "patch_size": 4},
}
TRUNK = {"depth": 2, "dim": 32, "num_heads": 4, "mlp_dim": 64, "dropout": 0.1, "input_dropout": 0.2, "init": "default"}
PRE_NORM = {**TRUNK, "pre_norm": True, "input_norm": False, "final_norm": True, "norm_eps": 1e-6}
VISION = {**PRE_NORM, "qkv_bias": "qv", "layer_scale": 0.1, "drop_path": 0.1}
VIT = {"relative_bias": False, "mask_token": False}


def ours_of(
    modality: str,
    trunk: dict,
    task: dict | None = None,
    model_class: type = D2vModel,
    labels: dict | None = None,
    **frontend,
) -> torch.nn.Module:
    frontend = plugins.load("d2v.modalities", modality).FrontendConfig(**{**OURS[modality], **frontend})
    model = model_class(D2vConfig({modality: frontend}, TrunkConfig(**trunk), task, **(labels or {}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in model.modules():  # the rows of padding are zero
            if isinstance(module, torch.nn.Embedding):
                module.weight[module.padding_idx] = 0
                if modality == "text" and module is model.base_model.frontends[modality].position_table:
                    module.weight[: module.padding_idx] = 0  # nothing reads them
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: ours_of("speech", TRUNK), hf.Data2VecAudioModel),
        (lambda: ours_of("speech", TRUNK, mask_token=False, reference_padding=True), hf.Data2VecAudioModel),
        (lambda: ours_of("speech", TRUNK, {"blank": 2}, D2vForCTC, {"num_labels": 9}), hf.Data2VecAudioForCTC),
        (lambda: ours_of("speech", TRUNK, {"blank_bias": 5.0}, D2vForCTC, {"num_labels": 9}), hf.Data2VecAudioForCTC),
        (
            lambda: ours_of(
                "speech",
                TRUNK,
                {"pooled_norm": False, "dense_dim": 8, "activation": "none"},
                D2vForSequenceClassification,
                LABELS,
            ),
            hf.Data2VecAudioForSequenceClassification,
        ),
        (lambda: ours_of("text", TRUNK), hf.Data2VecTextModel),
        (lambda: ours_of("text", TRUNK, pad_token_id=0), hf.Data2VecTextModel),  # BERT's tokenizers
        (lambda: ours_of("text", TRUNK, pad_token_id=3), hf.Data2VecTextModel),
        (
            lambda: ours_of(
                "text",
                TRUNK,
                {"pooling": "first", "pooled_norm": False, "dense_dim": 32},
                D2vForSequenceClassification,
                LABELS,
            ),
            hf.Data2VecTextForSequenceClassification,
        ),
        (lambda: ours_of("image", VISION), hf.Data2VecVisionModel),
        (lambda: ours_of("image", VISION, positions="sincos", relative_bias=False), hf.Data2VecVisionModel),
        (
            lambda: ours_of("image", VISION, {"init_scale": 0.001}, D2vForImageClassification, LABELS, bias_layers=2),
            hf.Data2VecVisionForImageClassification,
        ),
        (lambda: ours_of("image", PRE_NORM, positions="sincos", **VIT), hf.ViTModel),
        (
            lambda: ours_of(
                "image",
                PRE_NORM,
                {"pooling": "class", "pooled_norm": False},
                D2vForImageClassification,
                LABELS,
                positions="learned",
                **VIT,
            ),
            hf.ViTForImageClassification,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
@torch.no_grad()
def test_out_and_in_again_is_the_identity(model, expected):
    ours = model()
    theirs = to_transformers(ours)
    assert type(theirs) is expected
    back = from_transformers(theirs)
    assert type(back) is type(ours)
    assert_same_state(back, ours)
    assert back.config.to_dict() == ours.config.to_dict()
    if "input_ids" in (inputs := inputs_of(theirs, 11)[0][0]):
        inputs["input_ids"][:, -2:] = theirs.config.pad_token_id
        inputs["attention_mask"] = (inputs["input_ids"] != theirs.config.pad_token_id).long()
    found, wanted = ours(**inputs), theirs(**inputs)
    if "input_ids" in inputs and "logits" not in wanted:
        close(found.x[:, :-2], wanted.last_hidden_state[:, :-2])
    elif "logits" in wanted:
        close(found.logits, wanted.logits)
    else:
        close(found.x, wanted.last_hidden_state[:, 0 if found.extra is None else 1 :])


def other(value, name: str):
    """Another value of a setting."""
    choices = {
        "qkv_bias": "none",
        "init": "xavier",
        "kind": "mel",
        "alibi": "fixed",
        "positions": "sincos",
        "input_dropout": 0.3,
    }
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value[:-1], value[-1] + 1]
    return (value or 0) + (0.05 if isinstance(value, float) or value is None else 1)


@pytest.mark.parametrize(
    ("modality", "trunk"), [("speech", TRUNK), ("text", TRUNK), ("image", VISION), ("image", PRE_NORM)]
)
def test_every_setting_of_ours_leaves_and_comes_back_or_is_refused_by_name(modality, trunk):
    frontend = {**OURS[modality], **({**VIT, "positions": "learned"} if trunk is PRE_NORM else {})}
    parts = {
        "trunk": (TrunkConfig, trunk),
        "frontend": (plugins.load("d2v.modalities", modality).FrontendConfig, frontend),
    }
    refused = {"trunk": set(), "frontend": set()}
    for part, (config, given) in parts.items():
        defaults = vars(config(**given))
        for field in fields(config):
            changed = {**given, field.name: other(defaults[field.name], field.name)}
            try:
                model = D2vModel(
                    D2vConfig(
                        {modality: changed if part == "frontend" else frontend}, changed if part == "trunk" else trunk
                    )
                )
            except ValueError:
                continue  # no such model
            try:
                back = from_transformers(to_transformers(model))
            except ValueError as error:
                assert re.search(rf"cannot hold model\.(frontends\.{modality}|trunk)\.\w+=", str(error)), error
                refused[part].add(field.name)
                continue
            found = back.config.to_dict()["trunk"] if part == "trunk" else back.config.to_dict()["frontends"][modality]
            if (part, field.name, trunk) != ("frontend", "mask_token", PRE_NORM):  # ViT has none, and none is read
                assert found[field.name] == changed[field.name], field.name
    assert "input_norm" in refused["trunk"]
    assert refused["frontend"] & {"alibi", "relative_bias", "class_token"}


SMALL = [
    "model.trunk.dim=32",
    "model.trunk.depth=2",
    "model.trunk.num_heads=2",
    "model.trunk.mlp_dim=64",
    "objective.top_k=2",
]
FILLED = {
    "text": ["model.frontends.text.vocab_size=50", "model.frontends.text.mask_token_id=49"],
    "speech": [],
    "image": [],
}


@pytest.mark.parametrize("modality", FILLED)
def test_published_configs_of_one_leave_and_those_of_two_are_refused(modality, root):
    models = {}
    for name in ("data2vec_base", "data2vec2_base"):
        config = load_config(root / "configs" / modality / f"{name}.yaml", [*SMALL, *FILLED[modality]]).model
        models[name] = D2vModel(D2vConfig(config.frontends, config.trunk))
    assert type(to_transformers(models["data2vec_base"])).__name__.startswith("Data2Vec")
    with pytest.raises(ValueError, match="cannot hold model"):
        to_transformers(models["data2vec2_base"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: ours_of("text", TRUNK, alibi="head"),
            r"Data2VecTextModel cannot hold model.frontends.text.alibi=head: its attention has no bias",
        ),
        (
            lambda: ours_of("speech", TRUNK, kind="mel"),
            r"Data2VecAudioModel cannot hold model.frontends.speech.kind=mel: it reads the waveform",
        ),
        (
            lambda: ours_of("image", VISION, class_token=False),
            r"Data2VecVisionModel cannot hold model.frontends.image.class_token=False: it has a class",
        ),
        (
            lambda: ours_of("image", PRE_NORM),
            r"ViTModel cannot hold model.frontends.image.positions=none: it adds positions",
        ),
        (
            lambda: ours_of("image", {**PRE_NORM, "layer_scale": 0.1}, positions="sincos", **VIT),
            r"model.trunk.layer_scale=0.1: its blocks have no",
        ),
        (
            lambda: ours_of("text", TRUNK, {"pooling": "mean"}, D2vForSequenceClassification, LABELS),
            r"cannot hold task.pooling=mean: it has first",
        ),
        (
            lambda: ours_of("image", VISION, {}, D2vForSequenceClassification, LABELS),
            r"has no counterpart of D2vForSequenceClassification",
        ),
        (
            lambda: D2vModel(D2vConfig({"text": OURS["text"], "image": OURS["image"]}, TRUNK)),
            r"read one modality; this model reads text, image",
        ),
        (
            lambda: ours_of("image", PRE_NORM, {"pooled_norm": True}, D2vForImageClassification, LABELS, **VIT),
            r"model.trunk.final_norm=False: .*; task.pooled_norm=true takes .* with task.pooled_norm=false\)",
        ),
    ],
    ids=range(9),
)
def test_what_the_stock_class_cannot_hold_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        to_transformers(model())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            hf.BertModel,
            {**SIZE, "vocab_size": 50},
            r"of the architecture 'bert'; this reads data2vec-audio, data2vec-text, data2vec-vision, vit",
        ),
        (hf.Data2VecAudioModel, {**AUDIO, "conv_dim": [8] + [16] * 6}, r"conv_dim is \[8, 16.*one width"),
        (
            hf.Data2VecAudioModel,
            {**AUDIO, "conv_bias": True},
            r"Data2VecAudioConfig has conv_bias=True; d2v computes only .* False",
        ),
        (hf.Data2VecTextModel, {**TEXT, "hidden_act": "relu"}, r"Data2VecTextConfig has hidden_act='relu'"),
        (hf.ViTModel, {**IMAGE, "image_size": [24, 32]}, r"image_size is \[24, 32\]; d2v reads square"),
        (
            hf.Data2VecVisionModel,
            {**IMAGE, "use_shared_relative_position_bias": True, "use_relative_position_bias": True},
            r"both True; d2v has one bias",
        ),
    ],
    ids=range(6),
)
def test_other_architectures_and_settings_of_theirs_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        from_transformers(kind(kind.config_class(**settings)))


def test_a_pooler_is_left_out_and_that_is_said(caplog):
    theirs = hf.ViTModel(hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    assert type(from_transformers(theirs)) is D2vModel and "ViTModel has a pooler" in caplog.text
    caplog.clear()
    from_transformers(hf.ViTModel(theirs.config, add_pooling_layer=False))
    assert "pooler" not in caplog.text


def test_a_head_without_a_counterpart_is_left_out(caplog):
    theirs = hf.Data2VecTextForMaskedLM(hf.Data2VecTextConfig(**TEXT))
    ours = from_transformers(theirs)
    assert type(ours) is D2vModel and "head without a counterpart" in caplog.text
    assert torch.equal(ours.frontends["text"].tokens.weight, theirs.data2vec_text.embeddings.word_embeddings.weight)
