"""Task models in the hands of others: transformers' Trainer, adapters of PEFT, hooks, and inputs and outputs by Hugging
Face's names."""

import inspect

import numpy as np
import pytest
import small
import torch
import transformers
from datasets import Dataset
from test_huggingface import TRUNK, VISION, ours_of
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from d2v.interop.huggingface import to_transformers
from d2v.models.configuration import D2vConfig
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification

CLASSES = 3
KINDS = {
    "image": [
        (D2vForImageClassification, "classes"),
        (D2vForImageClassification, "number"),
        (D2vForImageClassification, "several"),
        (D2vForSequenceClassification, "classes"),
    ],
    "speech": [
        (D2vForCTC, "letters"),
        (D2vForSequenceClassification, "classes"),
        (D2vForSequenceClassification, "number"),
    ],
    "text": [
        (D2vForSequenceClassification, "classes"),
        (D2vForSequenceClassification, "number"),
        (D2vForSequenceClassification, "several"),
        (D2vForCTC, "letters"),
    ],
}
CASES = [(modality, kind, labels) for modality, kinds in KINDS.items() for kind, labels in kinds]


def inputs_of(modality: str, rows: int = 8) -> dict[str, torch.Tensor]:
    """Raw inputs by Hugging Face's names, padded where they can be."""
    view = small.view(modality, rows)
    padding = {"attention_mask": (~view.padding).long()} if modality == "text" else {}
    return {**view.inputs, **padding}


def labels_of(kind: str, rows: int = 8) -> torch.Tensor:
    if kind == "letters":
        return torch.randint(1, CLASSES, (rows, 2)).masked_fill(
            torch.arange(2) >= 1 + torch.arange(rows)[:, None] % 2, -100
        )
    if kind == "several":
        return torch.randint(2, (rows, CLASSES)).float()
    return torch.randn(rows) if kind == "number" else torch.arange(rows) % CLASSES


def model_of(modality: str, kind: type, labels: str, folder, **task) -> nn.Module:
    """A task model that starts from an export of pretraining."""
    small.encoder(modality).save_pretrained(folder / "export")
    problem = {"problem_type": "multi_label_classification"} if labels == "several" else {}
    number = 1 if labels == "number" else CLASSES
    return kind.from_pretrained(folder / "export", num_labels=number, task=task, **problem)


def trainer_of(model, inputs, labels, folder, **more) -> Trainer:
    """Every sample in one step, of two micro-batches; the data have a column that no model reads."""
    rows = len(labels)
    data = Dataset.from_dict(
        {name: value.tolist() for name, value in inputs.items()}
        | {"labels": labels.tolist(), "file": [f"{row}.wav" for row in range(rows)]}
    ).with_format("torch")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=3,
        per_device_train_batch_size=rows // 2,
        per_device_eval_batch_size=rows // 2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        learning_rate=1e-3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    return Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=lambda scored: {"first": first(scored)}
    )


def first(scored) -> float:
    """The first prediction, which a metric gets as numpy."""
    assert isinstance(scored.predictions, np.ndarray) and len(scored.predictions) == len(scored.label_ids) == 8
    return float(scored.predictions.flat[0])


def trained(trainer: Trainer, model, inputs, labels) -> None:
    """Three steps with an evaluation; the first loss, and that of evaluation, are the model's own of all samples."""
    with torch.no_grad():
        start = float(model.eval()(**inputs, labels=labels).loss)
    trainer.train()
    with torch.no_grad():
        output = model.eval()(**inputs, labels=labels)
    logs = trainer.state.log_history
    losses = [record["loss"] for record in logs if "loss" in record]
    assert len(losses) == 3 and losses[0] == pytest.approx(start, rel=1e-3) and losses[2] < losses[0]
    (evaluated,) = [record for record in logs if "eval_loss" in record]
    assert evaluated["eval_loss"] == pytest.approx(float(output.loss), rel=1e-3)
    assert evaluated["eval_first"] == pytest.approx(float(output.logits.flatten()[0]), rel=1e-3)


@pytest.mark.parametrize(("modality", "kind", "labels"), CASES)
def test_three_steps_of_a_trainer(modality, kind, labels, tmp_path):
    model = model_of(modality, kind, labels, tmp_path)
    inputs, wanted = inputs_of(modality), labels_of(labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(model, inputs, wanted, tmp_path)
    trained(trainer, model, inputs, wanted)
    assert all((value != before[name]).any() for name, value in model.state_dict().items() if "blocks.0" in name)
    trainer.save_model(tmp_path / "saved")
    again = kind.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_trainer_keeps_the_columns_that_the_model_reads_and_checkpoints_its_blocks(tmp_path):
    model = model_of("text", D2vForSequenceClassification, "classes", tmp_path)
    names = set(inspect.signature(model.forward).parameters)
    assert {"pixel_values", "input_values", "input_ids", "attention_mask", "labels", "output_hidden_states"} <= names
    inputs, wanted = inputs_of("text"), labels_of("classes")
    trained(trainer_of(model, inputs, wanted, tmp_path, gradient_checkpointing=True), model, inputs, wanted)


# Adapters and hooks.

LINEAR = ("qkv", "proj", "fc1", "fc2")


def wide(modality: str, **task) -> nn.Module:
    """A classifier whose trunk has every kind of projection, and positions of a long kernel where there are some."""
    trunk = {"depth": 2, "dim": 16, "num_heads": 2, "mlp_dim": 32, "init_std": 0.2}
    if modality == "image":
        trunk |= {"pre_norm": True, "qkv_bias": "qv", "layer_scale": 0.5, "input_norm": False}
    frontend = small.FRONTENDS[modality] | ({"pos_kernel": 19} if modality == "speech" else {})
    return D2vForSequenceClassification(D2vConfig({modality: frontend}, trunk, task, num_labels=CLASSES))


@pytest.mark.parametrize("target", LINEAR)
@pytest.mark.parametrize("modality", KINDS)
def test_an_adapter_on_each_projection_counts_and_learns(modality, target):
    peft = pytest.importorskip("peft")
    plain, inputs, wanted = wide(modality).train(), inputs_of(modality), labels_of("classes")
    expected = plain(**inputs).logits
    model = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    found = model(**inputs, labels=wanted)
    assert (found.logits - expected).abs().max() > 1e-3
    found.loss.backward()
    adapters = {name: value.grad for name, value in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 4 and all(gradient.abs().max() > 0 for gradient in adapters.values())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, found.logits, rtol=1e-5, atol=1e-6)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, found.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", KINDS)
def test_three_steps_of_a_trainer_with_adapters(modality, tmp_path):
    peft = pytest.importorskip("peft")
    base = model_of(modality, D2vForSequenceClassification, "classes", tmp_path)
    inputs, wanted = inputs_of(modality), labels_of("classes")
    task = {"task_type": "SEQ_CLS"} if modality == "text" else {}
    settings = peft.LoraConfig(r=4, target_modules=list(LINEAR), modules_to_save=["head"], **task)
    model = peft.get_peft_model(base, settings)
    frozen = {name: value.clone() for name, value in base.named_parameters() if not value.requires_grad}
    trainer = trainer_of(model, inputs, wanted, tmp_path, gradient_checkpointing=modality == "text")
    trained(trainer, model, inputs, wanted)
    assert all(torch.equal(base.get_parameter(name), value) for name, value in frozen.items())
    assert all(value.any() for name, value in model.named_parameters() if "lora_B" in name)
    trainer.save_model(tmp_path / "adapter")
    fresh = D2vForSequenceClassification.from_pretrained(tmp_path / "export", num_labels=CLASSES)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(again(**inputs).logits, expected)
        merged = again.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        whole = D2vForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(whole(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("modality", KINDS)
def test_a_hook_on_any_layer_hears_it(modality, training):
    model, heard = wide(modality).train(training), set()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.LayerNorm | nn.Embedding)
    }
    expected = model(**inputs_of(modality)).logits
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, given, out, name=name: heard.add(name))
    found = model(**inputs_of(modality)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert heard == set(layers)
    layers["encoder.trunk.blocks.1.mlp.fc2"].register_forward_hook(lambda layer, given, out: out * 3)
    assert (model(**inputs_of(modality)).logits - expected).abs().max() > 1e-4


@pytest.mark.parametrize("modality", KINDS)
def test_weights_that_are_offloaded_come_back_for_each_layer(modality):
    from accelerate import cpu_offload

    model, inputs = wide(modality).eval(), inputs_of(modality)
    expected = model(**inputs).logits
    cpu_offload(model.encoder.trunk, execution_device="cpu")
    assert model.encoder.trunk.blocks[0].mlp.fc2.weight.is_meta
    assert torch.equal(model(**inputs).logits, expected)


# Inputs and outputs.


@pytest.mark.parametrize("modality", KINDS)
@torch.no_grad()
def test_tensors_without_names_are_the_main_input_its_mask_and_labels(modality):
    inputs, wanted = inputs_of(modality), labels_of("classes")
    main, *masks = inputs
    model = wide(modality).eval()
    named = model(**inputs, labels=wanted)
    unnamed = model(*inputs.values(), *([] if masks else [None]), wanted)
    assert torch.equal(unnamed.loss, named.loss) and torch.equal(unnamed.logits, named.logits)
    assert torch.equal(model.encoder(*inputs.values()).x, model.encoder(**inputs).x)
    loss, logits = model(**inputs, labels=wanted, return_dict=False)
    assert torch.equal(loss, named.loss) and torch.equal(logits, named.logits)
    padded = {"input_values": None, "input_ids": None, **inputs}
    assert torch.equal(model(**padded, return_dict=True).logits, named.logits)
    with pytest.raises(ValueError, match=r"^inputs_embeds is no input of this model: " + ", ".join(masks and [main])):
        model(**inputs, inputs_embeds=torch.zeros(1))
    with pytest.raises(ValueError, match=f"takes {main}; it was given attention_mask"):
        model(attention_mask=torch.ones(2, 2))


def test_a_tensor_without_a_name_is_ambiguous_to_a_model_of_two_modalities():
    trunk = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32}
    frontends = {name: small.FRONTENDS[name] for name in ("image", "text")}
    model = D2vForSequenceClassification(D2vConfig(frontends, trunk, num_labels=2))
    ids = inputs_of("text")["input_ids"]
    assert model(input_ids=ids).logits.shape == (8, 2)
    with pytest.raises(ValueError, match=r"reads image, text: name the tensor, pixel_values, input_ids"):
        model(ids)


STOCK = {
    "image": (VISION, {}),
    "speech": (TRUNK, {"conv_kernels": [10, 8], "conv_strides": [5, 8], "pos_depth": 1}),
    "text": (TRUNK, {}),
}


@pytest.mark.parametrize("modality", STOCK)
@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_stock_model(modality, tmp_path):
    trunk, frontend = STOCK[modality]
    ours = ours_of(modality, trunk, **frontend)
    to_transformers(ours).save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    if modality == "image":
        inputs = {"pixel_values": torch.randn(2, 3, 24, 24)}
    elif modality == "speech":
        inputs = {"input_values": torch.randn(2, 1500)}
    else:
        real = torch.ones(2, 9, dtype=torch.long)
        real[1, 6:] = 0
        inputs = {"input_ids": torch.randint(4, 50, (2, 9)).masked_fill(real == 0, 1), "attention_mask": real}
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected, found, plain = stock(**inputs, **asked), ours(**inputs, **asked), ours(**inputs)
    assert torch.equal(found.x, plain.x) and plain.hidden_states is None and plain.attentions is None
    num_extra = 0 if found.extra is None else found.extra.shape[1]
    assert len(found.hidden_states) == len(expected.hidden_states) == trunk["depth"] + 1
    real = inputs.get("attention_mask", torch.ones(found.x.shape[:2])).bool()
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[:, num_extra:][real], rtol=1e-4, atol=1e-5)
    assert len(found.attentions) == len(expected.attentions) == trunk["depth"]
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    x, states, attentions = ours(**inputs, **asked, return_dict=False)
    assert torch.equal(x, found.x) and len(states) == len(attentions) + 1
    ours.config.output_hidden_states = True
    assert len(ours(**inputs).hidden_states) == trunk["depth"] + 1


@pytest.mark.parametrize("pooling", ["mean", "first"])
@torch.no_grad()
def test_task_models_pass_states_on(pooling):
    inputs = inputs_of("text")
    model = wide("text", pooling=pooling).eval()
    found = model(**inputs, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(found.logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)
    expected = model.encoder(**inputs, output_hidden_states=True, output_attentions=True)
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states)) and len(found.hidden_states) == 3
    assert all(map(torch.equal, found.attentions, expected.attentions)) and len(found.attentions) == 2


@pytest.mark.parametrize("modality", KINDS)
def test_attention_is_fused_or_eager(modality, tmp_path):
    model, inputs = wide(modality), inputs_of(modality)
    model.save_pretrained(tmp_path)
    kind = type(model)
    fused, eager = (kind.from_pretrained(tmp_path, attn_implementation=name) for name in ("sdpa", "eager"))
    called = []
    with pytest.MonkeyPatch.context() as patch:
        attend = nn.functional.scaled_dot_product_attention
        patch.setattr(
            nn.functional, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or attend(*a, **k)
        )
        expected = fused(**inputs).logits
        assert len(called) == 2
        found = eager(**inputs).logits
        assert len(called) == 2
        eager.set_attn_implementation("sdpa")
        assert torch.equal(eager(**inputs).logits, expected) and len(called) == 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert kind.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    for load in (
        lambda: kind.from_pretrained(tmp_path, attn_implementation="flash_attention_2"),
        lambda: fused.set_attn_implementation("flash_attention_2"),
    ):
        with pytest.raises(
            ValueError, match=r"^attn_implementation is 'flash_attention_2'; this model has sdpa, eager$"
        ):
            load()


def test_eager_attention_drops_out(tmp_path):
    trunk = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 32, "attention_dropout": 0.5, "init_std": 0.2}
    config = D2vConfig({"text": small.FRONTENDS["text"]}, trunk, num_labels=2, attn_implementation="eager")
    model, inputs = D2vForSequenceClassification(config), inputs_of("text")
    assert model.encoder.trunk.blocks[0].attention.eager
    assert not torch.equal(model.train()(**inputs).logits, model(**inputs).logits)
    assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)
    assert transformers.AutoModel.from_config(config).trunk.blocks[0].attention.eager
