"""Fine-tuning of speech from the command to the export: CTC on letters, classes of utterances, and what is refused."""

import csv
import functools
import json

import numpy as np
import pytest
import soundfile
import tiny
import torch
from tiny import ROOT
from transformers import AutoModelForCTC, AutoProcessor, pipeline

from d2v.finetuning.config import load
from d2v.finetuning.model import build_model
from d2v.finetuning.objective import Supervised
from d2v.finetuning.scores import transcription
from d2v.modalities.speech import audio, labelled, save_preprocessor, synth, transcribed
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import D2vForCTC, D2vForSequenceClassification
from d2v.training.loop import Loop
from scripts import finetune_speech

CONFIGS = sorted((ROOT / "configs" / "speech").glob("finetune_*.yaml"))
TRUNK = ("model.trunk.dim=32", "model.trunk.depth=2", "model.trunk.num_heads=2", "model.trunk.mlp_dim=64")
SHORT = (
    "train.steps=10",
    "train.warmup_steps=2",
    "train.freeze_steps=0",
    "train.batch_size=4",
    "train.validate_every=5",
    "run.log_every=1",
    "run.save_every=5",
)
MASKS = ("data.mask_prob=0.5", "data.mask_length=3", "data.channel_prob=0.3", "data.channel_length=8")


LEARNED = {"letters": "data.transcript=text", "classes": "data.label=label"}


def arguments(folder, *more: str, kind: str = "letters", config: str = "finetune_tiny") -> list[str]:
    """The command line of a run of 10 steps on synthetic vowels."""
    return [
        str(ROOT / "configs" / "speech" / f"{config}.yaml"),
        LEARNED[kind],
        *TRUNK,
        *SHORT,
        f"data.path={vowels()}",
        "data.group=speaker",
        "data.test_split=test",
        f"run.dir={folder}",
        *more,
    ]


@functools.cache
def vowels():
    """A folder of 40 clips of five speakers to train on, and 12 of two others."""
    folder = tiny.scratch() / "vowels"
    for split, count in (("train", 40), ("test", 12)):
        (folder / split).mkdir(parents=True)
        voices = list(synth.VOICES[split].items())[:5]
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "text", "label", "speaker"])
            for number in range(count):
                word, (speaker, voice) = synth.WORDS[number % 4], voices[number // 4 % len(voices)]
                soundfile.write(
                    folder / split / f"{number}.wav", synth.say(word, *voice, np.random.default_rng(number)), synth.RATE
                )
                writer.writerow([f"{number}.wav", word, word, speaker])
    return folder


@functools.cache
def export(modality: str = "speech"):
    """An encoder as pretraining saves it, at its random init."""
    folder, config = tiny.scratch() / f"export_{modality}", tiny.config_of(modality, tiny.scratch())
    if modality == "speech":
        save_preprocessor(folder, folder, config.data, config.frontend)
    else:
        config.frontend.vocab_size, config.frontend.mask_token_id = 9, 4
    D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk)).save_pretrained(folder)
    return folder


def opened(folder, *more: str, kind: str = "letters"):
    """The config and the data of a run."""
    settings, task = load(arguments(folder, *more, kind=kind), "speech")
    return settings, task.open(settings, folder, lambda *_: None, lambda _: None)


def predictions(folder, split: str) -> list[dict]:
    with (folder / f"predictions_{split}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def quick(monkeypatch):
    """No pictures."""
    monkeypatch.setattr(Loop, "plot", lambda self: None)


def write_clips(folder, rows: list[dict], split: str = "train") -> None:
    """A folder of noise, `seconds` each (default 0.5), and its metadata.csv."""
    place = folder / split
    place.mkdir(parents=True)
    columns = [name for name in rows[0] if name != "seconds"]
    with (place / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        for number, row in enumerate(rows):
            wave = np.random.default_rng(number).normal(size=round(8000 * row.get("seconds", 0.5))) * 0.1
            soundfile.write(place / f"{number:03}.wav", wave, 8000)
            writer.writerow([f"{number:03}.wav", *(row[name] for name in columns)])


# Batches.


def test_only_training_hides_and_only_what_is_there(tmp_path):
    _, data = opened(tmp_path, *MASKS, "train.batch_size=6")
    (view,), ids = data.batches(0, 0, 1)
    hidden, channels, padding = view.mask.hidden, view.mask.channels, view.padding
    assert hidden.any(dim=1).all() and not (hidden & padding).any() and not (hidden | padding).all(dim=1).any()
    assert channels.shape == (6, 32) and channels.any() and view.mask.keep is None
    split = data.splits["validation"]
    assert split.samples.view(split.indices[:3]).mask is None
    bare = opened(tmp_path, "data.mask_prob=0", "data.channel_prob=0", "train.batch_size=6")[1].batches(0, 0, 1)
    assert (
        bare[0][0].mask is None
        and bare[1] == ids
        and torch.equal(bare[0][0].inputs["input_values"], view.inputs["input_values"])
    )
    parts = [data.batches(0, part, 2) for part in range(2)]
    for part, ((mine,), names) in enumerate(parts):
        rows = list(range(part, 6, 2))
        assert names == [ids[row] for row in rows]
        assert torch.equal(mine.mask.hidden, hidden[rows]) and torch.equal(mine.mask.channels, channels[rows])
        assert torch.equal(mine.inputs["input_values"], view.inputs["input_values"][rows])
    other = data.batches(len(data.batches.sampler), 0, 1)[0][0]
    assert not torch.equal(other.mask.channels, channels)


def test_the_loss_of_a_batch_is_torch_s_of_each_clip_alone(tmp_path):
    config, data = opened(
        tmp_path,
        "data.mask_prob=0",
        "data.channel_prob=0",
        "train.batch_size=6",
        "model.trunk.dropout=0",
        "task.dropout=0",
    )
    torch.manual_seed(0)
    objective = Supervised(build_model(config, D2vForCTC, data.head, None), config.train)
    (view,), ids = data.batches(0, 0, 1)
    assert view.padding is not None and (view.labels >= 3).all()  # letters, and all words are of two
    loss = objective([view])
    samples = data.splits["validation"].samples  # those of train
    slow = torch.zeros(())
    for name, labels in zip(ids, view.labels, strict=True):
        index = samples.ids.index(name)
        assert data.head["id2label"][int(labels[0])] + data.head["id2label"][int(labels[1])] == samples.texts[index]
        logits = objective.student["model"](samples.view([index])).logits[0]
        slow += torch.nn.functional.ctc_loss(
            logits.log_softmax(-1), labels, torch.tensor(len(logits)), torch.tensor(2), blank=0, reduction="sum"
        )
    torch.testing.assert_close(loss.total, slow, rtol=1e-4, atol=1e-4)
    assert loss.count == 6


def test_letters_of_different_number_are_filled_up(tmp_path):
    write_clips(tmp_path / "data", [{"text": "ab" * (1 + number % 3)} for number in range(12)])
    _, data = opened(
        tmp_path, f"data.path={tmp_path / 'data'}", "data.group=''", "data.test_split=''", "data.validation_share=0.2"
    )
    (view,), ids = data.batches(0, 0, 1)
    numbers = [2 * (1 + int(name[-7:-4]) % 3) for name in ids]
    assert (view.labels >= 0).sum(dim=1).tolist() == numbers and view.labels.shape == (4, max(numbers))
    assert ((view.labels == -100) | (view.labels >= 3)).all()


def test_another_clip_of_the_batch_stands_in_for_one_that_vanished(tmp_path, monkeypatch):
    _, data = opened(tmp_path, "data.mask_prob=0", "data.channel_prob=0")
    (view,), ids = data.batches(0, 0, 1)
    whole, heard = labelled.Samples.wave, []
    monkeypatch.setattr(data.batches, "_bad_log", lambda name, reason: heard.append((name, reason)))

    def wave(self, index):
        if self.ids[index] == ids[1]:
            raise audio.UnreadableError("gone")
        return whole(self, index)

    monkeypatch.setattr(labelled.Samples, "wave", wave)
    (other,), names = data.batches(0, 0, 1)
    assert names == [ids[0], ids[2], ids[2], ids[3]] and heard == [(ids[1], "gone")]
    assert torch.equal(other.labels[1], view.labels[2]) and torch.equal(other.labels[0], view.labels[0])
    monkeypatch.setattr(labelled.Samples, "wave", lambda self, index: (_ for _ in ()).throw(OSError("unmounted")))
    with pytest.raises(ValueError, match="none of the 4 clips of a batch can be read"):
        data.batches(0, 0, 1)


@pytest.mark.parametrize("kind", LEARNED)
def test_held_out_speakers_are_not_trained_on(kind, tmp_path):
    _, data = opened(tmp_path, "data.validation_share=0.3", "data.group=speaker", kind=kind)
    held = data.splits["validation"]
    speakers = held.samples.column("speaker")
    batches = data.batches
    trained = {
        speakers[held.samples.ids.index(name)]
        for step in range(len(batches.sampler))
        for name in batches(step, 0, 1)[1]
    }
    assert len(trained) == 3 and {*speakers[held.indices]} == {*speakers} - trained
    assert len(data.splits["test"].indices) == 12  # its voices are others anyway


def test_clips_of_speakers_that_are_trained_on_are_left_out_of_the_test(tmp_path):
    rows = [{"text": "ab", "speaker": f"s{number % 4}"} for number in range(16)]
    write_clips(tmp_path / "data", rows)
    write_clips(tmp_path / "data", rows, "test")
    more = (f"data.path={tmp_path / 'data'}", "data.group=speaker")
    _, data = opened(tmp_path, *more, "data.validation_share=0.25")
    for split in data.splits.values():
        assert len(split.indices) == 4 and len({*split.samples.column("speaker")[split.indices]}) == 1
    for share, message in (
        (0, "the test split has no sample of a group that is not trained on"),
        (0.9, "0.9 of 4 groups leaves none to train on"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, *more, f"data.validation_share={share}")


# Runs.


@pytest.mark.pictures
def test_a_run_by_ctc_leaves_what_transformers_reads(tmp_path):
    source, folder = export(), tmp_path / "run"
    scores = finetune_speech.main(arguments(folder, f"model={source}", *MASKS, "data.case=upper"))
    assert set(scores) == {"validation", "test"} and set(scores["test"]) == {"wer", "cer"}
    rows = predictions(folder, "test")
    assert transcription([row["transcript"] for row in rows], [row["prediction"] for row in rows]) == pytest.approx(
        scores["test"]
    )
    assert {row["transcript"] for row in rows} == {word.upper() for word in synth.WORDS[:4]}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "validation_wer" in record] == [5, 10]
    assert (folder / "curves.png").is_file() and not list(folder.glob(".*.tmp"))

    model, processor = (
        AutoModelForCTC.from_pretrained(folder / "export"),
        AutoProcessor.from_pretrained(folder / "export"),
    )
    assert isinstance(model, D2vForCTC) and model.config.pad_token_id == 0 and model.encoder.trunk.config.depth == 2
    assert model.config.id2label == {0: "<pad>", 1: "<unk>", 2: "|", 3: "A", 4: "E", 5: "I", 6: "O"}
    model.head.out.weight.data.normal_()  # after 10 steps all is blank
    waves = [synth.say("ia", 120, 1.0, np.random.default_rng(number)) for number in range(3)]
    inputs = processor(waves, sampling_rate=8000, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = processor.batch_decode(model.eval()(**inputs).logits.argmax(dim=-1))
    transcribe = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    assert any(texts) and [transcribe(wave)["text"] for wave in waves] == texts


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch, quick):
    more = (*MASKS, "train.ema_decay=0.9", "train.freeze_steps=3", "model.trunk.layer_drop=0.2", "train.metric=cer")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finetune_speech.main(arguments(whole, *more))
    step = Loop._step

    def dying(self, batches):
        if self.progress.step == 8:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune_speech.main(arguments(killed, *more))
    monkeypatch.setattr(Loop, "_step", step)
    finetune_speech.main(arguments(killed, *more))
    tiny.assert_same(tiny.checkpoint_tensors(killed, 10), tiny.checkpoint_tensors(whole, 10))
    assert tiny.losses(killed) == tiny.losses(whole) and predictions(killed, "test") == predictions(whole, "test")
    tiny.assert_same(
        tiny.load(killed / "export" / "model.safetensors"), tiny.load(whole / "export" / "model.safetensors")
    )


def test_the_extractor_is_frozen_always_and_the_encoder_at_first(tmp_path, quick):
    source = export()
    start = tiny.load(source / "model.safetensors")
    more = (
        f"model={source}",
        *MASKS,
        "train.freeze=[frontends.speech.extractor]",
        "data.validation_share=0",
        "train.validate_every=0",
        "train.metric=",
    )
    more += ("train.steps=3", "data.test_split=''")
    for freeze, moves in ((3, False), (2, True)):
        folder = tmp_path / str(freeze)
        finetune_speech.main(arguments(folder, *more, f"train.freeze_steps={freeze}"))
        end = tiny.load(folder / "export" / "model.safetensors")
        moved = {name for name, value in start.items() if not torch.equal(end[f"encoder.{name}"], value)}
        assert not [name for name in moved if "extractor" in name] and end["head.out.bias"].any()
        assert ("trunk.blocks.0.attention.out.weight" in moved or len(moved) > 10) if moves else not moved


@pytest.mark.pictures
def test_a_run_on_classes(tmp_path, quick):
    scores = finetune_speech.main(arguments(tmp_path / "run", *MASKS, kind="classes"))
    rows = predictions(tmp_path / "run", "test")
    assert np.mean([row["label"] == row["prediction"] for row in rows]) == pytest.approx(scores["test"]["accuracy"])
    assert {row["label"] for row in rows} == {*synth.WORDS[:4]} and (tmp_path / "run" / "confusion_test.png").is_file()
    model = D2vForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    assert sorted(model.config.id2label.values()) == sorted(synth.WORDS[:4])


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_when_made_tiny(path, kind, tmp_path, quick):
    more = [
        "train.steps=2",
        "train.warmup_steps=1",
        "run.workers=0",
        "train.mixed_precision=no",
        "data.split=train",
        "data.test_split=test",
    ]
    more += [
        "data.validation_split=test",
        "data.validation_share=0",
        "train.validate_every=1",
        "model.frontends.speech.conv_dim=16",
    ]
    finetune_speech.main([*arguments(tmp_path / "run", kind=kind, config=path.stem), *more])
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]


# What is refused, or said.


def test_bad_transcripts_are_named_and_skipped(tmp_path, capsys):
    rows = [{"text": "ab  ab"} for _ in range(30)]
    rows[3]["text"], rows[7]["text"], rows[9]["text"], rows[11]["seconds"] = "", "ab" * 200, "a|b", 3.0
    write_clips(tmp_path / "data", rows)
    write_clips(tmp_path / "data", [{"text": "ab" if number else "aébé"} for number in range(12)], "test")
    more = (f"data.path={tmp_path / 'data'}", "data.group=''", "data.max_seconds=2", "data.validation_share=0.1")
    settings, _ = load(arguments(tmp_path, *more), "speech")
    said: list[str] = []
    data = transcribed.open_data(settings, tmp_path, lambda *_: None, said.append)
    text = "\n".join(said)
    for expected in (
        "audio: 26 of 30 samples usable",
        "train/003.wav (empty transcript)",
        "train/007.wav (its transcript needs 400 tokens, the clip has",
        "train/009.wav (its transcript holds '|', which stands between words)",
        "train/011.wav (3.0 s, data.max_seconds is 2.0)",
        "letters: 2: a b",
        "1 of 12 transcripts of the test split hold characters that training does not have: é; they count as errors",
    ):
        assert expected in text, text
    assert data.splits["test"].labels[0] == "aébé" and len(data.splits["validation"].indices) == 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips whose test split is in another case, and whose column "hole" is mostly empty."""
    folder = tmp_path_factory.mktemp("clips")
    for split, text in (("train", "ab"), ("test", "AB")):
        write_clips(
            folder, [{"text": text, "hole": "" if number else "a", "digit": number % 2} for number in range(12)], split
        )
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("data.transcript=words",),
            "data.transcript is 'words': the data has no column 'words'; its columns are file, text, hole, digit",
        ),
        (
            ("data.transcript=hole",),
            r"91.7% of the audio samples of .* are bad, data.max_bad_share is 10.0%: .*001.wav: empty transcript",
        ),
        (
            (),
            r"12 of 12 transcripts of the test split hold characters that training does not have: A B; "
            r"data.max_bad_share is 0.1, and data.case=",
        ),
        (("data.case=title",), "data.case is 'title'; it may be keep, lower, upper"),
        (
            ("data.case=lower", "task.blank=1"),
            "task.blank is 1; the vocabulary that is made of the transcripts has the blank at 0",
        ),
        (
            ("data.case=lower", "data.normalize=false", "model=SPEECH"),
            "data.normalize is False; the encoder of .* was trained with True",
        ),
        (("data.case=lower", "data.group=speaker"), "data.group is 'speaker': the data has no column 'speaker'"),
        (("data.decode.lm=x.arpa",), "data.decode.lm is x.arpa, and nothing reads it: data.decode.beam is 0"),
        (("data.decode.beam=-1",), "data.decode.beam is -1"),
        (("data.mask_prob=1",), "data.mask_prob is 1.0; it must be at least 0"),
        (("data.regression=true",), "unknown key 'data.regression'"),
        (("data.transcript=''", "data.label=digit"), "unknown key 'data.transcript'|unknown key 'data.case'"),
        (("model=TEXT",), "model=.* reads text; this script fine-tunes speech"),
    ],
)
def test_bad_commands_are_refused_in_one_line(more, message, clips, tmp_path):
    more = tuple(arg.replace("TEXT", str(export("text"))) if arg == "model=TEXT" else arg for arg in more)
    more = tuple(arg.replace("SPEECH", str(export())) for arg in more)
    command = arguments(tmp_path / "run", f"data.path={clips}", "data.group=''", *more)
    with pytest.raises(ValueError, match=message) as caught:
        finetune_speech.main(command)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_language_model_is_refused_before_training(clips, tmp_path):
    pytest.importorskip("flashlight.lib.text")
    more = ("data.case=lower", "data.group=''", "data.decode.beam=5", "data.decode.lm=nowhere.arpa")
    with pytest.raises(ValueError, match=r"data.decode.lm is 'nowhere.arpa': no such file"):
        finetune_speech.main(arguments(tmp_path / "run", f"data.path={clips}", *more))


ONE = ("train.steps=1", "train.warmup_steps=0", "train.start=0", "train.lr=1e-9", "train.validate_every=1")


@pytest.mark.parametrize("kind", LEARNED)
def test_fine_tuning_goes_on_from_its_own_export_with_its_head(kind, quick, tmp_path, capsys):
    """A step so small that it changes nothing: encoder and head are those of the first run."""
    finetune_speech.main(arguments(tmp_path / "first", f"model={export()}", kind=kind))
    assert "head of" not in capsys.readouterr().out
    first = tiny.load(tmp_path / "first" / "export" / "model.safetensors")
    for name, source in (("folder", "first"), ("export", "first/export")):
        finetune_speech.main(arguments(tmp_path / name, f"model={tmp_path / source}", *ONE, kind=kind))
        assert f"the head of {tmp_path / source}, which is for the same names" in capsys.readouterr().out
        second = tiny.load(tmp_path / name / "export" / "model.safetensors")
        assert {key for key in first if key.startswith("head.")} and second.keys() == first.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=0, atol=1e-7)


def test_another_alphabet_gets_a_new_head(quick, tmp_path, capsys):
    finetune_speech.main(arguments(tmp_path / "first", f"model={export()}"))
    first = tiny.load(tmp_path / "first" / "export" / "model.safetensors")
    source = f"model={tmp_path / 'first'}"
    for name, more, kind in (("upper", ["data.case=upper"], "letters"), ("word", [], "classes")):
        finetune_speech.main(arguments(tmp_path / name, source, *ONE, *more, kind=kind))
        said = capsys.readouterr().out
        assert (f"a new head: that of {tmp_path / 'first'} is for 7 other names" in said) == (name == "upper")
        second = tiny.load(tmp_path / name / "export" / "model.safetensors")
        key = "encoder.trunk.blocks.0.mlp.fc2.weight"
        torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-7)
        assert not torch.equal(second["head.out.weight"], first["head.out.weight"])
