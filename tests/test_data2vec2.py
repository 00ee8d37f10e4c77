"""data2vec 2.0 against slow loops: the student on visible tokens, M masks, class loss, padding, targets."""

import math

import pytest
import tiny
import torch
from tiny import MODALITIES
from torch import Tensor

from d2v.models.configuration import D2vConfig
from d2v.models.decoder import DecoderConfig
from d2v.models.encoder import D2vModel
from d2v.models.transformer import Trunk, TrunkConfig
from d2v.objectives.data2vec2 import Config, Data2Vec2
from d2v.types import Mask, View, numbers_of


def build(modality: str, folder, *more: str) -> tuple[Data2Vec2, View]:
    """A tiny objective with perturbed weights, student and teacher apart, and a batch."""
    config = tiny.config_of(modality, folder, tiny.using("data2vec2"), *more)
    objective = tiny.objective_of(config)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    (view,), _ = tiny.batches_of(config)(0, 0, 1)
    assert view.mask.keep is not None
    return objective.train(), view


def padded(modality: str, folder) -> tuple[Data2Vec2, View]:
    """The same with a batch of unequal lengths."""
    unpacked = ("data.pack_seconds=0",) if modality == "speech" else ()
    batches = tiny.batches_of(tiny.config_of(modality, folder, tiny.using("data2vec2"), *unpacked))
    views = (batches(step, 0, 1)[0][0] for step in range(50))
    return build(modality, folder, *unpacked)[0], next(view for view in views if view.padding is not None)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def slow_rows(objective: Data2Vec2, view: View) -> tuple[Tensor, Tensor]:
    """Predictions (n, D) and class tokens (N, E, D), one row after another, without padding, repeating or gathering."""
    encoder = objective.student["encoder"]
    frontend = encoder.frontend(view.modality)
    hidden = view.mask.hidden
    masks = len(hidden) // len(next(iter(view.inputs.values())))
    predictions, extras = [], []
    for n in range(len(hidden)):
        real = slice(None) if view.padding is None else ~view.padding[n // masks]
        x = encoder.embed(view)[n // masks][real]  # (T_n, D)
        row = hidden[n][real]
        zeroed = torch.where(row[:, None], torch.zeros(()), x)[None]
        positions = frontend.positions(zeroed, None)
        places = torch.tensor([t for t in range(len(row)) if not row[t]])  # in order; the student's order may be any
        whole = zeroed if positions is None else zeroed + positions
        visible = whole[0][places][None]
        extra = frontend.extra()
        count = 0 if extra is None else extra.shape[1]
        if extra is not None:
            visible = torch.cat([extra, visible], dim=1)
        bias = frontend.bias(len(row))
        if bias is not None:
            bias = bias[..., places[:, None], places[None]]
        out = encoder.trunk(visible, bias)[0]
        predictions.append(objective.decoder(out[:, count:], Mask(row[None], places[None])))
        extras.append(out[0, :count])
    return torch.cat(predictions), torch.stack(extras)


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_student_on_visible_tokens_is_the_slow_loop(modality, tmp_path):
    objective, view = (
        build(modality, tmp_path, "model.frontends.image.class_token=true")
        if modality == "image"
        else padded(modality, tmp_path)
    )
    student = objective.student["encoder"]
    assert len(view.mask.hidden) == 2 * len(view.inputs[student.frontend(modality).main_input])
    padding = None if view.padding is None else view.padding.repeat_interleave(2, dim=0)
    features = student(view, view.mask)
    prediction, extra = slow_rows(objective, view)
    close(objective.decoder(features.x, view.mask, padding), prediction)
    assert features.extra is None or torch.allclose(features.extra, extra, rtol=1e-4, atol=1e-5)
    order = torch.randperm(view.mask.keep.shape[1])
    shuffled = Mask(view.mask.hidden, view.mask.keep[:, order])  # any order of what is kept gives the same
    close(objective.decoder(student(view, shuffled).x, shuffled, padding), prediction)


def one_mask(view: View, m: int, masks: int) -> View:
    return view._replace(mask=Mask(view.mask.hidden[m::masks], view.mask.keep[m::masks]))


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("modality", MODALITIES)
def test_masks_of_a_sample_are_separate_steps_with_one_teacher_pass(modality, masks, tmp_path):
    objective, view = build(modality, tmp_path, f"data.masks={masks}")
    passes = []
    objective.teacher["encoder"].register_forward_hook(lambda *_: passes.append(1))
    together = objective([view])
    together.total.backward()
    assert passes == [1]
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    apart = [objective([one_mask(view, m, masks)]) for m in range(masks)]
    for loss in apart:
        loss.total.backward()
    assert int(together.count) == sum(int(loss.count) for loss in apart) == int(view.mask.hidden.sum())
    assert float(together.total.detach()) == pytest.approx(sum(float(loss.total.detach()) for loss in apart), rel=1e-5)
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_is_over_hidden_tokens_of_all_masks(modality, tmp_path):
    objective, view = build(modality, tmp_path)
    config, total = objective.config, 0.0
    loss = objective([view])
    with torch.no_grad():
        target = objective.target(view, objective.student["encoder"].embed(view))
        prediction, _ = slow_rows(objective, view)
    for value, (row, token) in zip(prediction, view.mask.hidden.nonzero().tolist(), strict=True):
        total += (
            float((value - target[row // 2, token]).double().square().sum())
            / {"sqrt": 32**0.5, "sum": 1}[config.loss_scale]
        )
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    real = view.mask.hidden.numel() if view.padding is None else 2 * int((~view.padding).sum())
    assert float(loss.metrics["hidden_share"]) == pytest.approx(int(view.mask.hidden.sum()) / real)


@pytest.mark.parametrize("rows", [0, 5])
def test_class_loss_is_a_sum_over_rows_times_the_count(rows, tmp_path):
    objective, view = build("image", tmp_path, "model.frontends.image.class_token=true")
    without = objective([view])
    objective.config.cls_loss, objective.config.cls_rows = 0.01, rows
    loss = objective([view])
    with torch.no_grad():
        target = objective.target(view, objective.student["encoder"].embed(view))
        _, extra = slow_rows(objective, view)
    error = sum(float((extra[n, -1] - target[n // 2].mean(dim=0)).square().sum()) / 32**0.5 for n in range(len(extra)))
    weight = 0.01 * int(loss.count) * (1 if rows == 0 else rows / len(extra))
    assert float((loss.total - without.total).detach()) == pytest.approx(weight * error, rel=1e-4) and int(
        loss.count
    ) == int(without.count)
    loss.total.backward()
    assert objective.student["encoder"].frontends["image"].class_token.grad.abs().sum() > 0


def test_class_loss_with_rows_does_not_depend_on_how_a_batch_is_divided(tmp_path):
    objective, view = build("image", tmp_path, "model.frontends.image.class_token=true")
    objective.config.cls_loss, objective.config.cls_rows = 0.5, 256
    whole = objective([view]).total
    halves = [
        View(
            "image",
            {"pixel_values": view.inputs["pixel_values"][i : i + 2]},
            None,
            Mask(*(x[2 * i : 2 * i + 4] for x in view.mask[:2])),
        )
        for i in (0, 2)
    ]
    assert float(whole.detach()) == pytest.approx(
        sum(float(objective([half]).total.detach()) for half in halves), rel=1e-5
    )


@pytest.mark.parametrize("modality", [name for name in MODALITIES if name != "image"])
def test_padding_changes_nothing(modality, tmp_path):
    """Targets, loss and gradients of a padded batch are those of its samples alone.

    They are so although rows keep equal numbers of tokens.
    """
    objective, view = padded(modality, tmp_path)
    whole = objective([view])
    whole.total.backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    total = 0.0
    for b in range(len(view.padding)):
        loss = objective([alone(view, b, objective)])
        loss.total.backward()
        total += float(loss.total.detach())
    assert float(whole.total.detach()) == pytest.approx(total, rel=1e-4)
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-3, msg=name)


def alone(view: View, b: int, objective: Data2Vec2) -> View:
    """Sample b with its masks, without padding."""
    real = ~view.padding[b]
    hidden = view.mask.hidden[2 * b : 2 * b + 2][:, real]
    keep = torch.stack([(~row).nonzero()[:, 0] for row in hidden])
    size = view.inputs["attention_mask"][b].sum()
    main = objective.student["encoder"].frontend(view.modality).main_input
    return View(view.modality, {main: view.inputs[main][b : b + 1, :size]}, None, Mask(hidden, keep))


# Targets and the teacher.


def standard(x: Tensor, dim: int) -> Tensor:
    return (x - x.mean(dim, keepdim=True)) / (x.var(dim, correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"layer_norms": ["instance"], "final_norms": ["layer"]},
            lambda layers: standard(sum(standard(x, 1) for x in layers) / 2, 2),
        ),  # images
        ({"layer_norms": ["instance"]}, lambda layers: sum(standard(x, 1) for x in layers) / 2),  # speech, text base
        (
            {"layer_norms": ["layer"], "final_norms": ["instance"]},
            lambda layers: standard(sum(standard(x, 2) for x in layers) / 2, 1),
        ),  # text large
        ({"layer_norms": [], "layers": "block"}, lambda layers: sum(layers) / 2),
    ],
)
@torch.no_grad()
def test_targets_leave_the_prenet_out(settings, rule):
    trunk = TrunkConfig(depth=3, prenet_depth=1, dim=16, num_heads=2, mlp_dim=32, input_norm=False)
    frontend = {"vocab_size": 30, "mask_token_id": 29, "max_positions": 12, "embedding_norm": True}
    encoder = D2vModel(D2vConfig(frontends={"text": frontend}, trunk=trunk))
    objective = Data2Vec2(
        encoder,
        Config(top_k=2, decoder=DecoderConfig(groups=2), shared=["frontends.text"], feed_tokens=True, **settings),
    )
    view = View("text", {"input_ids": torch.randint(4, 29, (3, 12))})
    tokens = objective.student["encoder"].embed(view)
    x, layers = tokens, []
    for block in objective.teacher["encoder"].trunk.blocks:
        x, ffn = block(x, None)
        layers.append(x if settings.get("layers") == "block" else ffn)
    close(objective.target(view, tokens), rule(layers[1:]))
    with pytest.raises(ValueError, match=r"top_k is 3; the trunk has 3 layers, of which the first 1 give no targets"):
        Data2Vec2(encoder, Config(top_k=3, decoder=DecoderConfig(groups=2)))


@pytest.mark.parametrize("modality", MODALITIES)
def test_targets_of_layers_are_predicted_each_by_itself(modality, tmp_path):
    """Bootleg: each layer has all norms of its own, and the loss is the mean of the layers' losses."""
    more = () if modality == "text" else ("data.pack_seconds=0",) if modality == "speech" else ()
    norms = ("objective.layer_norms=[instance]", "objective.final_norms=[layer]")
    objective, view = build(modality, tmp_path, "objective.targets=layers", *norms, *more)
    mean = build(modality, tmp_path, *norms, *more)[0]
    assert objective.decoder.head[-1].out_features == 64 and mean.decoder.head[-1].out_features == 32
    encoder, config = objective.student["encoder"], objective.config
    fed = encoder.embed(view).detach() if config.feed_tokens else None
    layers = objective.teacher["encoder"](view, tokens=fed, layers="ffn").layers
    loss = objective([view])
    masks = len(view.mask.hidden) // len(layers[0])
    padding = None if view.padding is None else view.padding.repeat_interleave(masks, dim=0)
    with torch.no_grad():
        prediction = objective.decoder(encoder(view, view.mask).x, view.mask, padding)
    total = 0.0
    for value, (row, token) in zip(prediction, view.mask.hidden.nonzero().tolist(), strict=True):
        for number, layer in enumerate(layers):
            sample = layer[row // masks]
            real = slice(None) if view.padding is None else ~view.padding[row // masks]
            target = sample.clone()
            target[real] = standard(standard(sample[real], 0), 1)
            error = (value[32 * number : 32 * number + 32] - target[token]).double().abs()
            beta = config.loss_beta
            each = error**2 if beta == 0 else torch.where(error < beta, error**2 / (2 * beta), error - beta / 2)
            total += float(each.sum()) / {"sqrt": 32**0.5, "mean": 32, "sum": 1}[config.loss_scale] / len(layers)
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    assert int(loss.count) == int(view.mask.hidden.sum())
    loss.total.backward()
    assert objective.decoder.head[-1].weight.grad.any(dim=1).all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_visible_tokens_count_less_the_farther_they_are_from_a_hidden_one(modality, tmp_path):
    objective, view = build(modality, tmp_path)
    (hidden, student), without = (view.mask.hidden, objective.student["encoder"]), objective([view])
    objective.config.visible_weight = 0.5
    loss = objective([view])
    masks = len(hidden) // len(next(iter(view.inputs.values())))
    real = torch.ones_like(hidden) if view.padding is None else ~view.padding.repeat_interleave(masks, dim=0)
    with torch.no_grad():
        target = objective.target(view, student.embed(view))
        padding = None if view.padding is None else ~real
        prediction = objective.decoder(student(view, view.mask).x, view.mask, padding, numbers_of(real & ~hidden))
    columns = 8 if modality == "image" else hidden.shape[1]
    assert modality != "image" or student.frontends["image"].grid == (8, 8)
    extra = 0.0
    for value, (row, token) in zip(prediction, (real & ~hidden).nonzero().tolist(), strict=True):
        far = []
        for other in hidden[row].nonzero().flatten().tolist():
            far.append(math.dist(divmod(token, columns), divmod(other, columns)))
        error = float((value - target[row // masks, token]).double().square().sum())
        extra += 0.5 / min(far) ** 0.5 * error / {"sqrt": 32**0.5, "sum": 1}[objective.config.loss_scale]
    found = float((loss.total - without.total).detach())
    assert found == pytest.approx(extra, rel=1e-3) and int(loss.count) == int(without.count)


def test_prenet_has_a_layer_drop_of_its_own():
    trunk = Trunk(
        TrunkConfig(depth=4, prenet_depth=2, dim=8, num_heads=2, mlp_dim=16, layer_drop=0.5, prenet_layer_drop=0.0)
    ).train()
    seen: list[int] = []
    for number, block in enumerate(trunk.blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    for _ in range(200):
        trunk(torch.randn(1, 2, 8))
    assert seen.count(0) == seen.count(1) == 200 and all(60 < seen.count(number) < 140 for number in (2, 3))
    assert Trunk(TrunkConfig(depth=2, dim=8, num_heads=2, mlp_dim=16, dropout=0.1, input_dropout=0.0)).dropout.p == 0


def test_teacher_of_speech_is_fed_or_has_an_encoder_of_its_own(tmp_path):
    """Shared: the student's local features through the teacher's positions.

    Else: the waveform through the teacher's own extractor.
    """
    objective, view = build("speech", tmp_path)
    assert objective.is_copied("encoder.frontends.speech.extractor.layers.0.weight")
    assert not any(
        objective.is_copied(f"encoder.frontends.speech.{part}") for part in ("positions_conv.0.weight", "alibi.scale")
    )
    tokens = objective.student["encoder"].embed(view).detach()
    fed = objective.target(view, tokens)
    assert not torch.allclose(fed, objective.target(view, torch.randn_like(tokens)))
    own, _ = build("speech", tmp_path, "objective.shared=[]", "objective.feed_tokens=false")
    target = own.target(view, torch.randn_like(tokens))
    layers = own.teacher["encoder"](view, layers="ffn").layers
    close(target, sum(standard(x, 1) for x in layers) / len(layers))
    own.update_teacher(0.5)
    assert not torch.equal(
        own.teacher["encoder"].frontends["speech"].norm.weight, own.student["encoder"].frontends["speech"].norm.weight
    )


def test_embedding_dropout_reaches_the_teacher_of_text(tmp_path):
    objective, view = build("text", tmp_path, "model.frontends.text.embedding_dropout=0.5")
    student, heard = objective.student["encoder"], []
    objective.teacher["encoder"].trunk.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    objective([view])
    dropped = (heard[0] == 0)[~view.padding].float().mean()
    assert 0.45 < float(dropped) < 0.55 and not torch.equal(student.embed(view), student.embed(view))
    student.eval()
    assert torch.equal(student.embed(view), student.embed(view))


def test_what_cannot_be_trained_is_said(tmp_path):
    objective, view = build("image", tmp_path)
    with pytest.raises(ValueError, match="masks need `keep`"):
        objective([view._replace(mask=Mask(view.mask.hidden))])
    objective.config.cls_loss = 1.0
    with pytest.raises(ValueError, match="no class token"):
        objective([view])
    for wrong, message in (
        ("layers=end", "ffn, block"),
        ("cls_loss=-1", "0 or more"),
        ("cls_rows=4", "objective.cls_rows is .* nothing reads it: objective.cls_loss is 0"),
        ("ema_decay=1.5", "at least 0 and at most 1"),
        ("targets=top", "it may be mean, layers"),
        ("targets=layers objective.cls_loss=0.1", "cls_loss is 0.1, which objective.targets=layers does not read"),
        ("decoder.dims=3", "dims is 3; it must be at least 1 and at most 2"),
    ):
        with pytest.raises(ValueError, match=message):
            build("image", tmp_path, *f"objective.{wrong}".split())


def test_masks_and_frontends_of_the_other_version_are_refused(tmp_path):
    view = build("image", tmp_path)[1]
    with pytest.raises(
        ValueError, match=r"image.mask_token would never be trained; set model.frontends.image.mask_token=false"
    ):
        build("image", tmp_path, "model.frontends.image.mask_token=true")
    first = tiny.objective_of(tiny.config_of("image", tmp_path))
    with pytest.raises(ValueError, match="data2vec encodes every token"):
        first([view])


def test_image_init_is_as_published(tmp_path):
    config = tiny.config_of(
        "image", tmp_path, tiny.using("data2vec2"), "model.trunk.dim=768", "model.frontends.image.class_token=true"
    )
    frontend = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk)).frontends["image"]
    bound = (6 / (768 + 3 * 4 * 4)) ** 0.5
    assert 0.99 * bound < float(frontend.patch_embed.weight.abs().max()) <= bound
    assert abs(float(frontend.class_token.std()) - 1) < 0.1 and frontend.mask_token is None
