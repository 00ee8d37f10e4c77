"""Methods that predict words: each loss and its gradients against the slow, obvious way, transformers' class with the
same weights, and what is refused."""

import pytest
import small
import tiny
import torch
import transformers
from slowly import gradients, same_as_slow, shaken
from torch import Tensor, nn

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import electra, mlm, mlm_latent
from d2v.objectives.common.masked import drawn, uniforms
from d2v.types import Mask, View, numbers_of

# Words.


def words(samples: int = 4) -> View:
    """Rows of unequal length; of the chosen places some are hidden, replaced or kept, in the last row only one is."""
    view, generator = small.view("text", samples), torch.Generator().manual_seed(7)
    chosen = (torch.rand(view.padding.shape, generator=generator) < 0.5) & ~view.padding
    chosen[-1] = False
    chosen[-1, 2] = True
    fate = torch.rand(chosen.shape, generator=generator)
    hidden, replaced = chosen & (fate < 0.6), chosen & (fate > 0.8)
    hidden[-1, 2] = True
    ids = view.inputs["input_ids"]
    corrupted = torch.where(replaced & ~hidden, torch.randint(4, 20, ids.shape, generator=generator), ids)
    inputs = {"input_ids": ids, "attention_mask": (~view.padding).long()}
    inputs["corrupted_ids"] = corrupted.masked_fill(hidden, small.FRONTENDS["text"]["mask_token_id"])
    return view._replace(inputs=inputs, mask=Mask(hidden, chosen=chosen))


def slow_rows(encoder: D2vModel, view: View, ids: Tensor) -> list[Tensor]:
    """The encoder on the `ids` of each row, without its padding: (T_row, D) each."""
    sizes = (~view.padding).sum(dim=1).tolist()
    return [
        encoder(View(view.modality, {"input_ids": ids[row : row + 1, :size]})).x[0] for row, size in enumerate(sizes)
    ]


def slow_words(head: nn.Module, rows: list[Tensor], table: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """Cross entropy of each chosen word, one after another."""
    total = torch.zeros(())
    for row, place in chosen.nonzero().tolist():
        x = head.norm(nn.functional.gelu(head.dense(rows[row][place])))
        logits = torch.stack([(x * word).sum() for word in table]) + head.bias
        total = total - logits[ids[row, place]] + logits.exp().sum().log()
    return total


def test_mlm_is_the_slow_way():
    """Hidden, replaced and kept places count; rows are of unequal length."""
    objective, view = shaken(mlm.build(small.encoder("text"), mlm.Config())), words()
    mask, encoder = view.mask, objective.student["encoder"]
    loss, ids = objective([view]), view.inputs["input_ids"]
    assert int(loss.count) == int(mask.chosen.sum()) > int(mask.hidden.sum())
    table = encoder.frontends["text"].tokens.weight
    rows = slow_rows(encoder, view, view.inputs["corrupted_ids"])
    same_as_slow(objective, loss, slow_words(objective.head, rows, table, ids, mask.chosen))


def test_mlm_of_hidden_words_alone():
    """Without BERT's variant there are no other ids, and only hidden places count."""
    objective, view = shaken(mlm.build(small.encoder("text"), mlm.Config())), words()
    inputs = {name: value for name, value in view.inputs.items() if name != "corrupted_ids"}
    plain = view._replace(inputs=inputs, mask=Mask(view.mask.hidden))
    ids = inputs["input_ids"].masked_fill(view.mask.hidden, 3)
    encoder = objective.student["encoder"]
    rows, table = slow_rows(encoder, view, ids), encoder.frontends["text"].tokens.weight
    slow = slow_words(objective.head, rows, table, inputs["input_ids"], view.mask.hidden)
    same_as_slow(objective, objective([plain]), slow)


def test_a_word_loss_starts_at_ln_of_the_vocabulary():
    encoder = small.encoder("text", vocab_size=500, init_std=0.02)
    loss = mlm.build(encoder, mlm.Config()).train()([words(64)])
    assert float(loss.total.detach() / loss.count) == pytest.approx(6.21, abs=0.05)


def test_mlm_is_transformers():
    """RobertaForMaskedLM with the same weights: the same loss and the same gradients."""
    torch.manual_seed(0)
    theirs = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=18, pad_token_id=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            type_vocab_size=1, layer_norm_eps=1e-5,
        )
    )  # fmt: skip
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    frontend = {"vocab_size": 20, "max_positions": 16, "mask_token_id": 3, "pad_token_id": 1, "position_offset": 1}
    trunk = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_dim": 64}
    ours = mlm.build(D2vModel(D2vConfig({"text": frontend}, trunk)), mlm.Config()).train()
    names, state = of_roberta(), theirs.state_dict()
    assert names.keys() == ours.state_dict().keys()
    ours.load_state_dict({mine: torch.cat([state[x] for x in of]) for mine, of in names.items()})
    view = words()
    ids, inputs = view.inputs["input_ids"], view.inputs
    labels = ids.masked_fill(~view.mask.chosen, -100)
    expected = theirs(inputs["corrupted_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
    loss = ours([view])
    assert float(loss.total.detach() / loss.count) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    (loss.total / loss.count).backward()
    known = dict(theirs.named_parameters())
    for mine, parameter in ours.named_parameters():
        slope = torch.cat([known[name].grad for name in names[mine]])
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-5, msg=lambda text, mine=mine: mine + text)


def of_roberta() -> dict[str, list[str]]:
    """Which of theirs each of our weights is made of."""
    front, body = "student.encoder.frontends.text", "student.encoder.trunk"
    names = {
        f"{front}.tokens.weight": ["roberta.embeddings.word_embeddings.weight"],
        f"{front}.position_table.weight": ["roberta.embeddings.position_embeddings.weight"],
        "head.bias": ["lm_head.bias"],
    }
    for part in ("weight", "bias"):
        names |= {
            f"{body}.input_norm.{part}": [f"roberta.embeddings.LayerNorm.{part}"],
            f"head.dense.{part}": [f"lm_head.dense.{part}"],
            f"head.norm.{part}": [f"lm_head.layer_norm.{part}"],
        }
        for n in range(2):
            layer = f"roberta.encoder.layer.{n}"
            names |= {
                f"{body}.blocks.{n}.attention.qkv.{part}": [
                    f"{layer}.attention.self.{which}.{part}" for which in ("query", "key", "value")
                ],
                f"{body}.blocks.{n}.attention.proj.{part}": [f"{layer}.attention.output.dense.{part}"],
                f"{body}.blocks.{n}.norm1.{part}": [f"{layer}.attention.output.LayerNorm.{part}"],
                f"{body}.blocks.{n}.norm2.{part}": [f"{layer}.output.LayerNorm.{part}"],
                f"{body}.blocks.{n}.mlp.fc1.{part}": [f"{layer}.intermediate.dense.{part}"],
                f"{body}.blocks.{n}.mlp.fc2.{part}": [f"{layer}.output.dense.{part}"],
            }
    return names


def test_a_batch_of_text_says_which_words_were_chosen(tmp_path):
    """Hidden ones are <mask>, replaced ones differ or happen not to, all others are as they were."""
    config = tiny.config_of("text", tmp_path, tiny.using("mlm"), "data.mask_prob=0.5")
    batches, kept = tiny.batches_of(config), 0
    for step in range(5):
        (view,), _ = batches(step, 0, 1)
        mask, ids, corrupted = view.mask, view.inputs["input_ids"], view.inputs["corrupted_ids"]
        assert not (mask.hidden & ~mask.chosen).any() and torch.equal(corrupted[~mask.chosen], ids[~mask.chosen])
        assert set(corrupted[mask.hidden].tolist()) == {config.frontend.mask_token_id}
        kept += int((mask.chosen & ~mask.hidden).sum())
        assert view.padding is None or not (mask.chosen & view.padding).any()
    assert kept > 20
    (plain,), _ = tiny.batches_of(tiny.config_of("text", tmp_path))(0, 0, 1)
    assert plain.mask.chosen is None


def test_mlm_refuses(tmp_path):
    normed = small.encoder("text", embedding_norm=True)
    for encoder, message in (
        (normed, r"embedding_norm is true, with which there is no <mask>.*set it to false"),
        (small.encoder("image"), "an image has no words to predict"),
        (small.encoder("speech"), "speech has no words to predict"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            mlm.build(encoder, mlm.Config())
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"mask_token_id -1 and pad_token_id 1 must lie in \[0, vocab_size\)"):
        small.encoder("text", mask_token_id=-1)  # of a tokenizer that has none
    left = tiny.config_of("text", tmp_path, tiny.using("mlm"), "data.mask_kind=random", "data.random_token_prob=0",
                          "data.keep_token_prob=0", "data.mask_length=4")  # fmt: skip
    with pytest.raises(ValueError, match=r"mlm encodes every token: the masks of this data.mask_kind leave some out"):
        tiny.objective_of(left).check(tiny.batches_of(left)(0, 0, 4)[0])


# Words and latents.


def test_mlm_latent_is_the_slow_way():
    objective, view = shaken(mlm_latent.build(small.encoder("text"), mlm_latent.Config())), words()
    ids, chosen, encoder = view.inputs["input_ids"], view.mask.chosen, objective.student["encoder"]
    student = slow_rows(encoder, view, view.inputs["corrupted_ids"])
    slow = 0.1 * slow_words(objective.head, student, encoder.frontends["text"].tokens.weight, ids, chosen)
    with torch.no_grad():
        teacher = slow_rows(objective.teacher["encoder"], view, ids)  # the whole text
    for row, place in chosen.nonzero().tolist():
        target = teacher[row][place]
        target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
        error = (objective.predictor(student[row][place]) - target).abs()
        slow = slow + torch.where(error < 1, error**2 / 2, error - 0.5).mean()
    loss = objective([view])
    assert int(loss.count) == int(chosen.sum())
    same_as_slow(objective, loss, slow)


def test_the_teacher_of_mlm_latent_is_averaged_with_its_words_until_it_stands():
    objective = mlm_latent.build(small.encoder("text"), mlm_latent.Config())
    assert [objective.ema_decay(step, 100) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])
    before = objective.teacher["encoder"].frontends["text"].tokens.weight.clone()
    with torch.no_grad():
        objective.student["encoder"].frontends["text"].tokens.weight += 1
    objective.update_teacher(0.9)
    moved = objective.teacher["encoder"].frontends["text"].tokens.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))


# ELECTRA.


def electra_of(**frontend) -> electra.Electra:
    torch.manual_seed(0)
    config = electra.Config(dim=8, depth=2, num_heads=2)
    return shaken(electra.build(small.encoder("text", **frontend), config))


@pytest.mark.parametrize("alibi", ["none", "head"])
def test_electra_is_the_slow_way(alibi):
    """One row after another; what is drawn is taken as given."""
    objective, view = electra_of(alibi=alibi), words()
    ids, chosen, encoder = view.inputs["input_ids"], view.mask.chosen, objective.student["encoder"]
    frontend, slow = encoder.frontends["text"], torch.zeros(())
    filled = ids.clone()
    with torch.no_grad():
        logits = objective.generated(view, view.mask, numbers_of(chosen))
    filled[chosen] = drawn(logits, uniforms(ids, 0, 0)[chosen])
    assert bool((filled != ids).any()) and torch.equal(filled[~chosen], ids[~chosen])
    student = slow_rows(encoder, view, filled)
    for row in range(len(ids)):
        size = int((~view.padding[row]).sum())
        read = view.inputs["corrupted_ids"][row : row + 1, :size]
        x = frontend.embed(read)
        x = objective.project(x + frontend.positions(x, None))
        bias = frontend.bias(size)
        x = objective.generator(x, bias)[0][0]
        places = chosen[row].nonzero()[:, 0].tolist()
        words_of_row = slow_words(objective.head, [x], frontend.tokens.weight, ids[row][None], chosen[row][None])
        slow = slow + words_of_row / len(places)
        for place in range(size):
            said = objective.classifier(student[row][place])[0]
            wrong = filled[row, place] != ids[row, place]
            slow = slow + 50 / size * nn.functional.softplus(-said if wrong else said)
    loss = objective([view])
    assert int(loss.count) == len(ids)
    same_as_slow(objective, loss, slow)


def test_a_word_that_is_drawn_as_it_was_is_original():
    objective, view = electra_of(), words()
    ids, chosen = view.inputs["input_ids"], view.mask.chosen
    sure = torch.full((int(chosen.sum()), 20), -50.0).scatter(1, ids[chosen][:, None], 50.0)
    objective.generated = lambda *_: sure.requires_grad_()  # type: ignore[method-assign]
    loss = objective([view])
    assert loss.metrics["replaced_share"] == 0 and float(loss.metrics["word_loss"]) < 1e-6


def test_the_generator_learns_nothing_from_the_student():
    """No gradient passes through what is drawn."""
    objective, view = electra_of(), words()
    objective.config.weight = 1e-9
    without = gradients(objective, objective([view]).total)
    objective.config.weight = 50.0
    full = gradients(objective, objective([view]).total)
    for name in without:
        if name.startswith(("generator", "project", "head")):
            torch.testing.assert_close(full[name], without[name], rtol=1e-4, atol=1e-6)


def test_words_are_drawn_by_their_shares_and_by_row_and_step():
    """Another process or micro-batch draws the same for a row; another step, row or seed does not."""
    ids = torch.randint(4, 5000, (400, 50))
    numbers = uniforms(ids, 3, 0)
    assert torch.equal(numbers[7:9], uniforms(ids[7:9], 3, 0))
    for others in (uniforms(ids, 4, 0), uniforms(ids, 3, 1), numbers.flip(0)):
        assert float((numbers == others).float().mean()) < 0.01
    assert 0 <= float(numbers.min()) < 0.001 and 0.999 < float(numbers.max()) <= 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
    assert abs(float(torch.corrcoef(numbers.T.double()).fill_diagonal_(0).abs().max())) < 0.25
    shares = torch.tensor([0.1, 0.0, 0.6, 0.3])
    words = drawn(shares.log().expand(20000, -1), numbers.flatten().float())
    torch.testing.assert_close(torch.bincount(words, minlength=4) / 20000, shares, rtol=0, atol=0.012)


def test_electra_starts_at_ln_of_the_vocabulary_and_ln_2():
    torch.manual_seed(0)
    encoder = small.encoder("text", vocab_size=500, init_std=0.02)
    objective = electra.build(encoder, electra.Config(dim=8, depth=1)).train()
    nn.init.zeros_(objective.classifier[-1].weight)
    nn.init.zeros_(objective.classifier[-1].bias)
    loss = objective([words(64)])
    assert float(loss.metrics["word_loss"]) == pytest.approx(6.21, abs=0.1)
    assert float(loss.total.detach() / loss.count - loss.metrics["word_loss"]) == pytest.approx(50 * 0.6931, rel=1e-3)


def test_electra_and_mlm_latent_refuse():
    for method in (electra, mlm_latent):
        with pytest.raises(ValueError, match="an image has no words to predict"):
            method.build(small.encoder("image"), method.Config())
    with pytest.raises(ValueError, match=r"objective.dim is 10; it must be a multiple of objective.num_heads, 3"):
        electra.Config(dim=10, num_heads=3)
    with pytest.raises(ValueError, match=r"objective.num_heads is 1; .*ALiBi: it must be model.trunk.num_heads, 2"):
        electra.build(small.encoder("text", alibi="head"), electra.Config())
