"""Recordings are read to their end, whatever their header says, at any rate, by pieces where they are long."""

import io
import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from transformers import AutoFeatureExtractor

from d2v.modalities import speech
from d2v.modalities.speech import audio
from d2v.modalities.speech.config import TranscribedConfig
from d2v.modalities.speech.resampling import Resampler
from d2v.modalities.speech.transcribed import Transcripts
from scripts import embed

RATE = 8000
MEL = {"kind": "mel", "sample_rate": RATE, "mel_bins": 20, "conv_dim": 16, "pos_kernel": 5, "pos_depth": 2}
MEL["pos_groups"] = 4


def noise(seconds: float, channels: int = 1, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)).clip(-4, 4)


def encoded(wave: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


def samples(folder: Path, **fields) -> speech.Samples:
    config = speech.DataConfig(path=str(folder), **fields)
    return speech.Samples(config, speech.FrontendConfig(**MEL), split="train", folder=Path())


def batches(found: speech.Samples, size: int = 1):
    return speech.batches(found, found.config, found.frontend, size, 0)


# Lengths.


def flac_of_unknown_length(wave: np.ndarray) -> bytes:
    flac = bytearray(encoded(wave, "FLAC"))
    flac[21] &= 0xF0  # the upper 4 bits of how many samples there are
    flac[22:26] = bytes(4)
    return bytes(flac)


def wav_that_says(promised: int, wave: np.ndarray) -> bytes:
    """A WAV whose chunk of sound says another size than it has."""
    wav = encoded(wave)
    place = wav.index(b"data") + 4
    return (
        wav[:4]
        + struct.pack("<I", min(promised + 36, 2**32 - 1))
        + wav[8:place]
        + struct.pack("<I", promised)
        + (wav[place + 4 :])
    )


def of_unknown_length(kind: str, wave: np.ndarray) -> bytes:
    if kind == "flac":
        return flac_of_unknown_length(wave)
    if kind == "gsm":
        return encoded(wave, "WAV", "GSM610")
    if kind.startswith("au"):
        au = encoded(wave, "AU")
        return au[:8] + (bytes(4) if kind == "au 0" else b"\xff" * 4) + au[12:]
    return wav_that_says(int(kind.partition(" ")[2], 16), wave)


@pytest.mark.parametrize("check_files", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["flac", "gsm", "wav 0", "wav ffffffff", "wav 7ffff000", "wav 7fffffff", "wav ffffffdb", "au 0", "au ffffffff"],
)
def test_streams_of_unknown_length_are_decoded_to_their_end(tmp_path, kind, check_files):
    wave = noise(3.2)  # whole blocks of GSM
    for number in range(2):
        (tmp_path / f"{number}.{kind[:3].strip()}").write_bytes(of_unknown_length(kind, wave))
    for file in tmp_path.glob("*.gsm"):
        file.rename(file.with_suffix(".wav"))
    for file in tmp_path.glob("*.fla"):
        file.rename(file.with_suffix(".flac"))
    found = samples(tmp_path, normalize=False, check_files=check_files)
    assert found.report.lines()[0] == "audio: 2 of 2 samples usable, 0.00 hours"
    assert found.lengths.tolist() == [25600, 25600]
    assert np.corrcoef(found.wave(0), wave[:, 0])[0, 1] > (0.5 if kind == "gsm" else 0.9999)


CUT = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "GSM610"),
    ("WAV", "IMA_ADPCM"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("NIST", "PCM_16"),
    ("VOC", "PCM_16"),
]


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize(("kind", "subtype"), CUT)
def test_a_file_that_was_cut_off_is_refused(kind, subtype, share):
    whole = encoded(noise(20), kind, subtype)
    assert abs(len(audio.decode(whole, RATE)) - 160000) < 600
    with pytest.raises(audio.UnreadableError, match=r"cut off|lost sync|malformed"):
        audio.decode(whole[: round(share * len(whole))], RATE)


def test_a_cut_stream_of_unknown_length_is_refused():
    stream = flac_of_unknown_length(noise(20))
    for read in (audio.decode, audio.length, audio.survey):
        with pytest.raises(audio.UnreadableError, match="lost sync"):
            read(stream[: len(stream) // 2], RATE)


def test_a_header_says_that_a_wav_was_cut(tmp_path):
    """Without decoding."""
    for number in range(10):
        (tmp_path / f"{number}.wav").write_bytes(encoded(noise(2, seed=number))[: -1000 if number == 3 else None])
    found = samples(tmp_path, check_files=False)
    assert found.report.unreadable == [("3.wav", "cut off: 31000 of 32000 bytes are there")]


def test_a_wav_without_sound_stays_empty(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.wav").write_bytes(encoded(noise(1, seed=number)))
    empty = wav_that_says(0, noise(0))
    (tmp_path / "empty.wav").write_bytes(empty)
    assert samples(tmp_path).report.too_short == [("empty.wav", "no samples")]
    assert len(audio.decode(empty + b"LIST\x04\x00\x00\x00INFO", RATE)) == 0  # a chunk that is no sound


# Channels and silence.


@pytest.mark.parametrize("check_files", [True, False])
@pytest.mark.parametrize("max_seconds", [20.0, 0.4])
def test_one_channel_is_taken_where_their_mean_cancels(tmp_path, check_files, max_seconds):
    wave = noise(2)
    soundfile.write(tmp_path / "opposite.wav", np.hstack([wave, -0.999 * wave]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "same.wav", np.hstack([wave, wave]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "other.wav", noise(2, channels=2), RATE, subtype="FLOAT")
    found = samples(tmp_path, normalize=False, check_files=check_files, max_seconds=max_seconds)
    opposite, other, same = (found.wave(index) for index in range(3))
    np.testing.assert_allclose(opposite, wave[:, 0], atol=1e-6)
    np.testing.assert_allclose(same, wave[:, 0], atol=1e-6)
    np.testing.assert_allclose(other, noise(2, channels=2).mean(axis=1), atol=1e-6)
    pieces = found.view([0, 1, 2]).inputs["input_values"].numpy()
    middle = slice((16000 - 3200) // 2, (16000 + 3200) // 2) if max_seconds < 1 else slice(None)
    assert np.array_equal(pieces, np.stack([opposite[middle], other[middle], same[middle]]))


@pytest.mark.parametrize("seconds", [1, 30])
def test_silence_is_no_sound(tmp_path, seconds):
    for number in range(20):
        soundfile.write(tmp_path / f"{number:02}.wav", noise(1, seed=number), RATE)
    soundfile.write(tmp_path / "constant.wav", np.full(seconds * RATE, 0.25), RATE)
    soundfile.write(tmp_path / "zero.wav", np.zeros((seconds * RATE, 2)), RATE)
    found = samples(tmp_path, max_seconds=2.0)
    why = "no sound: all samples are equal"
    assert found.report.unreadable == [("constant.wav", why), ("zero.wav", why)] and len(found) == 20


# Rates.


@pytest.mark.parametrize(("given", "wanted"), [(44101, 8000), (44100, 8000), (7919, 16000), (192001, 16000)])
def test_any_pair_of_rates_keeps_a_tone_in_little_memory(given, wanted):
    seconds = 60 if given == 44101 else 5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = audio.decode(encoded(0.5 * tone(seconds, given), "WAV", "FLOAT", given), wanted)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 1  # GiB; it was 32
    assert len(found) == Resampler(given, wanted).length(seconds * given) == seconds * wanted
    inside = slice(wanted // 10, -wanted // 10)
    np.testing.assert_allclose(found[inside], 0.5 * tone(seconds, wanted)[inside], atol=2e-3)


def tone(seconds: int, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(seconds * rate) / rate)


@pytest.mark.parametrize("rate", [600011, 17])
def test_rates_that_no_filter_joins_are_refused(rate):
    for read in (audio.decode, audio.length, audio.survey):
        with pytest.raises(audio.UnreadableError, match=f"a sampling rate of {rate} Hz cannot be brought to 8000 Hz"):
            read(encoded(noise(0.1), rate=rate), RATE)


@pytest.mark.parametrize("given", [8000, 16000, 22050, 44100, 11025, 44101, 4001])
def test_a_piece_is_that_of_the_whole(given):
    wave = noise(3, rate=given)[:, 0].astype(np.float32)
    resampler = Resampler(given, RATE)
    whole = resampler(wave)
    assert len(whole) == resampler.length(len(wave))
    read: list[int] = []

    def part(first: int, last: int) -> np.ndarray:
        read.append(last - first)
        return wave[first:last]

    for start, stop in ((0, len(whole)), (0, 100), (7, 8), (9001, 12345), (len(whole) - 300, len(whole))):
        np.testing.assert_allclose(resampler.piece(part, start, stop, len(wave)), whole[start:stop], atol=2e-6)
    assert read[2] < 3 * given if given % 1000 and given % 25 else read[2] < 600


# Long recordings.


@pytest.mark.parametrize("kind", tiny.first(["flac", "wav", "ogg", "mp3"]))
@pytest.mark.parametrize("normalize", [True, False])
def test_pieces_of_a_long_recording_are_those_of_the_whole(tmp_path, kind, normalize):
    """At another rate and in stereo, cropped at random, in the middle, in windows, and joined."""
    rate, size = 22050, 8000
    soundfile.write(tmp_path / f"long.{kind}", noise(20, channels=2, rate=rate), rate)
    whole = samples(tmp_path, normalize=normalize).wave(0)
    for check_files in (True, False):
        found = samples(tmp_path, normalize=normalize, max_seconds=1.0, check_files=check_files)
        assert len(found.clip(0)) == found.lengths[0] == len(whole) and isinstance(found.clip(0), audio.Long)
        crop = batches(found)(0, 0, 1)[0][0].inputs["input_values"].numpy()[0]
        start = place(whole, crop)
        np.testing.assert_allclose(crop, whole[start : start + size], atol=1e-4)
        middle = (len(whole) - size) // 2
        view = found.view([0]).inputs["input_values"].numpy()[0]
        np.testing.assert_allclose(view, whole[middle : middle + size], atol=1e-4)
        np.testing.assert_allclose(found.wave(0), whole, atol=1e-4)
        windows = [row for part, _ in found.windows(0, 0.1, 4) for row in part.inputs["input_values"].numpy()]
        assert len(windows) > 20
        start = place(whole, windows[7])
        np.testing.assert_allclose(windows[7], whole[start : start + len(windows[7])], atol=1e-4)
    joined = samples(tmp_path, normalize=normalize, max_seconds=1.0, pack_seconds=1.5, cache_hours=0.0)
    row = batches(joined)(0, 0, 1)[0][0].inputs["input_values"].numpy()[0]
    start = place(whole, row)
    assert start % 12000 == 0
    np.testing.assert_allclose(row, whole[start : start + 12000], atol=1e-4)
    raw = samples(tmp_path, normalize=normalize).raw([0])
    np.testing.assert_allclose(found.raw([0]), raw, atol=1e-4)


def place(whole: np.ndarray, piece: np.ndarray) -> int:
    """Where a piece lies in the whole."""
    hits = [start for start in range(len(whole) - len(piece) + 1) if abs(whole[start] - piece[0]) < 1e-3]
    return min(hits, key=lambda start: np.abs(whole[start : start + 50] - piece[:50]).sum())


def test_a_crop_of_an_hour_decodes_a_crop(tmp_path, monkeypatch):
    hour = np.tile(noise(60), (60, 1))
    soundfile.write(tmp_path / "hour.wav", hour, RATE)
    found = samples(tmp_path, max_seconds=5.0)
    made, decoded = batches(found), []
    whole = soundfile.SoundFile.read

    def read(self, *arguments, **options):
        block = whole(self, *arguments, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    for step in range(3):
        assert made(step, 0, 1)[0][0].inputs["input_values"].shape == (1, 40000)
    assert decoded == [40000] * 3
    decoded.clear()
    made = batches(samples(tmp_path, max_seconds=5.0, check_files=False))
    assert not decoded  # the header says how long it is
    made(0, 0, 1)
    assert max(decoded) <= 2**20 and decoded[-1] == 40000
    decoded.clear()
    made(1, 0, 1)
    assert decoded == [40000]


# One epsilon.


@pytest.mark.parametrize("decibels", [0, -60, -80])
def test_a_quiet_clip_is_normalised_as_the_exports_extractor_does_it(tmp_path, decibels):
    wave = noise(2)
    wave *= 10 ** (decibels / 20) / np.sqrt((wave**2).mean())
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    found = samples(tmp_path)
    speech.save_preprocessor(tmp_path / "export", tmp_path, found.config, found.frontend)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "export")
    theirs = extractor(audio.decode(tmp_path / "a.wav", RATE), sampling_rate=RATE, return_tensors="pt").input_values
    ours = found.view([0]).inputs["input_values"]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    frontend = speech.Frontend(found.frontend, 32, 4).eval()
    frontend.init_weights()
    with torch.no_grad():
        torch.testing.assert_close(frontend.embed(ours), frontend.embed(theirs), rtol=1e-3, atol=1e-3)


# Segments of one recording.


def a_session(folder: Path, rows: str, **fields) -> speech.Samples:
    """A recording of 60 s, of noise that grows louder, and a table of parts of it."""
    loud = noise(60, rate=16000) * np.linspace(0.1, 1, 60 * 16000)[:, None]
    soundfile.write(folder / "session.flac", loud, 16000)
    (folder / "rows.csv").write_text(rows)
    return samples(folder / "rows.csv", normalize=False, **fields)


@pytest.mark.parametrize("check_files", [True, False])
def test_a_row_is_its_own_part_of_a_recording(tmp_path, check_files):
    rows = "file,start,end,label\n" + "".join(f"session.flac,{5 * n},{5 * n + 4.5},{n % 2}\n" for n in range(12))
    found = a_session(tmp_path, rows, check_files=check_files, max_seconds=4.0)
    assert found.report.lines()[0] == f"audio: 12 of 12 samples usable, {12 * 4.5 / 3600:.2f} hours"
    assert found.lengths.tolist() == [36000] * 12 and len(set(found.ids)) == 12
    whole = audio.decode(tmp_path / "session.flac", RATE)
    for index in (0, 1, 11):
        part = whole[index * 40000 : index * 40000 + 36000]
        np.testing.assert_allclose(found.wave(index)[100:-100], part[100:-100], atol=1e-5)
        view = found.view([index]).inputs["input_values"].numpy()[0]
        np.testing.assert_allclose(view[100:-100], part[2100:33900], atol=1e-5)
    raw = found.raw([0, 5, 11])
    assert np.abs(raw[0] - raw[1]).mean() > 0.1 and np.abs(raw[1] - raw[2]).mean() > 0.05
    (view,), names = batches(found, 12)(0, 0, 1)
    assert (
        set(names) == set(found.ids) and len({row[:50].numpy().tobytes() for row in view.inputs["input_values"]}) == 12
    )
    long = a_session(tmp_path, "file,offset,duration\nsession.flac,10,40\nsession.flac,5,\n", max_seconds=2.0)
    assert isinstance(long.clip(0), audio.Long) and long.lengths.tolist() == [320000, 440000]
    np.testing.assert_allclose(long.clip(0)[1000:2000], whole[81000:82000], atol=1e-5)
    np.testing.assert_allclose(long.clip(1)[-1000:-100], whole[-1000:-100], atol=1e-5)


def test_parts_of_a_recording_are_embedded_and_transcribed(tmp_path):
    rows = "file,start,end,text,label\n" + "".join(
        f"session.flac,{5 * n},{5 * n + 2 + n / 10},word {n % 3},{n % 2}\n" for n in range(12)
    )
    found = a_session(tmp_path, rows)
    model = tiny.finished("speech") / "export"
    settings = [f"data.path={tmp_path / 'rows.csv'}", "evaluate.group=''"]
    embed.main([str(tiny.ROOT / "configs/speech/demo.yaml"), f"model={model}", *settings, f"out={tmp_path / 'x.npy'}"])
    features = np.load(tmp_path / "x.npy")
    ids = json.loads((tmp_path / "x.ids.json").read_text())
    assert len(features) == 12 and sorted(ids) == sorted(found.ids)
    assert len({row.tobytes() for row in features}) == 12
    data = TranscribedConfig(path=str(tmp_path / "rows.csv"), max_seconds=2.85)
    transcripts = Transcripts(samples(tmp_path / "rows.csv", max_seconds=2.85), data, training=False)
    assert transcripts.lengths.tolist() == [800 * (20 + n) for n in range(9)]
    assert [why for _, why in transcripts.report.too_long] == [
        f"{2 + n / 10:.1f} s, data.max_seconds is 2.85" for n in (9, 10, 11)
    ]
    assert transcripts.report.amount == f"{sum(2 + n / 10 for n in range(9)) / 3600:.2f} hours"


@pytest.mark.parametrize("check_files", [True, False])
def test_a_part_outside_of_its_recording_is_named(tmp_path, check_files):
    rows = (
        "file,start,end\n"
        + "session.flac,1,3\n" * 2
        + "session.flac,61,62\nsession.flac,58,64\nsession.flac,58,60.05\n"
    )
    found = a_session(tmp_path, rows, check_files=check_files, max_bad_share=0.5)
    reasons = [why for _, why in found.report.unreadable]
    assert reasons == ["begins at 61 s, and the recording has 60 s", "ends at 64 s, and the recording has 60 s"]
    assert found.lengths.tolist() == [16000, 16000, 16000]  # times are rounded
