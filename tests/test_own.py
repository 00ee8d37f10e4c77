"""What each modality has for itself in a shared trunk, and one modality taken out, against models of one modality."""

import copy

import pytest
import several
import small
import torch
from several import OWN, POST, PRE

from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.own import Own
from d2v.models.slices import fill_trunk, one_modality
from d2v.models.states import watched
from d2v.models.transformer import Trunk
from d2v.models.trunk_config import TrunkConfig
from d2v.training.optim import layer_scale, parameter_groups

MODALITIES = tuple(small.FRONTENDS)
CASES = [
    {},
    {"own_norms": True},
    {"own_ffn_from": 1},
    OWN,
    PRE | OWN,
    PRE | {"own_norms": True},
]


def by_hand(model: D2vModel, modality: str) -> D2vModel:
    """A model of one modality, of which each weight is looked for in the shared one."""
    trunk = {name: value for name, value in model.config.trunk.items() if name not in OWN}
    alone = D2vModel(D2vConfig(frontends={modality: small.FRONTENDS[modality]}, trunk=trunk)).eval()
    there = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            *layer, last = name.split(".")
            names = [name] + [".".join([*layer[:n], modality, *layer[n:], last]) for n in range(len(layer) + 1)]
            (found,) = [there[one] for one in names if one in there]
            parameter.copy_(found)
    return alone


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_a_modality_is_read_by_what_is_its_own_and_taken_out_is_the_same_to_the_bit(case, modality):
    model, view = several.trained(several.encoder(**case)), small.view(modality, samples=3)
    before = torch.get_rng_state()
    alone = one_modality(model, modality)
    assert torch.equal(before, torch.get_rng_state())
    expected = by_hand(model, modality)(view, layers="ffn")
    for encoder in (model, alone):
        found = encoder(view, layers="ffn")
        assert torch.equal(found.x, expected.x) and all(map(torch.equal, found.layers, expected.layers))
    assert list(alone.config.frontends) == [modality] and not any(alone.config.trunk[name] for name in OWN)
    assert not any(isinstance(module, Own) for module in alone.modules()) and not alone.training
    assert one_modality(alone, modality) is alone


@pytest.mark.parametrize("trunk", [POST, PRE], ids=["post", "pre"])
def test_it_starts_as_the_shared_trunk_does(trunk):
    """The same random numbers, whatever is each modality's own."""
    shared, own = several.encoder(**trunk), several.encoder(**trunk, **OWN)
    with torch.no_grad():
        for modality in MODALITIES:
            view = small.view(modality, samples=2)
            assert torch.equal(shared(view).x, own(view).x)
    for layer in (module for module in own.modules() if isinstance(module, Own)):
        assert list(layer) == list(MODALITIES)
        for copies in zip(*(one.parameters() for one in layer.values()), strict=True):
            assert all(torch.equal(copies[0], other) for other in copies[1:])
    more = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
    norms = 5 * 2 * POST["dim"]  # two in each block, and one before or after them
    mlp = 2 * POST["dim"] * POST["mlp_dim"] + POST["dim"] + POST["mlp_dim"]  # of the second block
    assert more == 2 * (norms + mlp)


def test_nothing_is_own_by_default():
    """Names of weights are as they were before there was such a choice."""
    names = set(several.encoder().trunk.state_dict())
    block = ["attention.qkv", "attention.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["input_norm", *(f"blocks.{n}.{part}" for n in range(2) for part in block)]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert (TrunkConfig().own_norms, TrunkConfig().own_ffn_from) == (False, 0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trunk", [POST, PRE], ids=["post", "pre"])
def test_a_batch_of_one_modality_trains_nothing_that_is_anothers(trunk, recompute):
    model = several.trained(several.encoder(**trunk, **OWN)).train()
    alone = one_modality(model, "speech")
    assert alone.training
    found = []
    for encoder in (model, alone):
        encoder.trunk.gradient_checkpointing = recompute
        encoder(small.view("speech", samples=2)).x.square().sum().backward()
        found.append({name: p.grad for name, p in encoder.trunk.named_parameters()})
    others = {name for name in found[0] if any(f".{other}." in name for other in ("image", "text"))}
    assert others and all(found[0][name] is None for name in others)
    ours = {name.replace(".speech.", "."): g for name, g in found[0].items() if name not in others}
    assert ours.keys() == found[1].keys() and all(torch.equal(ours[name], g) for name, g in found[1].items())


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path):
    model = several.trained(several.encoder(**OWN))
    model.save_pretrained(tmp_path)
    loaded = D2vModel.from_pretrained(tmp_path)
    assert loaded.config.trunk == model.config.trunk and loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded(small.view("text")).x, model(small.view("text")).x)


@torch.no_grad()
def test_states_and_attention_are_those_of_the_modality_taken_out():
    model, view = several.trained(several.encoder(**PRE, **OWN)), small.view("image", samples=2)
    for encoder in (model, one_modality(model, "image")):
        with watched(encoder.trunk) as states:
            encoder(view)
        features = encoder(view, output_hidden_states=True, output_attentions=True)
        assert len(states.hidden) == 3 and all(map(torch.equal, states.attentions, features.attentions))
        if encoder is model:
            expected = features
    assert all(map(torch.equal, features.hidden_states, expected.hidden_states))
    assert all(map(torch.equal, features.attentions, expected.attentions))


def test_rates_and_decays_are_those_of_the_layer():
    model = torch.nn.ModuleDict({"encoder": several.encoder(**OWN)})
    scales = {name: layer_scale(name, 2, 0.5, True) for name, _ in model.named_parameters()}
    for name, scale in scales.items():
        plain = name.replace(".image.", ".").replace(".text.", ".").replace(".speech.", ".")
        if ".trunk." in name:
            assert scale == layer_scale(plain, 2, 0.5, True)
    assert scales["encoder.trunk.blocks.1.mlp.text.fc1.weight"] == 0.5**1
    assert scales["encoder.trunk.input_norm.text.weight"] == 0.5**3
    decayed = {id(p) for group in parameter_groups(model, 0.1) if group["decays"] for p in group["params"]}
    named = dict(model.named_parameters())
    assert id(named["encoder.trunk.blocks.1.mlp.text.fc1.weight"]) in decayed
    assert id(named["encoder.trunk.blocks.1.norm1.text.weight"]) not in decayed


@torch.no_grad()
def test_a_trunk_is_filled_from_others():
    """What is own from the modality's, the rest from the one that is named."""
    model = several.encoder(**OWN)
    alone = {name: several.trained(several.encoder(name)) for name in MODALITIES[:2]}
    for number, encoder in enumerate(alone.values()):
        for parameter in encoder.parameters():
            parameter += number
    fill_trunk(model, {name: encoder.trunk.state_dict() for name, encoder in alone.items()}, "image")
    assert torch.equal(one_modality(model, "image").trunk(x := torch.randn(1, 4, 16))[0], alone["image"].trunk(x)[0])
    speech = one_modality(model, "speech").trunk.state_dict()
    for name, value in speech.items():
        source = "speech" if "norm" in name or name.startswith("blocks.1.mlp.") else "image"
        assert torch.equal(value, alone[source].trunk.state_dict()[name])
    text = one_modality(model, "text").trunk.state_dict()
    assert all(torch.equal(value, alone["image"].trunk.state_dict()[name]) for name, value in text.items())


def test_what_would_change_nothing_is_refused():
    for trunk in ({"own_norms": True}, {"own_ffn_from": 1}):
        (name,) = trunk
        with pytest.raises(ValueError, match=rf"model\.trunk\.{name} is (true|1), and nothing reads it: .*reads image"):
            several.encoder("image", **trunk)
        with pytest.raises(ValueError, match="of models of several modalities, and this one reads one: leave it out"):
            Trunk(TrunkConfig(**POST, **trunk))
    with pytest.raises(ValueError, match=r"model\.trunk\.own_ffn_from is 3; the trunk has 2 blocks"):
        several.encoder(own_ffn_from=3)
    with pytest.raises(ValueError, match="this model reads image, speech, not 'text'"):
        one_modality(several.encoder("image", "speech"), "text")


@torch.no_grad()
def test_a_copy_has_its_own():
    """As the teacher is a copy of the student."""
    model = several.encoder(**OWN)
    other = copy.deepcopy(model)
    next(iter(model.trunk.blocks[0].norm1.values())).weight.zero_()
    assert not torch.equal(one_modality(model, "image")(small.view()).x, one_modality(other, "image")(small.view()).x)
