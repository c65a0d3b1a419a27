"""Export as NIfTI files: a folder for each volume, and one for each slice of no known volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from dnnlib import files
from dnnlib.errors import UserError
from slices.archive.format import TEST
from slices.archive.reader import ArchiveReader
from slices.convert.releases import MASK
from slices.export.stacking import Folder, VolumeSlices, distinct
from slices.intensity import undo_window
from slices.nifti import GENERATED, nifti_bytes
from slices.provenance import SLICES_FILE, seen_fields

# Affine for a slice of unknown place: 1 mm voxels, axes to L, P, S, as in pictures. NIfTI counts mm to R, A, S.
NOWHERE = np.diag((-1.0, -1.0, 1.0, 1.0))


def write_nifti_folder(
    reader: ArchiveReader, volumes: dict[str, VolumeSlices], write: Callable[[str, bytes], None], bar: tqdm
) -> list[Folder]:
    """Write all slices of an archive, with one volume in memory at a time. Returns the folders in their order."""
    writer = _Writer(reader, write)
    names = _names_of_singles(reader, volumes)
    folders, done = [], set()
    for i, record in enumerate(reader.info.slices):
        if i in names:
            folders.append(writer.write_single(i, names[i]))
            bar.update()
        elif record.cut is not None and record.cut.volume not in done:
            done.add(record.cut.volume)  # all slices of the volume are written with the first
            volume = volumes[record.cut.volume]
            folders.append(writer.write_volume(volume))
            bar.update(len(volume.numbers))
    return folders


def _names_of_singles(reader: ArchiveReader, volumes: dict[str, VolumeSlices]) -> dict[int, str]:
    """Number of a slice of no known volume -> name of its folder. Folders of volumes are named after them."""
    singles = {i: record.patient for i, record in enumerate(reader.info.slices) if record.cut is None}
    # Each volume is represented by its first slice, so that no single slice gets its name.
    names = distinct(singles | {volume.first: name for name, volume in volumes.items()})
    names = {i: names[i] for i in singles}
    # The most frequent name: if it comes twice, two folders would be one.
    (name, times), *_ = Counter([*names.values(), *volumes]).most_common(1)
    if times > 1:
        raise UserError(f"{reader.path}: two folders would be called {name}; give the patients other names")
    return names


class _Writer:
    """Writes folders of NIfTI files, with a description of the slices in each."""

    def __init__(self, reader: ArchiveReader, write: Callable[[str, bytes], None]) -> None:
        self.reader, self.schema, self.write = reader, reader.schema, write
        self.archive = reader.identify()

    def write_volume(self, volume: VolumeSlices) -> Folder:
        """Write a volume for each contrast, and one of label values. Slices that the archive doesn't have are 0."""
        grid, indices = volume.grid, list(volume.numbers)
        levels, classes = self._fill(volume)
        description = f"{grid.words}; {len(indices)} of {grid.num_slices} slices, others 0"
        # Generators: one contrast at a time is held as float32.
        windows = (volume.volume.windows[contrast] for contrast in self.schema.contrasts)
        contrasts = (undo_window(grid.to_file(one), window) for one, window in zip(levels, windows, strict=True))
        self._write_files(volume.name, contrasts, grid.to_file(classes), grid.affine, description)
        records = [self.reader.info.slices[i] for i in volume.numbers.values()]
        axis, planes = grid.planes(indices)
        content = {
            "case": volume.name,
            "patient": volume.volume.patient,
            "part": TEST if any(record.part == TEST for record in records) else records[0].part,
            "archive": self.archive,
            **seen_fields(self.reader.info, generated=False),
            "grid": grid.words,
            "slices": {"present": indices, "of": grid.num_slices, "axis": axis, "planes": planes},
            "pixel": volume.volume.pixel,
            "windows": volume.volume.windows,
            "schema": self.schema,
        }
        self._describe(volume.name, content)
        return Folder(volume.name, len(indices), grid.num_slices, grid.words)

    def write_single(self, i: int, name: str) -> Folder:
        """Write slice i, which has no known volume: each file has one slice, with gray levels as stored."""
        record = self.reader.info.slices[i]
        stored, classes = self.schema.split(self.reader.read_checked(i))
        description = f"{'of an unknown volume' if record.generated is None else GENERATED}; pixel size unknown"
        contrasts = (_as_volume(picture).astype(np.float32) for picture in stored)
        self._write_files(name, contrasts, _as_volume(classes), NOWHERE, description)
        content = {
            "patient": record.patient,
            "part": record.part,
            "archive": self.archive,
            "member": record.file,
            "index": record.index,
            "seed": record.seed,
            "snapshot": record.snapshot,
            **seen_fields(self.reader.info, generated=record.generated is not None),
            "grid": description,
            "schema": self.schema,
        }
        self._describe(name, content)
        return Folder(name, 1, None, description)

    def _fill(self, volume: VolumeSlices) -> tuple[np.ndarray, np.ndarray]:
        """Stack the slices of a volume: gray levels, uint8 [C, L, P, S], and class indices, uint8 [L, P, S]."""
        levels = np.zeros((self.schema.num_contrasts, *volume.grid.shape), np.uint8)  # OUTSIDE
        classes = np.zeros(volume.grid.shape, np.uint8)
        for index, i in volume.numbers.items():
            contrasts, labels = self.schema.split(self.reader.read_checked(i))
            # C contrasts and the labels, each into its own volume.
            for picture, target in zip((*contrasts, labels), (*levels, classes), strict=True):
                volume.grid.put(picture, target, index)
        return levels, classes

    def _write_files(
        self, name: str, contrasts: Iterable[np.ndarray], classes: np.ndarray, affine: np.ndarray, description: str
    ) -> None:
        """Write a file for each contrast, and one of label values if there are classes. Arrays have the file's axes."""
        for contrast, volume in zip(self.schema.contrasts, contrasts, strict=True):
            self.write(f"{name}/{name}_{contrast}.nii.gz", nifti_bytes(volume, affine, description))
        if self.schema.num_maps:
            values = self.schema.values_from_indices(classes)
            self.write(f"{name}/{name}_{MASK}.nii.gz", nifti_bytes(values, affine, description))

    def _describe(self, name: str, content: dict[str, Any]) -> None:
        self.write(f"{name}/{SLICES_FILE}", files.json_bytes(content))


def _as_volume(picture: np.ndarray) -> np.ndarray:
    """[P, L] -> [L, P, 1]."""
    return picture.T[..., None]
