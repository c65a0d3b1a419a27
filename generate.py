"""Generate joint slices from a snapshot: pictures, or an archive to train a segmentation network on.

python generate.py --network=runs/00000-train-stylegan2 --seeds=0-63 --outdir=out
python generate.py --network=runs/00000-train-stylegan2 --like=data/train.zip --dest=fake.zip
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from dnnlib.cli import HELP, options
from dnnlib.errors import Failure, UserError, reports_user_errors
from dnnlib.processes import exit_status
from dnnlib.publish import recover
from dnnlib.system import run
from torch_utils.launching import launch, ranks_around
from torch_utils.memory import keep_freed_memory, naming_what_to_lower
from torch_utils.stopping import stop_signals
from training.generate_options import GenerateOptions

if TYPE_CHECKING:
    from torch_utils.distributed import World


@click.command(context_settings=HELP)
@options(GenerateOptions, "asked")
@reports_user_errors
@naming_what_to_lower("--batch")
def main(asked: GenerateOptions) -> None:
    """Generate joint slices of contrasts and label map, one per seed.

    Synthetic slices are for research. They may resemble training patients, and are not a means of anonymization.
    """
    seeds = asked.read_seeds()

    if asked.gpus > 1 and ranks_around() is None:
        status = launch(asked.gpus)
        recover(asked.written)  # what a killed rank may have left
        sys.exit(status)

    # Imported here, because torch takes seconds to import; --help and messages about mistakes should not.
    from torch_utils.distributed import joined

    keep_freed_memory()
    with joined() as world, naming_what_to_lower("--batch"), stop_signals(_stop):
        told = generate(asked, seeds, world)
        if world.first:
            print(told)


def _stop(name: str) -> NoReturn:
    """End because of a stop signal. What has been begun is cleared away, as after any error."""
    raise Failure(f"stopped by {name}", exit_status(signal.Signals[name]))


def generate(asked: GenerateOptions, seeds: Sequence[int], world: World) -> str:
    """Generate slices of all seeds, together with the other ranks. Returns a summary."""
    from torch_utils.precision import set_precision
    from training import sampling
    from training.gathering import seeds_of_rank
    from training.generated_files import Generated, write_archive, write_pictures
    from training.snapshot import load_generator

    set_precision(tf32=False, benchmark=False)
    if not world.first:
        world.meet()  # Under torchrun every rank would tell of a user's mistake. The first one has found none.
    if asked.gpus not in (1, world.size):
        raise UserError(f"--gpus {asked.gpus}, but torchrun has started {world.size} processes: leave out --gpus")
    network = load_generator(asked.network)
    label = sampling.find_class(network, asked.wanted_class)
    c = sampling.class_vector(network, asked.wanted_class)
    if world.first:
        world.meet()
    own = seeds_of_rank(seeds, asked.batch, world)
    samples = sampling.generate(network, own, c, asked.trunc, asked.noise_mode, asked.batch)
    generated = Generated(network, label, seeds, own, samples, world)
    if asked.outdir is not None:
        return write_pictures(generated, asked.written, asked.force)
    told = {"trunc": asked.trunc, "noise_mode": asked.noise_mode, "class": asked.wanted_class}
    return write_archive(generated, asked.written, told, asked.force)


if __name__ == "__main__":
    run(main)
