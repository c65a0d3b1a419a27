"""Draws of a training."""

from collections import Counter

import numpy as np
import pytest

from rings import draw_ring, write_rings
from segmentation.config import TrainUNetConfig
from segmentation.data import PairDataset
from segmentation.draws import Draw, Drawn, Draws
from segmentation.selection import select_all
from slices.archive.reader import ArchiveReader


def test_mixing_draws_every_slice_of_the_union_equally_often(tmp_path):
    random = np.random.RandomState(0)
    few = write_rings(tmp_path / "few.zip", (("f", draw_ring(random)) for _ in range(3)))
    many = write_rings(tmp_path / "many.zip", (("m", draw_ring(random)) for _ in range(7)))
    union = PairDataset(select_all([few, many]))
    assert len(union) == 10
    assert (union[Draw(2, 0)].contrasts.numpy() == ArchiveReader(few).read(2)[:2]).all()
    assert (union[Draw(3, 0)].contrasts.numpy() == ArchiveReader(many).read(0)[:2]).all()
    draws = [draw for batch in Draws(union.has_lesion, TrainUNetConfig(steps=500, batch=4, empty=0)) for draw in batch]
    assert Counter(draw.slice for draw in draws) == {n: 200 for n in range(10)}
    assert [draw.number for draw in draws] == list(range(2000))
    assert {draw.slice for draw in draws[:10]} == set(range(10)), "shuffled, not drawn with replacement"
    assert [d.slice for d in draws[:10]] != [d.slice for d in draws[10:20]]


def test_a_batch_may_be_larger_than_the_archive():
    (batch,) = Draws(np.ones(3, bool), TrainUNetConfig(steps=1, batch=8, empty=0))
    assert len(batch) == 8 and {draw.slice for draw in batch} == {0, 1, 2}


@pytest.mark.parametrize("lesion_free", [None, 0.5])
def test_every_seed_has_an_order_of_its_own(lesion_free):
    has_lesion = np.arange(40) % 2 > 0
    configs = [TrainUNetConfig(steps=10, batch=8, seed=seed, lesion_free=lesion_free) for seed in range(6)]
    orders = [[n for n in Draws(has_lesion, config).slices() if n is not None] for config in configs]
    for kind in (True, False):  # slices with and without lesion come from decks of their own
        assert len({tuple(n for n in order if has_lesion[n] == kind) for order in orders}) == len(orders)


@pytest.mark.parametrize("batch, steps, empty, lesion_free", [(8, 40, 0.05, 0.2), (7, 29, 0.29, 0.31), (3, 5, 0, 0.9)])
def test_shares_are_exact_over_a_whole_training_and_even_in_it(train_zip, batch, steps, empty, lesion_free):
    union = PairDataset(select_all([train_zip]))  # 36 of 48 slices have a lesion
    assert np.flatnonzero(~union.has_lesion).tolist() == list(range(0, 48, 4))
    draws = union.draws(TrainUNetConfig(steps, batch, seed=3, empty=empty, lesion_free=lesion_free))
    batches = [[d.slice for d in one] for one in draws]
    assert [len(one) for one in batches] == [batch] * steps
    sorts = {"empty": lambda n: n is None, "lesion_free": lambda n: n is not None and not union.has_lesion[n]}
    for name, is_of in sorts.items():
        share = {"empty": empty, "lesion_free": lesion_free}[name]
        counts = np.array([sum(map(is_of, one)) for one in batches])
        assert counts.sum() == round(share * batch * steps) == getattr(draws.count(), name)
        assert np.abs(counts - share * batch).max() < 2, "in every batch as nearly as can be"
    assert sum(draws.count().__dict__.values()) == batch * steps
    times = Counter(n for one in batches for n in one if n is not None)
    for lesion in (True, False):  # all slices of a kind are used equally often
        of_sort = [times[n] for n in np.flatnonzero(union.has_lesion == lesion).tolist()]
        assert max(of_sort) - min(of_sort) <= 1
    assert batches == [[d.slice for d in one] for one in draws]


@pytest.mark.parametrize("lesion_free, steps", [(None, 1), (None, 35), (0.0, 7), (0.3, 35)])
def test_what_is_drawn_is_counted_without_drawing_it(train_zip, lesion_free, steps):
    union = PairDataset(select_all([train_zip]))
    draws = union.draws(TrainUNetConfig(steps, batch=7, seed=1, lesion_free=lesion_free))
    numbers = list(draws.slices())
    lesion = [union.has_lesion[n] for n in numbers if n is not None]
    assert draws.count() == Drawn(sum(lesion), len(lesion) - sum(lesion), numbers.count(None))
    many = union.draws(TrainUNetConfig(48 * 10**9, batch=20, lesion_free=lesion_free)).count()
    assert many.empty == 48 * 10**9 and many.lesion_free == {None: 228, 0.0: 0, 0.3: 288}[lesion_free] * 10**9
