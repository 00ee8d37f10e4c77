"""A run's folder: what may be removed from it."""

import pytest
import tiny

from d2v.folder import clear
from scripts import pretrain


def test_only_a_runs_folder_is_cleared(tmp_path):
    clear(tmp_path / "nowhere")
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no run's folder"):
        clear(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
    (tmp_path / "config.yaml").write_text("{}")
    clear(tmp_path)
    assert not tmp_path.exists()


def test_pretraining_starts_anew_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("d2v.loop.Loop.plot", lambda self: None)
    command = tiny.arguments(tiny.MODALITIES[0], tmp_path / "run", "train.steps=2")
    pretrain.main(command)
    with pytest.raises(ValueError, match="holds a run of another config"):
        pretrain.main([*command, "train.lr=0.5"])
    pretrain.main([*command, "train.lr=0.5", "run.overwrite=true"])
    assert sorted(tiny.losses(tmp_path / "run")) == [1, 2]
