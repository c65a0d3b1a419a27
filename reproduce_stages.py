"""The paper's experiment: options of its stages, the stages before the U-Nets, and the arms of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnlib.cli import arguments
from dnnlib.fingerprints import fingerprint
from dnnlib.jobs import FINGERPRINT, Job

Run = Callable[[Sequence[Job]], Mapping[str, list[Path]]]  # runs jobs, and returns name -> outputs

# Arm of the table -> archives that its U-Net is trained on.
ARMS = {"100 % R": ("real",), "100 % F": ("fake",), "100 % F + 100 % R": ("fake", "real")}
RELATIVE_TO = {"100 % F": "100 % R"}  # arm -> arm to compare it with: fakes alone against real slices
# Share of slices without lesion. U-Nets are tested on all slices of a patient, so they must learn that many have no
# lesion. The real training slices get this share, so that the GAN learns it too. Every arm draws the same share.
LESION_FREE = {"lesion_free": 0.2}


@dataclass(frozen=True)
class Preset:
    """Options of the stages, as option -> value."""

    convert: dict[str, Any]  # of dataset_tool.py convert
    train: dict[str, Any]  # of train.py
    unet: dict[str, Any]  # of python -m segmentation train
    phantom: dict[str, Any] = field(default_factory=dict)  # of dataset_tool.py phantom; empty: patients are given


PRESETS = {
    # Chosen such that all stages take about a quarter of an hour on two busy CPU cores.
    "demo": Preset(
        phantom={"patients": 90, "seed": 0, "shape": "96x96x62"},
        convert={"resolution": 64, "fov": 200, "min_tumor_pixels": 16, **LESION_FREE, "test_fraction": 0.15},
        train={
            "cfg": "auto",
            "mirror": True,
            "batch": 8,
            "lrate": 0.005,
            "gamma": 5,
            "mixing": 0,
            "pl_weight": 0,
            "z_dim": 128,
            "cbase": 1024,
            "cmax": 64,
            "fp32": True,
            "kimg": 22,
            "snap": 2,
        },
        unet={"steps": 700, "width": 8, "batch": 8, "lr": 0.01, "empty": 0.05, **LESION_FREE},
    ),
    # The paper's abstract does not give --slices, --min-tumor-pixels and the U-Net's options; see the README.
    "paper": Preset(
        convert={"resolution": 256, "grade": "HGG", **LESION_FREE},
        train={"cfg": "stylegan2", "mirror": True},
        unet={"steps": 20000, "width": 32, "batch": 32, "empty": 0.05, **LESION_FREE},
    ),
}


@dataclass(frozen=True)
class Made:
    """Results of the stages before the U-Nets."""

    real: Path  # archive of the training patients' slices
    test: Path  # archive of the test patients' slices
    snapshot: Path  # of the GAN, at the end of its training
    fake: Path  # archive of fake slices, of the same number as the real ones
    sheet: Path  # picture of the first fakes


def _run(run: Run, *jobs: Job) -> list[list[Path]]:
    """Run jobs. Returns the outputs of each."""
    made = run(jobs)
    return [made[job.name] for job in jobs]


def make_phantoms(run: Run, preset: Preset) -> Path:
    """Make synthetic patients. Returns their folder."""
    told = arguments(preset.phantom)
    folder = "phantoms-" + fingerprint(told)[:8]  # so that patients made with other options never mix with these
    ((patients,),) = _run(
        run,
        Job(
            "phantom",
            purpose="make synthetic patients",
            command=["dataset_tool.py", "phantom", f"--dest={{out}}/{folder}", *told],
            inputs=[],
            outputs=[folder],
            alone=True,
        ),
    )
    return patients


def make_slices(run: Run, preset: Preset, source: Path) -> Made:
    """Cut real slices from the patients of `source`, train a GAN on those for training, and generate fakes."""
    # Imported here, because `reproduce.py --help` should not wait for numpy.
    from slices.archive.reader import ArchiveReader

    ((real, test, _),) = _run(
        run,
        Job(
            "convert",
            purpose="cut the patients' volumes into joint slices, split by patient",
            command=["dataset_tool.py", "convert", f"--source={source}", "--dest={out}/real"]
            + arguments(preset.convert),
            inputs=[source],
            outputs=["real/train.zip", "real/test.zip", "real/split.json"],
            alone=True,
        ),
    )
    ((snapshot,),) = _run(
        run,
        Job(
            "train",
            purpose="train the GAN on the real training slices",
            command=["train.py", f"--run-dir={{out}}/gan/{FINGERPRINT}", f"--data={real}", f"--exclude={test}"]
            + arguments(preset.train),
            inputs=[real, test],
            outputs=[f"gan/{FINGERPRINT}/network-snapshot-*.safetensors"],
            replaces=False,  # train.py goes on in its run folder
            alone=True,
        ),
    )
    last = len(ArchiveReader(real)) - 1
    ((fake,), (sheet, _)) = _run(
        run,
        Job(
            "generate",
            purpose="generate the same number of fake slices as there are real ones",
            command=["generate.py", f"--network={snapshot}", f"--seeds=0-{last}", "--dest={out}/fake/fake.zip"],
            inputs=[snapshot, real],
            outputs=["fake/fake.zip"],
            alone=True,
        ),
        Job(
            "panels",
            purpose="draw pictures of the first fakes",
            command=["generate.py", f"--network={snapshot}", "--seeds=0-23", "--outdir={out}/panels"],
            inputs=[snapshot],
            outputs=["panels/contact_sheet.png", "panels/seed*.png"],
            alone=True,
        ),
    )
    return Made(real, test, snapshot, fake, sheet)
