"""The paper's experiments as a graph of jobs: options of the programs, and the jobs before the U-Nets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dnnlib.cli import arguments
from dnnlib.errors import UserError
from dnnlib.fingerprints import fingerprint
from dnnlib.jobs import FINGERPRINT, OUT, Job, result_of
from segmentation.arms import parse_arms
from segmentation.experiment import MARGIN, RECIPES, TABLE1, TABLE2, Archives, Plan, experiment_jobs

FEW, ALL = GAN_ON = ("few", "all")  # the slices that the GAN of Table 2 learns from


@dataclass(frozen=True)
class Preset:
    """Options of the programs, as option -> value, and the size of the experiment."""

    convert: Mapping[str, Any]  # of dataset_tool.py convert
    train: Mapping[str, Any]  # of train.py
    unet: Mapping[str, Any]  # of python -m segmentation train
    replicates: int  # U-Nets of each arm
    gans: int | None  # GANs; None: one for each replicate
    convergence: bool  # train U-Nets for half and two times the steps, too
    few: str | None  # real slices of Table 2; None: no Table 2
    phantom: Mapping[str, Any] = field(default_factory=dict)  # of dataset_tool.py phantom; empty: patients are given


# The GAN learns the share of slices without lesion from the real training slices. U-Nets need such slices, as they are
# tested on all slices of a patient.
LESION_FREE = {"lesion_free": 0.2}
PRESETS = {
    # Chosen such that all jobs take about a quarter of an hour on two busy CPU cores.
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
        unet=RECIPES["small"],
        replicates=2,
        gans=1,
        convergence=False,
        few=None,
    ),
    # The paper's abstract does not give --slices, --min-tumor-pixels and the U-Net's options; see the README.
    "paper": Preset(
        convert={"resolution": 256, "grade": "HGG", **LESION_FREE},
        train={"cfg": "stylegan2", "mirror": True},
        unet=RECIPES["full"],
        replicates=5,
        gans=None,
        convergence=True,
        few="slices:1000",
    ),
}


@dataclass(frozen=True)
class Few:
    """The few real slices of Table 2."""

    unit: str  # slices or patients
    count: int

    @classmethod
    def parse(cls, text: str) -> Few:
        """Read slices:1000 or patients:15. Raises UserError for anything else."""
        unit, _, number = text.partition(":")
        if unit not in ("slices", "patients") or not (number.isascii() and number.isdecimal() and 0 < int(number[:9])):
            raise UserError(f"--few {text}: expected slices:N or patients:N, such as slices:1000 or patients:15")
        return cls(unit, int(number))

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"


@dataclass(frozen=True)
class Wanted:
    """What a call reproduces."""

    preset: Preset
    source: str | None  # folder of the patients; None: phantoms are made
    few: Few | None  # None: no Table 2
    gan_on: str  # FEW or ALL

    @property
    def gans(self) -> int:
        return self.preset.replicates if self.preset.gans is None else self.preset.gans

    @property
    def plans(self) -> list[tuple[Plan, Archives]]:
        """Table 1, and Table 2 if it is wanted, with the archives that they read."""
        real, test = result_of("convert"), result_of("convert", 1)
        fakes = tuple(result_of(f"fake-{r}") for r in range(1, self.gans + 1))
        plans = [(self._plan("table1", TABLE1), Archives(real, fakes, test))]
        if self.few is not None:
            learned = f"the GAN learned from {'these alone' if self.gan_on == FEW else 'all real slices'}"
            fakes = tuple(result_of(f"few-fake-{r}") for r in range(1, self.gans + 1))
            title = f"{TABLE2}: {self.few}; {learned}"
            plans.append((self._plan("table2", title), Archives(result_of("few"), fakes, test)))
        return plans

    def _plan(self, name: str, title: str) -> Plan:
        return Plan(
            name=name,
            title=title,
            arms=parse_arms(name),
            replicates=self.preset.replicates,
            options=self.preset.unet,
            seed=0,
            margin=MARGIN,
            convergence=self.preset.convergence,
            folder=name,
        )


def all_jobs(wanted: Wanted, on_gpus: bool) -> list[Job]:
    """All jobs, in the order in which they begin if nothing else decides. on_gpus: each slot has a GPU."""
    jobs = [*slice_jobs(wanted), *_gans(wanted, on_gpus)]
    for plan, archives in wanted.plans:
        jobs += experiment_jobs(plan, archives)
    return jobs


def slice_jobs(wanted: Wanted) -> Iterator[Job]:
    """Jobs that make the archives of real slices."""
    source = wanted.source
    if source is None:
        told = arguments(wanted.preset.phantom)
        folder = "phantoms-" + fingerprint(told)[:8]  # so that patients made with other options never mix with these
        yield Job(
            "phantom",
            purpose="make synthetic patients",
            command=["dataset_tool.py", "phantom", f"--dest={OUT}/{folder}", *told],
            inputs=[],
            outputs=[folder],
            kind="phantoms",
            work=wanted.preset.phantom["patients"],
            alone=True,
        )
        source = result_of("phantom")
    yield Job(
        "convert",
        purpose="cut the patients' volumes into joint slices, split by patient",
        command=["dataset_tool.py", "convert", f"--source={source}", f"--dest={OUT}/real"]
        + arguments(wanted.preset.convert),
        inputs=[source],
        outputs=["real/train.zip", "real/test.zip", "real/split.json"],
        kind="conversion",
        alone=True,
    )
    if wanted.few is not None:
        count = arguments({wanted.few.unit: wanted.few.count, "seed": 0, "dest": f"{OUT}/real/few.zip"})
        yield Job(
            "few",
            purpose=f"choose {wanted.few} for Table 2",
            command=["dataset_tool.py", "subset", result_of("convert"), *count],
            inputs=[result_of("convert")],
            outputs=["real/few.zip"],
            kind="choice",
        )


def _gans(wanted: Wanted, on_gpus: bool) -> Iterator[Job]:
    """Jobs that train GANs and generate fakes: for Table 1, then for Table 2."""
    real, few = result_of("convert"), result_of("few")
    for r in range(1, wanted.gans + 1):
        yield _train(wanted, f"gan-{r}", real, r, on_gpus)
        yield _generate(f"fake-{r}", f"gan-{r}", real, times=1)
    yield Job(
        "panels",
        purpose="draw pictures of the first fakes",
        command=["generate.py", f"--network={result_of('gan-1')}", "--seeds=0-23", f"--outdir={OUT}/panels"],
        inputs=[result_of("gan-1")],
        outputs=["panels/contact_sheet.png", "panels/seed*.png"],
        kind="pictures",
    )
    if wanted.few is None:
        return
    most = max(arm.fakes for arm in parse_arms("table2"))
    for r in range(1, wanted.gans + 1):
        if wanted.gan_on == FEW:
            yield _train(wanted, f"few-gan-{r}", few, r, on_gpus)
        yield _generate(f"few-fake-{r}", f"few-gan-{r}" if wanted.gan_on == FEW else f"gan-{r}", few, times=most)


def _train(wanted: Wanted, name: str, data: str, r: int, on_gpus: bool) -> Job:
    """Train the r-th GAN on an archive."""
    test = result_of("convert", 1)
    options = arguments({**wanted.preset.train, "seed": r - 1})
    return Job(
        name,
        purpose=f"train GAN {r} on {'the few' if name.startswith('few') else 'the'} real training slices",
        command=["train.py", f"--run-dir={OUT}/{name}/{FINGERPRINT}", f"--data={data}", f"--exclude={test}", *options],
        inputs=[data, test],
        outputs=[f"{name}/{FINGERPRINT}/network-snapshot-*.safetensors"],
        kind="GAN",
        work=wanted.preset.train.get("kimg", 1),
        alone=not on_gpus,  # on a CPU, it computes on all threads
        replaces=False,  # train.py goes on in its run folder
    )


def _generate(name: str, gan: str, like: str, times: int) -> Job:
    """Generate `times` as many fakes as an archive has slices."""
    return Job(
        name,
        purpose=f"generate {f'{times} times as many' if times > 1 else 'as many'} fakes as there are real slices",
        command=[
            "generate.py",
            f"--network={result_of(gan)}",
            f"--like={like}",
            f"--times={times}",
            f"--dest={OUT}/fake/{name}.zip",
        ],
        inputs=[result_of(gan), like],
        outputs=[f"fake/{name}.zip"],
        kind="fakes",
        work=times,
    )
