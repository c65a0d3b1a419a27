"""Files that appear under their names when all of them are complete, and then all or none."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.locks import try_lock, wait_for_lock

_LOCK, _JOURNAL = "lock", "journal.json"
_MARK = b"files that are being written by StyleGAN2-MR\n"  # in the lock: no other folder is ever touched
_TRIED = 8  # hidden folders of one name that are looked at for leftovers
_ABANDONED = 86400  # seconds without a change: a leftover, where the file system has no locks to tell
_MANY = 64  # files: to bring each to the disk by itself would take long


class Staged:
    """Files and folders that appear together when the `with` block ends well, or not at all.

    They are made in a hidden folder, `.<name of path>.<n>.part`, which other users can't write to and which is locked
    while it is in use. What a killed process left there is undone and removed when `path` is written again.

    path: the first of them; force: replace what is there. Without it, a file that is there by the end stays, and a
    UserError says so. A link is replaced itself, never what it points to. within: the folder that holds all of them.
    joins: files of a folder join those of the one that is there, which it replaces otherwise.
    """

    def __init__(
        self, path: str | os.PathLike, force: bool = False, within: Path | None = None, joins: bool = False
    ) -> None:
        self.path, self.force, self.joins = Path(path), force, joins
        self._within = within or self.path.parent
        self._final: dict[Path, Path] = {}  # where it is made -> where it is to appear

    def place(self, path: str | os.PathLike) -> Path:
        """Where to make the file or the folder that is to appear at `path`."""
        made = self._folder / f".{Path(path).name}.{len(self._final)}"
        self._final[made] = Path(path)
        return made

    def write(self, path: str | os.PathLike, content: bytes) -> None:
        with self.naming(path):
            self.place(path).write_bytes(content)

    @contextlib.contextmanager
    def naming(self, path: str | os.PathLike) -> Iterator[None]:
        """Errors of the file system name the file that was asked for: not ours, and `path` where they name none."""
        try:
            yield
        except OSError as error:
            named = Path(error.filename) if isinstance(error.filename, (str, os.PathLike)) else self._folder
            if self._folder not in (named, *named.parents):
                raise
            asked = (final for made, final in self._final.items() if made in (named, *named.parents))
            raise _renamed(error, next(asked, path)) from error

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
                    raise error
        finally:
            _remove(self._folder, self._lock)

    def _publish(self) -> None:
        files = [pair for pairs in self._final.items() for pair in (_joining(*pairs) if self.joins else [pairs])]
        contents = [path for made in self._final for path in (made, *made.rglob("*")) if not path.is_dir()]
        if len(contents) > _MANY:
            os.sync()
        else:
            for path in contents:
                _sync(path)
        if len(files) == 1 and not files[0][1].is_dir():
            ((made, final),) = files
            _appear(made, final, self.force)
            _sync_folder(final.parent)
        elif files:
            with _nobody_else(self._within):
                _recover(self.path, self._within, alone=True)  # of those who were killed since this one began
                self._publish_together(files)

    def _publish_together(self, files: list[tuple[Path, Path]]) -> None:
        """While the journal is there, whoever finds it puts everything back as it was before."""
        parents = {folder for _, final in files for folder in final.parents if self._within in folder.parents}
        folders = sorted(folder for folder in parents if not folder.is_dir())
        journal = {
            "folders": [str(folder.relative_to(self._within)) for folder in folders],
            "files": [(str(final.relative_to(self._within)), _identity(made)) for made, final in files],
        }
        draft = self._folder / "draft"
        draft.write_text(json.dumps(journal), encoding="utf-8")
        _sync(draft)
        os.rename(draft, self._folder / _JOURNAL)
        _sync_folder(self._folder)
        _sync_folder(self._within)
        try:
            for folder in folders:
                folder.mkdir()
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


def recover(path: Path, within: Path | None = None) -> None:
    """Undo and remove what killed processes left of writing `path`.

    Raises UserError if something has taken the place of a file that is to be put back.
    """
    within = within or path.parent
    if any((_hidden(path, within, n) / _JOURNAL).exists() for n in range(_TRIED)):
        with _nobody_else(within):
            _recover(path, within, alone=True)
    else:
        _recover(path, within, alone=False)


def _recover(path: Path, within: Path, alone: bool) -> None:
    for n in itertools.count():
        folder = _hidden(path, within, n)
        if os.path.lexists(folder):
            _clear(folder, within, alone)
        elif n >= _TRIED:
            return


# --- the hidden folder ----------------------------------------------------------------------------------------------


def _hidden(path: Path, within: Path, n: int) -> Path:
    return within / f".{path.name}.{n}.part"


def _claim(path: Path, within: Path) -> tuple[Path, int]:
    """Make a hidden folder of this process alone. Returns it and its lock, an open file."""
    for n in itertools.count():
        folder = _hidden(path, within, n)
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except (FileNotFoundError, FileExistsError):  # others took the empty folder for a leftover, and made another
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
        os.close(lock)  # others took it for a leftover before it was locked
    raise AssertionError


def _clear(folder: Path, within: Path, alone: bool) -> None:
    """Undo and remove what is in a hidden folder, if it is one of this user's, and nobody's at work any more.

    alone: nobody else publishes in `within`, so that something may be undone.
    """
    try:
        state = os.lstat(folder)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            return
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # of a process that was killed while it removed the folder, or anybody's: it is empty
        return
    except OSError:
        return
    if alone and (folder / _JOURNAL).exists():  # its process is gone: others have the lock only while they look
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
    """Whether this process has got the lock of a hidden folder: only who has it changes what is in it."""
    locked = try_lock(lock)
    try:
        mark = os.read(lock, len(_MARK) + 1)
        return (
            # A process that was killed before it could write the mark left an empty lock and nothing else.
            (mark == _MARK or (not mark and os.listdir(folder) == [_LOCK]))
            and _is_there(folder, lock)
            and (locked or (locked is None and _last_change(folder) < time.time() - _ABANDONED))
        )
    except OSError:  # a file has just gone: somebody is at work
        return False


def _is_there(folder: Path, lock: int) -> bool:
    """Whether an open file is the lock of a hidden folder still."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(folder / _LOCK))
    except FileNotFoundError:
        return False


def _last_change(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _remove(folder: Path, lock: int) -> None:
    """Remove a hidden folder, and let go of its lock; one that holds what could not be put back stays."""
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
    with contextlib.suppress(OSError):
        folder.rmdir()  # a network's disk keeps a file that is open under another name, until now


# --- publishing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nobody_else(folder: Path) -> Iterator[None]:
    """Wait until nobody else publishes several files in a folder, or undoes that: names would change under way."""
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, lock)
            wait_for_lock(lock)
        yield


def _joining(made: Path, final: Path) -> Iterator[tuple[Path, Path]]:
    """What is to be renamed: of a folder whose name is taken by another, its files."""
    if made.is_dir() and final.is_dir():
        for path in sorted(made.rglob("*")):
            if not path.is_dir():
                yield path, final / path.relative_to(made)
    else:
        yield made, final


def _appear(made: Path, final: Path, force: bool) -> None:
    """Give what was made its name."""
    try:
        if made.is_dir():
            os.rename(made, final)  # which replaces an empty folder at most
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
    """As a rename, but a FileExistsError if there is something of that name."""
    try:
        os.link(made, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, where this leaves a moment between the look and the renaming
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        os.rename(made, final)


def _aside(folder: Path, n: int) -> Path:
    """Where the file is put whose place the n-th one takes."""
    return folder / f"old.{n}"


def _identity(path: Path) -> list[int]:
    """What a file keeps when it is renamed, and another one hardly has."""
    state = os.lstat(path)
    return [state.st_ino, state.st_size, state.st_mtime_ns]


def _roll_back(folder: Path, within: Path) -> None:
    """Take away what was published of a hidden folder, and put back what was set aside."""
    journal = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
    for n, (name, identity) in enumerate(journal["files"]):
        final, old = within / name, _aside(folder, n)
        if os.path.lexists(final) and _identity(final) == identity:
            os.rename(final, folder / f"undone.{n}")
        if os.path.lexists(old):
            if os.path.lexists(final):
                raise UserError(f"{final} has taken the place of {old}, which is to be put back: move one of them away")
            os.rename(old, final)
    for name in reversed(journal["folders"]):
        with contextlib.suppress(OSError):
            (within / name).rmdir()
    os.unlink(folder / _JOURNAL)


def _renamed(error: OSError, path: str | os.PathLike) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(path))


def _sync(path: Path) -> None:
    """Bring a file's content to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring names in a folder to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
