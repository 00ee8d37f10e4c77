"""Checkpoints of fairseq's data2vec, 1.0 and 2.0, in and out."""

from d2v.interop.fairseq.data2vec import load_fairseq, save_fairseq

__all__ = ["load_fairseq", "save_fairseq"]
