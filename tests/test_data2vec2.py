"""data2vec 2.0 against slow loops: decoder, ALiBi, the student on visible tokens, M masks, class loss, padding, targets."""

import pytest
import tiny
import torch
from tiny import MODALITIES
from torch import Tensor

from d2v.alibi import Alibi, slopes
from d2v.configuration import D2vConfig
from d2v.decoders import Decoder, DecoderConfig
from d2v.layers import Trunk, TrunkConfig
from d2v.modeling import D2vModel
from d2v.objectives.data2vec2 import Config, Data2Vec2
from d2v.types import Mask, View


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


# The decoder.


def normed(values: Tensor) -> Tensor:
    return torch.nn.functional.gelu((values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt())


def slow_layer(layer, x: Tensor, side: int) -> Tensor:
    """One row (T, C_in), tap by tap and group by group; zeros beyond the edge; an even kernel reaches one further back."""
    weight, bias = layer.conv.weight, layer.conv.bias
    out_dim, per_group = weight.shape[:2]
    groups, kernel = x.shape[1] // per_group, weight.shape[-1]
    places = [(0, t) for t in range(len(x))] if side == 1 else [divmod(t, side) for t in range(len(x))]
    at = {place: x[t] for t, place in enumerate(places)}
    out = []
    for row, column in places:
        value = bias.clone()
        for down in range(kernel) if side > 1 else [kernel // 2]:
            for right in range(kernel):
                token = at.get((row + down - kernel // 2, column + right - kernel // 2))
                if token is None:
                    continue
                taps = weight[:, :, down, right] if side > 1 else weight[:, :, right]
                for group in range(groups):
                    outer = slice(group * out_dim // groups, (group + 1) * out_dim // groups)
                    value[outer] += taps[outer] @ token[group * per_group : (group + 1) * per_group]
        out.append(normed(value))
    return torch.stack(out)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("dims", "kernel", "groups", "head_layers"), [(1, 5, 2, 1), (1, 4, 1, 2), (2, 3, 4, 1), (2, 2, 2, 3)])
@torch.no_grad()
def test_decoder_is_the_slow_loop(dims, kernel, groups, head_layers, residual):
    dim, tokens, kept = 8, 9, 4
    config = DecoderConfig(
        dims, dim=8 if residual else 12, depth=3, kernel=kernel, groups=groups, residual=residual, head_layers=head_layers, noise=0.0
    )
    decoder = Decoder(dim, config)
    keep = torch.stack([torch.randperm(tokens)[:kept] for _ in range(3)])
    hidden = torch.ones(3, tokens, dtype=torch.bool).scatter(1, keep, False)
    hidden[0, (~hidden[0]).nonzero()[0]] = False
    x, padding = torch.randn(3, kept, dim), None
    if dims == 1:
        padding = torch.arange(tokens) >= torch.tensor([9, 7, 8])[:, None]
        hidden &= ~padding
    found = iter(decoder(x, Mask(hidden, keep), padding))
    for n in range(3):
        row = torch.zeros(tokens, dim)
        for k in range(kept):
            row[keep[n, k]] = x[n, k]
        for layer in decoder.layers:
            if padding is not None:
                row[padding[n]] = 0
            y = slow_layer(layer, row, 1 if dims == 1 else 3)
            row = row + y if residual and row.shape == y.shape else y
        for t in hidden[n].nonzero()[:, 0]:
            value = row[t]
            for number in range(head_layers):
                linear = decoder.head[2 * number]
                value = linear.weight @ value + linear.bias
                value = value if number == head_layers - 1 else torch.nn.functional.gelu(value)
            close(next(found), value)
    assert next(found, None) is None


def test_noise_stands_in_hidden_places_only_and_is_fresh():
    decoder = Decoder(8, DecoderConfig(dim=8, groups=2, noise=0.5))
    keep, x = torch.tensor([[4, 1, 7]]).expand(200, -1), torch.randn(200, 3, 8)
    first, second = (decoder.places(x, keep, 10) for _ in range(2))
    assert torch.equal(first[:, [4, 1, 7]], x)
    noise = first[:, [0, 2, 3, 5, 6, 8, 9]]
    assert abs(float(noise.std()) - 0.5) < 0.02 and abs(float(noise.mean())) < 0.02
    assert not torch.equal(first, second)


def test_decoder_settings_are_checked():
    with pytest.raises(ValueError, match="12 tokens are no square grid"):
        Decoder(8, DecoderConfig(2, dim=8, groups=2)).places(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long), 12)
    with pytest.raises(ValueError, match=r"decoder.groups is 16; it must divide the trunk's width, 40"):
        Decoder(40, DecoderConfig())
    for wrong, message in (
        ({"dims": 3}, "1 or 2"),
        ({"groups": 5}, "a divisor"),
        ({"noise": -1.0}, "0 or more"),
        ({"head_init": "x"}, "default or trunk"),
    ):
        with pytest.raises(ValueError, match=message):
            DecoderConfig(**wrong)


@pytest.mark.parametrize(
    ("settings", "dim", "expected"),
    [  # the published models' decoders
        ({"dims": 2, "dim": 768, "depth": 6, "kernel": 3, "groups": 16}, 768, 2_585_856),
        ({"dims": 2, "dim": 1024, "depth": 3, "kernel": 5, "groups": 16}, 1024, 5_967_872),
        ({"dim": 384, "depth": 4, "kernel": 7, "groups": 16}, 768, 619_776),
        ({"dim": 768, "depth": 4, "kernel": 7, "groups": 16}, 1024, 1_908_736),
        ({"dim": 768, "depth": 5, "kernel": 9, "groups": 1, "head_layers": 2}, 768, 28_907_520),
    ],
)
def test_decoder_sizes_of_the_published_models(settings, dim, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(dim, DecoderConfig(**settings)).parameters()) == expected


# ALiBi.


def test_slopes_of_the_published_heads():
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(16) == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])
    tail = [0.70710678, 0.35355339, 0.1767767, 0.08838835]
    assert slopes(12) == pytest.approx([*(2.0**-n for n in range(1, 9)), *tail])
    assert Alibi(12, per_head=True, num_layers=1, learned=True)(torch.arange(4)[None])[0, 0, 1].tolist() == [-0.5, 0, -0.5, -1]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_alibi_is_the_slow_loop_with_clamped_scales(num_layers, per_head):
    alibi = Alibi(4, per_head=per_head, num_layers=num_layers, learned=True)
    with torch.no_grad():
        alibi.scale.copy_(torch.randn_like(alibi.scale))
        alibi.scale[0] = -1.0
    positions = torch.tensor([[0, 5, 2], [7, 1, 3]])
    bias = alibi(positions).detach()
    assert bias.shape == ((3,) if num_layers == 3 else ()) + (2, 4, 3, 3)
    scale = alibi.scale.detach().view(num_layers, -1).expand(num_layers, 4)
    for layer, part in enumerate(bias if num_layers == 3 else [bias]):
        for n in range(2):
            for head in range(4):
                for i in range(3):
                    for j in range(3):
                        wanted = -slopes(4)[head] * max(0.0, float(scale[layer, head])) * abs(int(positions[n, i]) - int(positions[n, j]))
                        assert float(part[n, head, i, j]) == pytest.approx(wanted, abs=1e-6)


@torch.no_grad()
def test_blocks_may_have_biases_of_their_own():
    trunk = Trunk(TrunkConfig(depth=3, dim=8, num_heads=2, mlp_dim=16)).eval()
    x, bias = torch.randn(2, 5, 8), torch.randn(3, 2, 2, 5, 5)
    expected = trunk.input_norm(x)
    for block, part in zip(trunk.blocks, bias, strict=True):
        expected, _ = block(expected, part)
    close(trunk(x, bias)[0], expected)
    with pytest.raises(ValueError, match="gives 2 attention biases; the trunk has 3 blocks"):
        trunk(x, bias[:2])


# The student, its masks, and the losses.


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
    objective, view = build(modality, tmp_path, "model.frontends.image.class_token=true") if modality == "image" else padded(modality, tmp_path)
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
        total += float((value - target[row // 2, token]).double().square().sum()) / {"sqrt": 32**0.5, "sum": 1}[config.loss_scale]
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
    assert float((loss.total - without.total).detach()) == pytest.approx(weight * error, rel=1e-4) and int(loss.count) == int(without.count)
    loss.total.backward()
    assert objective.student["encoder"].frontends["image"].class_token.grad.abs().sum() > 0


def test_class_loss_with_rows_does_not_depend_on_how_a_batch_is_divided(tmp_path):
    objective, view = build("image", tmp_path, "model.frontends.image.class_token=true")
    objective.config.cls_loss, objective.config.cls_rows = 0.5, 256
    whole = objective([view]).total
    halves = [
        View("image", {"pixel_values": view.inputs["pixel_values"][i : i + 2]}, None, Mask(*(x[2 * i : 2 * i + 4] for x in view.mask)))
        for i in (0, 2)
    ]
    assert float(whole.detach()) == pytest.approx(sum(float(objective([half]).total.detach()) for half in halves), rel=1e-5)


@pytest.mark.parametrize("modality", [name for name in MODALITIES if name != "image"])
def test_padding_changes_nothing(modality, tmp_path):
    """Targets, loss and gradients of a padded batch are those of its samples alone, although rows keep equal numbers of tokens."""
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
        ({"layer_norms": ["instance"], "final_norms": ["layer"]}, lambda layers: standard(sum(standard(x, 1) for x in layers) / 2, 2)),  # images
        ({"layer_norms": ["instance"]}, lambda layers: sum(standard(x, 1) for x in layers) / 2),  # speech, text base
        ({"layer_norms": ["layer"], "final_norms": ["instance"]}, lambda layers: standard(sum(standard(x, 2) for x in layers) / 2, 1)),  # text large
        ({"layer_norms": [], "layers": "block"}, lambda layers: sum(layers) / 2),
    ],
)
@torch.no_grad()
def test_targets_leave_the_prenet_out(settings, rule):
    trunk = TrunkConfig(depth=3, prenet_depth=1, dim=16, num_heads=2, mlp_dim=32, input_norm=False)
    frontend = {"vocab_size": 30, "mask_token_id": 29, "max_positions": 12, "embedding_norm": True}
    encoder = D2vModel(D2vConfig(frontends={"text": frontend}, trunk=trunk))
    objective = Data2Vec2(encoder, Config(top_k=2, decoder=DecoderConfig(groups=2), shared=["frontends.text"], feed_tokens=True, **settings))
    view = View("text", {"input_ids": torch.randint(4, 29, (3, 12))})
    tokens = objective.student["encoder"].embed(view)
    x, layers = tokens, []
    for block in objective.teacher["encoder"].trunk.blocks:
        x, ffn = block(x, None)
        layers.append(x if settings.get("layers") == "block" else ffn)
    close(objective.target(view, tokens), rule(layers[1:]))
    with pytest.raises(ValueError, match=r"top_k is 3; the trunk has 3 layers, of which the first 1 give no targets"):
        Data2Vec2(encoder, Config(top_k=3, decoder=DecoderConfig(groups=2)))


def test_prenet_has_a_layer_drop_of_its_own():
    trunk = Trunk(TrunkConfig(depth=4, prenet_depth=2, dim=8, num_heads=2, mlp_dim=16, layer_drop=0.5, prenet_layer_drop=0.0)).train()
    seen: list[int] = []
    for number, block in enumerate(trunk.blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    for _ in range(200):
        trunk(torch.randn(1, 2, 8))
    assert seen.count(0) == seen.count(1) == 200 and all(60 < seen.count(number) < 140 for number in (2, 3))
    assert Trunk(TrunkConfig(depth=2, dim=8, num_heads=2, mlp_dim=16, dropout=0.1, input_dropout=0.0)).dropout.p == 0


def test_teacher_of_speech_is_fed_or_has_an_encoder_of_its_own(tmp_path):
    """Shared: the student's local features through the teacher's positions; else the waveform through the teacher's own extractor."""
    objective, view = build("speech", tmp_path)
    assert objective.is_copied("encoder.frontends.speech.extractor.layers.0.weight")
    assert not any(objective.is_copied(f"encoder.frontends.speech.{part}") for part in ("positions_conv.0.weight", "alibi.scale"))
    tokens = objective.student["encoder"].embed(view).detach()
    fed = objective.target(view, tokens)
    assert not torch.allclose(fed, objective.target(view, torch.randn_like(tokens)))
    own, _ = build("speech", tmp_path, "objective.shared=[]", "objective.feed_tokens=false")
    target = own.target(view, torch.randn_like(tokens))
    layers = own.teacher["encoder"](view, layers="ffn").layers
    close(target, sum(standard(x, 1) for x in layers) / len(layers))
    own.update_teacher(0.5)
    assert not torch.equal(own.teacher["encoder"].frontends["speech"].norm.weight, own.student["encoder"].frontends["speech"].norm.weight)


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
        ("ema_decay=1.5", "between 0 and 1"),
        ("decoder.dims=3", "1 or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            build("image", tmp_path, f"objective.{wrong}")


def test_masks_and_frontends_of_the_other_version_are_refused(tmp_path):
    view = build("image", tmp_path)[1]
    with pytest.raises(ValueError, match=r"image.mask_token would never be trained; set model.frontends.image.mask_token=false"):
        build("image", tmp_path, "model.frontends.image.mask_token=true")
    first = tiny.objective_of(tiny.config_of("image", tmp_path))
    with pytest.raises(ValueError, match="data2vec encodes every token"):
        first([view])


def test_image_init_is_as_published(tmp_path):
    config = tiny.config_of("image", tmp_path, tiny.using("data2vec2"), "model.trunk.dim=768", "model.frontends.image.class_token=true")
    frontend = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk)).frontends["image"]
    bound = (6 / (768 + 3 * 4 * 4)) ** 0.5
    assert 0.99 * bound < float(frontend.patch_embed.weight.abs().max()) <= bound
    assert abs(float(frontend.class_token.std()) - 1) < 0.1 and frontend.mask_token is None
