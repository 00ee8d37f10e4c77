"""Views of speech: what each of them does, how often and how much, and that batches of them are pure functions."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from d2v.modalities import speech
from d2v.modalities.speech.batches import MaskedBatches, ViewBatches
from d2v.modalities.speech.frontend import lengths, receptive_field
from d2v.modalities.speech.views import EFFECTS, AugmentConfig, Views, effects_of, noisy, room, with_gaps
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives import byol

RATE = 8000
MEL = {
    "kind": "mel",
    "sample_rate": RATE,
    "mel_bins": 20,
    "conv_dim": 16,
    "pos_kernel": 5,
    "pos_depth": 2,
    "pos_groups": 4,
}
WAVEFORM = {
    "sample_rate": RATE,
    "conv_dim": 16,
    "conv_kernels": [10, 8, 4],
    "conv_strides": [5, 4, 4],
    "pos_kernel": 5,
    "pos_groups": 4,
}
SHORTEST = receptive_field(speech.FrontendConfig(**MEL), 2)
WHOLE = {"share": [1.0, 1.0], "seconds": 60.0}


def maker(*names: str, **fields) -> Views:
    return Views(names, AugmentConfig(**fields), rate=RATE, shortest=SHORTEST)


def ones(generator: np.random.Generator) -> np.ndarray:
    """A clip that is recognised when it serves as noise."""
    return np.ones(500, dtype=np.float32)


def drawn(make: Views, wave: np.ndarray, number: int) -> list[list[np.ndarray]]:
    return [make(wave, np.random.default_rng(seed), ones) for seed in range(number)]


def noise_wave(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def near(count: int, number: int, chance: float) -> bool:
    """Within four standard deviations."""
    return abs(count - number * chance) <= 4 * (number * chance * (1 - chance)) ** 0.5


# Crops.


def test_a_crop_is_a_part_of_its_clip_of_the_asked_share():
    wave = np.arange(4000, dtype=np.float32)
    views = [view for row in drawn(maker("crop", "crop", seconds=0.4), wave, 200) for view in row]
    assert all(np.array_equal(view, wave[int(view[0]) : int(view[0]) + len(view)]) for view in views)
    sizes, starts = np.array([len(view) for view in views]), np.array([view[0] for view in views])
    assert (
        sizes.min() >= 2000 and sizes.max() == 3200 and near((sizes == 3200).sum(), 400, 0.4)
    )  # uniform in 0.5 to 1, cut at 0.8
    assert near((sizes < 2600).sum(), 400, 0.3) and starts.min() < 100 and starts.max() > 1700
    assert near((starts / (4000 - sizes) < 0.25).sum(), 400, 0.25)
    first, second = sizes[::2], sizes[1::2]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3 and abs(np.corrcoef(starts[::2], starts[1::2])[0, 1]) < 0.3


def test_long_clips_give_crops_of_one_length():
    assert {
        len(view) for row in drawn(maker("crop", "speed", chance=1.0), noise_wave(RATE * 10), 30) for view in row
    } == {RATE}
    assert {len(view) for (view,) in drawn(maker("crop", **WHOLE), noise_wave(RATE), 3)} == {RATE}


@pytest.mark.parametrize("size", [SHORTEST, SHORTEST + 1, SHORTEST * 11 // 10, SHORTEST * 2])
def test_the_shortest_clips_give_two_tokens_and_no_nan(size):
    for least in (0.0, 0.01, 1.0):
        make = maker(*speech.VIEWS, chance=1.0, share=[least, 1.0], seconds=SHORTEST / RATE)
        for row in drawn(make, noise_wave(size), 20):
            assert all(
                SHORTEST <= len(view) <= make.width(np.array([size])) and np.isfinite(view).all() for view in row
            )


@pytest.mark.parametrize(
    "fields", [{}, {"share": [0.1, 0.3]}, {"seconds": 0.2, "share": [0.9, 1.0]}, {"share": [1.0, 1.0]}]
)
@pytest.mark.parametrize("names", [("crop", "gain"), ("crop", "speed")])
def test_width_is_the_longest_that_can_be(names, fields):
    assert maker("all").width(np.array([1000])) == maker("speed").width(np.array([1000])) == 1112
    make = maker(*names, chance=1.0, **fields)
    for sizes in ([SHORTEST], [1000, 2777], [3001, 20000]):
        found = max(len(view) for size in sizes for row in drawn(make, noise_wave(size), 50) for view in row)
        assert 0.9 * make.width(np.array(sizes)) <= found <= make.width(np.array(sizes))


# Effects: how often, and how much.


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("chance", [0.5, 0.9])
def test_an_effect_has_its_chance(effect, chance):
    wave = noise_wave(3000)
    views = [view for (view,) in drawn(maker(effect, chance=chance, **WHOLE), wave, 200)]
    changed = sum(not np.array_equal(view, wave) for view in views)
    assert near(changed, 200, chance) and all(view.dtype == np.float32 for view in views)
    assert all(len(view) == 3000 for view in views) == (effect != "speed")


def test_all_draws_each_effect_by_itself():
    assert effects_of("crop") == () and effects_of("gain") == ("gain",) and effects_of("all") == EFFECTS
    wave, counts = np.full(3000, 0.1, dtype=np.float32), Counter()
    for (view,) in drawn(maker("all", chance=0.3, **WHOLE), wave, 300):
        found = ("mask" if (view == 0).any() else "", "speed" if len(view) != 3000 else "")
        counts.update(found)
        counts[found] += 1
    assert (
        near(counts["mask"], 300, 0.3)
        and near(counts["speed"], 300, 0.3)
        and near(counts[("mask", "speed")], 300, 0.09)
    )


def test_gain_is_uniform_in_decibels():
    wave = noise_wave(1000)
    views = [view for (view,) in drawn(maker("gain", gain=6.0, chance=1.0, **WHOLE), wave, 300)]
    gains = np.array([20 * np.log10(np.linalg.norm(view) / np.linalg.norm(wave)) for view in views])
    assert (
        np.abs(gains).max() < 6.001 and abs(gains.mean()) < 0.8 and gains.std() == pytest.approx(12 / 12**0.5, rel=0.1)
    )
    assert all(np.allclose(view, wave * 10 ** (gain / 20), atol=1e-5) for view, gain in zip(views, gains, strict=True))


def test_noise_has_the_asked_ratio_and_is_another_clip_half_of_the_time():
    wave, ratios, clips = noise_wave(1000), [], 0
    for (view,) in drawn(maker("noise", chance=1.0, snr=[0.0, 10.0], **WHOLE), wave, 300):
        noise = view.astype(np.float64) - wave
        ratios.append(10 * np.log10((wave.astype(np.float64) ** 2).sum() / (noise**2).sum()))
        clips += int(noise.std() < 1e-5)  # `ones`, repeated
    assert -0.01 < min(ratios) < 1 and 9 < max(ratios) < 10.01 and np.mean(ratios) == pytest.approx(5, abs=0.7)
    assert near(clips, 300, 0.5)


def test_a_room_has_the_asked_decay_and_the_asked_direct_sound():
    for seconds, direct in ((0.1, 0.0), (0.5, 10.0), (0.3, 5.0)):
        response = room(np.random.default_rng(1), seconds, direct, RATE).astype(np.float64)
        tail = response[1:]
        assert len(tail) == round(seconds * RATE) and np.linalg.norm(response) == pytest.approx(1, abs=1e-5)
        assert 10 * np.log10(response[0] ** 2 / (tail**2).sum()) == pytest.approx(direct, abs=1e-3)
        half = len(tail) // 2
        fall = 10 * np.log10((tail[:half] ** 2).sum() / (tail[half : 2 * half] ** 2).sum())
        assert fall == pytest.approx(30, abs=2)  # 60 dB in all: 30 from the first half to the second
    make, click, wave = (
        maker("reverb", chance=1.0, reverb=[0.1, 0.1], **WHOLE),
        np.eye(1, 2000, dtype=np.float32)[0],
        noise_wave(2000),
    )
    ((response,), (view,)) = (make(sound, np.random.default_rng(5), ones) for sound in (click, wave))
    assert (
        response[0] == max(np.abs(response))
        and np.linalg.norm(response) == pytest.approx(1, abs=1e-3)
        and np.abs(response[801:]).max() < 1e-6
    )
    np.testing.assert_allclose(view, np.convolve(wave, response)[:2000], atol=1e-4)


def test_speed_moves_the_pitch_and_the_length():
    wave = np.sin(2 * np.pi * 500 * np.arange(8000) / RATE).astype(np.float32)
    found = Counter()
    for (view,) in drawn(maker("speed", chance=1.0, **WHOLE), wave, 100):
        pitch = np.abs(np.fft.rfft(view * np.hanning(len(view)), RATE)).argmax()
        found[(int(pitch), len(view))] += 1
    assert set(found) == {(450, 8889), (550, 7273)} and near(found[(450, 8889)], 100, 0.5)


def test_gaps_are_two_of_the_asked_share_at_most():
    wave = torch.ones(1000)
    shares = []
    for seed in range(300):
        gaps = np.diff(np.pad((with_gaps(wave, np.random.default_rng(seed), 0.2) == 0).numpy(), 1).astype(int))
        sizes = np.flatnonzero(gaps == -1) - np.flatnonzero(gaps == 1)
        assert len(sizes) <= 2 and sizes.sum() < 400 and (len(sizes) < 2 or sizes.max() < 200)
        shares.append(sizes.sum() / 1000)
    assert (
        np.mean(shares) == pytest.approx(0.19, abs=0.015) and wave.all()
    )  # 0.1 each, less overlap; the clip itself is whole


def test_silence_stays_silence():
    silent = np.zeros(2000, dtype=np.float32)
    for row in drawn(maker(*speech.VIEWS, chance=1.0), silent, 20):
        assert not any(view.any() for view in row)
    wave = torch.from_numpy(noise_wave(50))
    assert torch.equal(noisy(wave, torch.zeros(50), 5.0), wave)
    assert (
        noisy(wave * 1e-30, wave.flip(0), 5.0).isfinite().all()
        and noisy(wave, wave.flip(0) * 1e-30, 5.0).isfinite().all()
    )


# Batches.


def write(path: Path, wave: np.ndarray) -> None:
    soundfile.write(path, wave * 0.2, RATE, subtype="FLOAT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen clips of 0.1 to 2.35 s, the first of them nearly silent."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(16):
        wave = noise_wave(round((0.1 + 0.15 * number) * RATE), number)
        write(root / f"{number:02}.wav", wave if number else 1e-3 * wave)
    return root


def samples(path: Path | str, frontend: dict = MEL, **fields) -> speech.Samples:
    config = speech.DataConfig(path=str(path), **{"views": ["crop", "all"], **fields})
    return speech.Samples(config, speech.FrontendConfig(**frontend), split="train", folder=Path())


def batches(found: speech.Samples, seed: int = 0, **more) -> ViewBatches:
    return speech.batches(found, found.config, found.frontend, 4, seed, **more)


def parts_of(views: list) -> list[torch.Tensor]:
    """All tensors of views."""
    every = [[*view.inputs.values(), view.indices, *([] if view.padding is None else [view.padding])] for view in views]
    return [tensor for tensors in every for tensor in tensors]


def same(first: list, second: list) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts_of(first), parts_of(second), strict=True))


def test_a_batch_has_a_view_for_each_name(folder):
    found = samples(folder, views=["crop", "noise", "all"])
    made = batches(found)
    assert made.steps_per_epoch == 4
    seen = []
    for step in range(4):
        views, names = made(step, 0, 1)
        assert len(views) == 3 and all(view.mask is None and view.modality == "speech" for view in views)
        seen += views[0].indices.tolist()
        assert names == [found.ids[index] for index in views[0].indices] and views[0].indices.dtype == torch.long
        assert len({view.inputs["input_values"].shape for view in views}) == 1
        for view in views:
            values = view.inputs["input_values"]
            assert (
                torch.equal(view.indices, views[0].indices)
                and values.dtype == torch.float32
                and values.isfinite().all()
            )
            real = view.inputs.get("attention_mask", torch.ones(values.shape))
            assert not values[real == 0].any() and (lengths(found.frontend, real.long().sum(1)) >= 2).all()
            padding = (
                torch.zeros(4, lengths(found.frontend, values.shape[1])).bool()
                if view.padding is None
                else view.padding
            )
            assert torch.equal((~padding).sum(1), lengths(found.frontend, real.long().sum(1)))
        crop = views[0].inputs["input_values"]
        for row, index in enumerate(views[0].indices.tolist()):
            part = crop[row][: int(views[0].inputs.get("attention_mask", torch.ones(crop.shape)).sum(1)[row])].numpy()
            wave = found.wave(index)
            assert any(
                np.array_equal(wave[start : start + len(part)], part) for start in range(len(wave) - len(part) + 1)
            )
    assert sorted(seen) == list(range(16))


def test_views_of_a_long_clip_are_of_one_stretch(folder):
    """Crops of a recording above max_seconds lie within max_seconds of one another."""
    found = samples(
        folder, views=["crop"] * 6, max_seconds=0.3, normalize=False, augment=AugmentConfig(share=[0.2, 0.2])
    )
    for step in range(3):
        views, _ = batches(found)(step, 0, 1)
        for row, index in enumerate(views[0].indices.tolist()):
            wave, places = found.wave(index), []
            if not wave.any():
                continue
            for view in views:
                part = view.inputs["input_values"][row, :200].numpy()
                places += [
                    start
                    for start in np.flatnonzero(wave == part[0])
                    if np.array_equal(wave[start : start + 200], part)
                ]
            assert len(places) == 6 and max(places) - min(places) <= 0.3 * 0.8 * RATE


def test_two_parts_hold_the_rows_of_one(folder):
    made = batches(samples(folder))
    for step in (0, 2, 9):
        (whole, names), *halves = (made(step, part, parts) for part, parts in ((0, 1), (0, 2), (1, 2)))
        for part, (half, half_names) in enumerate(halves):
            assert half_names == names[part::2]
            for mine, theirs in zip(half, whole, strict=True):
                assert torch.equal(mine.inputs["input_values"], theirs.inputs["input_values"][part::2])
                assert torch.equal(mine.indices, theirs.indices[part::2])
                real = (
                    view.inputs.get("attention_mask", torch.ones(view.inputs["input_values"].shape).int())
                    for view in (mine, theirs)
                )
                assert torch.equal(next(real), next(real)[part::2])


def test_a_batch_is_a_function_of_seed_and_step(folder):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = batches(samples(folder))
    first, _ = made(1, 0, 1)
    made(6, 0, 1)
    assert same(made(1, 0, 1)[0], first) and same(pickle.loads(pickle.dumps(made))(1, 0, 1)[0], first)
    assert same(batches(samples(folder, check_files=False, cache_hours=0.0))(1, 0, 1)[0], first)
    assert not same(made(5, 0, 1)[0], first) and not same(batches(samples(folder), seed=1)(1, 0, 1)[0], first)
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])
    twins, _ = batches(samples(folder, views=["crop", "crop"]))(1, 0, 1)
    assert not same(twins[:1], twins[1:])


def test_a_clip_that_vanishes_is_replaced_under_its_own_number(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.wav", noise_wave(RATE - 700 * number, number))
    found, heard = samples(tmp_path, cache_hours=0.0, views=["crop", "noise"], augment=AugmentConfig(chance=1.0)), []
    (tmp_path / "0.wav").unlink()
    views, names = batches(found, bad_log=lambda name, why: heard.append(name))(0, 0, 1)
    assert set(heard) == {"0.wav"} and sorted(names) == ["1.wav", "1.wav", "2.wav", "3.wav"]
    assert [found.ids[index] for index in views[0].indices] == names and all(
        view.inputs["input_values"].isfinite().all() for view in views
    )


# Settings.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"views": ["crop", "echo"]},
            r"data\.views holds 'echo'; it may hold crop, speed, reverb, noise, gain, mask, all",
        ),
        (
            {"views": ["crop"], "pack_seconds": 2.0},
            r"data\.pack_seconds is 2\.0, and nothing reads it: data\.views makes views of single clips",
        ),
        ({"views": ["crop"], "mask_prob": 0.5}, r"data\.mask_prob is 0\.5, and nothing reads it"),
        ({"views": ["crop"], "mask_kind": "block"}, r"data\.mask_kind is block, and nothing reads it"),
        ({"views": ["crop"], "equalise": False}, r"data\.equalise is False, and nothing reads it"),
        ({"augment": {"seconds": 2.0}}, r"data\.augment\.seconds is 2\.0, and nothing reads it: data\.views is empty"),
        ({"augment": {"share": [0.1, 0.2]}}, r"data\.augment\.share is .* data\.views is empty"),
        (
            {"views": ["crop"], "augment": {"chance": 0.1}},
            r"data\.augment\.chance is 0\.1, and nothing reads it: data\.views has no effects",
        ),
        ({"views": ["gain"], "augment": {"snr": [1.0, 2.0]}}, r"data\.augment\.snr is .* neither noise nor all"),
        ({"views": ["noise"], "augment": {"gain": 3.0}}, r"data\.augment\.gain is 3\.0, .* neither gain nor all"),
        ({"views": ["crop"], "augment": {"mask": 0.1}}, r"data\.augment\.mask is 0\.1, .* neither mask nor all"),
        ({"views": ["crop"], "augment": {"reverb": [0.1, 0.2]}}, r"data\.augment\.reverb is .* neither reverb nor all"),
    ],
)
def test_what_nothing_reads_is_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        speech.DataConfig(path="demo", **{**fields, "augment": AugmentConfig(**fields.get("augment", {}))})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", [0.5, 1.1]),
        ("share", [0.6, 0.5]),
        ("share", [0.5]),
        ("share", [0.0, 0.0]),
        ("seconds", 0.0),
        ("chance", 0.0),
        ("chance", 1.1),
        ("reverb", [0.0, 0.5]),
        ("snr", [20.0, 5.0]),
        ("gain", 0.0),
        ("gain", 61.0),
        ("mask", 0.5),
        ("mask", 0.0),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"data\.augment\.{name} is .*; it must (be|have) "):
        AugmentConfig(**{name: value})


def test_good_settings_and_views_of_less_than_two_tokens(tmp_path, folder):
    good = AugmentConfig(
        chance=0.2, gain=1.0, snr=[0.0, 1.0], mask=0.3, reverb=[0.2, 0.2], seconds=3.0, share=[0.0, 1.0]
    )
    speech.DataConfig(path="demo", views=["crop", "all"], augment=good)
    assert speech.VIEWS[0] == "crop" and isinstance(batches(samples(folder, views=[])), MaskedBatches)
    with pytest.raises(ValueError, match=r"data\.augment\.seconds is 0\.01; 2 tokens need"):
        speech.prepare(
            speech.DataConfig(path="demo", views=["crop"], augment=AugmentConfig(seconds=0.01)),
            speech.FrontendConfig(),
            tmp_path,
            0,
        )


# Training.


@pytest.fixture(scope="module")
def demo() -> speech.Samples:
    return samples("demo")


@pytest.mark.parametrize("frontend", [MEL, WAVEFORM], ids=["mel", "waveform"])
def test_every_weight_learns_from_views(demo, frontend):
    views, _ = speech.batches(demo, demo.config, speech.FrontendConfig(**frontend), 4, seed=0)(0, 0, 1)
    trunk = {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 16}
    encoder = D2vModel(D2vConfig(frontends={"speech": frontend}, trunk=trunk))
    objective = byol.build(encoder, byol.Config(hidden_dim=16, out_dim=8)).train()
    loss = objective(views)
    (loss.total / loss.count).backward()
    assert loss.total.isfinite() and int(loss.count) == 4
    idle = {
        name for name, weight in objective.student.named_parameters() if weight.grad is None or not weight.grad.any()
    }
    assert idle == {"encoder.frontends.speech.mask_token"}
    assert not objective.student["encoder"].frontends["speech"].mask_token.requires_grad
