"""wav2vec 2.0: transformers' loss with copied weights, slow loops, negatives, temperature, collapse."""

import math

import pytest
import tiny
import torch
import transformers as hf
from tiny import MODALITIES
from torch import Tensor, nn

from d2v import D2vConfig, D2vModel
from d2v.interop.huggingface import to_transformers
from d2v.objectives.common import quantised
from d2v.objectives.common.quantised import GumbelQuantiser, others, perplexity, similarities
from d2v.objectives.wav2vec2 import Config, Wav2Vec2
from d2v.types import Mask, View

STOCK = hf.models.wav2vec2.modeling_wav2vec2
SMALL = {"out_dim": 16, "num_groups": 2, "num_codes": 6, "negatives": 7, "penalty_weight": 0.0}


def pair() -> tuple[Wav2Vec2, hf.Wav2Vec2ForPreTraining]:
    """Ours and transformers' with the same weights; positions are data2vec's convolutions in both."""
    frontend = {"conv_dim": 12, "conv_kernels": [10, 3], "conv_strides": [5, 4], "pos_kernel": 3, "pos_depth": 2}
    trunk = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "init_std": 0.2}
    encoder = D2vModel(D2vConfig(frontends={"speech": {**frontend, "pos_groups": 2}}, trunk=trunk))
    objective = Wav2Vec2(encoder, Config(**SMALL)).train()
    audio = to_transformers(encoder)
    config = hf.Wav2Vec2Config(**{k: v for k, v in audio.config.to_dict().items() if k not in ("model_type", "dtype")})
    config.feat_extract_norm, config.conv_bias, config.do_stable_layer_norm = "layer", False, False
    config.num_codevector_groups, config.num_codevectors_per_group, config.num_negatives = 2, 6, 7
    config.proj_codevector_dim = config.codevector_dim = 16
    config.contrastive_logits_temperature, config.feat_quantizer_dropout, config.layerdrop = 0.1, 0.0, 0.0
    for dropout in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
        setattr(config, dropout, 0.0)
    stock = hf.Wav2Vec2ForPreTraining(config)
    stock.wav2vec2.encoder.pos_conv_embed = audio.encoder.pos_conv_embed
    stock.wav2vec2.load_state_dict(audio.state_dict())
    with torch.no_grad():
        stock.quantizer.codevectors.copy_(objective.quantiser.vectors.flatten(0, 1)[None])
        stock.quantizer.weight_proj.load_state_dict(objective.quantiser.logits.state_dict())
        stock.project_hid.load_state_dict(objective.predictor.state_dict())
        stock.project_q.load_state_dict(objective.projector.state_dict())
    return objective, stock.train()


def a_batch() -> View:
    hidden = torch.zeros(3, 19, dtype=torch.bool)
    hidden[0, 2:11] = hidden[1, 5:9] = hidden[1, 12:17] = hidden[2, 3:7] = True
    return View("speech", {"input_values": torch.randn(3, 395)}, mask=Mask(hidden))


def test_loss_and_gradients_are_those_of_transformers(monkeypatch):
    objective, stock = pair()
    view, hidden = a_batch(), None
    hidden = view.mask.hidden
    counts = hidden.sum(dim=1).tolist()
    objective.begin_step(3, 10)
    negatives, noise = objective.draws(counts, hidden.device)
    tokens = hidden.shape[1]
    everywhere = torch.zeros(3, tokens, 2, 6)
    everywhere[hidden] = noise

    def same_noise(logits: Tensor, tau: float, hard: bool) -> Tensor:
        assert hard and tau == objective.tau
        soft = ((logits + everywhere.view(logits.shape)) / tau).softmax(dim=-1)
        return nn.functional.one_hot(soft.argmax(dim=-1), 6) + (soft - soft.detach())

    monkeypatch.setattr(STOCK.nn.functional, "gumbel_softmax", same_noise)
    stock.set_gumbel_temperature(objective.tau)
    flat = hidden.flatten().nonzero().flatten()  # theirs are numbers among all tokens of the batch
    sampled = torch.zeros(3, tokens, 7, dtype=torch.long)
    sampled[hidden] = flat[negatives]
    stock.config.diversity_loss_weight = 0.1
    found = stock(view.inputs["input_values"], mask_time_indices=hidden, sampled_negative_indices=sampled.view(3, -1))
    loss = objective([view])
    assert float(found.loss.detach()) == pytest.approx(float(loss.total.detach()), rel=1e-5)
    assert float(found.contrastive_loss.detach()) == pytest.approx(
        float(loss.metrics["contrast"] * loss.count), rel=1e-5
    )
    assert float(found.codevector_perplexity.detach()) == pytest.approx(
        float(loss.metrics["soft_perplexity"]), rel=1e-5
    )
    found.loss.backward()
    loss.total.backward()
    for ours, theirs in (
        (objective.quantiser.logits, stock.quantizer.weight_proj),
        (objective.predictor, stock.project_hid),
        (objective.projector, stock.project_q),
    ):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        objective.quantiser.vectors.grad.flatten(0, 1), stock.quantizer.codevectors.grad[0], rtol=1e-4, atol=1e-5
    )
    encoder = objective.student["encoder"]
    ours, theirs = encoder.frontends["speech"], stock.wav2vec2
    for mine, other in (
        (ours.projection.weight, theirs.feature_projection.projection.weight),
        (ours.norm.weight, theirs.feature_projection.layer_norm.weight),
        (ours.mask_token, theirs.masked_spec_embed),
        (ours.extractor.layers[0].weight, theirs.feature_extractor.conv_layers[0].conv.weight),
        (encoder.trunk.blocks[0].mlp.fc1.weight, theirs.encoder.layers[0].feed_forward.intermediate_dense.weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def build(modality: str, folder, *more: str) -> tuple[Wav2Vec2, View]:
    """A tiny objective, and a batch, of clips of unequal lengths."""
    unpacked = ("data.pack_seconds=0",) if modality == "speech" else ()
    config = tiny.config_of(modality, folder, tiny.using("wav2vec2"), *unpacked, *more)
    objective = tiny.objective_of(config)
    batches = tiny.batches_of(config)
    views = [batches(step, 0, 1)[0][0] for step in range(20)]
    view = next((view for view in views if view.padding is not None), views[0])
    return objective.train(), view


def slow(objective: Wav2Vec2, view: View) -> Tensor:
    """The loss, one hidden token after another."""
    config, encoder, hidden = objective.config, objective.student["encoder"], view.mask.hidden
    _, source, raw = encoder.frontend(view.modality).sources(**view.inputs)
    x = encoder(view, view.mask).x
    negatives, noise = objective.draws(hidden.sum(dim=1).tolist(), hidden.device)
    targets, codes, shares, predictions = [], [], [], []
    for number, (b, t) in enumerate(hidden.nonzero().tolist()):
        logits = objective.quantiser.logits(source[b, t]).view(config.num_groups, config.num_codes)
        noisy = (logits + noise[number]) / objective.tau
        parts = []
        for group in range(config.num_groups):
            soft = noisy[group].softmax(dim=0)
            hard = torch.zeros_like(soft)
            hard[noisy[group].argmax()] = 1
            parts.append((hard - soft.detach() + soft) @ objective.quantiser.vectors[group])
        targets.append(objective.projector(torch.cat(parts)))
        codes.append(noisy.argmax(dim=1).tolist())
        shares.append(logits.softmax(dim=1))
        predictions.append(objective.predictor(x[b, t]))
    total = torch.zeros(())
    for number, prediction in enumerate(predictions):
        scores = [torch.cosine_similarity(prediction, targets[number], dim=0) / config.temperature]
        for other in negatives[number].tolist():
            if codes[other] != codes[number]:
                scores.append(torch.cosine_similarity(prediction, targets[other], dim=0) / config.temperature)
        total = total - torch.stack(scores).log_softmax(dim=0)[0]
    mean = torch.stack(shares).mean(dim=0)
    used = sum(torch.exp(-sum(p * torch.log(p + 1e-7) for p in group)) for group in mean)
    size = config.num_groups * config.num_codes
    real = raw.flatten(0, 1) if view.padding is None else raw[~view.padding]
    penalty = config.penalty_weight * real.square().mean()
    return total + len(codes) * (config.diversity_weight * (size - used) / size + penalty)


@pytest.mark.parametrize("modality", MODALITIES)
def test_loss_and_gradients_are_the_slow_loop(modality, tmp_path):
    objective, view = build(modality, tmp_path)
    expected = slow(objective, view)
    expected.backward()
    gradients = {key: p.grad.clone() for key, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    loss = objective([view])
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-5, atol=1e-4)
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-3, atol=2e-4, msg=key)


def test_draws_are_of_the_step_and_the_row_alone(tmp_path):
    objective = build("image", tmp_path)[0]
    objective.begin_step(4, 20)
    first = objective.draws([5, 3, 4], torch.device("cpu"))
    torch.randn(3)
    again = objective.draws([5, 3, 2], torch.device("cpu"))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[:8], other[:8])
    objective.begin_step(5, 20)
    assert not torch.equal(first[1], objective.draws([5, 3, 4], torch.device("cpu"))[1])
    assert abs(float(quantised.gumbel((100_000,), torch.Generator(), torch.device("cpu")).mean()) - 0.5772) < 0.01


def test_negatives_are_others_of_the_same_row_evenly():
    drawn = others(5, 4000, torch.Generator().manual_seed(0), torch.device("cpu"))
    for own, row in enumerate(drawn):
        counts = torch.bincount(row, minlength=5)
        assert counts[own] == 0 and len(counts) == 5
        assert all(900 < int(count) < 1100 for number, count in enumerate(counts) if number != own)
    assert others(1, 3, torch.Generator(), torch.device("cpu")).tolist() == [[0, 0, 0]]


def test_values_at_the_start_and_when_collapsed():
    """Facts of the field: ln 101 of 100 independent negatives; 0 where all of them are the positive's code; diversity
    near 0 of even shares and .997 of one code a group."""
    rows, codes = torch.randn(400, 4096), torch.arange(800).view(400, 2)
    negatives = others(400, 100, torch.Generator().manual_seed(0), torch.device("cpu"))
    logits = similarities(rows, torch.randn(400, 4096), codes, negatives) / 0.1
    assert float(-logits.log_softmax(dim=1)[:, 0].mean()) == pytest.approx(math.log(101), abs=0.05)
    same = similarities(rows, rows, torch.zeros(400, 2, dtype=torch.long), negatives)
    assert float(-same.log_softmax(dim=1)[:, 0].abs().max()) == 0
    size = 640
    even = perplexity(torch.full((10, 2, 320), 1 / 320))
    assert float((size - even) / size) == pytest.approx(0, abs=1e-4)
    one = nn.functional.one_hot(torch.zeros(10, 2, dtype=torch.long), 320).float()
    assert float((size - perplexity(one)) / size) == pytest.approx(0.997, abs=1e-3)


def test_the_gumbel_softmax_is_straight_through_and_its_temperature_falls(tmp_path):
    quantiser = GumbelQuantiser(4, 2, 3, 6)
    x, noise = torch.randn(5, 4, requires_grad=True), torch.randn(5, 2, 3)
    found = quantiser(x, 0.7, noise)
    for row, code in zip(found.vectors, found.codes, strict=True):
        assert torch.equal(row, torch.cat([quantiser.vectors[0, code[0]], quantiser.vectors[1, code[1]]]))
    found.vectors.sum().backward()
    assert x.grad.any()
    assert torch.equal(quantiser(x, 0.7, None).codes, quantiser.logits(x).view(5, 2, 3).argmax(dim=2))
    objective = build("image", tmp_path)[0]
    for step, tau in ((0, 2.0), (100_000, 2 * 0.999995**100_000), (400_000, 0.5)):
        objective.begin_step(step, 400_000)
        assert objective.tau == pytest.approx(tau)


def test_what_lies_before_the_projection_is_quantised(tmp_path):
    objective, view = build("speech", tmp_path)
    frontend = objective.student["encoder"].frontends["speech"]
    tokens, source, raw = frontend.sources(**view.inputs)
    assert torch.equal(source, frontend.norm(raw)) and torch.equal(tokens, frontend.projection(source))
    assert objective.quantiser.logits.in_features == source.shape[2] == frontend.source_dim != tokens.shape[2]
    assert torch.equal(tokens, frontend.embed(**view.inputs))


def test_what_cannot_be_trained_is_said(tmp_path):
    objective, view = build("image", tmp_path)
    lone = torch.zeros_like(view.mask.hidden)
    lone[:, :3] = True
    loss = objective([view._replace(mask=Mask(lone))])
    assert int(loss.count) == 3 * len(lone)
    lone[0] = False
    lone[0, 0] = True
    alone = view._replace(mask=Mask(lone))
    with pytest.raises(ValueError, match=r"a row of the first batch hides only one: hide more of it") as error:
        objective.check([alone])
    assert "\n" not in str(error.value)
    loss = objective([alone])  # later in a run the lone token does not count
    assert int(loss.count) == 3 * (len(lone) - 1) and loss.total.isfinite()
    with pytest.raises(ValueError, match=r"train.accumulate is 2; wav2vec2 compares the samples of a whole batch"):
        objective.check_batch(4, 2)
    with pytest.raises(ValueError, match=r"objective.num_groups is 3; it must divide objective.out_dim, 8"):
        build("image", tmp_path, "objective.num_groups=3")
