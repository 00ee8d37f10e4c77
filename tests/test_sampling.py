"""Batches: epochs are permutations, ranks share a batch, nothing depends on what was asked before."""

import pickle
import tracemalloc

import numpy as np
import pytest

from d2v.modalities.common import sampling
from d2v.modalities.common.sampling import Sampler, share


@pytest.fixture(params=["order kept", "order computed"], autouse=True)
def few_or_many(request, monkeypatch):
    """The same holds of both ways to shuffle."""
    if request.param == "order computed":
        monkeypatch.setattr(sampling, "MANY", 0)


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(1, 1000, 103)])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(103, 10), (100, 10), (103, 103), (5, 1)])
def test_an_epoch_takes_every_sample_at_most_once(num_samples, batch_size, lengths):
    sampler = Sampler(num_samples, batch_size, 0, lengths=None if lengths is None else lengths[:num_samples], chunk=4)
    assert len(sampler) == num_samples // batch_size
    for epoch in range(3):
        drawn = np.concatenate([sampler(epoch * len(sampler) + batch) for batch in range(len(sampler))])
        assert len(set(drawn.tolist())) == len(drawn) == len(sampler) * batch_size
        assert drawn.min() >= 0 and drawn.max() < num_samples
    if num_samples % batch_size == 0:
        assert sorted(drawn) == list(range(num_samples))


def test_epochs_and_seeds_differ_and_what_is_left_out_changes():
    sampler = Sampler(25, 10, 0)
    epochs = [np.concatenate([sampler(2 * epoch), sampler(2 * epoch + 1)]) for epoch in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(np.concatenate(epochs)) == set(range(25))
    assert not np.array_equal(sampler(0), Sampler(25, 10, 1)(0))


@pytest.mark.parametrize("lengths", [None, np.arange(60) % 17])
def test_a_step_does_not_depend_on_the_steps_before(lengths):
    ahead = Sampler(60, 7, 3, lengths=lengths)
    expected = [ahead(step).copy() for step in range(40)]
    for step in (39, 0, 17, 18, 3):
        assert np.array_equal(Sampler(60, 7, 3, lengths=lengths)(step), expected[step])


def test_lengths_in_a_batch_are_alike():
    lengths = np.random.default_rng(1).integers(1, 1000, 3200)

    def padding(sampler):
        return np.mean(
            [1 - lengths[batch].mean() / lengths[batch].max() for batch in map(sampler, range(len(sampler)))]
        )

    assert padding(Sampler(3200, 16, 0)) > 0.4
    assert padding(Sampler(3200, 16, 0, lengths=lengths)) < 0.08
    first = [lengths[Sampler(3200, 16, 0, lengths=lengths)(step)].mean() for step in range(60)]
    assert abs(np.corrcoef(first, np.arange(60))[0, 1]) < 0.5  # batches are not in order of length


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_share_the_batch(parts):
    rows = [np.arange(8)[share(8, part, parts)] for part in range(parts)]
    assert sorted(np.concatenate(rows)) == list(range(8))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_fewer_samples_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"7 usable samples.*batch_size is 8"):
        Sampler(7, 8, 0)


def test_a_sampler_travels_to_worker_processes():
    sampler = Sampler(50, 8, 0)
    sampler(3)
    assert np.array_equal(pickle.loads(pickle.dumps(sampler))(7), sampler(7))


def test_the_order_of_many_samples_takes_no_memory():
    many = 3_000_000_001
    sampler = Sampler(many, 64, 0)
    sampler(0)
    tracemalloc.start()
    drawn = np.concatenate([sampler(step) for step in (0, 1, 999_999, len(sampler) - 1, len(sampler))])
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(set(drawn[: 4 * 64].tolist())) == 4 * 64 and drawn.min() >= 0 and many / 2 < drawn.max() < many
