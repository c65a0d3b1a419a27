"""Locks on files. The system releases a lock when its process ends, even if the process is killed."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dnnlib.errors import UserError


def try_lock(file: int) -> bool | None:
    """Lock an open file or folder. Returns False if another process holds it, None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def wait_for_lock(file: int) -> None:
    """Wait until nobody else holds an open file or folder, and lock it. Does nothing on a file system without locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock file, as far as this machine can see. It need not be writable."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared, so that two that look don't see each other. It is given back at once.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


@contextlib.contextmanager
def hold(path: Path, busy: str) -> Iterator[int]:
    """Hold a lock file during the block. Yields the open file.

    Raises UserError if another process holds it. busy: start of the message; the name of the other process follows.
    A child process that inherits the open file also holds the lock, even after this process has ended.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if try_lock(file) is False:  # None: no locks on this file system, so go on without one
            holder = os.read(file, 200).decode(errors="replace").strip()
            raise UserError(f"{busy} ({holder or 'an unknown process'})")
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield file
    finally:
        os.close(file)
