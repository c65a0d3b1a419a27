"""Export of an archive as files for other programs: NIfTI volumes or pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dnnlib import files
from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from dnnlib.publish import Staged, recover
from dnnlib.text import count, format_table
from slices.archive.reader import ArchiveReader
from slices.convert.releases import MASK
from slices.export.nifti_folder import write_nifti_folder
from slices.export.picture_folder import write_picture_folder
from slices.export.stacking import Folder, slices_by_volume

NIFTI, PNG = FORMATS = ("nifti", "png")


@dataclass(frozen=True)
class ExportOptions(Checked):
    """Options of `dataset_tool.py export`."""

    dest: Path = option("Folder to write; a new one, or an empty one.")
    form: str = option(
        "nifti: a volume per case; png: pictures of every slice, labels in color.", flag="--format", choices=FORMATS
    )
    force: bool = option("Write into a folder that is not empty; replaces files of the same names.", switch=True)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folders: tuple[Folder, ...]  # in the archive's order
    num_slices: int
    num_patients: int

    def describe(self, dest: Path) -> str:
        """A table of the volumes, the number of slices without a volume, and the folder."""
        words = []
        volumes = [folder for folder in self.folders if folder.num_in_volume is not None]
        # Pictures have no grid, so their table has three columns instead of four.
        rows = [(f.name, f.num_slices, f.num_in_volume, *([f.grid] if f.grid else [])) for f in volumes]
        if rows:
            words.append(format_table(("case", "slices", "of", "voxels")[: len(rows[0])], rows))
        if single := sum(folder.num_slices for folder in self.folders if folder.num_in_volume is None):
            words.append(f"{count(single, 'slice')} of no known volume, each by itself; pixel size unknown")
        words.append(f"written: {dest}, {count(self.num_slices, 'slice')} of {count(self.num_patients, 'patient')}")
        return "\n\n".join(words)


def export_archive(archive: Path, dest: Path, form: str, force: bool = False) -> Exported:
    """Write the slices of an archive into the folder `dest`. form: one of FORMATS.

    The files appear when all are complete. An existing folder must be empty unless `force` is given. Raises UserError
    before anything is written if the archive can't be exported, and for a slice that can't be read.
    """
    assert form in FORMATS, form
    dest = Path(dest)
    _refuse_filled(dest, force)
    reader = ArchiveReader(archive)
    if reader.schema.num_maps and MASK in reader.schema.contrasts:
        raise UserError(f"{reader.path}: a contrast is called {MASK}, but so is the file of the label map")
    volumes = slices_by_volume(reader)
    with _filled(dest, force) as write, tqdm(desc="exporting", total=len(reader), unit="slice") as bar:
        folders = (write_nifti_folder if form == NIFTI else write_picture_folder)(reader, volumes, write, bar)
    return Exported(tuple(folders), len(reader), len(reader.info.patients))


def _refuse_filled(dest: Path, force: bool) -> None:
    """Raise UserError unless files can be written into `dest` without losing any that are there."""
    if os.path.lexists(dest) and not dest.is_dir():
        raise UserError(f"{dest} is a file; an export is a folder: choose another name")
    # Finish or undo what a killed export left behind, inside the folder or beside it.
    recover(dest, within=dest)
    recover(dest)
    if dest.is_dir() and any(dest.iterdir()) and not force:
        raise UserError(
            f"{dest} is not empty: choose another folder, or pass --force to replace files of the same names"
        )


@contextlib.contextmanager
def _filled(dest: Path, force: bool) -> Iterator[Callable[[str, bytes], None]]:
    """Yield a function write(name, content) for files below `dest`. All of them appear there, or none."""
    files.make_folder(dest.parent)
    # Staged inside an existing folder, so that its own files stay; else beside the new one.
    with Staged(dest, force, within=dest if dest.is_dir() else None, joins=True) as staged:
        folder = staged.place(dest)
        folder.mkdir()

        def write(name: str, content: bytes) -> None:
            files.make_folder((folder / name).parent)
            (folder / name).write_bytes(content)

        yield write
