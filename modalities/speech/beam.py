"""Beam search over CTC's output, with an n-gram model of words if there is one, by flashlight-text through torchaudio.

T tokens, V letters.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from d2v.modalities.speech.letters import BLANK, SPACE, UNKNOWN, Vocabulary
from d2v.settings import check_fields, setting


@dataclass
class DecodeConfig:
    """How the splits are read at the end of a run; validation in between is greedy."""

    beam: int = setting(0, "Hypotheses that are kept; 0: only the greedy reading.", least=0, limit=100_000)
    lm: str = setting(
        "", "A word n-gram that KenLM reads, ARPA or binary; empty: none.", place=True, only={"beam": True}
    )
    lexicon: str = setting(
        "",
        "A file with one word a line, those that lm may find; empty: the words that were trained on.",
        place=True,
        only={"lm": True},
    )
    lm_weight: float = setting(2.0, "Weight of lm against the model.", least=-1000, limit=1000, only={"lm": True})
    word_score: float = setting(
        0.0, "Added for each word; above 0 favours more words.", least=-1000, limit=1000, only={"lm": True}
    )

    def __post_init__(self):
        """ValueError: a beam of less than nothing, or settings that have no effect."""
        check_fields(self, "data.decode")


def build(config: DecodeConfig, vocabulary: Vocabulary, texts: Iterable[str]) -> Callable[[np.ndarray], str]:
    """A function from logits (T, V) to text; `texts` are those that were trained on.

    ValueError: the decoder is not installed, a file that is missing or no language model, or a lexicon of no word that
    can be spelled.
    """
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError):
        raise ValueError(
            "data.decode.beam needs the package flashlight-text: pip install 'd2v[beam]', or data.decode.beam=0"
        ) from None
    for name in ("lm", "lexicon"):
        given = getattr(config, name)
        if given and not Path(given).is_file():
            raise ValueError(f"data.decode.{name} is {given!r}: no such file (looked for {Path(given).absolute()})")
    options = {
        "tokens": vocabulary.letters,
        "blank_token": BLANK,
        "sil_token": SPACE,
        "unk_word": UNKNOWN,
        "beam_size": config.beam,
    }
    if not config.lm:
        decoder = ctc_decoder(lexicon=None, lm=None, log_add=True, **options)
        return lambda logits: vocabulary.decode(_best(decoder, logits).tokens.tolist())
    with tempfile.TemporaryDirectory() as folder:  # the decoder reads a file
        spelled = Path(folder) / "lexicon.txt"
        lines = [f"{word} {' '.join(word)} {SPACE}\n" for word in words(config, vocabulary, texts)]
        spelled.write_text("".join(lines), encoding="utf-8")
        try:
            decoder = ctc_decoder(
                lexicon=str(spelled), lm=config.lm, lm_weight=config.lm_weight, word_score=config.word_score, **options
            )
        except RuntimeError as error:
            raise ValueError(
                f"data.decode.lm is {config.lm!r}, which KenLM cannot read: {' '.join(str(error).split())[:300]}"
            ) from None
    return lambda logits: " ".join(_best(decoder, logits).words)


def words(config: DecodeConfig, vocabulary: Vocabulary, texts: Iterable[str]) -> list[str]:
    """The words that the search may say, sorted. ValueError: none that the vocabulary can spell."""
    lines = Path(config.lexicon).read_text("utf-8").splitlines() if config.lexicon else texts
    spelled = set()
    for line in lines:
        spelled |= {word for word in line.split() if not vocabulary.unknown(word)}
    if not spelled:
        raise ValueError(
            f"data.decode.lexicon {config.lexicon!r} has no word of the letters {' '.join(vocabulary.letters[3:])}"
        )
    return sorted(spelled)


def _best(decoder, logits: np.ndarray):
    """The likeliest hypothesis, of logits (T, V)."""
    scores = log_softmax(logits.astype(np.float32), axis=1)
    (hypotheses,) = decoder(torch.from_numpy(scores)[None])
    return hypotheses[0]
