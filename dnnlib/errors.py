"""One kind of error for users' mistakes, and the border at which it becomes a message and an exit code."""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator

import click

_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "; free some space or choose another destination",
    errno.ENOENT: "; check that its folder is there and that files can be made in it",
    errno.EACCES: "; choose a destination that you may write to, or change its permissions",
    errno.EROFS: "; choose a destination that is not read-only",
}


class UserError(ValueError):
    """An input that can't be used. The message says what was given, what was expected, and what would do."""


class _Refused(click.ClickException):
    exit_code = 2

    def show(self, file=None) -> None:
        click.echo(f"error: {self.format_message()}", err=True)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn UserError, errors of the file system and want of memory into one message and exit code 2."""
    try:
        yield
    except UserError as error:
        raise _Refused(str(error)) from None
    except OSError as error:
        raise _Refused(describe_os_error(error)) from None
    except MemoryError as error:
        raise _Refused(f"out of memory ({str(error) or 'for Python itself'}): more is needed than there is") from None


def describe_os_error(error: OSError) -> str:
    """One line about a failed file operation: the file, the reason, and what would do where that is plain."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{_ADVICE.get(error.errno, '')}"


def reports_user_errors(function: Callable) -> Callable:
    """Decorate a click command: users' mistakes end it with a message and exit code 2 instead of a traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with refusing():
            return function(*args, **kwargs)

    return wrapped
