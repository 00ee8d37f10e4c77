"""Stock text models as they are found: in half precision, and beside a tokenizer."""

import copy
from pathlib import Path

import pytest
import torch
from test_huggingface import stock
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from d2v.interop.huggingface import from_transformers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_loses_nothing_more(dtype):
    theirs = stock("text").to(dtype)
    expected = from_transformers(copy.deepcopy(theirs).float()).state_dict()
    for name, value in from_transformers(theirs).state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name]), name


def test_the_tokenizer_beside_a_model_says_what_its_mask_token_is(tmp_path: Path, caplog):
    stock("text").save_pretrained(tmp_path)
    rows = stock("text").config.vocab_size
    assert from_transformers(tmp_path).config.frontends["text"]["mask_token_id"] == rows - 1  # as RoBERTa's
    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>").save_pretrained(tmp_path)
    assert from_transformers(tmp_path).config.frontends["text"]["mask_token_id"] == 4
    guess, place = rows - 1, tmp_path / "tokenizer.json"
    place.write_text("{")
    assert from_transformers(tmp_path).config.frontends["text"]["mask_token_id"] == guess  # it is told
    assert "cannot be read" in caplog.text
    place.unlink()  # its settings alone make an empty one
    assert from_transformers(tmp_path).config.frontends["text"]["mask_token_id"] == guess
    long = {**words, **{f"w{number}": number for number in range(7, 60)}, "<mask>": 60}
    backend = Tokenizer(models.WordLevel(long, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>").save_pretrained(tmp_path)
    assert from_transformers(tmp_path).config.frontends["text"]["mask_token_id"] == guess  # no row of the table
