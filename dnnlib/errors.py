"""UserError for mistakes of users, and its conversion to a message and an exit code at the command line."""

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator

import click

# Error number of the system -> advice, appended to its message.
_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "; free some space or choose another destination",
    errno.ENOENT: "; check that its folder is there and that files can be made in it",
    errno.EACCES: "; choose a destination that you may write to, or change its permissions",
    errno.EROFS: "; choose a destination that is not read-only",
}


class UserError(ValueError):
    """An input that can't be used. The message says what was given, what was expected, and what would help."""


class _Refused(click.ClickException):
    """Ends a click program with a message, in the manner of other Unix programs."""

    exit_code = 2

    def show(self, file=None) -> None:
        click.echo(f"error: {self.format_message()}", err=True)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn UserError, errors of the file system and lack of memory into one message and exit code 2."""
    try:
        yield
    except UserError as error:
        raise _Refused(str(error)) from None
    except OSError as error:
        raise _Refused(describe_os_error(error)) from None
    except MemoryError as error:
        raise _Refused(
            f"out of memory ({str(error) or 'for Python itself'}): the program needs more than there is"
        ) from None


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
