"""Order of the training data: a function of seed and position, shared among processes."""

import itertools
import random

import numpy as np
import pytest
import torch

from torch_utils.sampler import ShareOfMinibatches, ShuffledOrder, samples_of_rank


def take(share, count):
    return list(itertools.islice(share, count))


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_every_epoch_has_every_item_once_in_an_order_of_its_own(size):
    order = ShuffledOrder(size, seed=3)
    epochs = [tuple(order[epoch * size + place] for place in range(size)) for epoch in range(40)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size == 50:
        assert len(set(epochs)) == 40
        others = (ShuffledOrder(size, seed) for seed in (4, 2**63 + 3, 2**64 - 1))
        assert not {tuple(other[place] for place in range(size)) for other in others} & set(epochs)


def test_every_item_is_equally_likely_at_every_place():
    """Counts of 6 items at 6 places in 3,000 epochs: chi-square of 25 degrees of freedom; 60 has a chance of 1e-4."""
    order, counts = ShuffledOrder(6, seed=0), np.zeros([6, 6])
    for position in range(6 * 3000):
        counts[position % 6, order[position]] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 60


def philox(key, counter):
    """Four words of Philox4x64-10, as its authors define it (Salmon et al., 2011)."""
    word, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * word[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * word[2], 1 << 64)
        word = [high1 ^ word[1] ^ k[0], low1, high0 ^ word[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % (1 << 64), (k[1] + 0xBB67AE8584CAA73B) % (1 << 64)]
    return word


@pytest.mark.parametrize("seed, epoch", [(0, 0), (1, 0), (0, 1), (2**64 - 1, 12345)])
def test_an_epoch_sorts_the_words_of_philox(seed, epoch):
    """NumPy counts from 1."""
    words = [word for n in range(1, 6) for word in philox((seed, epoch), (n, 0, 0, 0))]
    order = ShuffledOrder(20, seed)
    assert [order[20 * epoch + place] for place in range(20)] == sorted(range(20), key=words.__getitem__)


def test_an_order_does_not_depend_on_where_one_starts_or_on_random_states():
    forwards = [ShuffledOrder(7, 5)[position] for position in range(70)]
    order, places = ShuffledOrder(7, 5), list(range(70))
    random.shuffle(places)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert {place: order[place] for place in places} == dict(enumerate(forwards))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    far = 10**15 + 3
    assert ShuffledOrder(7, 5)[far] == order[far]


def test_lists_of_all_processes_are_the_minibatch_whatever_their_number():
    order, batch = ShuffledOrder(5, seed=1), 12  # a minibatch reaches over several epochs
    minibatches = [[order[12 * step + sample] for sample in range(12)] for step in range(4)]
    for parts in (1, 2, 3, 4, 6, 12):
        alone = ShareOfMinibatches(order, batch, parts)
        whole = take(alone, 4)
        for found, expected in zip(whole, minibatches, strict=True):
            # Part p is every P-th sample, beginning with p.
            size = batch // parts
            split = [found[start : start + size] for start in range(0, batch, size)]
            assert split == [expected[part::parts] for part in range(parts)]
        for ranks in (r for r in range(1, parts + 1) if parts % r == 0):
            shares = [take(ShareOfMinibatches(order, batch, parts, rank, ranks), 4) for rank in range(ranks)]
            samples = [samples_of_rank(batch, parts, rank, ranks) for rank in range(ranks)]
            assert sorted(itertools.chain(*samples)) == list(range(batch))
            for step in range(4):
                for rank in range(ranks):
                    assert shares[rank][step] == [minibatches[step][sample] for sample in samples[rank]]
        assert take(alone, 4) == whole, "the same lists at every iteration"
        assert take(ShareOfMinibatches(order, batch, parts, first_step=2), 2) == whole[2:]


@pytest.mark.parametrize("batch, parts, rank, ranks", [(12, 5, 0, 1), (12, 6, 0, 4), (12, 6, 2, 2), (12, 6, -1, 2)])
def test_shares_that_do_not_divide_are_refused(batch, parts, rank, ranks):
    with pytest.raises(ValueError, match=f"process {rank} of {ranks}, with {parts} parts of a minibatch of {batch}"):
        samples_of_rank(batch, parts, rank, ranks)
