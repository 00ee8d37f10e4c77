"""Which parts a step of a joint run trains."""

import pytest

from d2v.training.mixes import Together, Turns


@pytest.mark.parametrize("shares", [{"a": 1}, {"a": 1, "b": 1}, {"a": 3, "b": 1, "c": 2}, {"a": 2, "b": 0, "c": 1}])
def test_turns_have_each_part_as_often_as_its_share_says(shares):
    mix, cycle, done = Turns(shares, seed=5), sum(shares.values()), dict.fromkeys(shares, 0)
    orders = set()
    for step in range(4 * cycle):
        assert mix.before(step) == {name: done[name] for name in shares if shares[name]}
        ((name, own),) = mix.at(step).items()
        assert own == done[name]
        done[name] += 1
        if step % cycle == cycle - 1:
            assert {name: count // (step // cycle + 1) for name, count in done.items()} == shares
            orders.add(tuple(next(iter(mix.at(place))) for place in range(step - cycle + 1, step + 1)))
    assert len(orders) > 1 or cycle < 3 or len(shares) < 2


def test_together_every_part_has_every_step():
    mix = Together({"a": 1, "b": 0, "c": 1})
    assert mix.at(7) == {"a": 7, "c": 7} and mix.before(3) == {"a": 3, "c": 3}
