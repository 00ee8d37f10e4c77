"""A permutation of any number of samples that is computed where it is asked for: it takes no memory a sample.

A Feistel network of ROUNDS rounds over the next even number of bits; what falls outside is sent through again until it
falls inside, "cycle walking". Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, sections 4, 5.
"""

import numpy as np

ROUNDS = 8


def permuted(places: np.ndarray, count: int, key: np.random.Generator) -> np.ndarray:
    """Where a permutation of `count` things, drawn by `key`, sends `places` (n,), each below `count`: (n,) int64."""
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))  # bits
    keys = key.integers(2**64, size=ROUNDS, dtype=np.uint64)
    found = _network(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(found >= count)):
        found[outside] = _network(found[outside], half, keys)
    return found.astype(np.int64)


def _network(numbers: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """One pass: a permutation of the numbers of twice `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits that each depend on all of x: splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
