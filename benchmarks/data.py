"""Conversion against merely reading the same files, and reading archives against Pillow, in one run.

    python benchmarks/data.py                       # on phantoms of BraTS's size, made in a temporary folder
    python benchmarks/data.py --source=BraTS18      # on your own volumes

Conversion: seconds of `dataset_tool.py convert` over those that as many worker processes need to load the same NIfTI
files with nibabel, for --slices tumor and all. The time to start the workers is taken off both. Also the most memory
that a worker held, for a fourth of the cases and for all.
Reading: random slices a second from an archive to a float tensor in one process, and the time of Pillow to decode the
same channels from grey PNGs over that of the archive. Medians of several; take figures on an idle machine.
"""

import io
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.processes import map_in_order
from dnnlib.system import run
from dnnlib.text import format_table
from slices.archive.reader import ArchiveReader
from slices.convert.conversion import convert
from slices.convert.options import ConvertOptions
from slices.convert.plan import plan
from slices.convert.recognition import Recognized, find_cases
from slices.convert.releases import AUTO, RELEASE_NAMES, release_of_name
from slices.phantom import write_patients


@click.command()
@click.option("--source", type=click.Path(path_type=Path), help="A release  [default: phantoms]")
@click.option("--release", type=click.Choice((AUTO, *RELEASE_NAMES)), default=AUTO, show_default=True)
@click.option("--patients", type=click.IntRange(4), default=8, show_default=True, help="Phantoms, or cases of --source")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
def main(source, release, patients, workers, repeats):
    """Time conversion and reading."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if source is None:
            source = folder / "phantoms"
            write_patients(source, patients=patients, seed=0, workers=workers)
        found = find_cases(source, None if release == AUTO else release_of_name(release))
        found = found._replace(cases=found.cases[:patients])
        print(f"{len(found.cases)} cases of {found.release.title}, {workers} workers, medians of {repeats}\n")
        time_conversion(found, source, folder, workers, repeats)
        measure_memory(found, source, folder, workers)
        time_reading(found, source, folder, repeats)


def load(path: Path) -> int:
    """Read and decompress one file, as anybody would with nibabel."""
    return np.asanyarray(nib.load(path).dataobj).nbytes


def load_all(found: Recognized, workers: int) -> None:
    paths = [path for case in found.cases for path in case.paths]
    for _ in map_in_order(load, paths, workers):
        pass


def convert_all(found: Recognized, folder: Path, workers: int, slices: str) -> Path:
    dest = folder / f"{slices}.zip"
    convert(plan(ConvertOptions(slices=slices), found, dest), workers, force=True)
    return dest


def time_conversion(found: Recognized, source: Path, folder: Path, workers: int, repeats: int) -> None:
    actions = {
        "starting": partial(start_workers, workers),
        "reading only": partial(load_all, found, workers),
        "--slices tumor": partial(convert_all, found, folder, workers, "tumor"),
        "--slices all": partial(convert_all, found, folder, workers, "all"),
    }
    seconds = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            seconds[name].append(timed(action))
    start = statistics.median(seconds.pop("starting"))
    medians = {name: statistics.median(values) - start for name, values in seconds.items()}
    rows = [
        (name, f"{value:.2f}", f"{value / len(found.cases):.2f}", f"{value / medians['reading only']:.2f}")
        for name, value in medians.items()
    ]
    print(format_table(("conversion", "seconds", "seconds a case", "over reading"), rows))
    print(f"without the {start:.1f} s in which workers start", end="\n\n")


def start_workers(workers: int) -> None:
    for _ in map_in_order(import_all, range(workers), workers):
        pass


def import_all(_) -> None:
    """What a worker of either kind has imported, for it begins with this file."""
    time.sleep(0.1)  # so that no worker does the work of another


def timed(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_memory(found: Recognized, source: Path, folder: Path, workers: int) -> None:
    """Each conversion in a process of its own, whose children's peak is asked for at its end."""
    rows = []
    for count in (max(1, len(found.cases) // 4), len(found.cases)):
        some = found._replace(cases=found.cases[:count])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(peak_of_workers, some, source, folder, max(2, workers)).result()
        rows.append((count, f"{peak / 2**30:.2f}"))
    print(format_table(("cases", "most memory of a worker, GB"), rows), end="\n\n")


def peak_of_workers(found: Recognized, source: Path, folder: Path, workers: int) -> int:
    convert_all(found, folder, workers, "all")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def time_reading(found: Recognized, source: Path, folder: Path, repeats: int) -> None:
    import torch  # not at the top: every worker would import it too

    from slices.codec import SliceCodec

    torch.set_num_threads(1)
    for slices in ("tumor", "all"):
        reader = ArchiveReader(convert_all(found, folder, 2, slices))
        codec = SliceCodec(reader.schema)
        order = np.random.RandomState(0).permutation(len(reader))[:300]
        pngs = [[png(channel) for channel in reader.read(i)] for i in order]

        def from_archive(reader=reader, codec=codec, order=order):
            for i in order:
                codec.to_network(torch.from_numpy(reader.read(i).copy()))

        def from_pngs(pngs=pngs):
            for channels in pngs:
                for one in channels:
                    np.asarray(Image.open(io.BytesIO(one)))

        ours, theirs = (statistics.median(timed(f) for _ in range(2 * repeats + 1)) for f in (from_archive, from_pngs))
        size = os.path.getsize(reader.path) / len(reader)
        png_size = statistics.fmean(sum(map(len, channels)) for channels in pngs)
        print(
            f"{reader.schema.num_channels}×{reader.resolution}×{reader.resolution}, --slices {slices}: "
            f"{len(order) / ours:.0f} slices a second to a float tensor, {theirs / ours:.1f} times as fast as Pillow "
            f"decodes PNGs; {size / 1000:.0f} kB a slice, {png_size / 1000:.0f} kB as PNGs"
        )


def png(channel: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(channel).save(buffer, "png")
    return buffer.getvalue()


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 << 30:
        sys.exit(f"{tempfile.gettempdir()} has less than 2 GB free: set TMPDIR")
    run(main)
