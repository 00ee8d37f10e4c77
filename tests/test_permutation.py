"""Permutations that are computed: each number once, and each as likely in each place."""

import numpy as np
import pytest

from d2v.modalities.common.permutation import permuted


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 64, 65, 1000, 4097, 100_003])
def test_every_place_is_sent_to_another(count):
    found = permuted(np.arange(count), count, np.random.default_rng(count))
    assert sorted(found.tolist()) == list(range(count))
    some = np.arange(count)[::3]
    np.testing.assert_array_equal(permuted(some, count, np.random.default_rng(count)), found[some])


@pytest.mark.parametrize("count", [5, 12])
def test_what_lies_where_and_beside_what_is_left_to_chance(count):
    draws = 1000
    orders = np.stack([permuted(np.arange(count), count, np.random.default_rng(key)) for key in range(draws)])
    for pairs, cells in ((orders, count), ((orders[:, 1:] - orders[:, :-1]) % count, count - 1)):
        for place in range(pairs.shape[1]):
            counts = np.unique(pairs[:, place], return_counts=True)[1]
            assert len(counts) == cells
            spread = np.sqrt(draws / cells * (1 - 1 / cells))
            assert np.abs(counts - draws / cells).max() < 5 * spread, (place, counts)


def test_orders_of_many_do_not_resemble_one_another_or_the_numbers():
    count, places = 50_000_000, np.arange(20_000)
    found = [permuted(places, count, np.random.default_rng(key)) for key in (0, 1)]
    for one, other in ((found[0], found[1]), (found[0], places), (found[0][1:], found[0][:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.035
