"""Jobs of an experiment: train one U-Net per arm, and test all of them on one archive.

This file imports neither torch nor numpy, so that `reproduce.py --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.cli import arguments
from dnnlib.jobs import Job, result_of

COMPARED = ("results.json", "results.md", "dice.png")  # files of a comparison of arms


def run_arms(
    run: Callable[[Sequence[Job]], Mapping[str, list[Path]]],
    arms: Mapping[str, Sequence[str]],
    archives: Mapping[str, Path],
    test: Path,
    options: Mapping[str, Any],
) -> dict[str, Path]:
    """Train and test a U-Net for each arm, in two jobs. Returns arm -> path of its results.json.

    run: runs jobs, and returns name -> outputs.
    arms: name of the arm -> names of the archives to train on. archives: name -> path.
    test: an archive of other patients. options: training options, the same for every arm.
    """
    jobs, names = [], {}
    for arm, sources in arms.items():
        name = "unet-" + "-".join(sources)
        names[arm] = f"{name}-test"
        data = [archives[source] for source in sources]
        chosen = {"data": data, "exclude": test, **options, "outdir": f"{{out}}/{name}"}
        tested = {"model": result_of(name), "data": test, "outdir": f"{{out}}/{name}-test"}
        jobs += [
            Job(
                name,
                purpose=f"train a U-Net on {arm}",
                command=["-m", "segmentation", "train", *arguments(chosen)],
                inputs=[*data, test],
                outputs=[f"{name}/unet.safetensors", f"{name}/training.json"],
                kind="unet",
            ),
            Job(
                names[arm],
                purpose=f"Dice of that U-Net ({arm}) on the test patients",
                command=["-m", "segmentation", "evaluate", *arguments(tested)],
                inputs=[test],
                outputs=[f"{name}-test/results.json", f"{name}-test/patients.png"],
                kind="test",
            ),
        ]
    made = run(jobs)
    return {arm: made[name][0] for arm, name in names.items()}
