"""Random numbers by key."""

import torch

from torch_utils import keys

CPU = torch.device("cpu")


def test_a_row_depends_on_its_key_alone():
    of = [(0, 5, "Gmain", sample) for sample in range(6)]
    whole = keys.normal(of, 100, CPU)
    assert torch.equal(keys.normal(of[4:5], 100, CPU)[0], whole[4])
    torch.manual_seed(1)
    assert torch.equal(keys.normal(of[::-1], 100, CPU), whole.flip(0))
    others = [(1, 5, "Gmain", 0), (0, 6, "Gmain", 0), (0, 5, "Dmain", 0), (0, 5, "Gmain", 1)]
    assert not any(torch.equal(row, whole[0]) for row in keys.normal(others, 100, CPU))
    # Elements of a key keep apart.
    assert keys.seed_of(1, 23) != keys.seed_of(12, 3)


def test_numbers_have_the_distributions_that_they_should():
    rows = keys.normal([(0, step) for step in range(300)], 300, CPU)
    assert abs(rows.mean()) < 0.01 and abs(rows.std() - 1) < 0.01
    # Rows are independent of each other: the mean of each is normal with deviation 1/√300.
    assert abs(rows.mean(dim=1).std() * 300**0.5 - 1) < 0.15
    uniform = torch.tensor([keys.uniform(0, step, "x") for step in range(3000)])
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    counts = torch.bincount(torch.tensor([keys.integer(5, 0, step) for step in range(3000)]))
    assert len(counts) == 5 and (counts - 600).abs().max() < 100


def test_seeds_stay_the_same_in_all_versions():
    """A run that continues with a later version must draw the same numbers."""
    assert keys.seed_of(0, 1, "Gmain", 2) == 8206271951963929825
