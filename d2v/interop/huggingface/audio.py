"""Data2VecAudioModel and its tasks: speech from the waveform, post-norm."""

from typing import Any

import transformers
from torch import Tensor
from transformers.utils.hub import cached_file

from d2v.interop.huggingface import shared
from d2v.interop.huggingface.shared import Head, Kind
from d2v.interop.renaming import Prefixes
from d2v.models.task_models import D2vForCTC, D2vForSequenceClassification

MODALITY = "speech"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
MODEL = transformers.Data2VecAudioModel
HEADS = {
    transformers.Data2VecAudioForCTC: Head(
        D2vForCTC,
        [("lm_head.", "head.out.")],
        lambda config: {
            "head.num_labels": config.vocab_size,
            "task.blank": config.pad_token_id,
            "task.dropout": config.final_dropout,
        },
        lambda ours: {
            "vocab_size": ours["head.num_labels"],
            "pad_token_id": ours["task.blank"],
            "final_dropout": ours["task.dropout"],
        },
    ),
    # the mean of a linear layer is the linear layer of the mean
    transformers.Data2VecAudioForSequenceClassification: Head(
        D2vForSequenceClassification,
        [("projector.", "head.dense."), ("classifier.", "head.out.")],
        lambda config: shared.classifier(
            config, pooling="mean", dense_dim=config.classifier_proj_size, activation="none"
        ),
        lambda ours: {"classifier_proj_size": ours["task.dense_dim"]},
    ),
}
BARE: dict[str, Any] = {}
SETTINGS = shared.SETTINGS | {
    "conv_kernel": "frontend.conv_kernels",
    "conv_stride": "frontend.conv_strides",
    "num_conv_pos_embeddings": "frontend.pos_depth",
    "conv_pos_kernel_size": "frontend.pos_kernel",
    "num_conv_pos_embedding_groups": "frontend.pos_groups",
    "hidden_dropout": "trunk.dropout",
    "attention_dropout": "trunk.attention_dropout",
    "activation_dropout": "trunk.activation_dropout",
    "layerdrop": "trunk.layer_drop",
}
REQUIRED = shared.REQUIRED | {
    "feat_extract_activation": "gelu",
    "conv_bias": False,
    "add_adapter": False,
    "use_weighted_layer_sum": False,
}
HELD = shared.POST_NORM | {
    "frontend.kind": (("waveform",), "it reads the waveform, not a spectrogram"),
    "frontend.reference_padded_input": ((False,), "it zeroes padded frames before the positions"),
}


def read_settings(config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """ValueError: an extractor whose layers differ in width."""
    if len(set(config.conv_dim)) != 1:
        raise ValueError(f"conv_dim is {list(config.conv_dim)}; the layers of d2v's extractor have one width")
    return {
        "frontend.conv_dim": config.conv_dim[0],
        "frontend.norm_eps": config.layer_norm_eps,
        "frontend.mask_token": "masked_spec_embed" in state,
    }


def write_settings(ours: dict[str, Any]) -> dict[str, Any]:
    """ValueError: two values of epsilon."""
    if ours["frontend.norm_eps"] != ours["trunk.norm_eps"]:
        values = f"{ours['frontend.norm_eps']} and model.trunk.norm_eps={ours['trunk.norm_eps']}"
        raise ValueError(
            f"Data2VecAudioModel cannot hold model.frontends.speech.norm_eps={values}: it has one for both"
        )
    # a mask embedding is there where the probability of a mask is not 0
    masks = {} if ours["frontend.mask_token"] else {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    widths = {
        "conv_dim": [ours["frontend.conv_dim"]] * len(ours["frontend.conv_kernels"]),
        "output_hidden_size": ours["trunk.dim"],
    }
    return {**widths, **masks}


def read_beside(source: str, config: Any) -> dict[str, Any]:
    """The sample rate, which a stock config does not have. ValueError: the preprocessor cannot be read."""
    try:
        found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in PREPROCESSORS]
        if not any(found):
            return {}
        return {"frontend.sample_rate": transformers.AutoFeatureExtractor.from_pretrained(source).sampling_rate}
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{source}: {PREPROCESSORS[0]} cannot be read: {reason}") from None


def names(ours: dict[str, Any]) -> Prefixes:
    """Theirs -> ours."""
    prefixes = shared.blocks(
        ours["trunk.depth"],
        "encoder.layers.{n}.",
        shared.projections("attention.", shared.LETTERS)
        | {
            "attention.out_proj.": "attention.proj.",
            "layer_norm.": "norm1.",
            "feed_forward.intermediate_dense.": "mlp.fc1.",
            "feed_forward.output_dense.": "mlp.fc2.",
            "final_layer_norm.": "norm2.",
        },
    )
    for n in range(len(ours["frontend.conv_kernels"])):
        prefixes += [(f"feature_extractor.conv_layers.{n}.conv.", f"frontends.speech.extractor.layers.{n}.")]
        prefixes += [(f"feature_extractor.conv_layers.{n}.layer_norm.", f"frontends.speech.extractor.layers.{n}.norm.")]
    prefixes += [
        (f"encoder.pos_conv_embed.layers.{n}.conv.", f"frontends.speech.positions_conv.{n}.")
        for n in range(ours["frontend.pos_depth"])
    ]
    return [
        *prefixes,
        ("encoder.layer_norm.", "trunk.input_norm."),
        ("masked_spec_embed", "frontends.speech.mask_token"),
        ("feature_projection.layer_norm.", "frontends.speech.norm."),
        ("feature_projection.projection.", "frontends.speech.projection."),
    ]


KIND = Kind(
    modality=MODALITY,
    model=MODEL,
    bare=BARE,
    heads=HEADS,
    settings=SETTINGS,
    required=REQUIRED,
    held=HELD,
    read_settings=read_settings,
    write_settings=write_settings,
    names=names,
    to_our_tensors=shared.unchanged,
    to_their_tensors=shared.unchanged,
    read_beside=read_beside,
)
