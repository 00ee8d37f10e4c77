"""A setting's bounds are declared once, and a value outside them is named with what is allowed."""

from dataclasses import dataclass, fields

import pytest
import tiny
from omegaconf import OmegaConf

from d2v import plugins
from d2v.config.schema import RunConfig, TrainConfig
from d2v.evaluation.config import EmbedConfig, EvaluateConfig
from d2v.finetuning.config import TuneConfig
from d2v.modalities.speech.config import TranscribedConfig
from d2v.models.decoder import DecoderConfig
from d2v.models.task_models import ClassifierConfig, CTCConfig
from d2v.models.transformer import TrunkConfig
from d2v.settings import Allowed, check_fields, default_of, section, setting, undocumented


@dataclass
class Inner:
    size: int = setting(3, "How large.", least=1, most=5)


@dataclass
class Outer:
    rate: float = setting(0.5, "How fast.", above=0, below=1)
    kind: str = setting("", "Which.", among=("", "a"))
    rates: list[float] = setting([1.0, 2.0], "Two of them.", least=0, count=2)
    limit: float | None = setting(None, "At most.", least=0)
    inner: Inner = section(Inner, "More.")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", 0, "here.rate is 0; it must be above 0 and below 1"),
        ("rate", float("nan"), "here.rate is nan; it must be above 0 and below 1"),
        ("limit", float("inf"), "here.limit is inf; it must be 0 or more"),
        ("kind", "b", "here.kind is 'b'; it may be '', a"),
        ("rates", [1.0, -1.0], r"here.rates is \[1.0, -1.0\]; it must be 0 or more"),
        ("rates", [1.0], r"here.rates is \[1.0\]; it must have 2 entries"),
    ],
)
def test_a_value_outside_the_bounds_is_named(name, value, message):
    check_fields(Outer(), "here")
    with pytest.raises(ValueError, match=message):
        check_fields(Outer(**{name: value}), "here")


def test_defaults_are_copied_and_omegaconf_reads_the_schema():
    Outer().rates.append(3.0)
    assert Outer().rates == [1.0, 2.0]
    merged = OmegaConf.merge(OmegaConf.structured(Outer), {"inner": {"size": 4}})
    assert OmegaConf.to_object(merged) == Outer(inner=Inner(4))


@pytest.mark.parametrize("kind", [Outer, TrainConfig, RunConfig, EvaluateConfig, EmbedConfig, TuneConfig])
def test_every_setting_has_a_sentence(kind):
    assert undocumented(kind) == []


@pytest.mark.parametrize(
    "kind",
    [
        *(plugins.load("d2v.objectives", name).Config for name in tiny.OBJECTIVES),
        TrunkConfig,
        DecoderConfig,
        ClassifierConfig,
        CTCConfig,
    ],
)
def test_every_setting_of_models_and_objectives_has_a_sentence_and_is_read_by_omegaconf(kind):
    assert undocumented(kind) == []
    assert OmegaConf.to_object(OmegaConf.structured(kind)) == kind()
    for one in fields(kind):
        if isinstance(default_of(one), float):
            with pytest.raises(ValueError, match=f"{one.name} is nan; it must be"):
                kind(**{one.name: float("nan")})


def test_no_bounds_still_means_a_finite_number():
    assert str(Allowed()) == "it must be a finite number" and not Allowed().passes(float("inf"))


@pytest.mark.parametrize("modality", plugins.available("d2v.modalities"))
def test_every_setting_of_a_modality_has_a_sentence(modality):
    package = plugins.load("d2v.modalities", modality)
    for kind in (package.FrontendConfig, package.DataConfig, package.LabelledConfig):
        assert undocumented(kind) == []


def test_every_setting_of_transcripts_has_a_sentence():
    assert undocumented(TranscribedConfig) == []


@pytest.mark.parametrize("objective", tiny.OBJECTIVES)
def test_how_a_teacher_follows_is_read_where_it_is_updated(objective):
    for one in fields(plugins.load("d2v.objectives", objective).Config):
        if one.name.startswith("ema_"):
            assert all(case.get("train.update_teacher") is True for case in one.metadata["readers"].cases), one.name
            assert one.metadata["readers"].cases
