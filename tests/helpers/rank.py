"""A program of several ranks, for tests: `python -m helpers.rank RANKS TASK FOLDER` does a task of this file."""

import os
import signal
import sys
import time
from pathlib import Path

from dnnlib.errors import UserError, reports_user_errors
from dnnlib.failures import failure_log
from dnnlib.files import write_json
from dnnlib.processes import exit_status
from torch_utils.launching import launch
from torch_utils.stopping import stop_signals


def talk(world, folder):
    """Use all ways of talking, some of them with a rank that comes later than the group's time limit."""
    import torch

    generator = torch.Generator().manual_seed(world.rank)
    sums = {}
    for dtype in (torch.float32, torch.float64):
        tensor = torch.randn(1000, generator=generator, dtype=dtype)
        sums[f"own {dtype}"] = tensor.tolist()
        world.add_up(tensor)
        sums[str(dtype)] = tensor.tolist()
    if world.rank == 1:
        time.sleep(8)  # the time limit is 6 s
    world.meet()
    met = time.time()
    if world.first:
        time.sleep(8)
    shared = world.share({"rank": world.rank, "ä": [1.5, None]})
    differing = world.differing({"same": 1 << 63, "other": world.rank, "last": int(world.rank == world.size - 1)})
    facts = {"differing": differing, "met": met, "shared": shared, "threads": torch.get_num_threads()}
    write_json(folder / f"{world.rank}.json", {"sums": sums, "backend": torch.distributed.get_backend(), **facts})


def train(world, folder, fail=None):
    """Add up until a stop signal comes. fail: what rank 1 does at the third step."""
    import torch

    def told(name):
        if world.first:
            print(f"stopping after {name}", flush=True)

    step = 0
    with failure_log(folder / "log.txt", "Continue with: again"), stop_signals(told) as request:
        while True:
            step += 1
            if fail is not None and world.rank == 1 and step == 3:
                fail()
            asked = torch.tensor([float(request.asked)])
            world.add_up(asked)
            (folder / f"pid-{os.getpid()}").write_text(str(step))
            time.sleep(0.05)
            if asked.item():
                break
    time.sleep(1 if world.first else 0)  # saves
    write_json(folder / f"stopped-{world.rank}.json", step)
    sys.exit(exit_status(request.asked or signal.SIGTERM))


def mistake():
    raise UserError("slice 7 is damaged: use another archive")


def bug():
    raise RuntimeError("shapes differ\nin many lines")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


@reports_user_errors
def main(ranks, task, folder):
    from torch_utils.distributed import joined, ranks_around

    if ranks > 1 and ranks_around() is None:
        sys.exit(launch(ranks))
    with joined(timeout_minutes=0.1) as world:
        if task == "talk":
            talk(world, folder)
        else:
            train(world, folder, None if task == "train" else globals()[task])


if __name__ == "__main__":
    import click

    try:
        main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
