"""Methods that predict what hidden tokens are made of: each loss and its gradients against the slow, obvious way,
transformers' class with the same weights, and what is refused."""

import pytest
import small
import tiny
import torch
import transformers
from slowly import gradients, in_place, left_out, same_as_slow, shaken
from torch import Tensor, nn

from d2v.models.configuration import D2vConfig
from d2v.models.decoder import BlockDecoderConfig
from d2v.models.encoder import D2vModel
from d2v.models.positions import sincos
from d2v.objectives import best_rq, context_encoder, mae
from d2v.types import Mask, View

# What tokens are made of.


def test_content_of_an_image_is_transformers_patches():
    config = transformers.ViTMAEConfig(image_size=12, patch_size=4, hidden_size=8, num_hidden_layers=0,
                                       num_attention_heads=2, intermediate_size=8, decoder_hidden_size=8,
                                       decoder_num_hidden_layers=0, decoder_num_attention_heads=2)  # fmt: skip
    pixels = torch.randn(2, 3, 12, 12)
    frontend = small.encoder("image", image_size=12, patch_size=4).frontends["image"]
    found = frontend.content(pixels)
    assert found.shape == (2, 9, frontend.content_dim())
    assert torch.equal(found, transformers.ViTMAEForPreTraining(config).patchify(pixels))
    with pytest.raises(ValueError, match="an image has no words to predict"):
        _ = frontend.vocabulary()


def test_content_of_speech_is_the_frames_of_a_token():
    frontend = small.encoder("speech").frontends["speech"]
    waves = torch.randn(2, 2000)
    found, frames = frontend.content(waves), frontend.extractor.spectrogram(waves)
    assert found.shape == (*frontend.embed(waves).shape[:2], frontend.content_dim())
    for token in range(found.shape[1]):
        assert torch.equal(found[:, token], torch.cat([frames[:, 2 * token], frames[:, 2 * token + 1]], dim=1))
    real = (torch.arange(2000) < 1500).long().expand(2, -1)
    noise = torch.where(real.bool(), waves, torch.full((), 9.0))
    assert torch.equal(frontend.content(noise, real), frontend.content(waves * real))


def test_content_of_samples_is_one_frame_of_each_window():
    """Its tone is in the band, and in the token, in which it sounds."""
    stack = {
        "kind": "waveform",
        "conv_kernels": [10, 3, 3, 3, 3, 2],
        "conv_strides": [5, 2, 2, 2, 2, 2],
        "mel_bins": 80,
    }
    frontend = small.encoder("speech", **stack, mel_high=None).frontends["speech"]
    waves = torch.zeros(1, 4000)
    waves[0, 1600:1760] = torch.sin(torch.arange(160) * 2 * torch.pi * 1000 / 8000)
    found = frontend.content(waves)
    assert found.shape == (1, frontend.embed(waves).shape[1], frontend.content_dim()) and found.dtype == torch.float32
    energy = found[0].amax(dim=1)  # (T,)
    assert int(energy.argmax()) in (9, 10, 11)  # tokens of 20 ms from 1440, 1600, 1760
    assert energy[:8].max() < energy.max() - 1 and torch.allclose(energy[:8], energy[:8].mean())


def test_text_says_which_methods_are_its_own():
    frontend = small.encoder("text").frontends["text"]
    assert frontend.vocabulary() is frontend.tokens.weight
    for ask in (
        lambda: frontend.content_dim(),
        lambda: frontend.content(input_ids=torch.zeros(1, 2, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match=r"objective.name may be mlm, mlm_latent or electra"):
            ask()


# MAE.

NARROW = BlockDecoderConfig(dim=8, depth=2, num_heads=2)


def mae_of(modality: str, *, norm: bool = True, **frontend) -> mae.MAE:
    encoder = small.encoder(modality, mask_token=False, **frontend)
    return shaken(mae.build(encoder, mae.Config(norm_target=norm, decoder=NARROW)))


def slow_mae(objective: mae.MAE, view: View) -> Tensor:
    """One row after another, without padding, nothing gathered: every token is decoded, hidden ones are compared."""
    encoder, decoder, total = objective.student["encoder"], objective.decoder, torch.zeros(())
    frontend = encoder.frontends[view.modality]
    masks = len(view.mask.hidden) // len(next(iter(view.inputs.values())))
    content = frontend.content(**view.inputs)
    for n, hidden in enumerate(view.mask.hidden):
        b = n // masks
        size = len(hidden) if view.padding is None else int((~view.padding[b]).sum())
        hidden = hidden[:size]
        inputs = {name: value[b : b + 1] for name, value in view.inputs.items()}
        x = encoder.embed(View(view.modality, inputs))[:, :size]
        x = frontend.hide(x, hidden[None], **inputs)
        positions = frontend.positions(x, None)
        x = x if positions is None else x + positions
        visible = [t for t in range(size) if not hidden[t]]
        extra = [] if frontend.extra() is None else [frontend.extra()]
        num_extra = len(extra)
        bias = frontend.bias(size)
        if bias is not None:
            places = torch.tensor([*range(num_extra), *(t + num_extra for t in visible)])
            bias = bias[..., places[:, None], places]
        encoded = decoder.project(encoder.trunk(torch.cat([*extra, x[:, visible]], dim=1), bias)[0][0])
        rows = list(decoder.mask_token.expand(size, -1))
        for place, t in enumerate(visible):
            rows[t] = encoded[num_extra + place]
        grid = frontend.grid
        added = []
        for t in range(size):  # the column first, then the row; of a sequence the place alone
            numbers = []
            for place in [t] if grid is None else [t % grid[1], t // grid[1]]:
                part = 8 // (2 if grid is None else 4)
                angles = [place / 10000 ** (i / part) for i in range(part)]
                numbers += [torch.tensor(angles).sin(), torch.tensor(angles).cos()]
            added.append(torch.cat(numbers))
        tokens = torch.cat([encoded[:num_extra], torch.stack(rows) + torch.stack(added)])[None]
        out = decoder.head(decoder.trunk(tokens)[0])[0, num_extra:]
        for t in range(size):
            if hidden[t]:
                target = content[b, t]
                if objective.config.norm_target:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                total = total + ((out[t] - target) ** 2).mean()
    return total


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("modality", ["image", "speech"])
def test_mae_is_the_slow_way(modality, norm):
    """A class token, a relative bias, two masks; clips of unequal length."""
    objective, view = mae_of(modality, norm=norm), left_out(small.view(modality, samples=3))
    loss = objective([view])
    assert loss.count == view.mask.hidden.sum()
    same_as_slow(objective, loss, slow_mae(objective, view))


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_mae_of_one_hidden_token(modality):
    objective, view = mae_of(modality), left_out(small.view(modality, samples=2), masks=1, ratio=0.01)
    assert view.mask.hidden.sum(dim=1).tolist() == [1, 1]
    same_as_slow(objective, objective([view]), slow_mae(objective, view))


def test_mae_starts_at_the_error_of_predicting_zero():
    """1 - 1/P by the unbiased variance: 0.9987 of 768 pixels, here 191/192."""
    objective, view = mae_of("image"), left_out(small.view("image", samples=64))
    nn.init.zeros_(objective.decoder.head.weight)
    nn.init.zeros_(objective.decoder.head.bias)
    loss = objective([view])
    assert float(loss.total.detach() / loss.count) == pytest.approx(191 / 192, abs=1e-4)


def test_mae_is_transformers():
    """The same weights, the same mask: the same loss and the same gradients."""
    config = transformers.ViTMAEConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        norm_pix_loss=True, mask_ratio=0.75, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(config)
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    trunk = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_dim": 64, "pre_norm": True, "input_norm": False,
             "final_norm": True, "norm_eps": 1e-6}  # fmt: skip
    frontend = {"image_size": 16, "patch_size": 4, "relative_bias": False, "positions": "sincos", "mask_token": False}
    encoder = D2vModel(D2vConfig({"image": frontend}, trunk))
    ours = mae.build(encoder, mae.Config(decoder=BlockDecoderConfig(dim=16, depth=2, num_heads=4))).train()
    names = copied(theirs, ours)
    # of the released checkpoints; a model of theirs that is new may have zeros there
    for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        table.data[0, 1:] = sincos((4, 4), table.shape[2], table.device)
    noise = torch.rand(3, 16)
    pixels = torch.randn(3, 3, 16, 16)
    expected = theirs(pixels, noise=noise)
    hidden = expected.mask.bool()
    keep = torch.stack([(~row).nonzero()[:, 0] for row in hidden])
    loss = ours([View("image", {"pixel_values": pixels}, mask=Mask(hidden, keep))])
    assert float(loss.total.detach() / loss.count) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    expected.loss.backward()
    (loss.total / loss.count).backward()
    known = dict(theirs.named_parameters())
    for mine, others in names.items():
        slope = torch.cat([known[name].grad for name in others])
        parameter = dict(ours.named_parameters())[mine]
        torch.testing.assert_close(parameter.grad, slope.reshape(parameter.shape), rtol=1e-3, atol=1e-5)


def copied(theirs: nn.Module, ours: mae.MAE) -> dict[str, list[str]]:
    """Fills our weights with theirs; which of theirs each of ours is made of."""
    names = {
        "student.encoder.frontends.image.class_token": ["vit.embeddings.cls_token"],
        "decoder.mask_token": ["decoder.mask_token"],
    }
    for part in ("weight", "bias"):
        names |= {
            f"student.encoder.frontends.image.patch_embed.{part}": [
                f"vit.embeddings.patch_embeddings.projection.{part}"
            ],
            f"student.encoder.trunk.final_norm.{part}": [f"vit.layernorm.{part}"],
            f"decoder.project.{part}": [f"decoder.decoder_embed.{part}"],
            f"decoder.trunk.final_norm.{part}": [f"decoder.decoder_norm.{part}"],
            f"decoder.head.{part}": [f"decoder.decoder_pred.{part}"],
        }
        for mine, other in (
            ("student.encoder.trunk", "vit.layers"),
            ("decoder.trunk", "decoder.decoder_layers"),
        ):
            for n in range(2):
                attention = f"{other}.{n}.attention."
                names |= {
                    f"{mine}.blocks.{n}.attention.qkv.{part}": [f"{attention}{which}_proj.{part}" for which in "qkv"],
                    f"{mine}.blocks.{n}.attention.proj.{part}": [f"{attention}o_proj.{part}"],
                    f"{mine}.blocks.{n}.norm1.{part}": [f"{other}.{n}.layernorm_before.{part}"],
                    f"{mine}.blocks.{n}.norm2.{part}": [f"{other}.{n}.layernorm_after.{part}"],
                    f"{mine}.blocks.{n}.mlp.fc1.{part}": [f"{other}.{n}.mlp.fc1.{part}"],
                    f"{mine}.blocks.{n}.mlp.fc2.{part}": [f"{other}.{n}.mlp.fc2.{part}"],
                }
    state, own = theirs.state_dict(), ours.state_dict()
    assert names.keys() == own.keys()
    ours.load_state_dict({mine: torch.cat([state[x] for x in of]).view(own[mine].shape) for mine, of in names.items()})
    return names


@pytest.mark.parametrize(
    ("modality", "change", "message"),
    [
        ("image", "model.frontends.image.mask_token=true", "image.mask_token would never be trained"),
        ("image", "objective.decoder.dim=10", "objective.decoder.dim is 10; it must be a multiple of 4"),
        (
            "image",
            "objective.decoder.num_heads=3",
            "objective.decoder.dim is 16; it must be a multiple of .*num_heads, 3",
        ),
        ("text", "", "objective.name may be mlm, mlm_latent or electra"),
        ("image", "data.mask_kind=beit", "mae encodes what is visible: its masks need `keep`"),
    ],
)
def test_mae_refuses(modality, change, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        if modality == "text":
            mae.build(small.encoder("text"), mae.Config(decoder=NARROW))
        config = tiny.config_of("image", tmp_path, tiny.using("mae"), *([change] if change else []))
        objective = tiny.objective_of(config)
        objective.check(tiny.batches_of(config)(0, 0, 4)[0])
    assert "\n" not in str(caught.value)


def test_mae_wants_one_masked_view_of_more_than_one_number():
    objective, view = mae_of("image"), left_out(small.view("image", samples=2))
    with pytest.raises(ValueError, match=r"mae predicts what is hidden of one view.*make 2"):
        objective.check([view, view])
    with pytest.raises(ValueError, match=r"data.views makes views in which nothing is"):
        objective.check([view._replace(mask=None)])
    single = small.encoder("image", patch_size=1, image_size=2, channels=1, mask_token=False)
    with pytest.raises(ValueError, match=r"objective.norm_target is true, but a token is made of one number"):
        mae.build(single, mae.Config(decoder=NARROW))


# Random codes.


def best_rq_of(modality: str, **settings) -> best_rq.BestRQ:
    torch.manual_seed(0)
    return shaken(best_rq.build(small.encoder(modality), best_rq.Config(**{"num_codes": 32, **settings})))


def slow_codes(objective: best_rq.BestRQ, view: View) -> list[list[int]]:
    """Of each sample's real tokens: normalised over them, projected, the code of the largest cosine."""
    content, quantizer = (
        objective.student["encoder"].frontends[view.modality].content(**view.inputs),
        objective.quantizer,
    )
    found = []
    for b, tokens in enumerate(content):
        real = tokens if view.padding is None else tokens[~view.padding[b]]  # (T_b, P)
        if objective.config.norm == "instance":
            real = (real - real.mean(0)) / (real.var(0, correction=0) + 1e-5).sqrt()
        else:
            real = (real - real.mean(1, keepdim=True)) / (real.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        cosines = [[nn.functional.cosine_similarity(t @ quantizer.projection, c, dim=0) for c in quantizer.codebook]
                   for t in real]  # fmt: skip
        found.append([int(torch.stack(row).argmax()) for row in cosines])
    return found


@pytest.mark.parametrize("norm", ["instance", "layer"])
@pytest.mark.parametrize("modality", ["image", "speech"])
def test_best_rq_is_the_slow_way(modality, norm):
    objective, view = best_rq_of(modality, norm=norm), in_place(small.view(modality, samples=4))
    encoder, codes, slow, seen = objective.student["encoder"], slow_codes(objective, view), torch.zeros(()), []
    features = encoder(view, view.mask).x
    for row, place in view.mask.hidden.nonzero().tolist():
        logits = objective.head.weight @ features[row, place] + objective.head.bias
        slow = slow + logits.exp().sum().log() - logits[codes[row][place]]
        seen.append(codes[row][place])
    loss = objective([view])
    assert int(loss.count) == len(seen) and loss.metrics["codes_used"] == len(set(seen))
    shares = torch.bincount(torch.tensor(seen)) / len(seen)
    perplexity = float(torch.special.entr(shares).sum().exp())
    assert float(loss.metrics["code_perplexity"]) == pytest.approx(perplexity, rel=1e-4)
    same_as_slow(objective, loss, slow)
    assert {"quantizer.projection", "quantizer.codebook"} <= objective.state_dict().keys()


def test_best_rq_starts_at_ln_of_the_codes():
    objective = best_rq.build(small.encoder("image"), best_rq.Config()).train()
    loss = objective([in_place(small.view("image", samples=32))])
    assert float(loss.total.detach() / loss.count) == pytest.approx(9.01, abs=0.02)
    assert torch.allclose(objective.quantizer.codebook.norm(dim=1), torch.ones(8192))


def test_tokens_that_share_a_mean_use_many_codes_only_when_normalised():
    """Without it the mean decides: facts of BEST-RQ."""
    quantizer, x = best_rq_of("image").quantizer, 5 + torch.randn(64, 192)
    used = {norm: len(set(quantizer(rows).tolist())) for norm, rows in (("none", x), ("instance", x - x.mean(0)))}
    assert used["none"] < 10 < 20 < used["instance"]


def test_best_rq_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"objective.name may be mlm, mlm_latent or electra"):
        best_rq.build(small.encoder("text"), best_rq.Config())
    with pytest.raises(ValueError, match="best_rq encodes every token"):
        best_rq_of("image").check([left_out(small.view("image", samples=2))])
    with pytest.raises(ValueError, match=r"objective.norm is 'none'; it may be instance, layer"):
        best_rq.Config(norm="none")


# Regions.


def regions(samples: int = 3) -> View:
    """Rectangles of a 4 x 4 grid, one token in the last row."""
    view = View("image", {"pixel_values": torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(2))})
    hidden = torch.zeros(samples, 4, 4, dtype=torch.bool)
    hidden[:, 1:3, 0:2] = True
    hidden[-1] = False
    hidden[-1, 3, 3] = True
    return view._replace(mask=Mask(hidden.flatten(1)))


def context_of(**settings) -> context_encoder.ContextEncoder:
    torch.manual_seed(0)
    config = context_encoder.Config(**settings)
    return shaken(context_encoder.build(small.encoder("image", patch_size=4), config))


def touching(hidden: Tensor, t: int) -> bool:
    """Whether a visible token of a 4 x 4 grid lies beside a hidden one."""
    near = [u for u in range(16) if abs(u // 4 - t // 4) <= 1 and abs(u % 4 - t % 4) <= 1]
    return not hidden[t] and any(bool(hidden[u]) for u in near)


def test_context_encoder_is_the_slow_way_without_an_adversary():
    objective, view = context_of(adversarial_weight=0.0, ring_weight=3.0), regions()
    encoder, slow = objective.student["encoder"], torch.zeros(())
    content, out = encoder.frontends["image"].content(**view.inputs), encoder(view, view.mask).x
    count = 0
    for n, hidden in enumerate(view.mask.hidden):
        for t in range(16):
            weight = 1.0 if hidden[t] else 3.0 if touching(hidden, t) else 0.0
            slow = slow + weight * ((objective.head(out[n, t]) - content[n, t]) ** 2).mean()
            count += weight > 0  # as published, the mean is over region and ring
    loss = objective([view])
    assert int(loss.count) == count and objective.discriminator is None
    same_as_slow(objective, loss, slow)


@pytest.mark.parametrize("ring_weight", [0.0, 2.0])
def test_an_adversary_learns_and_is_fooled_in_one_step(ring_weight):
    """Two losses by the slow way: each has gradients in its own weights alone; without a weight there is no ring."""
    objective, view = context_of(adversarial_weight=0.2, ring_weight=ring_weight, discriminator_dim=4), regions()
    encoder, judge = objective.student["encoder"], objective.discriminator
    content, filled = encoder.frontends["image"].content(**view.inputs), objective.head(encoder(view, view.mask).x)
    error, fooled, judged, total_count = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
    for n, hidden in enumerate(view.mask.hidden):
        ring = torch.tensor([ring_weight > 0 and touching(hidden, t) for t in range(16)])
        grids = [(x[n] * (hidden | ring).float()[:, None]).T.unflatten(1, (4, 4))[None] for x in (filled, content)]
        count, sigmoid = (hidden | ring).sum(), torch.sigmoid
        squares = ((filled[n] - content[n]) ** 2).mean(dim=1)
        error = error + squares[hidden].sum() + ring_weight * squares[ring].sum()
        fooled = fooled - count * sigmoid(judge(grids[0])).log().sum()
        judged = judged - count * ((1 - sigmoid(judge(grids[0].detach()))).log() + sigmoid(judge(grids[1])).log()).sum()
        total_count += int(count)
    generator = gradients(objective, 0.8 * error + 0.2 * fooled)
    discriminator = gradients(objective, judged)
    loss = objective([view])
    assert int(loss.count) == total_count
    assert float(loss.total.detach()) == pytest.approx(float((0.8 * error + 0.2 * fooled + judged).detach()), rel=1e-4)
    found = gradients(objective, loss.total)
    for name, value in found.items():
        expected = (discriminator if name.startswith("discriminator") else generator)[name]
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_middle_of_an_image_is_hidden(tmp_path):
    config = tiny.config_of("image", tmp_path, tiny.using("context_encoder"))
    (view,), _ = tiny.batches_of(config)(0, 0, 1)
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:6, 2:6] = True
    assert view.mask.keep is None and torch.equal(view.mask.hidden, hidden.flatten().expand(4, -1))
    for change, message in (
        ("data.mask_ratio=0.99", r"data.mask_ratio 0.99 hides 64 of 64 patches"),
        ("data.masks=2", r"data.masks 2 needs a data.mask_kind with equal counts: block, inverse_block, random"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.samples_of(tiny.config_of("image", tmp_path, tiny.using("context_encoder"), change))


def test_context_encoder_refuses():
    with pytest.raises(ValueError, match="regions of a grid, and tokens here are a sequence: take mae"):
        context_encoder.build(small.encoder("speech"), context_encoder.Config())
    with pytest.raises(ValueError, match=r"objective.name may be mlm"):
        context_encoder.build(small.encoder("text"), context_encoder.Config())
    with pytest.raises(ValueError, match="context_encoder encodes every token"):
        context_of().check([left_out(small.view("image", samples=2))])
