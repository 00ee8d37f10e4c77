"""Rates and decays at the steps for which the reference's are known (facts/data2vec.md 0.1 and A4)."""

import math

import pytest

from d2v.training.schedules import SCHEDULES, constant, cosine, cosine_between, linear_decay, polynomial, tri_stage


def test_tri_stage_of_the_published_run():
    for step, lr in {
        0: 5e-6,
        6000: 2.525e-4,
        12000: 5e-4,
        200000: 5e-4,
        372000: 5e-4,
        386000: 5e-5,
        400000: 5e-6,
        500000: 5e-6,
    }.items():
        assert 5e-4 * tri_stage(step, 400000, 12000, floor=0.01, start=0.01, hold=0.9) == pytest.approx(lr, rel=1e-6), (
            step
        )


@pytest.mark.parametrize(("floor", "start"), [(0.0, 0.0), (0.1, 0.05)])
def test_cosine(floor, start):
    for step in range(0, 121, 5):
        rising, falling = (
            start + step * (1 - start) / 20,
            floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * min(step - 20, 80) / 80)),
        )
        assert cosine(step, 100, 20, floor=floor, start=start) == pytest.approx(rising if step < 20 else falling)


def test_polynomial():
    for step, share in {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0, 200: 0}.items():
        assert polynomial(step, 100, 10) == pytest.approx(share)
    assert polynomial(55, 100, 10, floor=0.2) == pytest.approx(0.6)


def test_constant():
    assert [constant(step, 100, 4) for step in (0, 1, 4, 99)] == [0, 0.25, 1, 1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_one_after_warm_up_and_stays_within_bounds(name):
    rates = [SCHEDULES[name](step, 50, 10, floor=0.05, start=0.02) for step in range(60)]
    assert rates[0] == pytest.approx(0.02) and rates[10] == 1 and max(rates) == 1 and min(rates) >= 0.02
    without = [SCHEDULES[name](step, 50, 0, floor=0.05, start=0.02) for step in range(60)]
    assert without[0] == 1 and without == sorted(without, reverse=True)
    assert SCHEDULES[name](3, 3, 3, floor=0.05, start=0.02) <= 1  # nothing but warm-up


def test_ema_decay_of_the_published_run():
    for step, decay in {1: 0.99900003, 15000: 0.99945, 29999: 0.99989997, 30000: 0.9999, 100000: 0.9999}.items():
        assert linear_decay(step, 0.999, 0.9999, 30000) == pytest.approx(decay, abs=1e-9)
    assert linear_decay(0, 0.999, 0.9999, 30000) == 0.999
    assert {linear_decay(step, 0.9998, 0.9998, 10) for step in range(20)} == {0.9998}
    assert linear_decay(0, 0.9, 0.99, 0) == 0.99  # no ramp


def test_ema_decay_of_byol_and_weight_decay_of_dino():
    """The curve of facts/ssl_methods.md 0.2: 1 - (1 - m0) (1 + cos(pi t / T)) / 2, and between any two values."""
    for step in range(0, 121, 10):
        progress = min(step, 100) / 100
        assert cosine_between(step, 100, 0.996, 1.0) == pytest.approx(
            1 - 0.004 * (1 + math.cos(math.pi * progress)) / 2, abs=1e-12
        )
        assert cosine_between(step, 100, 0.04, 0.4) == pytest.approx(
            0.04 + 0.36 * (1 - math.cos(math.pi * progress)) / 2, abs=1e-12
        )
        assert cosine_between(step, 100, 0.04, None) == 0.04
    assert [cosine_between(step, 100, 0.996, 1.0) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])
