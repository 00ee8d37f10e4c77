"""Word vectors from a run's own texts in seconds: positive pointwise mutual information of neighbours, factorised
(Levy and Goldberg, NeurIPS 2014; context counts to the power of 0.75 as in their TACL paper of 2015, section 3.2).

S tokens of all rows, R rows, V words, D width.
"""

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import svds

SMOOTHING = 0.75  # power of a context's count, without which rare contexts weigh most
CHUNK = 1_000_000  # tokens whose pairs are in memory at a time


def vectors(
    tokens: np.ndarray, offsets: np.ndarray, num_words: int, dim: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the words that have neighbours, (n,), and their vectors, (n, D) float32: the first left singular vectors
    of the PPMI, each row scaled to a mean square of 1.

    Without the singular values, so that all channels vary alike, as those of a random table do. Fewer than `dim`
    channels where there are no more words. `tokens` (S,) with a last one after each row that is no word, `offsets`
    (R + 1,).
    """
    association = ppmi(neighbours(tokens, offsets, num_words, window))
    seen = np.flatnonzero(np.diff(association.indptr))
    dim = min(dim, len(seen) - 1)
    if dim < 1:
        return seen[:0], np.zeros((0, 0), dtype=np.float32)
    association = association[seen]  # (n, V)
    start = np.full(len(seen), len(seen) ** -0.5)  # ARPACK would draw it
    left, values, _ = svds(association, k=dim, v0=start, solver="arpack")
    left = left[:, np.argsort(-values)]  # (n, D)
    largest = np.abs(left).argmax(axis=0)
    left = left * np.sign(left[largest, np.arange(dim)])  # of either sign: the largest entry shall be positive
    size = np.sqrt(np.square(left).mean(axis=1, keepdims=True))
    return seen, (left / size.clip(1e-12)).astype(np.float32)


def neighbours(tokens: np.ndarray, offsets: np.ndarray, num_words: int, window: int) -> sparse.csr_array:
    """How often each word has each other at most `window` tokens away in the same row, (V, V), symmetric."""
    inside = np.ones(len(tokens), dtype=bool)
    inside[offsets[1:] - 1] = False
    words, rows = tokens[inside], np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[inside]
    total = sparse.csr_array((num_words, num_words), dtype=np.float64)
    for start in range(0, len(words), CHUNK):
        for distance in range(1, window + 1):
            first = np.arange(start, min(start + CHUNK, len(words) - distance))
            first = first[rows[first] == rows[first + distance]]
            pair = words[first], words[first + distance]
            total = total + sparse.coo_array((np.ones(len(first)), pair), shape=total.shape).tocsr()
    return total + total.T


def ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """max(0, log p(word, context) / (p(word) p(context))) of counts (V, V), with smoothed contexts."""
    found = counts.tocoo()
    word = counts.sum(axis=1)  # (V,)
    context = word**SMOOTHING
    information = np.log(found.data / (word[found.row] * (context / max(context.sum(), 1))[found.col]))
    kept = information > 0
    place = found.row[kept], found.col[kept]
    return sparse.coo_array((information[kept], place), shape=counts.shape).tocsr()
