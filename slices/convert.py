"""From volumes to archives: the pixel grid, cutting slices, the split by patient, and the conversion of a release."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from tqdm import tqdm

from dnnlib import config, files
from dnnlib.errors import UserError
from dnnlib.processes import map_in_order
from dnnlib.text import tool_version
from slices.archive import TEST, TRAIN, ArchiveWriter, Volume
from slices.schema import BRATS, BRIGHTEST, DARKEST, LABEL_ON, OUTSIDE, Schema
from slices.volumes import GRADES, Case, case_files, find_cases, find_head, intensity_window, read_case

CHOICES = ("tumor", "brain", "all")
SMALLEST_RESOLUTION = 16
SPLIT_FILE = "split.json"
SAME = 1e-4  # lengths that differ by less than this share are one length: affines are stored as float32


@dataclass(frozen=True)
class ConvertOptions:
    """What `dataset_tool.py convert` can be told; the same for every number of workers.

    resolution: pixels along an edge, a power of two; fov: mm along an edge, None for the whole slice.
    slices, test_slices: which slices of a patient are taken, one of CHOICES; 'tumor' takes those with at least
    `min_tumor_pixels` lesion pixels at the output's resolution.
    grade: one of GRADES, or 'all'; class_by: 'grade' stores it as class label.
    The last four concern the split into train and test and stay None for a single archive.
    """

    resolution: int = 256
    fov: float | None = None
    slices: str = "tumor"
    min_tumor_pixels: int = 1
    grade: str = "all"
    class_by: str | None = None
    test_slices: str | None = None
    test_fraction: float | None = None
    split_seed: int | None = None
    split_file: str | None = None

    def __post_init__(self) -> None:
        if self.resolution < SMALLEST_RESOLUTION or self.resolution & (self.resolution - 1):
            lower = max(SMALLEST_RESOLUTION, 1 << (self.resolution.bit_length() - 1) if self.resolution > 0 else 0)
            raise UserError(
                f"--resolution {self.resolution}: expected a power of two from {SMALLEST_RESOLUTION} up, "
                f"such as {lower} or {2 * lower}"
            )
        if self.fov is not None and not 0 < self.fov < float("inf"):
            raise UserError(f"--fov {self.fov:g}: expected a length in mm, such as 200")
        if self.min_tumor_pixels < 1:
            raise UserError(f"--min-tumor-pixels {self.min_tumor_pixels}: expected 1 or more")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise UserError(f"--test-fraction {self.test_fraction:g}: expected a share between 0 and 1, such as 0.1")


# --- pixel grid -----------------------------------------------------------------------------------------------------


def pixel_size(
    sides: tuple[int, int], spacing: tuple[float, float], resolution: int, fov: float | None = None
) -> float:
    """Edge of an archive's square pixels, in mm.

    sides, spacing: voxels and mm between them along P and L. Without `fov` the whole slice is shown, and voxels keep
    their size if they fit in. Raises UserError if pixels would be smaller than voxels: nothing is interpolated up.
    """
    voxel = max(spacing)
    if fov is None:
        return max(voxel, *(n * mm / resolution for n, mm in zip(sides, spacing, strict=True)))
    if fov / resolution < voxel * (1 - SAME):
        fitting = 1 << max(0, int(fov / voxel * (1 + SAME)).bit_length() - 1)
        smaller = f", or --resolution {fitting} or less" if fitting >= SMALLEST_RESOLUTION else ""
        raise UserError(
            f"--fov {fov:g} at --resolution {resolution} asks for pixels of {fov / resolution:.3g} mm, but a voxel has "
            f"{voxel:.3g} mm: choose --fov {np.ceil(resolution * voxel):g} or more{smaller}"
        )
    return fov / resolution


def area_weights(n: int, spacing: float, resolution: int, pixel: float) -> sparse.csr_array:
    """[resolution, n]: which share of each output pixel every one of `n` voxels covers, both centred.

    Where pixels and voxels have one size, voxels are shifted by a whole number of pixels: weights are 0 or 1.
    """
    if abs(pixel / spacing - 1) < SAME:
        return sparse.csr_array(np.eye(resolution, n, k=-((resolution - n) // 2)))
    ratio = pixel / spacing
    voxels = np.arange(n + 1) - n / 2  # edges, in voxels
    pixels = ((np.arange(resolution + 1) - resolution / 2) * ratio)[:, None]
    overlap = np.minimum(pixels[1:], voxels[1:]) - np.maximum(pixels[:-1], voxels[:-1])
    return sparse.csr_array(np.where(overlap > 1e-9, overlap, 0) / ratio)


@dataclass(frozen=True)
class Grid:
    """From the pictures of a volume to those of the archive: two matrices of area weights, [R, P] and [R, L]."""

    rows: sparse.csr_array
    columns: sparse.csr_array

    def mean(self, picture: np.ndarray) -> np.ndarray:
        """Mean of [P, L] over the area of each pixel, [R, R]; what lies outside the volume counts as 0."""
        return (self.columns @ (self.rows @ picture.astype(np.float64)).T).T

    def covers(self, mask: np.ndarray) -> np.ndarray:
        """bool [P, L] -> [R, R]: pixels of which the mask covers half or more."""
        return self.mean(mask) >= 0.5 - 1e-9

    def majority(self, classes: np.ndarray, num_classes: int) -> np.ndarray:
        """Class indices [P, L] -> uint8 [R, R]: the class of largest area, the lower of two equal ones.

        What lies outside the volume is background.
        """
        areas = np.zeros((num_classes, self.rows.shape[0], self.columns.shape[0]))
        if not classes.any():
            return np.zeros(areas.shape[1:], np.uint8)
        for index in np.unique(classes[classes > 0]):
            areas[index] = self.mean(classes == index)
        areas[0] = 1 - areas.sum(axis=0)
        return areas.round(9).argmax(axis=0).astype(np.uint8)  # rounded: equal areas must compare as equal


def apply_window(intensities: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Spread the intensities of a window over the grey levels from DARKEST to BRIGHTEST, clipped, not yet rounded."""
    low, high = window
    share = np.clip(intensities.astype(np.float64) - low, 0, high - low) / (high - low if high > low else 1)
    return DARKEST + (BRIGHTEST - DARKEST) * share


# --- cutting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseSlices:
    """The chosen slices of a case, and what became of the others.

    contrasts: uint8 [N, C, R, R]; classes: class indices, uint8 [N, R, R]; indices: their places along S;
    skipped: reason -> number of slices.
    """

    case: Case
    volume: Volume
    indices: tuple[int, ...]
    contrasts: np.ndarray
    classes: np.ndarray
    skipped: dict[str, int]
    remarks: tuple[str, ...]


def cut_case(case: Case, choice: str, schema: Schema, options: ConvertOptions) -> CaseSlices:
    """Read a case and cut the slices of one of CHOICES out of it."""
    assert choice in CHOICES, choice
    volumes = read_case(case, schema)
    sides, spacing = volumes.labels.shape[1:], volumes.spacing[1:]
    try:
        pixel = pixel_size(sides, spacing, options.resolution, options.fov)
        head = find_head(volumes.contrasts)
    except UserError as error:
        raise UserError(f"{case.folder}: {error}") from None
    grid = Grid(*(area_weights(n, mm, options.resolution, pixel) for n, mm in zip(sides, spacing, strict=True)))
    windows = [intensity_window(contrast[head]) for contrast in volumes.contrasts]

    indices, contrasts, classes, skipped = [], [], [], Counter()
    for k in range(len(head)):
        inside = grid.covers(head[k])
        labels = grid.majority(volumes.labels[k], max(1, schema.num_maps))
        if reason := _reason_to_skip(choice, inside, labels, options.min_tumor_pixels):
            skipped[reason] += 1
            continue
        indices.append(k)
        classes.append(labels)
        contrasts.append([
            _grey_levels(grid, contrast[k], head[k], inside, window)
            for contrast, window in zip(volumes.contrasts, windows, strict=True)
        ])  # fmt: skip
    edge = options.resolution
    return CaseSlices(
        case=case,
        volume=Volume(
            patient=case.patient,
            shape=volumes.shape,
            affine=tuple(tuple(float(v) for v in row) for row in volumes.affine),
            pixel=pixel,
            windows=dict(zip(schema.contrasts, windows, strict=True)),
        ),
        indices=tuple(indices),
        contrasts=np.array(contrasts, np.uint8).reshape(-1, schema.num_contrasts, edge, edge),
        classes=np.array(classes, np.uint8).reshape(-1, edge, edge),
        skipped=dict(skipped),
        remarks=volumes.remarks,
    )


def _reason_to_skip(choice: str, inside: np.ndarray, classes: np.ndarray, min_tumor_pixels: int) -> str | None:
    lesion = int((classes > 0).sum())
    if choice == "tumor" and not lesion:
        return "no tumour"
    if choice == "tumor" and lesion < min_tumor_pixels:
        return f"fewer than {min_tumor_pixels} tumour pixels"
    if choice == "brain" and not inside.any():
        return "no brain"
    return None


def _grey_levels(
    grid: Grid, picture: np.ndarray, head: np.ndarray, inside: np.ndarray, window: tuple[float, float]
) -> np.ndarray:
    """Intensities [P, L] -> stored contrast, uint8 [R, R]; rounded once, after the mean over areas."""
    levels = grid.mean(np.where(head, apply_window(picture, window), OUTSIDE))
    return np.where(inside, np.clip(np.rint(levels), DARKEST, BRIGHTEST), OUTSIDE).astype(np.uint8)


# --- split ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which patients train and which test: the content of split.json."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def draw_split(patients: Iterable[str], test_fraction: float, seed: int) -> Split:
    """Divide patients by chance; a function of their names, the fraction and the seed alone.

    Patients stand in the order of a hash of seed and name, and the first are the test patients: one more patient in a
    release moves hardly any other. At least one patient is on either side.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise UserError(
            f"{len(names)} patient ({', '.join(names)}) can't be split into train and test: give more patients, "
            "or a --dest that ends in .zip for a single archive"
        )
    shuffled = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    count = min(max(round(len(names) * test_fraction), 1), len(names) - 1)
    return Split(train=tuple(sorted(shuffled[count:])), test=tuple(sorted(shuffled[:count])))


def read_split(path: Path, patients: Iterable[str]) -> Split:
    """The split of a JSON file {"train": [names], "test": [names]}, which may leave patients out.

    Raises UserError if it names a patient who is not in `patients`, or one twice.
    """
    split = config.from_json(Split, files.read_json(path), str(path))
    named = Counter([*split.train, *split.test])
    if twice := [name for name, count in named.items() if count > 1]:
        raise UserError(f"{path}: names {_some(twice)} more than once; a patient belongs to one side")
    if unknown := sorted(set(named) - set(patients)):
        raise UserError(f"{path}: names unknown patients: {_some(unknown)}; is this the split of another release?")
    return split


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- a whole release ------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Slices, patients and class areas of an archive, counted slice by slice."""

    schema: Schema
    slices: int = 0
    patients: set[str] = field(default_factory=set)
    pixels: int = 0
    class_pixels: Counter = field(default_factory=Counter)  # class name -> pixels
    class_slices: Counter = field(default_factory=Counter)  # class name -> slices with any

    def add(self, patient: str, stored: np.ndarray) -> None:
        """Count one stored joint slice [C + K, H, W]."""
        self.slices += 1
        self.patients.add(patient)
        self.pixels += stored[0].size
        maps = stored[self.schema.num_contrasts + 1 :]  # without the background's
        for name, label_map in zip(self.schema.class_names, maps, strict=True):
            area = int(np.count_nonzero(label_map == LABEL_ON))
            self.class_pixels[name] += area
            self.class_slices[name] += area > 0


@dataclass
class Part:
    """One archive of a conversion: its cases, which slices are taken, and what came of it.

    left_out: reason -> patients; skipped: reason -> slices; remarks: remark -> cases.
    """

    name: str
    side: str | None
    path: Path
    choice: str
    cases: list[Case]
    tally: Tally
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter = field(default_factory=Counter)
    remarks: dict[str, list[str]] = field(default_factory=dict)


def convert_release(
    source: Path,
    dest: Path,
    options: ConvertOptions,
    schema: Schema = BRATS,
    workers: int = 1,
    force: bool = False,
) -> list[Part]:
    """Convert a folder of cases into one archive, `dest` ending in .zip, or into train.zip, test.zip and split.json.

    The files appear when all are complete, split.json last. What they hold depends on neither `workers` nor `dest`.
    Raises UserError for whatever doesn't fit, naming the file.
    """
    source, dest = Path(source), Path(dest)
    single = dest.suffix.lower() == ".zip"
    options = _settle(options, dest, single)
    found = find_cases(source, schema)
    cases, left_out = _of_grade(found, source, options)
    split = None if single else _split(found, cases, options)
    parts = _parts(dest, cases, split, options, schema, left_out)
    for case in (case for part in parts for case in part.cases):
        case_files(case, schema)  # before the long work begins
    targets = [part.path for part in parts] + ([] if single else [dest / SPLIT_FILE])
    for target in targets:
        files.refuse_existing(target, force)
    with _folder(dest.parent if single else dest):
        _write_parts(parts, split, options, schema, workers, source)
        if split:
            files.write_json(dest / SPLIT_FILE, config.to_json(split))
    return parts


def _settle(options: ConvertOptions, dest: Path, single: bool) -> ConvertOptions:
    """Fill in the options of a split, or refuse those that would change nothing."""
    defaults = {"test_slices": "all", "test_fraction": 0.1, "split_seed": 0}
    given = [name for name in (*defaults, "split_file") if getattr(options, name) is not None]
    if single:
        if given:
            raise UserError(f"{_flag(given[0])} needs a folder as --dest, but {dest} is a single archive")
        return options
    if options.split_file is not None:
        defaults = {"test_slices": "all"}
        if drawn := [name for name in given if name in ("test_fraction", "split_seed")]:
            raise UserError(f"{_flag(drawn[0])} draws a split, --split-file gives one: leave one of them out")
    return replace(options, **{name: value for name, value in defaults.items() if name not in given})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _of_grade(found: list[Case], source: Path, options: ConvertOptions) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases of the grade asked for, and the patients left out."""
    chosen = [case for case in found if options.grade in ("all", case.grade)]
    if not chosen:
        raise UserError(
            f"{source}: no case in {source.name}/{options.grade}, which --grade {options.grade} asks for; "
            "in a flat folder grades are unknown: use --grade all"
        )
    if options.class_by == "grade" and (bare := [case.name for case in chosen if not case.grade]):
        raise UserError(f"{source}: --class-by grade needs cases in {source.name}/HGG or LGG; not there: {_some(bare)}")
    others = [case.patient for case in found if case not in chosen]
    return chosen, {f"grade is not {options.grade}": others} if others else {}


def _split(found: list[Case], cases: list[Case], options: ConvertOptions) -> Split:
    patients = {case.patient for case in cases}
    if options.split_file is None:
        return draw_split(patients, options.test_fraction, options.split_seed)
    split = read_split(Path(options.split_file), {case.patient for case in found})
    # Of a split of all grades, --grade takes its share.
    split = Split(*(tuple(name for name in side if name in patients) for side in (split.train, split.test)))
    if not split.train or not split.test:
        raise UserError(f"{options.split_file}: leaves {'test' if split.train else 'train'} without a patient")
    return split


def _parts(
    dest: Path,
    cases: list[Case],
    split: Split | None,
    options: ConvertOptions,
    schema: Schema,
    left_out: dict[str, list[str]],
) -> list[Part]:
    if split is None:
        return [Part(dest.name, None, dest, options.slices, cases, Tally(schema), left_out)]
    neither = [case.patient for case in cases if case.patient not in (*split.train, *split.test)]
    if neither:
        left_out = left_out | {"on neither side of the split file": neither}
    return [
        Part(
            name=f"{side}.zip",
            side=side,
            path=dest / f"{side}.zip",
            choice=choice,
            cases=[case for case in cases if case.patient in patients],
            tally=Tally(schema),
            left_out=dict(left_out),
        )
        for side, patients, choice in (
            (TRAIN, set(split.train), options.slices),
            (TEST, set(split.test), options.test_slices),
        )
    ]


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, and take it away again if the block fails with nothing in it."""
    new = not path.exists()
    files.make_folder(path)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _write_parts(
    parts: list[Part], split: Split | None, options: ConvertOptions, schema: Schema, workers: int, source: Path
) -> None:
    jobs = [(case, part.choice) for part in parts for case in part.cases]
    with contextlib.ExitStack() as stack:
        names = GRADES if options.class_by == "grade" else None
        writers = [
            stack.enter_context(ArchiveWriter(part.path, schema, options.resolution, {}, names)) for part in parts
        ]
        goals = [goal for goal in zip(parts, writers, strict=True) for _ in goal[0].cases]
        results = map_in_order(partial(_cut_job, schema, options), jobs, workers)
        stack.enter_context(contextlib.closing(results))
        for result, goal in zip(tqdm(results, "converting", len(jobs), unit="patient"), goals, strict=True):
            _add(result, *goal, schema, options)
        for part, writer in zip(parts, writers, strict=True):
            if not part.tally.slices:
                raise UserError(_nothing(part, source, options))
            writer.made = _made(part, split, options, source)
        for writer in writers:
            writer.finish()  # all of them, before the first appears under its name: a pair belongs to one split
        if split:  # that of the archives which are about to be replaced
            (parts[0].path.parent / SPLIT_FILE).unlink(missing_ok=True)


def _cut_job(schema: Schema, options: ConvertOptions, job: tuple[Case, str]) -> CaseSlices:
    return cut_case(*job, schema, options)


def _add(result: CaseSlices, part: Part, writer: ArchiveWriter, schema: Schema, options: ConvertOptions) -> None:
    case = result.case
    part.skipped.update(result.skipped)
    for remark in result.remarks:
        part.remarks.setdefault(remark, []).append(case.name)
    if not result.indices:
        part.left_out.setdefault(f"no slice chosen by '{part.choice}'", []).append(case.patient)
        return
    writer.volumes[case.name] = result.volume
    label = GRADES.index(case.grade) if options.class_by == "grade" else None
    for stored, index in zip(schema.join(result.contrasts, result.classes), result.indices, strict=True):
        writer.add(stored, patient=case.patient, part=part.side, volume=case.name, index=index, label=label)
        part.tally.add(case.patient, stored)


def _nothing(part: Part, source: Path, options: ConvertOptions) -> str:
    wanted = f"a tumour of {options.min_tumor_pixels} or more pixels" if part.choice == "tumor" else "a brain"
    option = "--test-slices" if part.name == "test.zip" else "--slices"
    return (
        f"{source}: none of the {len(part.cases)} patients for {part.name} has a slice with {wanted} "
        f"at --resolution {options.resolution}: choose {option} all, or other patients"
    )


def _made(part: Part, split: Split | None, options: ConvertOptions, source: Path) -> dict[str, Any]:
    """How an archive came to be. Names of folders only: where they lay is nobody's business."""
    shown = config.to_json(options) | {"source": source.absolute().name}
    if options.split_file:
        shown["split_file"] = Path(options.split_file).name
    return {
        "version": tool_version(),
        "command": "dataset_tool.py convert",
        "options": {name: value for name, value in shown.items() if value is not None},
        "split": None if split is None else {"part": part.name.removesuffix(".zip"), **config.to_json(split)},
        "skipped": {"patients": part.left_out, "slices": dict(sorted(part.skipped.items()))},
        "remarks": part.remarks,
    }
