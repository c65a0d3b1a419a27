"""State files: all that an exact resume of a run needs, and how far its logs were when the state was written.

A run folder holds the newest two, `training-state-NNNNNN.safetensors`, where NNNNNN counts steps: the newest may be
damaged. They hold no random state, as every draw is by key.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dnnlib.errors import FULL, UserError, describe_os_error
from torch_utils import checkpoint

KIND, VERSION = "training state", 1
KEPT = 2  # state files in a run folder
_NAME = re.compile(r"training-state-(\d{6,})\.safetensors")
_LOG = re.compile(r"log\.txt|stats\.jsonl|metric-.*\.jsonl")  # files that grow in place


class LoadedState(NamedTuple):
    """Content of a state file."""

    tensors: dict[str, torch.Tensor]  # on the CPU, contiguous: copy them into tensors of the right layout
    metadata: dict[str, Any]  # the caller's
    path: Path
    remarks: tuple[str, ...] = ()  # about damaged newer files, for the log


def state_name(step: int) -> str:
    """File name of the state after this many steps. No two states of a run share a name."""
    return f"training-state-{step:06d}.safetensors"


def find_states(folder: Path) -> list[Path]:
    """Paths of all state files in a folder, the newest first. Empty for a folder that is not there."""
    with contextlib.suppress(FileNotFoundError):
        # Sort by number, not by name: from a million steps on, names have more than six digits.
        found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]
    return []


def load_state(path: Path) -> LoadedState:
    """Read one state file. Raises UserError; that is `checkpoint.Damaged` if another file may be better."""
    return LoadedState(*checkpoint.load(path, KIND, VERSION), path)


def newest_state(folder: Path) -> LoadedState | None:
    """Read the newest state of a run folder that is not damaged. Returns None for a folder without any state file.

    Raises UserError if all are damaged, and for a file that is whole but not readable here, such as one of a newer
    version: to go on from an older state would throw that one's steps away.
    """
    damages: list[str] = []
    for path in find_states(folder):
        try:
            state = load_state(path)
        except checkpoint.Damaged as damage:
            damages.append(str(damage))
            continue
        return state._replace(remarks=tuple(f"warning: {d}. Taking {path.name} instead" for d in damages))
    if damages:
        raise UserError(f"no state in {folder} can be read: begin in another folder. " + ". ".join(damages))
    return None


class StateWriter:
    """Writes state files in the background, and deletes old ones.

    `save` copies the state to host memory and returns. One thread writes the copy, while training goes on.
    Host memory: one copy of the state, which all saves share.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], object],  # gets one line when a write fails; called in the writing thread
        resumed: Path | None = None,  # the state file that this run continues: it is whole
    ) -> None:
        self.folder, self._warn = folder, warn
        self.seconds = 0.0  # that callers stood still in `save` and `finish`
        self.whole = [resumed] if resumed else []  # the newest files that are known to be whole, the oldest first
        self._copy: dict[str, torch.Tensor] = {}  # in host memory
        self._thread: threading.Thread | None = None
        self._failure: str | None = None  # of the last write
        self._bug: BaseException | None = None  # in the last write: anything but an error of the file system

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any], last: bool = False
    ) -> None:
        """Copy a state, and begin to write it. Waits for the previous write. The caller may change everything then.

        A write that fails, as on a full disk, calls `warn`, unless it is the last; nothing is left of it, and the older
        files stay.
        Raises FloatingPointError with the tensor's name, and writes nothing, if a value is not finite.
        """
        with self._standing_still():
            self._wait()
            self._copy = {name: self._copied(name, tensor.detach()) for name, tensor in tensors.items()}
            for name, tensor in self._copy.items():
                if not _is_finite(tensor):
                    raise FloatingPointError(f"{name} holds values that are not finite: no state is written")
            # A daemon, so that a second Ctrl-C ends the process at once. `finish` waits for it.
            arguments = (self.folder / state_name(step), copy.deepcopy(metadata), last)
            self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait for the last write. Raises UserError that says what to free, if it failed."""
        with self._standing_still():
            self._wait()
        if self._failure:
            newest = f"the newest that is there is {self.whole[-1].name}" if self.whole else "there is no older one"
            raise UserError(f"{self._failure}; {newest}")

    @contextlib.contextmanager
    def _standing_still(self):
        """Add the time of the block to `seconds`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to host memory, over the previous copy if there is one."""
        place = self._copy.get(name)
        if place is None or (place.shape, place.dtype) != (tensor.shape, tensor.dtype):
            # Contiguous, so that the thread writes this memory itself, and not another copy.
            place = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return place.copy_(tensor)

    def _wait(self) -> None:
        """Wait for the thread. Raises what it could not handle."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bug is not None:
            raise self._bug

    def _write(self, path: Path, metadata: dict[str, Any], last: bool) -> None:
        """Write the copy, and delete old files. Runs in the thread."""
        self._failure = None
        try:
            checkpoint.save(path, self._copy, metadata, KIND, VERSION)
            self.whole = [*(other for other in self.whole if other != path), path][-KEPT:]
            self._delete_old()
        except OSError as error:
            self._failure = f"no training state was written: {self._describe(error)}"
            if not last:  # `finish` tells of the last one
                self._warn(f"warning: {self._failure}. Training goes on, and the next state is tried as usual")
        except BaseException as error:
            self._bug = error

    def _delete_old(self) -> None:
        """Delete all state files but the newest whole ones: also damaged ones, and later ones of abandoned steps."""
        for path in find_states(self.folder):
            if path not in self.whole:
                # A file that stays does no harm, and the next write tries again.
                with contextlib.suppress(OSError):
                    path.unlink()

    def _describe(self, error: OSError) -> str:
        """Describe a failed write, and say what to free."""
        if error.errno not in FULL:
            return describe_os_error(error)
        size = sum(tensor.nbytes for tensor in self._copy.values()) / 1e9
        return f"{error.filename or self.folder}: {error.strerror}; free {size:.2g} GB there"


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite. A sum is far faster than to look at each, but it may overflow."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


# --- logs -----------------------------------------------------------------------------------------------------------


def log_lengths(folder: Path) -> dict[str, int]:
    """Lengths in bytes of the files in a run folder that grow: log.txt, stats.jsonl, metric-*.jsonl.

    So much of them is on the disk then: after a power failure, they are not shorter than a state says.
    """
    for path in _logs(folder):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            os.fsync(file.fileno())
    return {path.name: path.stat().st_size for path in _logs(folder)}


def cut_back(folder: Path, lengths: Mapping[str, int]) -> list[str]:
    """Cut the growing files of a run folder back to these lengths in bytes, as `log_lengths` returned them.

    A growing file that `lengths` does not name has begun later, and is removed. Other files stay as they are, whatever
    `lengths` says of them. Returns remarks for the log: files that are missing, or shorter than they were.
    """
    found = {path.name: path for path in _logs(folder)}
    for name, path in found.items():
        if name not in lengths:
            path.unlink()
        elif path.stat().st_size > lengths[name]:
            os.truncate(path, lengths[name])
    return [
        f"warning: {name} has lost lines, it had {length} bytes when the state was written"
        for name, length in sorted(lengths.items())
        if _LOG.fullmatch(name) and (name not in found or found[name].stat().st_size < length)
    ]


def _logs(folder: Path) -> list[Path]:
    """Paths of the growing files."""
    return sorted(path for path in folder.iterdir() if _LOG.fullmatch(path.name) and path.is_file())
