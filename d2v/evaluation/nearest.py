"""How near samples are to one another: cosines of features without their common mean, which would bring all near 1."""

import numpy as np


def cosines(queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(Q, N) of queries (Q, D) and features (N, D), whose mean is taken off both."""
    mean = features.mean(axis=0, dtype=np.float64)
    ones, rows = queries - mean, features - mean
    norms = np.linalg.norm(ones, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    return ones @ rows.T / np.maximum(norms, 1e-12)
