"""Records of jobs, as files: what was wanted, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib.config import optional


@dataclass(frozen=True)
class Record:
    """Record of a job's last run, stored as jobs/<name>.json."""

    complete: bool  # the command ended without an error
    wanted: str  # fingerprint of sources, command and inputs
    command: tuple[str, ...]  # with OUT instead of the output folder
    results: dict[str, str] | None = optional(None)  # path below the output folder -> fingerprint; None: incomplete
    # Of an incomplete record: outputs that were there when the command began, as in `results`. Others are its own. So
    # a command that ended when nobody was left to complete its record is known to have ended.
    before: dict[str, str] | None = optional(None)
    seconds: float | None = optional(None)  # that the command took
    kind: str = optional("")  # of the job
    work: float = optional(1.0)  # of the job
