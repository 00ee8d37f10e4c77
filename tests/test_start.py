"""Going on from weights that were trained before: what comes, what starts anew, and what is refused."""

import shutil

import pytest
import tiny
import torch
from safetensors.torch import save_file
from tiny import MODALITIES

from d2v.interop.fairseq import save_fairseq
from d2v.training.init_from import bring_preparation, start_from


def encoder_of(objective, side: str) -> dict[str, torch.Tensor]:
    prefix = f"{side}.encoder."
    return {
        name.removeprefix(prefix): value for name, value in objective.state_dict().items() if name.startswith(prefix)
    }


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("what", ["run folder", "export", "student", "teacher"])
def test_an_export_gives_both_sides_its_weights(modality, what, tmp_path):
    run = tiny.finished(modality)
    place = {"run folder": run, "export": run / "export", **tiny.sides(run)}[what]
    config = tiny.config_of(modality, tmp_path)
    objective = tiny.objective_of(config, run)
    head = {name: value.clone() for name, value in objective.predictor.state_dict().items()}
    said = start_from(objective, place, config)
    expected = tiny.load((place / "export" if what == "run folder" else place) / "model.safetensors")
    for side in ("student", "teacher"):
        found = encoder_of(objective, side)
        assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()
    tiny.assert_same(objective.predictor.state_dict(), head)
    assert said == [
        f"starts from {place}: student, teacher",
        "starts anew: predictor, optimizer, step, learning rate and EMA decay",
    ]


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_a_checkpoint_of_the_same_method_brings_its_teacher_and_head(modality, tmp_path):
    published = [f"model.frontends.{modality}.alibi=none"]
    if modality == "speech":
        published += [
            f"model.frontends.speech.{setting}"
            for setting in (
                "kind=waveform",
                "sample_rate=16000",
                "mel_bins=80",
                "mel_high=null",
                "conv_kernels=[10,8]",
                "conv_strides=[5,16]",
            )
        ]
    config = tiny.config_of(modality, tmp_path, *published)
    source = tiny.objective_of(config)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        source.update_teacher(1.0)  # what the teacher shares is the student's
    save_fairseq(source, tmp_path / "checkpoint.pt")
    objective = tiny.objective_of(config)
    said = start_from(objective, tmp_path / "checkpoint.pt", config)
    tiny.assert_same(objective.state_dict(), source.state_dict())
    assert (
        said[0].endswith("student, teacher, predictor")
        and said[1] == "starts anew: optimizer, step, learning rate and EMA decay"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.trunk.num_heads=4",), r"model.trunk.num_heads is 4; .* was trained with 2"),
        (("model.trunk.mlp_dim=48",), r"model.trunk.mlp_dim is 48; .* was trained with 64"),
        (("model.trunk.pre_norm=true",), r"model.trunk.pre_norm is True; .* was trained with False"),
    ],
)
def test_another_architecture_is_refused_by_its_first_difference(overrides, message, tmp_path):
    run = tiny.finished(MODALITIES[0])
    config = tiny.config_of(MODALITIES[0], tmp_path, *overrides)
    objective = tiny.objective_of(config)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        start_from(objective, run, config)
    tiny.assert_same(objective.state_dict(), before)


def test_other_places_are_refused(tmp_path):
    config = tiny.config_of(MODALITIES[0], tmp_path)
    objective = tiny.objective_of(config)
    with pytest.raises(ValueError, match="no export or run folder"):
        start_from(objective, tmp_path / "nowhere", config)
    with pytest.raises(ValueError, match=f"reads {MODALITIES[1]}, this config trains {MODALITIES[0]}"):
        start_from(objective, tiny.finished(MODALITIES[1]), config)
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pt"):
        start_from(objective, tmp_path / "broken.pt", config)
    copy = tmp_path / "short"
    shutil.copytree(tiny.finished(MODALITIES[0]) / "export", copy)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="short"):
        start_from(objective, copy, config)


def test_an_export_with_a_missing_or_a_strange_weight_is_refused(tmp_path):
    config = tiny.config_of(MODALITIES[0], tmp_path)
    objective = tiny.objective_of(config)
    whole = tiny.load(tiny.finished(MODALITIES[0]) / "export" / "model.safetensors")
    name = "trunk.blocks.1.mlp.fc1.weight"
    for weights, message in (
        ({key: value for key, value in whole.items() if key != name}, f"lacks the weight {name}"),
        (whole | {"trunk.stray": torch.zeros(2)}, "has, and the model does not, the weight trunk.stray"),
    ):
        copy = tmp_path / message[:3]
        shutil.copytree(tiny.finished(MODALITIES[0]) / "export", copy)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            start_from(objective, copy, config)


def test_weights_of_text_need_their_tokenizer(tmp_path):
    config = tiny.config_of("text", tmp_path, f"train.init_from={tmp_path / 'checkpoint.pt'}")
    with pytest.raises(ValueError, match="brings no tokenizer"):
        bring_preparation(config, tmp_path)
    for place in ("export", "tokenizer"):
        config.data.tokenizer, config.train.init_from = None, str(tmp_path / place[0])
        (tmp_path / place[0] / place).mkdir(parents=True)
        (tmp_path / place[0] / place / "tokenizer.json").write_text("{}")
        bring_preparation(config, tmp_path)
        assert config.data.tokenizer == str(tmp_path / place[0] / place)
    config.data.tokenizer, config.train.init_from = None, ""
    bring_preparation(config, tmp_path)
    assert config.data.tokenizer is None


def test_a_run_goes_on_from_another_with_its_tokenizer_and_resumes_without_it(tmp_path):
    modality = "text"
    first = tmp_path / "first"
    shutil.copytree(tiny.finished(modality) / "export", first)
    line = tiny.arguments(
        modality, tmp_path / "second", f"train.init_from={first}", "train.steps=12", "run.save_every=10"
    )
    assert tiny.wait(tiny.start(tiny.run, line)) == [0]
    assert (tmp_path / "second" / "export" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    before, after = (tiny.load(folder / "model.safetensors") for folder in (first, tmp_path / "second" / "export"))
    name = "frontends.text.tokens.weight"
    assert 0 < (after[name] - before[name]).std() < 0.5 * before[name].std()
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "00000012")
    (first / "config.json").unlink()  # a run that has its own checkpoint does not need it any more
    assert tiny.wait(tiny.start(tiny.run, line)) == [0]
    tiny.assert_same(tiny.load(tmp_path / "second" / "export" / "model.safetensors"), after)
