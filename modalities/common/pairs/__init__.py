"""Pairs: samples of two modalities side by side, of the same row or of the same class.

config = data_config({"image": image, "text": text})(path="table.csv")   # a dataclass: the section data.image+text
prepare(config, "text", frontends["text"], folder, seed)                 # of each modality: a tokenizer
samples = Samples(config, frontends, split="train", folder=folder)       # .report, .ids, len(), .side("image")
batches = batches(samples, config, frontends, batch_size, seed, bad_log)
(image, text), ids = batches(step, part, parts)                          # views of the same pairs, with labels
"""

from d2v.modalities.common.pairs.batches import PairBatches, batches
from d2v.modalities.common.pairs.config import PairConfig, data_config, side_of
from d2v.modalities.common.pairs.samples import Samples, prepare

__all__ = ["PairBatches", "PairConfig", "Samples", "batches", "data_config", "prepare", "side_of"]
