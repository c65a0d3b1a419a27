"""The plan of a graph: what is done, what is to do, and how long it takes."""

import dataclasses
import random
import re

import pytest

from dnnlib.files import write_json
from dnnlib.jobs import FINGERPRINT, Graph, Job, result_of
from dnnlib.plan import Pace, about, time_for
from dnnlib.records import Record
from dnnlib.slots import Slots
from helpers.job_graph import PROGRAMS, ten_jobs, worker


def test_a_plan_tells_what_a_run_does(tmp_path):
    outdir = tmp_path / "new"
    graph = ten_jobs(outdir, "x")
    plan = graph.plan(Slots(2))
    assert not outdir.exists(), "a plan changes nothing"
    assert [job.name for job in plan.todo] == list("abcdefghij")
    assert plan.commands["c"].endswith(f" x {outdir}/a.txt")
    assert "\nTime: not known yet: no job has finished\n" in str(plan)
    outdir.mkdir()
    graph.run(Slots(4))
    assert "Nothing is to do" in str(graph.plan(Slots(2))) and graph.plan(Slots(2)).todo == []
    (outdir / "d.txt").write_text("damaged")
    plan = graph.plan(Slots(1))
    assert [job.name for job in plan.todo] == list("dfghij"), "what reads it may have to run again"
    assert re.search(r"\nTime: about \ds on 1 slot, judged by 10 finished jobs of 10 kinds$", str(plan), re.MULTILINE)
    graph.run(Slots(1))
    assert graph.plan(Slots(1)).todo == []


def test_names_that_are_not_known_yet_are_patterns(tmp_path):
    train = Job("train", "", ["train.py", f"--run-dir={{out}}/gan/{FINGERPRINT}"], [], [f"gan/{FINGERPRINT}/n-*.st"])
    show = Job("show", "", ["-m", "show", f"--network={result_of('train')}"], [], ["show.png"])
    commands = Graph(tmp_path, PROGRAMS, [show, train]).plan(Slots(1)).commands
    assert commands["show"] == f"python -m show '--network={tmp_path}/gan/*/n-*.st'"
    assert re.fullmatch(rf"python train.py --run-dir={tmp_path}/gan/[0-9a-f]{{8}}", commands["train"])


# Seconds for a unit of work, by kind.
TRUE_PACE = {"gan": 30.0, "unet": 6.0, "test": 1.5}


def replicates(number):
    """Return jobs of an experiment: GANs, and U-Nets of several sizes that learn from their fakes."""
    jobs = []
    for r in range(number):
        jobs.append(worker(f"gan-{r}", kind="gan", work=4.0))
        for arm, steps in enumerate((10.0, 5.0, 20.0)):
            needs = [result_of(f"gan-{r}")] * (arm > 0)
            unet = dataclasses.replace(worker(f"unet-{arm}-{r}", kind="unet", work=steps), inputs=needs)
            test = worker(f"test-{arm}-{r}", kind="test", work=1.0)
            jobs += [unet, dataclasses.replace(test, inputs=[result_of(unet.name)])]
    return jobs


def ends_of(jobs, edges, seconds, slots):
    """Start each job as soon as it can be, second by second. Returns name -> when it ends."""
    ends, now = {}, 0
    while len(ends) < len(jobs):
        for job in jobs:
            free = sum(end > now for end in ends.values()) < slots
            ready = all(ends.get(name, 1e9) <= now for name in edges[job.name])
            if job.name not in ends and free and ready:
                ends[job.name] = now + round(seconds[job.name])
        now += 1
    return ends


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_half_way_the_estimate_is_within_30_percent(tmp_path, slots, seed):
    """A pool whose jobs take up to 20 % more or less than their kind does."""
    chance = random.Random(seed)
    graph = Graph(tmp_path, PROGRAMS, replicates(6))
    seconds = {job.name: TRUE_PACE[job.kind] * job.work * chance.uniform(0.8, 1.2) for job in graph.jobs}
    ends = ends_of(graph.jobs, graph.edges, seconds, slots)
    half = sorted(ends.values())[len(ends) // 2]
    left = [job for job in graph.jobs if ends[job.name] > half]
    done = [job for job in graph.jobs if job not in left]
    graph.folder.mkdir()
    for job in done:
        record = Record(True, "", (), {}, seconds=seconds[job.name], kind=job.kind, work=job.work)
        write_json(graph.folder / f"{job.name}.json", record)
    since = {job.name: half - ends[job.name] + round(seconds[job.name]) for job in left}
    since = {name: been for name, been in since.items() if been > 0}
    estimate = time_for(left, graph.edges, Pace.of(graph.records()), Slots(slots), since)
    truth = max(ends.values()) - half
    assert abs(estimate.seconds / truth - 1) < 0.3
    assert str(estimate) == (
        f"about {about(estimate.seconds)} on {Slots(slots)}, judged by {len(done)} finished jobs of 3 kinds"
    )


def test_kinds_of_which_none_has_finished_are_named(tmp_path):
    graph = Graph(tmp_path, PROGRAMS, replicates(2))
    pace = Pace.of([Record(True, "", (), {}, seconds=12.0, kind="unet", work=2.0)])
    estimate = time_for(graph.jobs, graph.edges, pace, Slots(1))
    assert estimate.seconds == 2 * 35 * 6
    assert str(estimate) == (
        "about 7m on 1 slot, judged by 1 finished job of 1 kind; not included, as none has finished: gan, test"
    )


def test_an_alone_job_is_foreseen_to_wait_for_all():
    jobs = [worker("a", kind="k", work=5), worker("x", kind="k", work=1, alone=True), worker("b", kind="k", work=5)]
    edges = {job.name: set() for job in jobs}
    pace = Pace({"k": 10.0}, 1)
    assert time_for(jobs, edges, pace, Slots(3)).seconds == 110
    assert time_for(jobs, edges, pace, Slots(3, launcher=("srun",))).seconds == 50


def test_durations_that_are_not_known_exactly():
    found = [about(seconds) for seconds in (12.4, 59.6, 429, 3570, 4810, 86390, 183600)]
    assert found == ["12s", "1m", "7m", "1h 00m", "1h 20m", "1d 00h", "2d 03h"]
