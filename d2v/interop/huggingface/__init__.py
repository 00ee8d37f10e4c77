"""Stock transformers classes, Data2Vec and ViT, in and out: one module a kind of model, with their settings and names
as ours.

A module has: MODALITY; MODEL, the bare encoder's class, with the arguments BARE; HEADS, the classes of tasks; SETTINGS,
theirs -> ours where the value is the same; REQUIRED, what theirs must be for ours to compute the same; HELD, what ours
may be and why; `read` and `write` of the other settings; `names`; `arrive` and `leave`, what tensors need beside a new
name. Our settings are flat: trunk.dim, frontend.channels.
"""

from d2v.interop.huggingface.conversion import from_transformers, to_transformers

__all__ = ["from_transformers", "to_transformers"]
