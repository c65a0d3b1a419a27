"""Publish files together: all of them appear, or none, even if the process is killed half-way.

    with Staged(dest / "train.zip", force) as staged:
        make_archive(staged.place(dest / "train.zip"))  # a path to write to; it is renamed later
        staged.write(dest / "split.json", content)
    # Both files are there now. If the block had raised an error, neither would be.

How it works: files are made in a hidden folder beside the destination, named `.<name>.<n>.part`. It contains:

    lock            The process holds this lock while it lives. The content marks the folder as one of ours.
    .<name>.<n>     A staged file or folder: made, but not yet published.
    journal.json    Exists only during a publication. Lists the final names, and the folders made for them.
    old.<n>         The old file of the n-th final name, set aside.
    undone.<n>      The new file of the n-th final name, taken away by a roll-back.

A single file is published by one rename, which the file system does entirely or not at all. Several renames can be
interrupted, so the journal is written before the first one and deleted after the last one. If the process of a journal
is gone, its publication was interrupted. The next writer of the same path rolls it back (`recover`): new files are
taken away, and old files are put back.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.locks import try_lock, wait_for_lock

_LOCK, _JOURNAL = "lock", "journal.json"
_MARK = b"files that are being written by StyleGAN2-MR\n"  # in the lock: a folder without it is never touched
_HIDDEN = re.compile(r"\.(.+)\.\d+\.part", re.DOTALL)  # a hidden folder's name, as `_hidden` makes it
_TRIED = 8  # leftovers are looked for under at least this many numbers <n>
_ABANDONED = 86400  # seconds without a change until a folder counts as a leftover, on file systems without locks
_MANY = 64  # files; for more than these, one sync of all disks is faster than a sync of each file


class Staged:
    """Files and folders that appear together when the `with` block ends without an error, or not at all.

    Errors of the file system in the block name the final path, never the hidden folder.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # the first of the files; the hidden folder is named after it
        force: bool = False,  # replace existing files (a link itself, never its target); otherwise raise UserError
        within: Path | None = None,  # a folder that holds all final paths; by default the parent of `path`
        joins: bool = False,  # files of a staged folder join those of an existing folder, instead of replacing it
    ) -> None:
        self.path, self.force, self.joins = Path(path), force, joins
        self._within = within or self.path.parent
        self._final: dict[Path, Path] = {}  # staged path -> final path

    def place(self, path: str | os.PathLike) -> Path:
        """Return the staged path of the file or folder that will appear at `path`."""
        made = self._folder / f".{Path(path).name}.{len(self._final)}"
        self._final[made] = Path(path)
        return made

    def write(self, path: str | os.PathLike, content: bytes) -> None:
        """Stage a file with this content."""
        with self.naming(path):
            self.place(path).write_bytes(content)

    @contextlib.contextmanager
    def naming(self, path: str | os.PathLike) -> Iterator[None]:
        """Replace staged paths by final ones in errors of the file system, and the hidden folder by `path`."""
        try:
            yield
        except OSError as error:
            named = Path(error.filename) if isinstance(error.filename, (str, os.PathLike)) else self._folder
            if self._folder not in (named, *named.parents):
                raise
            # Final paths of the staged file that the error names, or of the staged folder that contains it.
            finals = (final for made, final in self._final.items() if made in (named, *named.parents))
            raise _renamed(error, next(finals, path)) from error

    def __enter__(self) -> Staged:
        try:
            recover(self.path, self._within)
            self._folder, self._lock = _claim(self.path, self._within)
        except OSError as error:
            raise _renamed(error, self.path) from error
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            with self.naming(self.path):
                if error is None:
                    self._publish()
                elif isinstance(error, OSError):
                    raise error  # again, so that `naming` puts the final path into it
        finally:
            _remove(self._folder, self._lock)

    def _publish(self) -> None:
        """Write the staged contents to the disk, then rename them."""
        # (staged, final) pairs. A folder that joins another one is replaced by pairs of its files.
        files = [pair for pairs in self._final.items() for pair in (_joining(*pairs) if self.joins else [pairs])]
        # Every staged file, including those inside staged folders.
        contents = [path for made in self._final for path in (made, *made.rglob("*")) if not path.is_dir()]
        # Contents reach the disk before their names do: after a power failure, no name leads to half a file.
        if len(contents) > _MANY:
            os.sync()
        else:
            for path in contents:
                _sync(path)
        # One rename needs no journal, unless it has to set an old folder aside first.
        if len(files) == 1 and not files[0][1].is_dir():
            ((made, final),) = files
            _appear(made, final, self.force)
            _sync_folder(final.parent)
        elif files:
            with _nobody_else(self._within):
                # Other processes may have been killed since this one entered its block.
                _recover(self.path, self._within, alone=True)
                self._publish_together(files)

    def _publish_together(self, files: list[tuple[Path, Path]]) -> None:
        """Rename several files under the protection of a journal."""
        folders = self._write_journal(files)
        try:
            for folder in folders:
                folder.mkdir()
            # Set all old files aside first. Until the last of them has moved, nothing new has appeared.
            for n, (made, final) in enumerate(files):
                if self.force and os.path.lexists(final):
                    if final.is_dir() and not made.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
                    os.rename(final, _aside(self._folder, n))
            for made, final in files:
                _appear(made, final, self.force)
            for folder in {final.parent for _, final in files}:
                _sync_folder(folder)
        except BaseException:
            _roll_back(self._folder, self._within)
            raise
        os.unlink(self._folder / _JOURNAL)

    def _write_journal(self, files: list[tuple[Path, Path]]) -> list[Path]:
        """Write the journal. Returns the folders that must be made first, outer folders before inner ones."""
        # All folders between `within` and the final files.
        parents = {folder for _, final in files for folder in final.parents if self._within in folder.parents}
        folders = sorted(folder for folder in parents if not folder.is_dir())
        journal = {
            "folders": [str(folder.relative_to(self._within)) for folder in folders],
            "files": [(str(final.relative_to(self._within)), _identity(made)) for made, final in files],
        }
        # The journal itself appears by a rename, so no other process ever reads half of it.
        draft = self._folder / "draft"
        draft.write_text(json.dumps(journal), encoding="utf-8")
        _sync(draft)
        os.rename(draft, self._folder / _JOURNAL)
        _sync_folder(self._folder)
        _sync_folder(self._within)
        return folders


def recover(path: Path, within: Path | None = None) -> None:
    """Roll back and remove the leftovers of killed processes that were writing `path`.

    Raises UserError if another file has taken the place of a file that must be put back.
    """
    within = within or path.parent
    # Rolling back needs the folder alone. The usual case, without any journal, does not wait for others.
    if any((_hidden(path, within, n) / _JOURNAL).exists() for n in range(_TRIED)):
        with _nobody_else(within):
            _recover(path, within, alone=True)
    else:
        _recover(path, within, alone=False)


def recover_all(folder: Path) -> None:
    """Roll back and remove all that killed processes were writing into a folder, as `recover` does for one path."""
    for name in {match[1] for path in folder.iterdir() if (match := _HIDDEN.fullmatch(path.name))}:
        recover(folder / name)


def _recover(path: Path, within: Path, alone: bool) -> None:
    """Clear the hidden folders of `path`: all numbers up to _TRIED, and higher ones until one is free."""
    for n in itertools.count():
        folder = _hidden(path, within, n)
        if os.path.lexists(folder):
            _clear(folder, within, alone)
        elif n >= _TRIED:
            return


# --- the hidden folder ----------------------------------------------------------------------------------------------


def _hidden(path: Path, within: Path, n: int) -> Path:
    """Path of the n-th hidden folder."""
    return within / f".{path.name}.{n}.part"


def _claim(path: Path, within: Path) -> tuple[Path, int]:
    """Make a hidden folder for this process alone. Returns the folder and its lock, an open file."""
    for n in itertools.count():
        folder = _hidden(path, within, n)
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except (FileNotFoundError, FileExistsError):
            # Another process took the empty folder for a leftover, removed it, and perhaps made its own.
            continue
        except OSError:
            folder.rmdir()
            raise
        try:
            wait_for_lock(lock)
            os.write(lock, _MARK)
            if _is_there(folder, lock):
                return folder, lock
        except OSError:
            _remove(folder, lock)
            raise
        os.close(lock)  # another process removed the folder as a leftover before it was locked
    raise AssertionError


def _clear(folder: Path, within: Path, alone: bool) -> None:
    """Roll back and remove a hidden folder if it belongs to this user and its process is gone.

    alone: no other process is publishing in `within`. Only then a publication is rolled back.
    """
    try:
        state = os.lstat(folder)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            return
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        # A process was killed while removing the folder, or the folder is not ours. rmdir removes empty folders only.
        with contextlib.suppress(OSError):
            folder.rmdir()
        return
    except OSError:
        return
    if alone and (folder / _JOURNAL).exists():
        # The process of this journal is gone. Others hold the lock only for the moment of a look.
        wait_for_lock(lock)
    left, published = _is_left(folder, lock), (folder / _JOURNAL).exists()
    if not left or (published and not alone):
        os.close(lock)
        return
    try:
        if published:
            _roll_back(folder, within)
    finally:
        _remove(folder, lock)


def _is_left(folder: Path, lock: int) -> bool:
    """Return whether a hidden folder is a leftover. If so, this process holds its lock and may change its content."""
    locked = try_lock(lock)
    try:
        mark = os.read(lock, len(_MARK) + 1)
        return (
            # Ours, by its mark. A process that was killed before it wrote the mark left an empty lock and nothing else.
            (mark == _MARK or (not mark and os.listdir(folder) == [_LOCK]))
            and _is_there(folder, lock)
            and (locked or (locked is None and _last_change(folder) < time.time() - _ABANDONED))
        )
    except OSError:  # a file has just disappeared, so its process is at work
        return False


def _is_there(folder: Path, lock: int) -> bool:
    """Return whether an open file is still the lock of a hidden folder."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(folder / _LOCK))
    except FileNotFoundError:
        return False


def _last_change(folder: Path) -> float:
    """Time of the last change in a folder, in seconds since 1970."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _remove(folder: Path, lock: int) -> None:
    """Remove a hidden folder and release its lock. The folder stays if it holds files that could not be put back."""
    stays = (folder / _JOURNAL).exists()
    with contextlib.suppress(OSError):
        for path in folder.iterdir() if not stays else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink()
        if not stays:
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(lock)
    # A network file system keeps a deleted file under another name while it is open. The folder is empty only now.
    with contextlib.suppress(OSError):
        folder.rmdir()


# --- publishing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nobody_else(folder: Path) -> Iterator[None]:
    """Be the only process in the block that publishes several files in a folder, or rolls them back."""
    with contextlib.ExitStack() as opened:
        # Without rights or locks, go on unprotected. The stack closes the lock if there is one.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, lock)
            wait_for_lock(lock)
        yield


def _joining(made: Path, final: Path) -> Iterator[tuple[Path, Path]]:
    """Yield pairs to rename: a staged folder as a whole, or its files one by one if the final folder exists."""
    if made.is_dir() and final.is_dir():
        for path in sorted(made.rglob("*")):
            if not path.is_dir():
                yield path, final / path.relative_to(made)
    else:
        yield made, final


def _appear(made: Path, final: Path, force: bool) -> None:
    """Rename a staged file or folder. Raises UserError if the name is taken and `force` is not set."""
    try:
        if made.is_dir():
            os.rename(made, final)  # replaces an empty folder at most
        elif force:
            os.replace(made, final)
        else:
            _appear_newly(made, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise UserError(
            f"{final} has appeared while its content was made, and stays as it is: choose another name, "
            "or pass --force to replace it"
        ) from None


def _appear_newly(made: Path, final: Path) -> None:
    """Rename a file. Raises FileExistsError if the name is taken; a plain rename would replace that file."""
    try:
        os.link(made, final)  # a second name; `_remove` deletes the first one
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links. Another file may appear between the test and the rename.
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        os.rename(made, final)


def _aside(folder: Path, n: int) -> Path:
    """Path of the old file of the n-th name in the journal, while it is set aside."""
    return folder / f"old.{n}"


def _identity(path: Path) -> list[int]:
    """Inode, size and time of a file. A rename keeps them, and another file hardly has the same."""
    state = os.lstat(path)
    return [state.st_ino, state.st_size, state.st_mtime_ns]


def _roll_back(folder: Path, within: Path) -> None:
    """Take away new files that a hidden folder has published, and put back the old ones.

    A roll-back may be killed and repeated, so each step first tests whether it is still to be done.
    Raises UserError if another file has taken the place of a file that must be put back.
    """
    journal = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
    for n, (name, identity) in enumerate(journal["files"]):
        final, old = within / name, _aside(folder, n)
        if os.path.lexists(final) and _identity(final) == identity:
            os.rename(final, folder / f"undone.{n}")
        if os.path.lexists(old):
            if os.path.lexists(final):
                raise UserError(f"{final} has taken the place of {old}, which must be put back: move one of them away")
            os.rename(old, final)
    for name in reversed(journal["folders"]):
        with contextlib.suppress(OSError):
            (within / name).rmdir()
    os.unlink(folder / _JOURNAL)


def _renamed(error: OSError, path: str | os.PathLike) -> OSError:
    """Return the same error about another file."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _sync(path: Path) -> None:
    """Write a file's content to the disk, not only to the system's memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
