"""Task models.

Heads and losses against slow versions, exports that load with a new head, saving, the Auto classes, hidden tokens.
"""

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import MODALITIES
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from d2v.models.configuration import D2vConfig
from d2v.models.losses import ctc, supervised
from d2v.models.task_models import D2vForCTC, D2vForImageClassification, D2vForSequenceClassification
from d2v.types import Mask, View

AUTO = {
    D2vForImageClassification: (AutoModelForImageClassification,),
    D2vForCTC: (AutoModelForCTC,),
    D2vForSequenceClassification: (AutoModelForSequenceClassification, AutoModelForAudioClassification),
}


def encoder_and_view(modality: str, folder, *more: str):
    """A tiny encoder whose weights differ from its init, and a batch without a mask."""
    config = tiny.config_of(modality, folder, *more)
    encoder = tiny.objective_of(config).student["encoder"].eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    (view,), _ = tiny.batches_of(config)(0, 0, 1)
    return encoder, view._replace(mask=None)


def labels_for(kind: type, view: View) -> torch.Tensor:
    rows = len(next(iter(view.inputs.values())))
    if kind is D2vForCTC:
        return torch.randint(1, 5, (rows, 3)).masked_fill(torch.arange(3) >= torch.arange(1, rows + 1)[:, None], -100)
    return torch.arange(rows) % 5


@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("modality", MODALITIES)
def test_an_export_loads_with_a_new_head_and_comes_back_from_the_auto_classes(modality, kind, tmp_path):
    encoder, view = encoder_and_view(
        modality, tmp_path / "run", "model.trunk.pre_norm=true", "model.trunk.final_norm=true"
    )
    if kind is D2vForCTC and encoder.frontend(modality).grid is not None:
        pytest.skip("letters are of a sequence, as another test shows")
    encoder.save_pretrained(tmp_path / "export")
    names = {number: f"class {number}" for number in range(5)}
    labelled = {"num_labels": 5, "id2label": names, "label2id": {name: number for number, name in names.items()}}
    model, loading = kind.from_pretrained(tmp_path / "export", output_loading_info=True, **labelled)
    assert {name.partition(".")[0] for name in loading["missing_keys"]} == {"head"} and not loading["unexpected_keys"]
    loaded = model.encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in encoder.state_dict().items() if name in loaded)
    assert {name for name in encoder.state_dict() if name not in loaded} <= {
        "trunk.final_norm.weight",
        "trunk.final_norm.bias",
    }
    assert model.head.out.weight.std() > 0 and not model.head.out.bias.any()
    output = model(**view.inputs, labels=labels_for(kind, view))
    output.loss.backward()
    assert output.loss.isfinite() and output.logits.shape[-1] == 5
    assert model.head.out.weight.grad.any()
    model.save_pretrained(tmp_path / "task")
    for auto in AUTO[kind]:
        back = auto.from_pretrained(tmp_path / "task")
        assert type(back) is kind and back.config.id2label == names and back.config.task == model.config.task
        tiny.assert_same(back.state_dict(), model.state_dict())
        torch.testing.assert_close(back(**view.inputs).logits, output.logits, rtol=0, atol=0)
    again = AutoModel.from_pretrained(tmp_path / "task")
    tiny.assert_same(again.state_dict(), loaded)


def test_the_students_folder_of_a_run_loads_too(tmp_path):
    places = tiny.sides(tiny.finished(MODALITIES[0]))
    teacher, student = (
        D2vForSequenceClassification.from_pretrained(places[side], num_labels=3) for side in ("teacher", "student")
    )
    name = "encoder.trunk.blocks.0.attention.qkv.weight"
    assert not torch.equal(teacher.state_dict()[name], student.state_dict()[name])
    tiny.assert_same(student.encoder.state_dict(), AutoModel.from_pretrained(places["student"]).state_dict())


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_the_head_pools_norms_and_classifies(modality, tmp_path):
    encoder, view = encoder_and_view(modality, tmp_path)
    x = encoder(view).x
    real = torch.ones(x.shape[:2]).bool() if view.padding is None else ~view.padding
    for task in (
        {},
        {"pooling": "first", "pooled_norm": False, "dense_dim": 16},
        {"dense_dim": 8, "activation": "none", "pooled_norm": False},
    ):
        config = D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, task=task, num_labels=4)
        model = D2vForSequenceClassification(config).eval()
        model.encoder.load_state_dict(encoder.state_dict())
        head = model.head
        pooled = torch.stack(
            [
                row[keep][0] if task.get("pooling") == "first" else row[keep].mean(dim=0)
                for row, keep in zip(x, real, strict=True)
            ]
        )
        if task.get("pooled_norm", True):
            pooled = (pooled - pooled.mean(1, keepdim=True)) / (
                pooled.var(1, correction=0, keepdim=True) + encoder.trunk.config.norm_eps
            ).sqrt()
        if "dense_dim" in task:
            pooled = pooled @ head.dense.weight.T + head.dense.bias
            pooled = pooled if task.get("activation") == "none" else pooled.tanh()
        torch.testing.assert_close(model(view).logits, pooled @ head.out.weight.T + head.out.bias, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_class_token_is_read_or_refused(tmp_path):
    modality = next(name for name in MODALITIES if "class_token" in vars(tiny.config_of(name, tmp_path).frontend))
    encoder, view = encoder_and_view(modality, tmp_path, f"model.frontends.{modality}.class_token=true")
    task = {"pooling": "class", "pooled_norm": False}
    config = D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, task=task, num_labels=4)
    model = D2vForImageClassification(config).eval()
    model.encoder.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(model(view).logits, model.head.out(encoder(view).extra[:, 0]))
    config.frontends[modality]["class_token"] = False
    with pytest.raises(ValueError, match="has no class token"):
        D2vForImageClassification(config)


def test_losses_are_the_slow_ones():
    logits, classes = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    rows = [-logits[row].log_softmax(0)[label] for row, label in enumerate(classes.tolist())]
    total, count = supervised(logits, classes, "single_label_classification")
    torch.testing.assert_close(total, sum(rows))
    assert count == 6
    classes[2] = -100  # says nothing
    total, count = supervised(logits, classes, "single_label_classification")
    torch.testing.assert_close(total, sum(rows[:2] + rows[3:]))
    assert count == 5
    shares = torch.rand(6, 4).softmax(1)
    total, _ = supervised(logits, shares, "single_label_classification")
    torch.testing.assert_close(total, -(shares * logits.log_softmax(1)).sum())
    total, count = supervised(logits, shares, "regression")
    torch.testing.assert_close(total / count, ((logits - shares) ** 2).mean())
    total, count = supervised(logits[:, :1], shares[:, 0], "regression")
    torch.testing.assert_close(total / count, ((logits[:, 0] - shares[:, 0]) ** 2).mean())
    many = (shares > 0.25).float()
    total, count = supervised(logits, many, "multi_label_classification")
    torch.testing.assert_close(
        total / count, -(many * logits.sigmoid().log() + (1 - many) * (1 - logits.sigmoid()).log()).mean()
    )


def spelled(path: tuple[int, ...], blank: int) -> list[int]:
    """What a path of letters and blanks spells: repeats once, then no blanks."""
    once = [letter for place, letter in enumerate(path) if place == 0 or letter != path[place - 1]]
    return [letter for letter in once if letter != blank]


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_sums_over_all_paths(blank):
    letters = [letter for letter in range(3) if letter != blank]
    logits = torch.randn(3, 4, 3, dtype=torch.float64)
    labels = torch.tensor([[letters[0], letters[1]], [letters[1], -100], [letters[0], letters[0]]])
    lengths = torch.tensor([4, 3, 2])  # the last cannot be spelled: two of a kind need a blank between them
    expected = 0.0
    for row in range(2):
        probabilities = logits[row].softmax(dim=-1)
        paths = torch.cartesian_prod(*[torch.arange(3)] * int(lengths[row])).tolist()
        wanted = [label for label in labels[row].tolist() if label >= 0]
        likelihood = sum(
            probabilities[range(len(path)), path].prod() for path in paths if spelled(path, blank) == wanted
        )
        expected -= likelihood.log()
    total, count = ctc(logits, lengths, labels, blank)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
    assert count == 3


def test_ctc_says_blank_in_padding_and_does_not_read_it(tmp_path):
    encoder, _ = encoder_and_view("speech", tmp_path)
    config = D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, num_labels=6, task={"blank": 2})
    model = D2vForCTC(config).eval()
    waves = torch.randn(2, 8000)
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, 4000:] = 0
    labels = torch.tensor([[1, 3], [4, -100]])
    output = model(input_values=waves, attention_mask=mask, labels=labels)
    alone = [
        model(input_values=waves[row : row + 1, :size], labels=labels[row : row + 1])
        for row, size in ((0, 8000), (1, 4000))
    ]
    torch.testing.assert_close(output.loss, (alone[0].loss + alone[1].loss) / 2, rtol=1e-4, atol=1e-4)
    tokens = alone[1].logits.shape[1]
    assert (output.logits[1, tokens:].argmax(-1) == 2).all() and output.logits.isfinite().all()
    torch.testing.assert_close(output.logits[1, :tokens], alone[1].logits[0], rtol=1e-4, atol=1e-4)


def test_the_blanks_bias_is_of_new_heads_alone(tmp_path):
    encoder, _ = encoder_and_view("speech", tmp_path)
    encoder.save_pretrained(tmp_path / "encoder")
    settings = {"num_labels": 6, "task": {"blank": 2, "blank_bias": 5.0}}
    fresh = D2vForCTC.from_pretrained(tmp_path / "encoder", **settings)
    assert fresh.head.out.bias.tolist() == [0, 0, 5, 0, 0, 0]
    assert not D2vForCTC.from_pretrained(tmp_path / "encoder", num_labels=6).head.out.bias.any()
    with torch.no_grad():
        fresh.head.out.bias.copy_(torch.arange(6.0))
    fresh.save_pretrained(tmp_path / "tuned")
    assert D2vForCTC.from_pretrained(tmp_path / "tuned").head.out.bias.tolist() == [0, 1, 2, 3, 4, 5]


@torch.no_grad()
def test_hidden_tokens_are_the_mask_token_zeros_or_noise_and_hidden_channels_zero(tmp_path):
    for more, noise in (("mask_token=true", 0.0), ("mask_token=false", 0.0), ("mask_token=false", 0.01)):
        encoder, view = encoder_and_view(
            "speech", tmp_path, f"model.frontends.speech.{more}", "objective.shared=[]", "objective.feed_tokens=false"
        )
        task = {"mask_noise": noise}
        model = D2vForCTC(
            D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, num_labels=6, task=task)
        ).eval()
        model.encoder.load_state_dict(encoder.state_dict())
        x = encoder.embed(view)
        hidden, channels = torch.rand(x.shape[:2]) < 0.4, torch.rand(len(x), x.shape[2]) < 0.3
        given = []
        model.encoder.register_forward_pre_hook(
            lambda _, args, kwargs, given=given: given.append(kwargs["tokens"]), with_kwargs=True
        )
        model.encode(view._replace(mask=Mask(hidden, None, channels)))
        (fed,) = given
        everywhere = ~channels[:, None].expand_as(fed)
        assert not fed[~everywhere].any()
        visible = everywhere & ~hidden[..., None]
        assert torch.equal(fed[visible], x[visible])
        at_hidden = fed[everywhere & hidden[..., None]]
        if noise:
            assert at_hidden.abs().max() < 6 * noise and 0.8 * noise < at_hidden.std() < 1.2 * noise
        else:
            token = torch.zeros(x.shape[2]) if more.endswith("false") else encoder.frontend("speech").mask_token
            assert torch.equal(at_hidden, token.expand_as(fed)[everywhere & hidden[..., None]])


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        (D2vForSequenceClassification, {"poling": "mean"}, "poling"),
        (D2vForSequenceClassification, {"pooling": "max"}, "task.pooling is 'max'; it may be mean, first, class"),
        (D2vForSequenceClassification, {"dropout": 1.0}, "task.dropout is 1.0"),
        (D2vForCTC, {"pooling": "mean"}, "pooling"),
        (D2vForCTC, {"blank": 7}, "task.blank is 7; there are 5 letters"),
        (D2vForCTC, {"mask_noise": -1.0}, "task.mask_noise"),
    ],
)
def test_wrong_settings_of_a_task_are_named(kind, task, message, tmp_path):
    encoder, _ = encoder_and_view("text", tmp_path)
    with pytest.raises(ValueError, match=message):
        kind(D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, num_labels=5, task=task))


def test_letters_are_not_read_from_a_grid(tmp_path):
    encoder, _ = encoder_and_view("image", tmp_path)
    config = D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, num_labels=5)
    with pytest.raises(ValueError, match="letters are of a sequence; the tokens of image lie in a grid"):
        D2vForCTC(config)
    encoder.save_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match="letters are of a sequence"):
        AutoModelForCTC.from_pretrained(tmp_path / "export")


def test_dropout_of_the_head_is_before_each_linear_layer(tmp_path):
    encoder, _ = encoder_and_view("text", tmp_path)
    task = {"dropout": 0.5, "pooling": "first", "dense_dim": 8}
    model = D2vForSequenceClassification(
        D2vConfig(frontends=encoder.config.frontends, trunk=encoder.config.trunk, num_labels=3, task=task)
    )
    pooled = torch.randn(4, 32)
    model.train()
    torch.manual_seed(3)
    found = model.head(pooled)
    torch.manual_seed(3)
    hidden = model.head.dense(F.dropout(model.head.norm(pooled), 0.5)).tanh()
    torch.testing.assert_close(found, model.head.out(F.dropout(hidden, 0.5)))
