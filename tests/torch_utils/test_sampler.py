"""Order of the training data."""

from collections import Counter
from itertools import islice

from torch_utils.sampler import EndlessSampler


def test_endless_sampler_sees_everything_equally_often_in_an_order_that_changes():
    order = list(islice(EndlessSampler(50, seed=3), 50 * 40))
    assert len(set(order[:25])) == 25, "nothing comes back at once"
    counts = Counter(order)
    assert set(counts) == set(range(50)) and 25 <= min(counts.values()) and max(counts.values()) <= 60
    assert order[:50] != order[50:100]
    assert order == list(islice(EndlessSampler(50, seed=3), 50 * 40))
    assert order != list(islice(EndlessSampler(50, seed=4), 50 * 40))
