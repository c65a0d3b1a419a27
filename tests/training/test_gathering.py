"""Seeds shared among ranks, and slices brought together again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore

from dnnlib.errors import UserError
from slices.archive.zips import pack
from torch_utils.distributed import World
from training.gathering import Member, gather, seeds_of_rank, staged_together


@pytest.mark.parametrize("count, batch, ranks", [(10, 4, 1), (10, 4, 2), (10, 4, 3), (3, 4, 3), (64, 8, 8), (7, 1, 3)])
def test_every_seed_belongs_to_one_rank_in_the_batches_of_one_process(count, batch, ranks):
    seeds = [100 - n for n in range(count)]
    shares = [seeds_of_rank(seeds, batch, World(rank, ranks)) for rank in range(ranks)]
    assert sorted(sum(shares, [])) == sorted(seeds)
    batches = [seeds[n : n + batch] for n in range(0, count, batch)]
    assert sorted(s[n : n + batch] for s in shares for n in range(0, len(s), batch)) == sorted(batches)


def gather_all(path, seeds, ranks, batch=2):
    """Members of all ranks, which are threads here, as each gets them."""
    store = HashStore()

    def one(rank):
        world = World(rank, ranks, rank, ranks, torch.device("cpu"), store)
        own = (Member(seed, pack(b"%d" % seed)) for seed in seeds_of_rank(seeds, batch, world))
        with staged_together(path, False, world) as place:
            members = list(gather(own, seeds, place, world))
            if world.first:
                place.write_text("all")
        return members

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


def test_the_first_rank_gets_all_slices_in_the_order_of_the_seeds(tmp_path):
    seeds = [7, 3, 2**32 - 1, 0, 5]
    expected = [Member(seed, pack(b"%d" % seed)) for seed in seeds]
    for ranks in (1, 2, 4):  # of four, one has nothing to do
        path = tmp_path / f"made-by-{ranks}"
        assert gather_all(path, seeds, ranks) == [expected] + [[]] * (ranks - 1)
        assert path.read_text() == "all"
    assert len(list(tmp_path.iterdir())) == 3, "no part is left"


def test_a_file_that_has_appeared_meanwhile_stays(tmp_path):
    (tmp_path / "made").write_text("of another program")
    with pytest.raises(UserError, match="has appeared while its content was made"):
        gather_all(tmp_path / "made", [1, 2, 3], 2)
    assert [p.name for p in tmp_path.iterdir()] == ["made"] and (tmp_path / "made").read_text() == "of another program"
