"""Make archives of joint slices from NIfTI files, make phantom patients, and look into archives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from dnnlib import files
from dnnlib.errors import UserError, reports_user_errors
from dnnlib.processes import default_workers
from dnnlib.system import run
from dnnlib.text import count, format_table, name_some
from slices.archive.describe import choose_slices, describe_archive, describe_pixels, importance
from slices.archive.reader import ArchiveReader
from slices.areas import ClassAreas
from slices.convert.conversion import Tally, convert_release
from slices.convert.head import parse_head
from slices.convert.options import CHOICES, ON_ERROR, ConvertOptions
from slices.convert.patterns import Pattern
from slices.convert.recognition import find_cases
from slices.convert.releases import AUTO, GRADES, RELEASE_NAMES, Release, describe_release, release_of_name
from slices.convert.report import describe_notes, describe_tallies

PICTURED = 8  # slices in the picture of `inspect`

PATH = click.Path(path_type=Path)
SEED = click.IntRange(0, 2**32 - 1)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=default_workers,
    show_default="number of CPUs, at most 8",
    help="Processes; the result does not depend on it.",
)


@click.group()
def main() -> None:
    """Archives of joint slices: C contrasts and K label maps of axial brain slices, one zip for training or testing."""


# --- convert --------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--source", type=PATH, required=True, help="Folder of a release, or of your own data; see above.")
@click.option(
    "--dest",
    type=PATH,
    required=True,
    help="A name that ends in .zip makes one archive; a folder gets train.zip, test.zip and split.json.",
)
@click.option(
    "--release",
    type=click.Choice((AUTO, *RELEASE_NAMES)),
    help="What the source is. auto: recognised by file names, never by label values.  [default: auto]",
)
@click.option(
    "--contrasts", metavar="A,B=…", help="Your own data: its contrasts, each with its name in files if that differs."
)
@click.option(
    "--labels",
    metavar="A=1+4,…",
    help="Lesion classes and their values in masks; those of 'ignore' count as background. Without it, no label maps.",
)
@click.option(
    "--pattern",
    help="Where files lie, such as '{case}/{case}_{contrast}.nii.gz'; without {contrast}, 4-D files. [_{visit}] may be "
    "missing, * is anything, {patient:4} has 4 characters, {patient:[A-Z]+} is a regular expression.",
)
@click.option("--mask-pattern", help="Where masks lie.  [default: --pattern with 'seg' for {contrast}]")
@click.option(
    "--cases",
    "table",
    type=PATH,
    help="Table (.csv) with the columns case and patient, visit or grade: says whose the cases are, of any source.",
)
@click.option("--regions", metavar="A=B+C,…", help="Unions of classes that evaluations report.")
@click.option(
    "--resolution",
    type=int,
    default=256,
    show_default=True,
    help="Pixels along an edge, a power of two. Slices that fit are padded, never enlarged; larger ones are averaged.",
)
@click.option("--fov", type=float, help="Edge of the square cut out of the middle, in mm.  [default: the whole slice]")
@click.option(
    "--head",
    metavar="auto|all|VALUE|PATTERN",
    help="What is head; the rest becomes background. auto: found in the images; all: every voxel; VALUE: voxels above "
    "it in any contrast; PATTERN: where masks lie, such as '{case}/{case}_brainmask.nii.gz'.  [default: auto]",
)
@click.option(
    "--slices",
    type=click.Choice(CHOICES),
    help="Slices to take: tumor, those with a lesion; brain, or all; with a folder as --dest, for train.zip.  "
    "[default: tumor; brain without labels]",
)
@click.option("--test-slices", type=click.Choice(CHOICES), help="The same for test.zip.  [default: all]")
@click.option(
    "--min-tumor-pixels",
    type=int,
    default=1,
    show_default=True,
    help="What counts as a slice with a lesion, in pixels of the archive.",
)
@click.option(
    "--lesion-free",
    type=float,
    metavar="SHARE",
    help="Add slices with brain and no lesion to those with a lesion, until they are such a share of train.zip, or of "
    "the single archive; for example 0.2.  [default: add none]",
)
@click.option(
    "--grade",
    type=click.Choice((*GRADES, "all")),
    default="all",
    show_default=True,
    help="Patients to take: high-grade or low-grade glioma, or all.",
)
@click.option("--class-by", type=click.Choice(["grade"]), help="Store the grade as class label, for a conditional GAN.")
@click.option("--test-fraction", type=float, help="Share of the patients in test.zip.  [default: 0.1]")
@click.option("--split-seed", type=int, help="Draws another split of the same patients.  [default: 0]")
@click.option("--split-file", type=PATH, help='Split to use instead: {"train": [patients], "test": [patients]}.')
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What to do about a case that can't be read: end, or leave it out and say so.",
)
@WORKERS
@click.option("--force", is_flag=True, help="Replace what is there.")
@reports_user_errors
def convert(
    source: Path,
    dest: Path,
    release: str | None,
    contrasts: str | None,
    labels: str | None,
    pattern: str | None,
    mask_pattern: str | None,
    table: Path | None,
    regions: str | None,
    on_error: str,
    workers: int,
    force: bool,
    split_file: Path | None,
    head: str | None,
    **options,
) -> None:
    """Convert NIfTI volumes of patients to archives of slices.

    \b
    The folder holds a release as it was published, for example
      BraTS 2017-2019  {HGG,LGG}/<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz
      BraTS 2020-2021  <case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz
      BraTS GLI 2023-  <case>/<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz
      Decathlon        imagesTr/<case>.nii.gz and labelsTr/<case>.nii.gz
    or your own data, described with --contrasts, --labels and --pattern:
      --contrasts t1,flair --labels lesion=1 --pattern '{case}/{case}_{contrast}.nii.gz'

    Images that belong to no case are counted. The split is by patient: no one is in both archives. A conversion that
    was interrupted goes on where it stopped when the same command is given again.
    """
    wanted = _wanted_release(release, contrasts, labels, pattern, mask_pattern, regions)
    split_file = None if split_file is None else str(split_file)
    options = ConvertOptions(split_file=split_file, head=None if head == AUTO else head, **options)
    masks = options.head if options.head and isinstance(parse_head(options.head), Pattern) else None
    found = find_cases(source, wanted, masks, table)
    click.echo(found.words)
    parts = convert_release(source, dest, found, options, workers=workers, force=force, on_error=on_error)
    click.echo(describe_tallies({part.name: part.tally for part in parts}))
    if notes := describe_notes(parts):
        click.echo(f"\n{notes}")
    written = (f"{part.path} ({describe_pixels(part.pixels, options.resolution)})" for part in parts)
    click.echo(f"\nwritten: {', '.join(written)}")


def _wanted_release(
    release: str | None,
    contrasts: str | None,
    labels: str | None,
    pattern: str | None,
    mask_pattern: str | None,
    regions: str | None,
) -> Release | None:
    """The release that the options name or describe; None if it is to be recognised."""
    own = {"--contrasts": contrasts, "--pattern": pattern}
    extra = {"--labels": labels, "--mask-pattern": mask_pattern, "--regions": regions}
    given = [name for name, value in (own | extra).items() if value is not None]
    if not given:
        return None if release in (None, AUTO) else release_of_name(release)
    if release is not None:
        raise UserError(f"{given[0]} describes your own data, --release {release} a known one: leave one of them out")
    if missing := [name for name, value in own.items() if value is None]:
        raise UserError(f"{missing[0]} is needed as well: your own data takes --contrasts and --pattern")
    return describe_release(contrasts, pattern, labels, mask_pattern, regions)


# --- phantom --------------------------------------------------------------------------------------------------------


def _parse_shape(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([0-9]{1,9})[x×]([0-9]{1,9})[x×]([0-9]{1,9})", text)
    if not match:
        raise click.BadParameter(f"{name_some([text])}: expected three whole numbers such as 240x240x155")
    return tuple(int(n) for n in match.groups())


@main.command()
@click.option("--dest", type=PATH, required=True, help="Folder to write; convert reads it.")
@click.option("--patients", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("--seed", type=int, required=True, help="Another seed gives other patients.")
@click.option(
    "--shape",
    default="240x240x155",
    show_default=True,
    callback=_parse_shape,
    help="Voxels from right to left, front to back, feet to head; fewer show the same anatomy coarsely.",
)
@WORKERS
@click.option("--force", is_flag=True, help="Replace what is there.")
@reports_user_errors
def phantom(dest: Path, patients: int, seed: int, shape: tuple[int, int, int], workers: int, force: bool) -> None:
    """Draw synthetic tumor patients in the layout of BraTS 2018, to try the tools without data."""
    from slices.phantom import write_patients  # what it needs is slow to import

    write_patients(dest, patients=patients, seed=seed, shape=shape, workers=workers, force=force)
    click.echo(f"{count(patients, 'phantom patient')} in {dest}")


# --- inspect --------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("archive", type=PATH)
@click.option("--out", type=PATH, help=f"Picture to write (.png): {PICTURED} slices with large lesions.")
@click.option("--force", is_flag=True, help="Replace the picture if there is one.")
@reports_user_errors
def inspect(archive: Path, out: Path | None, force: bool) -> None:
    """Check every slice of ARCHIVE and say what it holds and how it was made."""
    if out is not None:
        if out.suffix.lower() != ".png":
            raise UserError(f"--out {out}: pictures are written as PNG; choose a name that ends in .png")
        files.refuse_existing(out, force)
        files.make_folder(out.parent)
    reader = ArchiveReader(archive)
    tally, sizes = Tally(reader.schema), []
    for i, record in enumerate(tqdm(reader.info.slices, desc="checking", unit="slice", leave=False)):
        stored = reader.read_checked(i)
        tally.add(record.patient, ClassAreas.of(reader.schema.split(stored)[1][None], reader.schema))
        sizes.append(importance(stored, reader))
    click.echo(describe_archive(reader))
    click.echo(f"\n{describe_tallies({archive.name: tally})}")
    if out is not None:
        from slices.render import save, sheet

        shown = np.stack([reader.read(i) for i in choose_slices(reader.by_patient(), sizes, PICTURED)])
        save(sheet(shown, reader.schema), out, force)
        click.echo(f"\nwritten: {out}")


# --- export ---------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("archive", type=PATH)
@click.option("--dest", type=PATH, required=True, help="Folder to write; a new one, or an empty one.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("nifti", "png")),
    required=True,
    help="nifti: a volume per case; png: pictures of every slice, labels in colour.",
)
@click.option("--force", is_flag=True, help="Write into a folder that is not empty; replaces files of the same names.")
@reports_user_errors
def export(archive: Path, dest: Path, form: str, force: bool) -> None:
    """Write the slices of ARCHIVE as files for other programs.

    \b
    nifti  DIR/<case>/<case>_<contrast>.nii.gz and <case>_seg.nii.gz, on the grid of the
           source where pixels are its voxels; slices that the archive lacks are 0
    png    DIR/<case>/<index>_<contrast>.png and <index>_seg.png

    Intensities come back clipped to their window, and as 255 grey levels at most.
    """
    from slices.export import export_archive

    written = export_archive(archive, dest, form, force)
    rows = [(f.name, f.slices, f.of, *([f.grid] if f.grid else [])) for f in written.folders if f.of is not None]
    if rows:
        click.echo(format_table(("case", "slices", "of", "voxels")[: len(rows[0])], rows) + "\n")
    if single := sum(folder.slices for folder in written.folders if folder.of is None):
        click.echo(f"{count(single, 'slice')} of no known volume, each by itself; pixel size unknown\n")
    click.echo(f"written: {dest}, {count(written.slices, 'slice')} of {count(written.patients, 'patient')}")


# --- merge, subset, split -------------------------------------------------------------------------------------------


@main.command()
@click.argument("archives", type=PATH, nargs=-1, required=True)
@click.option("--dest", type=PATH, required=True, help="Archive to write (.zip).")
@click.option("--force", is_flag=True, help="Replace what is there.")
@reports_user_errors
def merge(archives: Sequence[Path], dest: Path, force: bool) -> None:
    """Join ARCHIVES of one schema and one resolution into one, slice after slice."""
    from slices.archive import edit

    click.echo(_describe_written(edit.merge(archives, dest, force)))


@main.command()
@click.argument("archive", type=PATH)
@click.option("--dest", type=PATH, required=True, help="Archive to write (.zip).")
@click.option("--slices", type=click.IntRange(min=1), help="Take so many slices.")
@click.option("--patients", type=click.IntRange(min=1), help="Take all slices of so many patients.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws others.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@reports_user_errors
def subset(archive: Path, dest: Path, slices: int | None, patients: int | None, seed: int, force: bool) -> None:
    """Take slices or patients out of ARCHIVE by chance; they stay in its order."""
    from slices.archive import edit

    click.echo(_describe_written(edit.subset(archive, dest, slices, patients, seed, force)))


@main.command()
@click.argument("archive", type=PATH)
@click.option("--dest", type=PATH, required=True, help="Folder that gets train.zip, test.zip and split.json.")
@click.option("--test-fraction", type=float, default=0.1, show_default=True, help="Share of the patients in test.zip.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Draws another split of the same patients.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@reports_user_errors
def split(archive: Path, dest: Path, test_fraction: float, seed: int, force: bool) -> None:
    """Divide ARCHIVE by patient into one for training and one for testing."""
    from slices.archive import edit

    for written in edit.split(archive, dest, test_fraction, seed, force):
        click.echo(_describe_written(written))


def _describe_written(written) -> str:
    told = f"written: {written.path}, {count(written.slices, 'slice')} of {count(written.patients, 'patient')}"
    return "\n".join([*written.doubts, told])


if __name__ == "__main__":
    run(main)
