"""DinoSR and SpidR against slow loops: codes, losses and gradients, codebooks, what is frozen, collapse."""

import math

import pytest
import tiny
import torch
from latent import build
from tiny import MODALITIES
from torch import Tensor

from d2v.objectives.common.codebooks import Codebooks
from d2v.objectives.common.codes import code_use
from d2v.objectives.dinosr import DinoSR
from d2v.types import View

NAMES = ("dinosr", "spidr")


def standard(x: Tensor) -> Tensor:
    """Each channel of one sample's own tokens, (T, D)."""
    return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()


def slow(objective: DinoSR, view: View) -> tuple[Tensor, list[list[tuple[int, Tensor]]]]:
    """The loss, one token after another, and of each layer the code and the target of every hidden token."""
    encoder, teacher = objective.student["encoder"], objective.teacher["encoder"]
    fed = encoder.embed(view).detach() if objective.config.feed_tokens else None
    layers = teacher(view, tokens=fed, layers="ffn").layers
    own = encoder(view, view.mask, layers="ffn")
    total, assigned = torch.zeros(()), []
    for number, layer in enumerate(layers):
        codes = objective.codebooks.sums[number] / objective.codebooks.counts[number][:, None]
        assigned.append([])
        for b in range(len(layer)):
            real = torch.ones(layer.shape[1], dtype=torch.bool) if view.padding is None else ~view.padding[b]
            target = layer[b].clone()
            target[real] = standard(layer[b][real])
            for t in view.mask.hidden[b].nonzero().flatten().tolist():
                nearest = min(range(len(codes)), key=lambda c: float((target[t] - codes[c]).square().sum()))
                read = own.layers[number][b, t] if objective.config.name == "spidr" else own.x[b, t]
                total = total - objective.heads[number](read).log_softmax(dim=0)[nearest]
                assigned[-1].append((nearest, target[t]))
    return total / len(layers), assigned


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_the_slow_loop(name, modality, tmp_path):
    objective, view = build(name, modality, tmp_path)
    expected, assigned = slow(objective, view)
    expected.backward()
    gradients = {key: p.grad.clone() for key, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    loss = objective([view])
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected.detach(), rtol=1e-5, atol=1e-4)
    assert int(loss.count) == int(view.mask.hidden.sum()) == len(assigned[0])
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-3, atol=1e-4, msg=key)
    perplexities = []
    for layer in assigned:
        shares = torch.bincount(torch.tensor([code for code, _ in layer]), minlength=8) / len(layer)
        perplexities.append(math.exp(-sum(float(p) * math.log(p) for p in shares if p > 0)))
    assert float(loss.metrics["target_perplexity"]) == pytest.approx(sum(perplexities) / 2, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_assigned_codes_alone_however_it_is_cut(name, tmp_path):
    objective, view = build(name, "image", tmp_path)
    _, assigned = slow(objective, view)
    books = objective.codebooks
    sums, counts = books.sums.clone(), books.counts.clone()
    for number, layer in enumerate(assigned):
        for code in {code for code, _ in layer}:
            of_code = [target for other, target in layer if other == code]
            counts[number, code] = 0.9 * counts[number, code] + 0.1 * len(of_code)
            sums[number, code] = 0.9 * sums[number, code] + 0.1 * torch.stack(of_code).sum(dim=0)
    assert any(len({code for code, _ in layer}) < 8 for layer in assigned), "some code of some layer stays"
    halves = [part(view, slice(0, 2)), part(view, slice(2, None))]
    for half in halves:
        before = books.sums.clone()
        objective([half])
        assert torch.equal(books.sums, before)  # not in the forward pass
    objective.adjust_gradients(0, 20)
    torch.testing.assert_close(books.sums, sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(books.counts, counts)
    assert {"codebooks.sums", "codebooks.counts"} <= objective.state_dict().keys()
    assert books.sums.dtype == torch.float32 and "codebooks.new_sums" not in objective.state_dict()


def part(view: View, of: slice) -> View:
    inputs = {name: value[of] for name, value in view.inputs.items()}
    return view._replace(inputs=inputs, mask=view.mask._replace(hidden=view.mask.hidden[of]))


def test_start_and_collapse_are_what_they_should_be():
    """Facts of the field: ln 256 = 5.55 of a head that knows nothing; one code where all targets are the same."""
    books = Codebooks(1, 256, 16, 0.9)
    assert books.sums.mean(dim=2).abs().max() < 1e-5 and books.sums.var(dim=2, correction=0).sub(1).abs().max() < 1e-3
    rows = torch.randn(4096, 16)
    chosen = books.nearest(0, rows)
    spread = code_use([chosen], 256)
    assert 150 < float(spread["target_perplexity"]) < 256 and float(spread["code_use"]) > 0.9
    assert float(torch.nn.functional.cross_entropy(torch.zeros(4096, 256), chosen)) == pytest.approx(5.545, abs=1e-3)
    same = books.nearest(0, rows[:1].expand(100, 16))
    assert float(code_use([same], 256)["target_perplexity"]) == pytest.approx(1) and len(same.unique()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parts_stand_still_after_their_share(name, tmp_path):
    """Without weight decay too: the reference has to put the weights back in each step."""
    more = ("objective.frozen=[frontends.image.patch_embed]", "objective.freeze_share=0.5")
    more = (*more, "train.steps=6", "train.weight_decay=0.5")
    loop = tiny.loop_of(tiny.config_of("image", tmp_path, tiny.using(name), *more))
    loop.model.train()
    source, weight = loop._batches(), loop.objective.student["encoder"].frontends["image"].patch_embed.weight
    head, teacher = loop.objective.heads[0].weight, loop.objective.teacher["encoder"].trunk.blocks[0].mlp.fc1.weight
    moved = []
    for _ in range(6):
        before = [x.detach().clone() for x in (weight, head, teacher)]
        loop._step(source)
        moved.append([not torch.equal(x, old) for x, old in zip((weight, head, teacher), before, strict=True)])
    assert [one[0] for one in moved[1:]] == [True, True, False, False, False]  # the first step's rate is 0
    assert all(one[1] for one in moved[1:])
    assert [one[2] for one in moved[1:]] == [True, True, *[name == "spidr"] * 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_has_stopped_keeps_its_shared_parts_too(name, tmp_path):
    """As published: what it copies from the student, its positions, is copied no more."""
    objective = build(name, "speech", tmp_path, "objective.shared=[frontends.speech.positions_conv]")[0]
    weights = [
        side["encoder"].frontends["speech"].positions_conv[0].weight for side in (objective.student, objective.teacher)
    ]
    for decay, follows in ((0.9, True), (1.0, False)):
        with torch.no_grad():
            weights[0].add_(1)
        objective.update_teacher(decay)
        assert torch.equal(*weights) is follows


def test_the_teachers_decay_is_as_published(tmp_path):
    first = build("dinosr", "image", tmp_path, "objective.freeze_share=0.5")[0]
    assert [first.ema_decay(t, 400_000) for t in (0, 15_000, 30_000, 200_000, 200_001)] == pytest.approx(
        [0.999, 0.99945, 0.9999, 0.9999, 1]
    )
    second = build("spidr", "image", tmp_path, "objective.ema_steps=20000")[0]
    assert second.ema_decay(20_000, 400_000) == pytest.approx(1 - 0.001 / math.e)
    assert second.ema_decay(184_000, 400_000) < 1 and second.ema_decay(184_300, 400_000) == 1


def test_what_cannot_be_trained_is_said(tmp_path):
    objective, view = build("spidr", "image", tmp_path)
    keep = (~view.mask.hidden).nonzero()[:1]
    for views, message in (
        ([view, view], "make 2: leave them out"),
        ([view._replace(mask=None)], "data.views makes views in which nothing is"),
        ([view._replace(mask=view.mask._replace(keep=keep))], "spidr encodes every token"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            objective(views)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model.trunk.layer_drop is 0.1: set it to 0"):
        build("spidr", "image", tmp_path, "model.trunk.layer_drop=0.1")
    with pytest.raises(ValueError, match=r"objective.top_k is 3; the trunk has 2 layers"):
        build("dinosr", "image", tmp_path, "objective.top_k=3")
    with pytest.raises(ValueError, match=r"no parameter of the encoder begins with .frontends\.image\.extractor"):
        build("dinosr", "image", tmp_path, "objective.frozen=[frontends.image.extractor]")
