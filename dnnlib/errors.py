"""One kind of error for the user's mistakes, and the border at which it becomes an exit code."""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator

import click


class UserError(ValueError):
    """What the user gave can't be used. The message says what was given, what was expected, and what would do."""


class _Refused(click.ClickException):
    exit_code = 2

    def show(self, file=None) -> None:
        click.echo(f"error: {self.format_message()}", err=True)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn the user's mistakes, and the file system's refusals, into one message and exit code 2."""
    try:
        yield
    except UserError as error:
        raise _Refused(str(error)) from None
    except OSError as error:
        raise _Refused(describe_os_error(error)) from None
    except MemoryError as error:
        raise _Refused(f"out of memory ({str(error) or 'for Python itself'}): more is needed than there is") from None


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation, with the file's name and, where it is plain, what would do."""
    where = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "; free some space or choose another destination",
        errno.ENOENT: "; check that its folder is there and that files can be made in it",
        errno.EACCES: "; choose a destination that you may write to, or change its permissions",
        errno.EROFS: "; choose a destination that is not read-only",
    }.get(error.errno, "")
    return f"{where}{error.strerror or error}{advice}"


def reports_user_errors(function: Callable) -> Callable:
    """Decorate a click command: the user's mistakes end with one message and exit code 2, not with a traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with refusing():
            return function(*args, **kwargs)

    return wrapped
