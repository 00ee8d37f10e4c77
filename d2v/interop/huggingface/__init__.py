"""Stock transformers classes, Data2Vec and ViT, in and out: one module a kind of model, with their settings and names
as ours.

Each ends with its KIND, whose fields say what a kind is: see shared.py.
"""

from d2v.interop.huggingface.conversion import from_transformers, to_transformers

__all__ = ["from_transformers", "to_transformers"]
