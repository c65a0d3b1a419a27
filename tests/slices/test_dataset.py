"""The data set of the GAN."""

import pickle

import pytest
import torch

from dnnlib.errors import UserError
from slices.dataset import SliceDataset


def test_mirror_doubles_and_subset_draws(archive):
    plain, doubled = SliceDataset(archive), SliceDataset(archive, mirror=True)
    assert len(doubled) == 2 * len(plain)
    assert torch.equal(doubled[len(plain) + 5].stored, plain[5].stored.flip(2))
    first, again, other = (SliceDataset(archive, subset=10, seed=s) for s in (1, 1, 2))
    assert first.chosen == again.chosen != other.chosen
    with pytest.raises(UserError, match="--subset 25: .* holds 24 slices"):
        SliceDataset(archive, subset=25)


def test_slices_that_fit_into_memory_are_read_once(archive):
    kept, read_anew = SliceDataset(archive, mirror=True), SliceDataset(archive, mirror=True, memory=0)
    assert kept.in_memory and not read_anew.in_memory
    kept[3].stored.zero_()  # a caller may change its copy
    kept.archive.read = None  # from now on, reading fails
    for n in (3, 3 + kept.num_originals):
        assert torch.equal(kept[n].stored, read_anew[n].stored)


def test_a_data_set_goes_to_other_processes(archive):
    for memory in (None, 0):
        here = SliceDataset(archive, mirror=True, memory=memory)
        first = here[0].stored
        there = pickle.loads(pickle.dumps(here))
        assert torch.equal(there[0].stored, first) and torch.equal(there[30].stored, here[30].stored)


def test_no_slices_go_to_other_processes(archive):
    dataset = SliceDataset(archive)
    before = pickle.dumps(dataset)
    for n in range(len(dataset)):
        dataset[n]
    assert pickle.dumps(dataset) == before and dataset[0].stored.numpy().tobytes() not in before
