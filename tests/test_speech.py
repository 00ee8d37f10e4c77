"""Speech: frontends against a slow oracle and transformers, reading of files, masks, packing."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import AutoFeatureExtractor, Data2VecAudioConfig, Data2VecAudioModel

from d2v.modalities import speech
from d2v.modalities.speech import audio, synth
from d2v.modalities.speech.audio import crop
from d2v.modalities.speech.batches import MaskedBatches
from d2v.modalities.speech.frontend import lengths, receptive_field
from d2v.modalities.speech.mel import LogMel
from d2v.modalities.speech.resampling import Resampler

TINY = {"conv_dim": 16, "pos_kernel": 5, "pos_depth": 2, "pos_groups": 4}
MEL = {"kind": "mel", "sample_rate": 8000, "mel_bins": 20, **TINY}


def frontend(dim: int = 32, **fields) -> speech.Frontend:
    built = speech.Frontend(speech.FrontendConfig(**{**TINY, **fields}), dim, 4)
    for parameter in built.parameters():
        torch.nn.init.constant_(parameter, float("nan"))  # what init_weights forgets shows
    built.init_weights()
    return built.eval()


def samples(path, split: str = "train", frontend_fields: dict = MEL, **fields) -> speech.Samples:
    config = speech.DataConfig(path=str(path), **fields)
    return speech.Samples(config, speech.FrontendConfig(**frontend_fields), split=split, folder=Path())


def batches(found: speech.Samples, batch_size: int = 4, seed: int = 0, **more) -> MaskedBatches:
    return speech.batches(found, found.config, found.frontend, batch_size, seed, **more)


def write(path: Path, seconds: float, rate: int = 8000, channels: int = 1, seed: int = 0) -> np.ndarray:
    wave = np.random.default_rng(seed).normal(size=(round(seconds * rate), channels)).clip(-4, 4) * 0.2
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return wave


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Twelve clips of 0.5 to 1.6 s."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(12):
        write(root / f"{number:02}.wav", 0.5 + 0.1 * number, seed=number)
    return root


# Frontend.


def test_published_lengths():
    config = speech.FrontendConfig()
    for raw, tokens in {399: 0, 400: 1, 16000: 49, 32000: 99, 320000: 999}.items():
        assert lengths(config, raw) == tokens
        assert lengths(config, torch.tensor([raw])).tolist() == lengths(config, np.array([raw])).tolist() == [tokens]
    assert [receptive_field(config, tokens) for tokens in (1, 2)] == [400, 720]


@pytest.mark.parametrize("fields", [{}, MEL, {"kind": "mel"}, {"conv_kernels": [5, 4], "conv_strides": [3, 4]}])
def test_lengths_are_what_embed_gives(fields):
    built = frontend(**fields)
    shortest = receptive_field(built.config)
    for size in (shortest, shortest + 1, shortest + 777):
        assert built.embed(torch.randn(1, size)).shape == (1, lengths(built.config, size), 32)
    assert lengths(built.config, shortest - 1) == 0
    with pytest.raises(ValueError, match=f"one token needs {shortest}"):
        built.embed(torch.randn(1, shortest - 1))


def test_extractor_equals_convolution_norm_gelu():
    built = frontend()
    waves = torch.randn(2, 2000)
    x = waves[:, None]
    for layer, stride in zip(built.extractor.layers, built.config.conv_strides, strict=True):
        x = F.conv1d(x, layer.weight, stride=stride).transpose(1, 2)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias)).transpose(1, 2)
    expected, found = x.transpose(1, 2), built.extractor(waves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    weights = list(built.extractor.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad((out * direction).sum(), weights) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def hugging_face(built: speech.Frontend) -> Data2VecAudioModel:
    """The class of transformers with the same weights."""
    config = Data2VecAudioConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, conv_dim=[16] * 7,
        num_conv_pos_embedding_groups=4, conv_pos_kernel_size=built.config.pos_kernel,
        num_conv_pos_embeddings=built.config.pos_depth,
    )  # fmt: skip
    model = Data2VecAudioModel(config).eval()
    state = {"feature_projection.layer_norm": built.norm, "feature_projection.projection": built.projection}
    for number, layer in enumerate(built.extractor.layers):
        state[f"feature_extractor.conv_layers.{number}.layer_norm"] = layer.norm
        model.feature_extractor.conv_layers[number].conv.weight.data.copy_(layer.weight)
    for number, conv in enumerate(built.positions_conv):
        state[f"encoder.pos_conv_embed.layers.{number}.conv"] = conv
    for name, module in state.items():
        model.get_submodule(name).load_state_dict(module.state_dict())
    return model


@pytest.mark.parametrize("kernel", [5, 6])
@torch.no_grad()
def test_equals_transformers(kernel):
    built = frontend(pos_kernel=kernel)
    for layer in (*built.extractor.layers, built):
        torch.nn.init.normal_(layer.norm.weight, 1, 0.3)
    model, waves = hugging_face(built), torch.randn(2, 4000)
    tokens = built.embed(waves)
    theirs, _ = model.feature_projection(model.feature_extractor(waves).transpose(1, 2))
    torch.testing.assert_close(tokens, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(built.positions(tokens, None), model.encoder.pos_conv_embed(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, MEL])
@torch.no_grad()
def test_padding_does_not_reach_a_clip(fields):
    built, sizes = frontend(**fields), [3000, 4100, 5000]
    clips = [torch.randn(size) for size in sizes]
    batch = torch.nn.utils.rnn.pad_sequence(
        clips, batch_first=True, padding_value=7.0
    )  # not zero: embed must not look there
    attention_mask = (torch.arange(5000) < torch.tensor(sizes)[:, None]).long()
    tokens, padding = built.embed(batch, attention_mask), built.padding(batch, attention_mask)
    for row, clip in enumerate(clips):
        alone = built.embed(clip[None])[0]
        assert (~padding[row]).sum() == len(alone) == lengths(built.config, len(clip))
        torch.testing.assert_close(tokens[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)
    assert built.padding(batch, torch.ones_like(attention_mask)) is None and built.padding(batch) is None


def test_mel_of_a_tone_and_of_the_slow_way():
    mel = LogMel(8000, 40, 25.0, 10.0, low=60.0)
    time = torch.arange(2000) / 8000
    low, high = (mel(torch.sin(2 * torch.pi * pitch * time)[None])[0].mean(0).argmax() for pitch in (300.0, 2000.0))
    assert 0 < low < high < 39
    wave = torch.randn(1, 900)
    piece = (
        F.pad(torch.hann_window(200), (28, 28)) * wave[0, 80:336]
    )  # the window stands in the middle of the transform
    expected = ((torch.fft.rfft(piece).abs().square() @ mel.filters + 1e-2).log() + 1) / 2.5
    torch.testing.assert_close(mel(wave)[0, 1], expected, rtol=1e-4, atol=1e-5)


def test_a_frontend_built_without_memory_gets_everything_from_its_state():
    """What from_pretrained does; a filter bank that is no persistent buffer would come back as garbage."""
    built = frontend(**MEL)
    with torch.device("meta"):
        empty = speech.Frontend(built.config, 32, 4)
    empty.load_state_dict(built.state_dict(), assign=True)
    waves = torch.randn(2, 2000)
    assert torch.equal(empty.embed(waves), built.embed(waves))


@pytest.mark.parametrize("fields", [{}, MEL])
def test_half_precision(fields):
    built = frontend(**fields)
    waves = torch.randn(1, 3000)
    tokens = built.embed(waves)
    with torch.autocast("cpu", torch.bfloat16):
        assert (built.embed(waves).float() - tokens).abs().mean() < 0.03
    built = built.bfloat16()
    assert (built.embed(waves).float() - tokens).abs().mean() < 0.03


def test_hide_and_init():
    built = frontend()
    tokens, hidden = torch.randn(2, 9, 32), torch.rand(2, 9) < 0.5
    found = built.hide(tokens, hidden)
    assert torch.equal(found[~hidden], tokens[~hidden]) and (found[hidden] == built.mask_token).all()
    assert built.mask_token.min() >= 0 and built.mask_token.max() <= 1 and built.mask_token.mean() > 0.2
    assert all(parameter.isfinite().all() for parameter in built.parameters())
    wide = frontend(conv_dim=256)
    assert wide.extractor.layers[1].weight.std().item() == pytest.approx((2 / (256 * 3)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mfcc"}, "waveform, mel"),
        ({"conv_kernels": [3]}, "same length"),
        ({"pos_groups": 5}, "pos_groups=5 does not divide"),
        ({"mel_stride": 0}, "mel_stride is 0"),
        ({**MEL, "mel_high": 5000.0}, "4000"),
        ({**MEL, "mel_bins": 200}, "mel_bins=200"),
        ({**MEL, "mel_window_ms": 0.1}, "too few"),
    ],
)
def test_impossible_frontends(fields, message):
    with pytest.raises(ValueError, match=message):
        frontend(**fields)


# Samples.


def test_bad_files_are_named(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    (tmp_path / "nothing.flac").write_bytes(b"")
    write(tmp_path / "deep" / "cut.flac", 1.0)
    (tmp_path / "deep" / "cut.flac").write_bytes((tmp_path / "deep" / "cut.flac").read_bytes()[:3000])
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    write(tmp_path / "zero.wav", 0)
    write(tmp_path / "short.wav", 0.02)
    found = samples(tmp_path, max_bad_share=0.5)
    assert {name for name, _ in found.report.unreadable} == {"broken.wav", "nothing.flac", "deep/cut.flac", "nan.wav"}
    assert (
        dict(found.report.too_short)["zero.wav"] == "no samples"
        and "0.100 s" in dict(found.report.too_short)["short.wav"]
    )
    assert (found.report.found, found.report.usable, len(found)) == (18, 12, 12)
    assert not {name for name, _ in found.report.unreadable + found.report.too_short} & set(found.ids)
    with pytest.raises(ValueError, match=r"data\.max_bad_share.*broken\.wav"):
        samples(tmp_path)
    quick = samples(tmp_path, max_bad_share=0.5, check_files=False)
    assert "broken.wav" not in quick.ids and "nan.wav" in quick.ids  # headers only


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_stereo_at_another_rate(tmp_path, suffix):
    wave = write(tmp_path / f"a.{suffix}", 1.01, rate=22050, channels=2)
    for check_files in (True, False):
        found = samples(tmp_path, normalize=False, check_files=check_files)
        assert found.lengths.tolist() == [Resampler(22050, 8000).length(len(wave))] == [len(found.wave(0))]


def test_resampling_keeps_the_tone(tmp_path):
    time = np.arange(8000) / 8000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 8000)
    found = samples(tmp_path, frontend_fields=TINY, normalize=False)
    wave = found.wave(0)
    assert len(wave) == 16000 and np.abs(np.fft.rfft(wave)).argmax() == 440


def test_evaluation_view(folder):
    found = samples(folder, max_seconds=1.0)
    (wave, long) = (found.wave(0), found.wave(11))
    assert abs(wave.mean()) < 1e-6 and wave.std() == pytest.approx(1, abs=1e-3) and len(long) == 12800
    view = found.view([0, 11])
    assert (
        view.modality == "speech"
        and view.mask is None
        and view.inputs["attention_mask"].sum(1).tolist() == [4000, 8000]
    )
    assert np.array_equal(view.inputs["input_values"][1].numpy(), long[2400:10400])  # the middle
    assert np.array_equal(view.inputs["input_values"][0].numpy(), np.pad(wave, (0, 4000)))
    assert torch.equal(view.padding, frontend(**MEL).padding(**view.inputs))
    assert found.view([11]).padding is None and set(found.view([11]).inputs) == {"input_values"}
    assert found.raw([0, 11]).shape == (2, 40)


def test_demo():
    found, test = samples("demo"), samples("demo", split="test")
    assert (len(found), len(test)) == (420, 120) and list(found.classes) == list(synth.WORDS)
    assert not set(found.column("speaker")) & set(test.column("speaker"))
    assert set(found.report.classes.values()) == {42}
    again = synth.say("ia", 120, 1.0, np.random.default_rng(3))
    assert np.array_equal(again, synth.say("ia", 120, 1.0, np.random.default_rng(3)))
    with pytest.raises(ValueError, match="train, test"):
        samples("demo", split="validation")
    with pytest.raises(ValueError, match="audio, label, text, speaker"):
        found.column("word")


# Batches.


def same(first, second) -> bool:
    """Views equal to the bit."""
    parts = [
        (*view.inputs.values(), view.mask.hidden, torch.zeros(0) if view.padding is None else view.padding)
        for view in (first, second)
    ]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize("fields", [{"max_seconds": 1.2}, {"pack_seconds": 0.7}])
def test_parts_make_the_whole(folder, fields):
    made = batches(samples(folder, **fields))
    for step in (0, 1, made.steps_per_epoch + 1):
        ((whole,), names), *halves = (made(step, part, parts) for part, parts in ((0, 1), (0, 2), (1, 2)))
        for part, ((half,), half_names) in enumerate(halves):
            assert half_names == names[part::2]
            for key, values in (("input_values", half.inputs["input_values"]), ("mask", half.mask.hidden)):
                expected = (whole.mask.hidden if key == "mask" else whole.inputs[key])[part::2]
                assert torch.equal(values, expected[:, : values.shape[1]]) and not expected[:, values.shape[1] :].any()
            tokens = values.shape[1]
            mine, theirs = (torch.zeros(4, 999).bool() if p is None else p for p in (half.padding, whole.padding))
            assert torch.equal(mine[:2, :tokens], theirs[part::2, :tokens][:2])


def test_a_batch_is_a_function_of_seed_and_step(folder):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = batches(samples(folder, max_seconds=0.8))
    (first,), _ = made(1, 0, 1)
    made(5, 0, 1)
    assert same(made(1, 0, 1)[0][0], first)
    assert same(batches(samples(folder, max_seconds=0.8, check_files=False, cache_hours=0.0))(1, 0, 1)[0][0], first)
    assert not torch.equal(
        batches(samples(folder, max_seconds=0.8), seed=1)(1, 0, 1)[0][0].mask.hidden, first.mask.hidden
    )
    assert torch.equal(torch.get_rng_state(), torch_state) and np.array_equal(np.random.get_state()[1], numpy_state)


def test_batches_travel_to_a_worker(folder):
    made = batches(samples(folder))
    assert same(pickle.loads(pickle.dumps(made))(1, 0, 1)[0][0], made(1, 0, 1)[0][0])


def test_masks(folder):
    made = batches(samples(folder, max_seconds=0.5))  # every row the same length: every row hides the same count
    for step in range(made.steps_per_epoch):
        (view,), _ = made(step, 0, 1)
        counts = view.mask.hidden.sum(1)
        assert view.padding is None and counts.unique().numel() == 1 and 0 < counts[0] < view.mask.hidden.shape[1]
    made = batches(samples(folder))
    for step in range(made.steps_per_epoch):
        (view,), _ = made(step, 0, 1)
        assert view.padding.any() and not (view.mask.hidden & view.padding).any()
        share = view.mask.hidden.sum(1) / (~view.padding).sum(1)
        assert share.max() - share.min() < 1 / (~view.padding).sum(1).min()
    uneven = batches(samples(folder, max_seconds=0.5, equalise=False))
    assert any(
        uneven(step, 0, 1)[0][0].mask.hidden.sum(1).unique().numel() > 1 for step in range(uneven.steps_per_epoch)
    )


def test_streams_hold_every_sample_once(folder):
    found = samples(folder, pack_seconds=0.7)
    made = batches(found, batch_size=3)
    for epoch in (0, 1):
        order, _ = made._order(epoch)
        expected = np.concatenate([found.wave(index) for index in order])
        rows = {}
        for step in range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch):
            (view,), _ = made(step, 0, 1)
            assert view.padding is None and set(view.inputs) == {"input_values"}
            rows |= dict(zip(made.sampler(step).tolist(), view.inputs["input_values"].numpy(), strict=True))
        assert len(rows) == made.steps_per_epoch * 3 == found.lengths.sum() // 5600 // 3 * 3
        for stream, row in rows.items():
            assert np.array_equal(row, expected[stream * 5600 : (stream + 1) * 5600])
    assert not np.array_equal(made._order(0)[0], order)
    with pytest.raises(ValueError, match=r"18 streams of data\.pack_seconds=0\.7"):
        batches(found, batch_size=19)


@pytest.mark.parametrize("pack_seconds", [0.0, 0.7])
def test_a_clip_that_vanishes_is_replaced(tmp_path, pack_seconds):
    for number in range(4):
        write(tmp_path / f"{number}.wav", 1.5 - 0.2 * number, seed=number)
    found, heard = samples(tmp_path, cache_hours=0.0, pack_seconds=pack_seconds), []
    before = batches(found)(0, 0, 1)[0][0]
    (tmp_path / "0.wav").unlink()
    made = batches(found, bad_log=lambda name, why: heard.append((name, why)))
    (after,), names = made(0, 0, 1)
    assert {name for name, _ in heard} == {"0.wav"} and heard[0][1].startswith("no such file: ")
    assert not any("0.wav" in name for name in names) and torch.equal(after.mask.hidden, before.mask.hidden)
    assert same(made(0, 0, 1)[0][0], after)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="100 clips in a row"):
        made(0, 0, 1)


def test_crop_is_inside():
    wave = np.arange(10)
    assert crop(wave, 4, 6).tolist() == [6, 7, 8, 9] and crop(wave, 20, 0) is wave


def test_settings_are_checked(tmp_path):
    for name, value in (("mask_prob", 1.5), ("max_seconds", 0.05), ("mask_length", 0), ("mask_adjust", -0.1)):
        with pytest.raises(ValueError, match=f"data.{name} is {value}"):
            speech.DataConfig(path="demo", **{name: value})
    with pytest.raises(ValueError, match=r"data\.pack_seconds is 0\.02"):
        speech.prepare(speech.DataConfig(path="demo", pack_seconds=0.02), speech.FrontendConfig(), tmp_path, 0)


def test_preprocessor(tmp_path, folder):
    found = samples(folder)
    speech.save_preprocessor(tmp_path, tmp_path, found.config, found.frontend)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    raw = [audio.decode(folder / name, 8000) for name in ("00.wav", "03.wav")]
    theirs = extractor(raw, sampling_rate=8000, padding=True, return_tensors="pt")
    ours = found.view([0, 3]).inputs
    torch.testing.assert_close(theirs["input_values"], ours["input_values"], rtol=1e-3, atol=1e-4)
    assert torch.equal(theirs["attention_mask"], ours["attention_mask"])


def test_recorded_digits(shared):
    found = samples(shared / "data/fsdd", split="test", pack_seconds=2.0)
    assert len(found) == 300 and found.report.amount == "0.04 hours" and set(found.report.classes.values()) == {30}
    assert len(set(found.column("speaker"))) == 6
    (view,), names = batches(found, batch_size=8)(0, 0, 1)
    assert view.inputs["input_values"].shape == (8, 16000) and "test:" in names[0]
    raw, label, speaker = found.raw(range(300)), found.column("label"), found.column("speaker")
    raw = (raw - raw.mean(0)) / raw.std(0)
    near = torch.cdist(*(torch.tensor(raw),) * 2).fill_diagonal_(np.inf).argmin(1).numpy()
    assert (label[near] == label).mean() > 0.6  # the audio is what its labels say
    assert (speaker[near] == speaker).mean() > 0.6
    assert io.BytesIO(found._source(0)).read(4) == b"fLaC"
