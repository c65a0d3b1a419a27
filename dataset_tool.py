"""Program for archives of joint slices: make them from NIfTI files, inspect, export, merge and divide them."""

from collections.abc import Sequence
from pathlib import Path

import click

from dnnlib.cli import HELP, options
from dnnlib.errors import reports_user_errors
from dnnlib.files import make_folder, refuse_existing
from dnnlib.system import run
from dnnlib.text import count
from slices import render
from slices.archive import edit
from slices.archive.describe import inspect_archive
from slices.archive.options import PICTURED, InspectOptions, MergeOptions, SplitOptions, SubsetOptions
from slices.archive.reader import ArchiveReader
from slices.convert.conversion import convert as run_conversion
from slices.convert.options import ConvertOptions, RunOptions
from slices.convert.plan import plan
from slices.convert.recognition import find_cases
from slices.convert.report import describe_outcomes
from slices.convert.source import SourceOptions
from slices.export.export import ExportOptions, export_archive
from slices.phantom import PhantomOptions, write_patients

PATH = click.Path(path_type=Path)
ARCHIVE = click.argument("archive", type=PATH)
DEST = "A name that ends in .zip for a single archive; else a folder for train.zip, test.zip and split.json."


@click.group(context_settings=HELP)
def main() -> None:
    """Make and handle archives of joint slices: C contrasts and K label maps of axial brain slices in a zip file."""


@main.command(context_settings=HELP)
@options(SourceOptions, "data")
@click.option("--dest", type=PATH, required=True, help=DEST)
@options(ConvertOptions, "wanted")
@options(RunOptions, "how")
@reports_user_errors
def convert(data: SourceOptions, dest: Path, wanted: ConvertOptions, how: RunOptions) -> None:
    """Convert NIfTI volumes of patients into archives of slices.

    \b
    The folder holds a release as it was published, for example
      BraTS 2017-2019  {HGG,LGG}/<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz
      BraTS 2020-2021  <case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz
      BraTS GLI 2023-  <case>/<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz
      Decathlon        imagesTr/<case>.nii.gz and labelsTr/<case>.nii.gz
    or your own data, described with --contrasts, --labels and --pattern:
      --contrasts t1,flair --labels lesion=1 --pattern '{case}/{case}_{contrast}.nii.gz'

    Images that belong to no case are counted. The split is by patient: nobody is in both archives. To continue an
    interrupted conversion, give the same command again.
    """
    found = find_cases(data.source, data.wanted_release, wanted.head_rule.masks, data.table)
    click.echo(found.words)
    outcomes = run_conversion(plan(wanted, found, dest), how.workers, how.force, how.on_error)
    click.echo(describe_outcomes(outcomes, wanted.resolution))


@main.command(context_settings=HELP)
@options(PhantomOptions, "wanted")
@reports_user_errors
def phantom(wanted: PhantomOptions) -> None:
    """Draw synthetic tumor patients in the layout of BraTS 2018, to try the tools without data."""
    write_patients(wanted.dest, wanted.patients, wanted.seed, wanted.voxels, wanted.workers, wanted.force)
    click.echo(f"{count(wanted.patients, 'phantom patient')} in {wanted.dest}")


@main.command(context_settings=HELP)
@ARCHIVE
@options(InspectOptions, "wanted")
@reports_user_errors
def inspect(archive: Path, wanted: InspectOptions) -> None:
    """Check every slice of ARCHIVE, and show what it contains and how it was made."""
    if wanted.out is not None:
        make_folder(refuse_existing(wanted.out, wanted.force).parent)
    inspected = inspect_archive(ArchiveReader(archive))
    click.echo(inspected.describe())
    if wanted.out is not None:
        sheet = render.sheet(inspected.worth_showing(PICTURED), inspected.reader.schema)
        render.save(sheet, wanted.out, wanted.force)
        click.echo(f"\nwritten: {wanted.out}")


@main.command(context_settings=HELP)
@ARCHIVE
@options(ExportOptions, "wanted")
@reports_user_errors
def export(archive: Path, wanted: ExportOptions) -> None:
    """Write the slices of ARCHIVE as files for other programs.

    \b
    nifti  DIR/<case>/<case>_<contrast>.nii.gz and <case>_seg.nii.gz, on the source's grid
           if pixels are as large as its voxels; slices not in the archive are 0
    png    DIR/<case>/<index>_<contrast>.png and <index>_seg.png

    Intensities are clipped to their window and have at most 255 different values.
    """
    written = export_archive(archive, wanted.dest, wanted.form, wanted.force)
    click.echo(written.describe(wanted.dest))


@main.command(context_settings=HELP)
@click.argument("archives", type=PATH, nargs=-1, required=True)
@options(MergeOptions, "wanted")
@reports_user_errors
def merge(archives: Sequence[Path], wanted: MergeOptions) -> None:
    """Join ARCHIVES of the same schema and resolution into one, in this order."""
    click.echo(edit.merge(archives, wanted).describe())


@main.command(context_settings=HELP)
@ARCHIVE
@options(SubsetOptions, "wanted")
@reports_user_errors
def subset(archive: Path, wanted: SubsetOptions) -> None:
    """Write a random choice of slices or patients of ARCHIVE into another archive, in the same order."""
    click.echo(edit.subset(archive, wanted).describe())


@main.command(context_settings=HELP)
@ARCHIVE
@options(SplitOptions, "wanted")
@reports_user_errors
def split(archive: Path, wanted: SplitOptions) -> None:
    """Divide ARCHIVE by patient into an archive for training and one for testing."""
    for written in edit.split(archive, wanted):
        click.echo(written.describe())


if __name__ == "__main__":
    run(main)
