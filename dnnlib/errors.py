"""UserError for mistakes of users, Failure for what else goes wrong; both become a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator

import click

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the system's error numbers for a disk without room

# Error number of the system -> advice, appended to its message.
_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "; free some space or choose another destination",
    errno.ENOENT: "; check that its folder is there and that files can be made in it",
    errno.EACCES: "; choose a destination that you may write to, or change its permissions",
    errno.EROFS: "; choose a destination that is not read-only",
}


class UserError(ValueError):
    """An input that can't be used. The message says what was given, what was expected, and what would help."""


class Failure(Exception):
    """Something that ended a program though it was used well, such as a GPU without memory left."""

    def __init__(self, message: str, status: int = 1, advice: str = "") -> None:
        super().__init__(message)
        self.status = status  # the program's exit status
        self.advice = advice  # how to go on, a line of its own


class _Ended(click.ClickException):
    """Ends a click program with a message, in the manner of other Unix programs."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(message_of(failure))
        self.exit_code = failure.status  # type: ignore[misc]  # click reads it from the instance

    def show(self, file=None) -> None:
        click.echo(self.format_message(), err=True)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn failures, and users' mistakes, errors of the file system and lack of memory, into a message and exit code.

    The exit code is a failure's own, and 2 for the others.
    """
    try:
        yield
    except Exception as error:
        if (failure := as_failure(error)) is None:
            raise
        raise _Ended(failure) from None


def as_failure(error: Exception) -> Failure | None:
    """Return what to tell the user of an exception, or None if only its traceback tells."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, UserError):
        return Failure(str(error), status=2)
    if isinstance(error, OSError):
        return Failure(describe_os_error(error), status=2)
    if isinstance(error, MemoryError):
        lacking = f"out of memory ({str(error) or 'for Python itself'}): the program needs more than there is"
        return Failure(lacking, status=2)
    return None


def message_of(failure: Failure) -> str:
    """Format the message as it stands on the terminal, with the advice on a line of its own."""
    return "\n".join([f"error: {failure}", *[failure.advice] * bool(failure.advice)])


def describe_os_error(error: OSError) -> str:
    """Describe a failed file operation in one line: file, reason, and advice if there is any."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{_ADVICE.get(error.errno, '')}"


def reports_user_errors(function: Callable) -> Callable:
    """Decorate a click command: a user's mistake ends it with a message and exit code 2, not with a traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with refusing():
            return function(*args, **kwargs)

    return wrapped
