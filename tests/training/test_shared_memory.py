"""Ranks of a machine keep slices together."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore

from slices.dataset import SliceDataset
from torch_utils.distributed import World
from training import shared_memory
from training.shared_memory import share_slices


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The temporary folder of the ranks."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def share(archive, *machines):
    """Data sets of ranks on machines with so many ranks, and their remarks. The ranks are threads here."""
    store, size = HashStore(), sum(machines)
    places = [(local, local_size) for local_size in machines for local in range(local_size)]
    worlds = [World(rank, size, *place, torch.device("cpu"), store) for rank, place in enumerate(places)]
    data = [SliceDataset(archive, mirror=True) for _ in worlds]
    with ThreadPoolExecutor(size) as pool:
        return data, list(pool.map(share_slices, data, worlds))


def read_all(dataset):
    return torch.stack([dataset[n].stored for n in range(len(dataset))])


def test_a_slice_is_read_once_a_machine(archive, temporary):
    (first, second, other), remarks = share(archive, 2, 1)
    assert remarks == [None] * 3 and not list(temporary.iterdir()), "the file has no name any more"
    expected = read_all(SliceDataset(archive, mirror=True, memory=0))
    assert torch.equal(torch.stack([second[n].stored for n in range(5)]), expected[:5])
    second.archive.read = None  # from now on, reading fails
    with pytest.raises(TypeError):
        second[5]
    assert torch.equal(read_all(first), expected) and torch.equal(read_all(second), expected)
    other.archive.read = None
    with pytest.raises(TypeError):
        other[0]


@pytest.mark.parametrize("memory, does", [(24 * 8 * 256 * 2, "keeps them alone"), (24 * 8 * 256, "reads them when")])
def test_without_room_each_has_its_share_of_the_memory(archive, temporary, monkeypatch, memory, does):
    monkeypatch.setattr(shared_memory, "MEMORY", memory)
    monkeypatch.setattr("slices.shared_slices._make_room", full)
    data, remarks = share(archive, 2)
    assert not list(temporary.iterdir())
    assert [d.in_memory for d in data] == [does == "keeps them alone"] * 2
    for remark in remarks:
        assert "2 processes of a machine can't keep the slices in memory together" in remark and does in remark
    assert "No space left" in remarks[0]
    expected = read_all(SliceDataset(archive, mirror=True))
    assert all(torch.equal(read_all(d), expected) for d in data)


def full(file, size):
    raise OSError(28, "No space left on device")
