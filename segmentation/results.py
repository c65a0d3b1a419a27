"""Results of an experiment as rows: one for each arm, replicate, examination and target. results.csv holds them."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from segmentation.scores import Target


@dataclass(frozen=True)
class Row:
    """How well one U-Net found one target in one examination. The fields are the columns of results.csv."""

    experiment: str  # table1, table2 or arms
    arm: str  # as in Arm.name, such as 3F+R*full
    replicate: int  # 1, 2, …
    patient: str
    examination: str  # the volume's name; the patient's, if the volume is unknown
    kind: str  # region or label
    target: str
    dice: float  # of the network's own answer
    masked_dice: float  # of the answer with background outside the head
    hd95_mm: float | None  # None: where slices lie is not known
    truth_voxels: int
    predicted_voxels: int
    outside_voxels: int  # predicted outside the head
    truth_empty: bool
    prediction_empty: bool
    unet_seed: int
    gan: str  # SHA-256 of the snapshot behind the fakes, several joined with +; empty without fakes
    unet_sha256: str
    real_sha256: str  # of the archives; empty for an arm that does not learn from it
    fake_sha256: str
    test_sha256: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_TYPES = typing.get_type_hints(Row)


def to_csv(rows: Iterable[Row]) -> bytes:
    """Format rows as CSV: numbers exact to the last bit, yes and no as 1 and 0, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
    return text.getvalue().encode()


def read_rows(path: str | os.PathLike) -> tuple[Row, ...]:
    """Read a results.csv. Raises UserError naming the file and the line for anything else."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != COLUMNS:
            raise UserError(f"{path}: not the rows of an experiment; expected the columns {', '.join(COLUMNS)}")
        return tuple(_row(cells, f"{path}: line {lines.line_num}") for cells in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)  # str of a float reads back as the same float


def _row(cells: Sequence[str], where: str) -> Row:
    try:
        values: dict[str, Any] = {n: _value(cell, _TYPES[n]) for n, cell in zip(COLUMNS, cells, strict=True)}
        return Row(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _value(cell: str, kind: object) -> object:
    if kind is bool:
        return {"0": False, "1": True}[cell] if cell in ("0", "1") else _refuse(cell)
    if kind == float | None:
        return float(cell) if cell else None
    return typing.cast(type, kind)(cell)


def _refuse(cell: str) -> typing.NoReturn:
    raise ValueError(f"{cell!r} where 0 or 1 was expected")


# --- by patient -----------------------------------------------------------------------------------------------------


def patients_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the patients, in the order of the rows."""
    return tuple(dict.fromkeys(row.patient for row in rows))


def of_target(rows: Iterable[Row], target: Target) -> list[Row]:
    """The rows of one target."""
    return [row for row in rows if (row.kind, row.target) == (target.kind, target.name)]


def by_patient(rows: Iterable[Row], arm: str, target: Target, measure: str = "dice") -> np.ndarray:
    """A measure of one arm and target, float64 [S, n]: replicates × patients, in the order of the rows.

    A patient with several examinations counts once, with their mean. measure: the name of a column that holds numbers.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for row in of_target(rows, target):
        if row.arm == arm:
            found.setdefault(row.replicate, {}).setdefault(row.patient, []).append(getattr(row, measure))
    return np.array([[np.mean(values) for values in patients.values()] for _, patients in sorted(found.items())])
