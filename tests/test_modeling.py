"""D2vModel: masks, padding, bias of what is kept, saving and loading, and sizes of the published models."""

import pytest
import tiny
import torch
from tiny import MODALITIES
from transformers import AutoConfig, AutoModel

from d2v import plugins
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.transformer import Trunk, TrunkConfig
from d2v.types import Mask, View, numbers_of

TRUNK = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_dim": 64}


def built(modality: str, folder, *more: str) -> tuple[D2vModel, View]:
    """A tiny encoder whose biases and tables are not zero, and a batch with its mask."""
    config = tiny.config_of(modality, folder, *more)
    encoder = tiny.objective_of(config).student["encoder"].eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    (view,), _ = tiny.batches_of(config)(0, 0, 1)
    return encoder, view


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_forward_is_embed_hide_positions_trunk(modality, tmp_path):
    encoder, view = built(modality, tmp_path)
    frontend = encoder.frontend(modality)
    for mask in (None, view.mask):
        x = frontend.embed(**view.inputs)
        if mask is not None:
            x = frontend.hide(x, mask.hidden, **view.inputs)
        if view.padding is not None:
            x = torch.where(view.padding[..., None], torch.zeros(()), x)
        positions = frontend.positions(x, view.padding)
        x = x if positions is None else x + positions
        extra = frontend.extra()
        count = 0 if extra is None else extra.shape[1]
        if extra is not None:
            x = torch.cat([extra.expand(len(x), -1, -1), x], dim=1)
        bias = frontend.bias(x.shape[1] - count)
        if view.padding is not None:
            away = torch.cat([torch.zeros(len(x), count, dtype=torch.bool), view.padding], dim=1)[:, None, None]
            bias = torch.zeros(len(x), 1, 1, x.shape[1]).masked_fill(away, -torch.inf) + (0 if bias is None else bias)
        expected, layers = encoder.trunk(x, bias, layers="ffn")
        features = encoder(view, mask, layers="ffn")
        real = torch.ones(x[:, count:].shape[:2]).bool() if view.padding is None else ~view.padding
        torch.testing.assert_close(features.x[real], expected[:, count:][real], rtol=1e-5, atol=1e-5)
        for found, layer in zip(features.layers, layers, strict=True):
            torch.testing.assert_close(found[real], layer[:, count:][real], rtol=1e-5, atol=1e-5)
        assert (features.extra is None) == (count == 0) and features.last_hidden_state is features.x


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_masks_of_one_sample_lie_next_to_each_other(modality, tmp_path):
    """M masks per sample: rows b * M ... b * M + M - 1 are sample b's."""
    encoder, view = built(modality, tmp_path)
    num_rows, num_tokens = view.mask.hidden.shape
    padding = torch.zeros(num_rows, num_tokens, dtype=torch.bool) if view.padding is None else view.padding
    hidden = (torch.rand(3 * num_rows, num_tokens) < 0.4) & ~padding.repeat_interleave(3, dim=0)
    together = encoder(view, Mask(hidden)).x
    for m in range(3):
        torch.testing.assert_close(together[m::3], encoder(view, Mask(hidden[m::3])).x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_only_gives_the_wanted_tokens_and_excludes_keep(modality, tmp_path):
    encoder, view = built(modality, tmp_path)
    hidden = view.mask.hidden
    whole, part = (
        encoder(view, view.mask, layers="ffn"),
        encoder(view, view.mask, layers="ffn", only=numbers_of(hidden)),
    )
    for a, b in zip([part.x, *part.layers], [whole.x, *whole.layers], strict=True):
        torch.testing.assert_close(a, b[hidden], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="only="):
        encoder(view, Mask(hidden, torch.zeros(len(hidden), 1, dtype=torch.long)), only=numbers_of(hidden))


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_kept_tokens_see_only_each_other(modality, tmp_path):
    """The slow way: the blocks on the kept tokens, with the bias gathered entry by entry."""
    encoder, view = built(modality, tmp_path)
    frontend = encoder.frontend(modality)
    num_rows, num_tokens = view.mask.hidden.shape
    real = torch.full((num_rows,), num_tokens) if view.padding is None else (~view.padding).sum(1)
    keep = torch.stack([torch.randperm(int(real.min()))[:5] for _ in range(2 * num_rows)])  # (N, K), two masks a sample
    hidden = torch.ones(2 * num_rows, num_tokens, dtype=torch.bool).scatter(1, keep, False)
    features = encoder(view, Mask(hidden, keep))
    assert features.x.shape == (2 * num_rows, 5, 32)
    x = frontend.hide(encoder.embed(view).repeat_interleave(2, dim=0), hidden, **view.inputs)
    padding = None if view.padding is None else view.padding.repeat_interleave(2, dim=0)
    x = x if padding is None else x.masked_fill(padding[..., None], 0)
    positions = frontend.positions(x, padding)
    x = x if positions is None else x + positions
    extra, bias = frontend.extra(), frontend.bias(num_tokens)
    bias = bias[0] if bias is not None and bias.ndim == 4 else bias  # (H, E + T, E + T): of every sample
    count = 0 if extra is None else extra.shape[1]
    for n in range(2 * num_rows):
        tokens = torch.stack([x[min(n, len(x) - 1), t] for t in keep[n].tolist()])[None]
        index = [*range(count), *(count + t for t in keep[n].tolist())]
        table = None
        if extra is not None:
            tokens = torch.cat([extra, tokens], dim=1)
        if bias is not None:
            table = torch.stack([torch.stack([bias[:, i, j] for j in index], dim=-1) for i in index], dim=-2)
        expected, _ = encoder.trunk(tokens, table)
        torch.testing.assert_close(features.x[n], expected[0, count:], rtol=1e-5, atol=1e-5)


def padded(modality: str, folder) -> tuple[D2vModel, list[View], View]:
    """An encoder, samples of unequal length alone, and all of them in one batch."""
    config = tiny.config_of(modality, folder)
    samples = tiny.samples_of(config)
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk)).eval()
    order = samples.lengths.argsort()
    rows = [int(order[i]) for i in (0, len(order) // 2, -1)]
    return encoder, [samples.view([row]) for row in rows], samples.view(rows)


def modalities_with_padding(folder) -> list[str]:
    return [name for name in MODALITIES if tiny.samples_of(tiny.config_of(name, folder)).lengths is not None]


@torch.no_grad()
def test_a_sample_does_not_feel_the_padding_beside_it(tmp_path):
    names = modalities_with_padding(tmp_path)
    assert len(names) >= 2
    for modality in names:
        encoder, alone, together = padded(modality, tmp_path)
        batch = encoder(together, layers="block")
        assert together.padding.any()
        for row, view in enumerate(alone):
            single, real = encoder(view, layers="block"), ~together.padding[row]
            assert real.sum() == single.x.shape[1]
            torch.testing.assert_close(batch.x[row][real], single.x[0], rtol=1e-5, atol=1e-5)
            for a, b in zip(batch.layers, single.layers, strict=True):
                torch.testing.assert_close(a[row][real], b[0], rtol=1e-5, atol=1e-5)
        # the same from raw inputs, by the attention mask
        raw = encoder(**together.inputs)
        assert torch.equal(raw.x, batch.x)


@pytest.mark.parametrize("modality", MODALITIES)
def test_building_a_model_initialises_every_part_of_it(modality, tmp_path, monkeypatch):
    """transformers' walk over modules once passed over those without parameters of their own.

    torch's defaults were left in their place.
    """
    config = tiny.config_of(modality, tmp_path)
    tiny.samples_of(config)

    def sevens(module: torch.nn.Module) -> None:
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, 7.0)

    monkeypatch.setattr(Trunk, "init_weights", sevens)
    monkeypatch.setattr(plugins.load("d2v.modalities", modality).Frontend, "init_weights", sevens)
    model = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    assert not [name for name, parameter in model.named_parameters() if not (parameter == 7).all()]


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_to_the_bit(modality, tmp_path):
    encoder, view = built(modality, tmp_path)
    encoder.save_pretrained(tmp_path / "saved")
    expected = encoder(view, layers="ffn")
    for loaded in (D2vModel.from_pretrained(tmp_path / "saved"), AutoModel.from_pretrained(tmp_path / "saved")):
        assert type(loaded) is D2vModel and not loaded.training
        found = loaded(view, layers="ffn")
        assert torch.equal(found.x, expected.x) and all(map(torch.equal, found.layers, expected.layers))
        tiny.assert_same(loaded.state_dict(), encoder.state_dict())
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (
        type(config) is D2vConfig
        and config.trunk == encoder.config.trunk
        and config.frontends == encoder.config.frontends
    )


def test_errors_say_what_is_there(tmp_path):
    encoder, view = built(MODALITIES[0], tmp_path)
    with pytest.raises(ValueError, match=rf"reads {MODALITIES[0]}, not '{MODALITIES[1]}'"):
        encoder(view._replace(modality=MODALITIES[1]))
    main = encoder.frontend(MODALITIES[0]).main_input
    with pytest.raises(ValueError, match=rf"takes {main}; it was given nothing"):
        encoder()
    with pytest.raises(ValueError, match=rf"takes {main}; it was given something"):
        encoder(something=torch.zeros(1))
    with pytest.raises(ValueError, match="at least one frontend"):
        D2vModel(D2vConfig(trunk=TRUNK))
    with pytest.raises(ValueError, match=rf"modalities has no 'smell'; it has {', '.join(MODALITIES)}"):
        D2vModel(D2vConfig(frontends={"smell": {}}, trunk=TRUNK))
    with pytest.raises(ValueError, match=r"config of trunk: .*'depht'"):
        D2vModel(D2vConfig(frontends={MODALITIES[0]: {}}, trunk={"depht": 2}))
    with pytest.raises(ValueError, match=rf"config of {MODALITIES[0]}: .*'colour'"):
        D2vModel(D2vConfig(frontends={MODALITIES[0]: {"colour": 2}}, trunk=TRUNK))


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_a_mask_of_another_shape_is_refused(modality, tmp_path):
    encoder, view = built(modality, tmp_path)
    name = encoder.main_input_name
    values = view.inputs[name]
    encoder(**{name: values, "attention_mask": torch.ones_like(values)})
    with pytest.raises(ValueError, match=rf"attention_mask has the shape \(.*; it must be that of {name}, \("):
        encoder(**{name: values, "attention_mask": torch.ones_like(values)[:, :-1]})


def test_features_have_hugging_faces_names(tmp_path):
    encoder, view = built(MODALITIES[0], tmp_path)
    found = encoder(view, output_hidden_states=True)
    assert found.keys() == ["last_hidden_state", "hidden_states"]
    assert found["last_hidden_state"] is found[0] is found.x and found["hidden_states"] is found.hidden_states
    with pytest.raises(KeyError, match="pooler_output; there is last_hidden_state, hidden_states"):
        found["pooler_output"]


def test_one_model_reads_several_modalities(tmp_path):
    frontends = {}
    for modality in MODALITIES:
        config = tiny.config_of(modality, tmp_path)
        tiny.samples_of(config)
        frontends |= config.model.frontends
    encoder = D2vModel(D2vConfig(frontends=frontends, trunk=TRUNK)).eval()
    for modality in MODALITIES:
        (view,), _ = tiny.batches_of(tiny.config_of(modality, tmp_path))(0, 0, 1)
        with torch.no_grad():
            assert encoder(view).x.isfinite().all() and torch.equal(encoder(**view.inputs).x, encoder(view).x)


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes():
    """facts/data2vec.md A3: the speech encoder and its head, and the image model with its head.

    The latter without the index of the bias.
    """
    from d2v.objectives.data2vec import RegressionHead

    image = TrunkConfig(
        pre_norm=True, layer_scale=1e-4, qkv_bias="qv", norm_eps=1e-6, input_norm=False, final_norm=True
    )
    with torch.device("meta"):
        head = RegressionHead(768)
        assert num_parameters(head) == 590_592
        assert num_parameters(D2vModel(D2vConfig(frontends={"speech": {}}, trunk=TrunkConfig()))) == 93_164_288
        assert (
            num_parameters(D2vModel(D2vConfig(frontends={"image": {}}, trunk=image))) + num_parameters(head)
            == 86_256_720
        )


def test_a_dotted_name_is_the_users_own_package(tmp_path):
    """Known by its last part in the state dict, where a dot would split the key."""
    module = plugins.load("d2v.modalities", MODALITIES[0])
    config = tiny.config_of(MODALITIES[0], tmp_path)
    encoder = D2vModel(D2vConfig(frontends={module.__name__: vars(config.frontend)}, trunk=TRUNK))
    assert f"frontends.{MODALITIES[0]}.mask_token" in encoder.state_dict()
    encoder.save_pretrained(tmp_path / "saved")
    assert D2vModel.from_pretrained(tmp_path / "saved").frontend(module.__name__) is not None
