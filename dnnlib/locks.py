"""Locks that the system releases when the process that holds them ends, however it ends."""

import fcntl


def try_lock(file: int) -> bool | None:
    """Lock an open file or folder. False: another process has it; None: the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
