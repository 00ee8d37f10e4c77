"""Letters, error rates and decoding, against edit distances, paths counted one by one, and transformers' tokenizer."""

import itertools
import sys

import jiwer
import numpy as np
import pytest
import torch

from d2v.finetuning.scores import transcription
from d2v.modalities.speech import beam
from d2v.modalities.speech.letters import Vocabulary, normalise, tokens_needed


def edits(wanted, found) -> int:
    """Edit distance by the definition: every way to begin."""
    if not wanted or not found:
        return len(wanted) + len(found)
    if wanted[0] == found[0]:
        return edits(wanted[1:], found[1:])
    return 1 + min(edits(wanted[1:], found), edits(wanted, found[1:]), edits(wanted[1:], found[1:]))


def test_error_rates_are_edit_distances():
    generator = np.random.default_rng(0)
    texts = [
        [" ".join(generator.choice(["a", "ab", "b"], size=generator.integers(low, 4))) for _ in range(12)]
        for low in (1, 0)
    ]
    wanted, found = texts
    assert "" in found
    words = sum(edits(one.split(), other.split()) for one, other in zip(wanted, found, strict=True)) / sum(
        len(one.split()) for one in wanted
    )
    letters = sum(edits(one, other) for one, other in zip(wanted, found, strict=True)) / sum(map(len, wanted))
    assert transcription(wanted, found) == pytest.approx({"wer": words, "cer": letters})
    assert jiwer.wer(["a b"], [""]) == 1


def test_greedy_reading_counts_repeats_once_and_leaves_out_blanks():
    vocabulary = Vocabulary.of_texts(["ab b", "c"])
    assert vocabulary.letters == ["<pad>", "<unk>", "|", "a", "b", "c"]
    generator, tokenizer = np.random.default_rng(1), vocabulary.tokenizer()
    for _ in range(50):
        path = generator.choice([0, 0, 2, 3, 4, 5], size=12)
        once = [letter for place, letter in enumerate(path) if place == 0 or letter != path[place - 1]]
        slow = "".join(
            " " if letter == 2 else "ab c"[letter - 3] if letter < 5 else "c" for letter in once if letter != 0
        ).strip()
        assert vocabulary.greedy(np.eye(6)[path]) == slow == tokenizer.decode(path)
    assert vocabulary.encode("b ca?").tolist() == [4, 2, 5, 3, 1] == tokenizer("b ca?").input_ids
    assert tokens_needed("hello") == 6 and tokens_needed("aaa") == 5 and tokens_needed("a") == 1
    assert normalise(" a\u0301 \n B ", "upper") == "\u00c1 B"


def brute_force(logits: np.ndarray, vocabulary: Vocabulary) -> str:
    """The text of most probability, summed over all its paths."""
    shares = torch.from_numpy(logits).softmax(dim=1).numpy()
    texts: dict[str, float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        text = vocabulary.greedy(np.eye(logits.shape[1])[list(path)])
        texts[text] = texts.get(text, 0) + float(np.prod(shares[range(len(path)), path]))
    return max(texts, key=texts.__getitem__)


def test_beam_search_finds_the_likeliest_text():
    pytest.importorskip("flashlight.lib.text")
    vocabulary = Vocabulary.of_texts(["ab"])
    search = beam.build(beam.DecodeConfig(beam=200), vocabulary, [])
    generator, differs = np.random.default_rng(2), 0
    for _ in range(15):
        logits = generator.normal(size=(4, 5)) - [0, 9, 9, 0, 0]  # no unknown, no space
        assert search(logits) == brute_force(logits, vocabulary)
        differs += search(logits) != vocabulary.greedy(logits)
    assert differs


ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-2\t<unk>
0\t<s>\t0
-1\t</s>
-1\tab\t0
-1\tba\t0

\\2-grams:
-0.01\t<s> ba
-0.01\tba </s>

\\end\\
"""


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "lm.arpa").write_text(ARPA)
    vocabulary = Vocabulary.of_texts(["ab", "ba"])
    logits = np.full((5, 5), -20.0)
    logits[0, 3], logits[0, 4], logits[2, 4], logits[2, 3] = 0.1, 0, 0.1, 0  # a little rather "ab" than "ba"
    logits[[1, 3], 0] = 0
    logits[4, 2] = 0
    assert vocabulary.greedy(logits) == "ab"
    for weight, text in ((0.0, "ab"), (2.0, "ba")):
        search = beam.build(
            beam.DecodeConfig(beam=20, lm=str(tmp_path / "lm.arpa"), lm_weight=weight), vocabulary, ["ab ba"]
        )
        assert search(logits) == text
    (tmp_path / "no.arpa").write_text("no language model")
    with pytest.raises(ValueError, match=r"data.decode.lm is '.*no.arpa', which KenLM cannot read: .*arpa"):
        beam.build(beam.DecodeConfig(beam=5, lm=str(tmp_path / "no.arpa")), vocabulary, ["ab"])
    (tmp_path / "words").write_text("ab\nxy\n")
    config = beam.DecodeConfig(beam=20, lm=str(tmp_path / "lm.arpa"), lexicon=str(tmp_path / "words"))
    assert beam.words(config, vocabulary, ["ba"]) == ["ab"] and beam.build(config, vocabulary, ["ba"])(logits) == "ab"


def test_without_the_decoder_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("flashlight")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flashlight", None)
    for name in ("_ctc_decoder", "ctc_decoder"):
        monkeypatch.delattr(f"torchaudio.models.decoder.{name}", raising=False)
    monkeypatch.delitem(sys.modules, "torchaudio.models.decoder._ctc_decoder", raising=False)
    with pytest.raises(ValueError, match=r"needs the package flashlight-text: pip install 'd2v\[beam\]'"):
        beam.build(beam.DecodeConfig(beam=5), Vocabulary.of_texts(["a"]), [])
