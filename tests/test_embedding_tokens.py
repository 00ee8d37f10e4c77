"""Features of tokens: those whose mean the pooled features are, in one file whatever happens, with where they lie."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_embedding import models, samples_of, write_clips, write_lines  # noqa: F401 - a fixture

from d2v.evaluation import embedding
from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.embedding import embed, embed_tokens
from d2v.evaluation.index import read_index
from d2v.evaluation.load_encoder import open_encoder
from scripts import embed as script


def parts(tokens: embedding.Tokens) -> list[np.ndarray]:
    """Those of each sample."""
    return np.split(tokens.rows, np.cumsum(tokens.counts)[:-1])


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_pooled_features_are_the_mean_of_the_tokens(models, tmp_path, modality):  # noqa: F811
    short = modality == "speech"
    path = write_clips(tmp_path / "a", [0.4, 2.3, 0.7]) if short else write_lines(tmp_path / "a", [3, 90, 17])
    encoder = open_encoder(str(models[modality]), modality, quirks=False)
    limits = {"max_seconds": 1.0} if short else {"block_size": 32}  # one is read in windows
    samples = samples_of(modality, encoder, models[modality], path, **limits)
    config = EmbedConfig(["1", "last"], pool="none", batch_size=2)
    found = embed_tokens(encoder, samples, config)
    pooled = embed(encoder, samples, EmbedConfig(["1", "last"], batch_size=2))
    assert found.ids == pooled.ids and not found.bad and len(found.features.counts) == 3
    means = np.stack([tokens.mean(axis=0) for tokens in parts(found.features)])
    np.testing.assert_allclose(means, pooled.features, atol=1e-5)
    with torch.no_grad():
        alone = encoder(samples.view([0]), layers="block")
    expected = ((alone.layers[0] + alone.x) / 2)[0].numpy()
    np.testing.assert_allclose(parts(found.features)[0], expected, atol=1e-5)


def test_a_table_of_tokens(models, tmp_path: Path, monkeypatch, capsys):  # noqa: F811
    clips = write_clips(tmp_path / "clips", [0.3 + 0.1 * n for n in range(7)])
    (clips / "bad.wav").write_bytes(b"RIFF")
    monkeypatch.setattr(embedding, "FEW", 3)
    command = ["speech/data2vec_tiny", f"model={models['speech']}", f"data.path={clips}", "data.max_bad_share=0.5"]
    out = tmp_path / "frames.parquet"
    script.main([*command, f"out={out}", "embed.pool=none"])
    assert "7 samples of tokens of " in capsys.readouterr().out
    table, pooled = pq.read_table(out), tmp_path / "pooled.parquet"
    script.main([*command, f"out={pooled}"])
    expected = pq.read_table(pooled)
    assert table["id"].to_pylist() == expected["id"].to_pylist()
    sizes = []
    for tokens, mean in zip(table["features"].to_pylist(), expected["features"].to_pylist(), strict=True):
        sizes.append(len(tokens))
        np.testing.assert_allclose(np.mean(tokens, axis=0), mean, atol=1e-5)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert json.loads(table.schema.metadata[b"d2v"])["token_seconds"] == 5 * 8 * 4 / 8000
    with pytest.raises(ValueError, match=r"holds each token of a sample \(embed.pool=none\)"):
        read_index(out)
    with pytest.raises(ValueError, match=r"embed.pool=none writes as many tokens as a sample has: out=.*npy must end"):
        script.main([*command, f"out={tmp_path / 'frames.npy'}", "embed.pool=none"])


def test_a_run_that_was_interrupted_writes_the_same(models, tmp_path: Path, monkeypatch):  # noqa: F811
    lines = write_lines(tmp_path / "lines", [3, 8, 5, 12, 4])
    monkeypatch.setattr(embedding, "FEW", 2)
    command = ["text/data2vec_tiny", f"model={models['text']}", f"data.path={lines}", "embed.pool=none"]
    script.main([*command, f"out={tmp_path / 'whole.parquet'}"])
    made, count = embedding.embed_tokens, iter(range(10))

    def interrupted(*arguments):
        if next(count) == 1:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(embedding, "embed_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main([*command, f"out={tmp_path / 'parts.parquet'}"])
    assert (tmp_path / "parts.parquet.parts").is_dir()
    script.main([*command, f"out={tmp_path / 'parts.parquet'}"])
    assert next(count) == 4  # the first part was kept
    one, other = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(tmp_path / "parts.parquet")
    assert one.equals(other) and "grid" not in json.loads(one.schema.metadata[b"d2v"])
