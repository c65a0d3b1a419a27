"""Where a report goes, and what may be replaced there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import folder_for
from dnnlib.publish import Staged, recover
from training.report.figures import MOST_RUNS
from training.report.page import MARK, make_page
from training.report.picture import make_picture
from training.report.run_folder import read_run_folder, refuse_other_folders

PAGE = "report.html"
_BEGINNING = 4096  # bytes of a file in which the mark stands


def write_report(folders: Sequence[Path], dest: Path | None, force: bool = False) -> tuple[Path, Path]:
    """Write the page about runs, and the picture beside it. Returns their paths. dest: see `destination`.

    Raises UserError for a folder that holds no run, for one that is given twice, for too many, and for files that are
    in the way, unless `force` is set.
    """
    names = name_runs(folders)
    page = destination(folders, dest)
    picture = page.with_suffix(".png")
    for path in (page, picture):
        refuse_strangers(path, force)
    runs = [read_run_folder(folder, name) for folder, name in names.items()]
    write_files({page: make_page(runs), picture: make_picture(runs)})
    return page, picture


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files of one folder: all appear, or none."""
    first = next(iter(contents))
    with folder_for(first.parent), Staged(first, force=True) as staged:
        for path, content in contents.items():
            staged.write(path, content)


def name_runs(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders with the names that the page calls them by: the last parts of their paths that tell them apart."""
    for folder in folders:
        refuse_other_folders(folder)
    real = [folder.resolve() for folder in folders]
    if twice := [str(f) for n, f in enumerate(folders) if real[n] in real[:n]]:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs: a page shows up to {MOST_RUNS}, as more can't be told apart by color")
    for parts in range(1, max(len(path.parts) for path in real) + 1):
        names = ["/".join(path.parts[-parts:]) for path in real]
        if len(set(names)) == len(names):
            break
    return dict(zip(folders, names, strict=True))


def destination(folders: Sequence[Path], dest: Path | None) -> Path:
    """Where the page goes.

    dest: the page itself, or a folder that is there. None: the folder of a single run, or else the working folder.
    """
    if dest is None:
        return folders[0] / PAGE if len(folders) == 1 else Path(PAGE)
    if dest.is_dir():
        return dest / PAGE
    if dest.suffix != ".html":
        raise UserError(f"--dest {dest}: expected a name that ends with .html, or a folder that is there")
    return dest


def refuse_strangers(path: Path, force: bool) -> None:
    """Raise UserError if a file that is no report of this program is in the way."""
    if path.parent.is_dir():
        recover(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is to be written there: choose another --dest")
    if path.exists() and not force and not is_ours(path):
        raise UserError(
            f"{path} is there, and no report of this program: choose another --dest, or pass --force to replace it"
        )


def is_ours(path: Path) -> bool:
    """Whether a file is of an earlier report."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(_BEGINNING)
