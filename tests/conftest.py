"""What several tests share: golden arrays, and small archives drawn on the spot."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS, Schema
from torch_utils.ops import native

GOLDEN = Path(__file__).parent / "golden"


def golden_arrays(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Arrays that the published implementation computed, as tensors on the default device.

    prefix: of the names wanted; it is taken off.
    """
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k.removeprefix(prefix): torch.as_tensor(arrays[k]) for k in arrays.files if k.startswith(prefix)}


def golden_filter(case: dict) -> torch.Tensor:
    """The filter that a case of upfirdn2d or of a convolution names."""
    return golden_arrays("upfirdn2d", f"filter_{case['filter']}")[""]


def golden_cases(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def draw_slice(random: np.random.RandomState, resolution: int, schema: Schema = BRATS) -> np.ndarray:
    """A grey ellipse as a head with nested discs as lesions, stored uint8 [C + K, H, W]."""
    y, x = np.mgrid[:resolution, :resolution] / resolution - 0.5
    head = (x / 0.38) ** 2 + (y / 0.45) ** 2 < 1
    cx, cy, radius = random.uniform(-0.12, 0.12), random.uniform(-0.12, 0.12), random.uniform(0.14, 0.22)
    distance = np.hypot(x - cx, y - cy) / radius
    classes = np.zeros([resolution, resolution], np.uint8)
    order = [2, 3, 1] if len(schema.classes) == 3 else range(1, len(schema.classes) + 1)
    for ring, index in enumerate(order):
        classes[distance < 1 - ring / (len(schema.classes) or 1)] = index
    classes[~head] = 0
    contrasts = []
    for contrast in range(schema.num_contrasts):
        brightness = np.array([110, *(60 + 50 * ((np.arange(len(schema.classes)) + contrast) % 4))])[classes]
        noisy = brightness + random.randn(resolution, resolution) * 8
        contrasts.append(np.where(head, noisy.clip(1, 255), 0).astype(np.uint8))
    return schema.join(np.stack(contrasts), classes)


def write_archive(
    path: Path, count=24, resolution=16, schema=BRATS, per_patient=3, seed=0, labels=False, part=None, seen=()
) -> Path:
    """An archive of `count` drawn slices; with labels, patients alternate between the classes HGG and LGG.

    part: of the split, that all patients are on. seen: as if a generator that learned from these had made the slices.
    """
    random = np.random.RandomState(seed)
    names = ("HGG", "LGG") if labels else None
    with ArchiveWriter(path, schema, resolution, made={"command": "test"}, label_names=names, seen=seen) as archive:
        for i in range(count):
            patient = i // per_patient
            archive.add(
                draw_slice(random, resolution, schema),
                patient=f"drawn{seed}-{patient}",
                part=part,
                index=i % per_patient,
                label=patient % 2 if labels else None,
            )
    return path


@pytest.fixture(params=["reference", "cpu", "cuda"])
def face(request) -> Iterator[str]:
    """The test runs three times: with the operators in plain PyTorch, with those compiled for this CPU, and with those
    compiled for the GPU, if there is one; new tensors then are there."""
    if request.param == "reference":
        with native.reference_only():
            yield request.param
    else:
        with native_operators(request.param):
            yield request.param


@contextmanager
def native_operators(device: str) -> Iterator[None]:
    """New tensors are on this device, which has native operators; if it has none, the test is skipped."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not native.available(device):
        pytest.skip(f"no native operators: {native.status(device).error}")
    # Convolutions round to 10 bits on a GPU unless told not to.
    with torch.device(device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "drawn.zip")
