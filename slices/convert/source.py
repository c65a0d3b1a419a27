"""The source of a conversion, as options say it. This file imports little, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnnlib.cli import Checked, option
from dnnlib.errors import UserError
from slices.convert.releases import AUTO, RELEASE_NAMES, Release, describe_release, release_of_name

ON_ERROR = ("fail", "skip")  # what to do about a case that can't be read


@dataclass(frozen=True)
class SourceOptions(Checked):
    """The source of a conversion: a known release, or other data that these options describe."""

    source: Path = option("Folder of a release, or of your own data; see above.")
    release: str | None = option(
        "Which release the source is. auto: recognized by file names, never by label values.",
        default=None,
        choices=(AUTO, *RELEASE_NAMES),
        shown=AUTO,
    )
    contrasts: str | None = option(
        "Your own data: its contrasts, each with =name if files call it otherwise.", default=None, metavar="A,B=…"
    )
    labels: str | None = option(
        "Lesion classes and their values in masks; values of 'ignore' count as background. Without it, no label maps.",
        default=None,
        metavar="A=1+4,…",
    )
    pattern: str | None = option(
        "Paths of files, such as '{case}/{case}_{contrast}.nii.gz'; without {contrast}, 4-D files. [_{visit}] may be "
        "missing, * is anything, {patient:4} has 4 characters, {patient:[A-Z]+} is a regular expression.",
        default=None,
    )
    mask_pattern: str | None = option("Paths of masks.", default=None, shown="--pattern with 'seg' for {contrast}")
    table: Path | None = option(
        "Table (.csv) that says whose the cases of any source are: columns case and patient, visit or grade.",
        default=None,
        flag="--cases",
    )
    regions: str | None = option("Unions of classes, for evaluations.", default=None, metavar="A=B+C,…")

    @property
    def wanted_release(self) -> Release | None:
        """The release that the options name or describe; None if it is to be recognized."""
        own = {"--contrasts": self.contrasts, "--pattern": self.pattern}
        extra = {"--labels": self.labels, "--mask-pattern": self.mask_pattern, "--regions": self.regions}
        given = [name for name, value in (own | extra).items() if value is not None]
        if not given:
            return None if self.release in (None, AUTO) else release_of_name(self.release)
        if self.release is not None:
            raise UserError(
                f"{given[0]} describes your own data, --release {self.release} a known one: leave one of them out"
            )
        if self.contrasts is None or self.pattern is None:
            missing = next(name for name, value in own.items() if value is None)
            raise UserError(f"{missing} is needed as well: your own data takes --contrasts and --pattern")
        return describe_release(self.contrasts, self.pattern, self.labels, self.mask_pattern, self.regions)
