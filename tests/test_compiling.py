"""train.compile: the same losses by compiled blocks, each one graph, and nothing else of a run changes."""

import pytest
import several
import tiny
import torch

from d2v.models.transformer import PostNormBlock, PreNormBlock
from d2v.training import compiling

BLOCKS = (PostNormBlock, PreNormBlock)


@pytest.fixture(autouse=True)
def fresh():
    """No code that another test has compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, **how) -> list[str]:
    """Compiles the blocks of `model` in place; what is said of it."""
    said: list[str] = []
    compiling.compile_blocks(compiling.blocks_to_compile(model, torch.device("cpu"), said.append, **how), **how)
    return said


def losses(modality: str, name: str, folder, backend: str, *more: str) -> dict[str, list]:
    """Loss of each of two steps, plain and compiled, and the names in the state dict."""
    found = {}
    for wanted in (False, True):
        config = tiny.config_of(
            modality, folder / str(wanted), tiny.using(name), "train.steps=2", "run.save_every=5", *more
        )
        loop = tiny.loop_of(config)
        names = list(loop.objective.state_dict())
        if wanted:
            assert not compiled(loop.objective, backend=backend)
            blocks = [module for module in loop.objective.modules() if isinstance(module, BLOCKS)]
            assert all(block._compiled_call_impl is not None for block in blocks) and len(blocks) >= 4
        loop()
        assert list(loop.objective.state_dict()) == names
        found[wanted] = list(tiny.losses(folder / str(wanted)).values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "name", "more"),
    [
        ("image", "data2vec", ()),
        ("image", "data2vec", ("model.trunk.drop_path=0.1",)),
        ("speech", "data2vec2", ()),
        ("text", "data2vec", ("train.checkpoint_activations=true",)),
        ("image", "ibot", ()),
        ("image", "ijepa", ()),
    ],
)
def test_compiled_blocks_give_the_same_losses_in_one_graph_each(modality, name, more, tmp_path):
    found = losses(modality, name, tmp_path, "aot_eager", *more)
    assert found[True] == pytest.approx(found[False], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "name"), [("image", "data2vec"), ("speech", "data2vec2"), ("text", "data2vec")])
def test_so_does_the_code_that_inductor_makes(modality, name, tmp_path):
    found = losses(modality, name, tmp_path, "inductor")
    assert found[True] == pytest.approx(found[False], rel=1e-6)


def test_layers_of_several_modalities_compile_too():
    encoder = several.trained(several.encoder(**several.OWN)).train()
    assert not compiled(encoder, backend="eager")
    assert all(block._compiled_call_impl is not None for block in encoder.trunk.blocks)


def test_states_and_attention_are_seen_through_compiled_blocks():
    """Compiled code calls no hooks: what a page of a run draws is computed by the blocks as they are written."""
    encoder, pixels = several.encoder("image").eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    expected = encoder(**pixels, output_hidden_states=True, output_attentions=True)
    assert not compiled(encoder, backend="eager")
    torch.testing.assert_close(encoder(**pixels).x, expected.x)
    found = encoder(**pixels, output_hidden_states=True, output_attentions=True)
    assert len(found.attentions) == len(encoder.trunk.blocks)
    torch.testing.assert_close(found.attentions, expected.attentions)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states)


def test_what_cannot_be_compiled_is_said_once_and_goes_on_as_it_is(capsys):
    encoder = several.encoder("image")

    def broken(graph, inputs):
        raise OSError("no compiler here")

    before = torch.get_rng_state()
    said = compiled(encoder, backend=broken)
    assert len(said) == 1 and "no compiler here" in said[0] and "\n" not in said[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(block._compiled_call_impl is None for block in encoder.trunk.blocks)
    with pytest.raises(ValueError, match=r"train.compile=true compiles the trunk's blocks, and this one has none"):
        compiled(torch.nn.Linear(1, 1))
