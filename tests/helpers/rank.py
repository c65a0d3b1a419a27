"""A program of several ranks, for tests: `python -m helpers.rank RANKS TASK FOLDER` does a task of this file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.failures import failure_log
from dnnlib.files import write_json
from dnnlib.processes import exit_status
from torch_utils.launching import launch, ranks_around
from torch_utils.stopping import stop_signals

SHORT = 6  # time limit of a group that has to wait longer, in seconds; other groups have a minute
ADVICE = "Continue with: again"


def talk(world, folder):
    """Use all ways of talking."""
    import torch

    generator = torch.Generator().manual_seed(world.rank)
    sums = {}
    for dtype in (torch.float32, torch.float64):
        tensor = torch.randn(1000, generator=generator, dtype=dtype)
        sums[f"own {dtype}"] = tensor.tolist()
        world.add_up(tensor)
        sums[str(dtype)] = tensor.tolist()
    shared = [world.share({"rank": world.rank, "ä": [1.5, None]}), world.share(None)]
    differing = world.differing({"same": 1 << 63, "other": world.rank, "last": int(world.rank == world.size - 1)})
    facts = {"differing": differing, "shared": shared, "threads": torch.get_num_threads()}
    write_json(folder / f"{world.rank}.json", {"sums": sums, "backend": torch.distributed.get_backend(), **facts})


def late(world, folder):
    """Wait for a rank that comes later than the group's time limit, twice."""
    if world.rank == 1:
        time.sleep(SHORT + 1)
        (folder / "came").touch()
    world.meet()
    write_json(folder / f"met-{world.rank}.json", (folder / "came").exists())
    if world.first:
        time.sleep(SHORT + 1)
    write_json(folder / f"shared-{world.rank}.json", world.share(world.rank))


def train(world, folder, event=None):
    """Add up until a stop signal comes. event: takes the rank before it does the third step."""
    import torch

    def told(name):
        if world.first:
            print(f"stopping after {name}", flush=True)

    helper = subprocess.Popen(["sleep", "1000"])  # as a loader of data is
    for pid in (os.getpid(), helper.pid):
        (folder / f"pid-{pid}").touch()
    with failure_log(folder / "log.txt", ADVICE), stop_signals(told) as request:
        for step in range(1_000_000):
            if event is not None and step == 3:
                event(world.rank)
            asked = torch.tensor([float(request.asked)], dtype=torch.float64)
            world.add_up(asked)
            (folder / f"step-{world.rank}").write_text(str(step))
            time.sleep(0.02)
            if asked.item():
                break
    helper.kill()
    if world.first:  # saves, while the others wait for it
        time.sleep(2)
    write_json(folder / f"saved-{world.rank}.json", step)
    sys.exit(exit_status(request.asked or signal.SIGUSR1))


def mistake(rank):
    if rank == 1:
        raise UserError("slice 7 is damaged: use another archive")


def bug(rank):
    if rank == 1:
        raise RuntimeError("shapes differ\nin many lines")


def stuck(rank):
    """Fail while rank 0 waits for something that never comes."""
    time.sleep(1000 if rank == 0 else 0)
    bug(rank)


def killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def main(ranks, task, folder):
    if ranks > 1 and ranks_around() is None:
        sys.exit(launch(ranks))

    from torch_utils.distributed import joined

    with joined(timeout_minutes=SHORT / 60 if task == "late" else 1) as world:
        if task in ("talk", "late"):
            globals()[task](world, folder)
        else:
            train(world, folder, None if task == "train" else globals()[task])


if __name__ == "__main__":
    # A shell that runs the tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
