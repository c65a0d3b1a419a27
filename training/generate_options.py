"""Options of generate.py. This file imports no torch, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.text import parse_integers

SHEET = "contact_sheet.png"
_SEEDS = 2**32  # of numpy's RandomState
_MOST = 10**6


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Checked):
    """Options of the command line."""

    network: str = option(
        "Snapshot, a run folder for its latest one, or a published checkpoint (.pkl).", metavar="FILE|DIR"
    )
    seeds: str | None = option("Seeds, for example 0-63 or 1,5,20-25; at most a million.", default=None, metavar="LIST")
    like: str | None = option(
        "Instead of --seeds: seeds from 0 on, as many as this archive has slices.", default=None, metavar="ZIP"
    )
    times: int | None = option("With --like: so many times as many.", default=None, least=1, shown="1")
    outdir: str | None = option(
        "Folder to write pictures into: a panel per seed, and a contact sheet.", default=None, metavar="DIR"
    )
    dest: str | None = option(
        "Archive to write instead of pictures; every slice is a patient of its own.", default=None, metavar="ZIP"
    )
    trunc: float = option(
        "Truncation psi: 1 for full variety, below 1 for more typical slices.", default=1.0, example=0.7
    )
    noise_mode: str = option(
        "Noise: const is the network's stored noise, random is drawn from the seed.",
        default="const",
        choices=("const", "random", "none"),
    )
    wanted_class: str | None = option(
        "Class label, for a network trained with --cond; an archive keeps it.",
        default=None,
        flag="--class",
        metavar="NAME|N",
    )
    batch: int = option("Slices computed at a time.", default=8, least=1)
    gpus: int = option(
        "Processes that share the work, each on a GPU of its own if there are GPUs.", default=1, least=1, most=1024
    )
    force: bool = option("Replace existing pictures or an existing archive.", switch=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.seeds is None) == (self.like is None):
            raise UserError("give either --seeds, such as 0-63, or --like, an archive to generate as many slices as")
        if self.times is not None and self.like is None:
            raise UserError("--times multiplies the number of slices of --like; with --seeds, leave it out")
        if (self.outdir is None) == (self.dest is None):
            raise UserError("give either --outdir for pictures or --dest for an archive")
        if self.dest is not None and not self.dest.lower().endswith(".zip"):
            raise UserError(f"--dest {self.dest}: expected a name that ends in .zip")

    @property
    def written(self) -> Path:
        """The archive, or the contact sheet of the pictures."""
        return Path(self.outdir, SHEET) if self.outdir is not None else Path(self.dest or "")

    def read_seeds(self) -> list[int]:
        """Return the seeds without duplicates, in their order. Raises UserError for a list that is none."""
        if self.like is None:
            return list(dict.fromkeys(parse_integers(self.seeds or "", limit=_SEEDS, most=_MOST)))
        from slices.archive.reader import ArchiveReader  # numpy, which --help need not wait for

        wanted = (self.times or 1) * len(ArchiveReader(self.like))
        if wanted > _MOST:
            raise UserError(
                f"{self.times} times the slices of {self.like} are {wanted}: take at most {_MOST} at a time"
            )
        return list(range(wanted))
