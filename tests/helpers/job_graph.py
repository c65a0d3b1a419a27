"""A graph of ten quick jobs, whose jobs note their starts and ends in one log.

python job_graph.py OUTDIR WORD SLOTS [LAUNCHER]
"""

import signal
import sys
from pathlib import Path

from dnnlib.jobs import Graph, Job, Programs, result_of
from dnnlib.slots import Slots, find_slots
from helpers.commands import ROOT

PROGRAMS = Programs(ROOT, {})
# Writes the word, its name and what it has read to a file, which appears at its end. The log has lines
# "start|work|finish NAME PROCESS GPU THREADS".
WORK = """
import os, sys, time
log, made, name, seconds, word, *read = [word for word in sys.argv[1:] if word != "--force"]
gpu, threads = (os.environ.get(variable, "-") for variable in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
def note(what):
    with open(log, "ab", buffering=0) as file:
        file.write(f"{what} {name} {os.getpid()} {gpu} {threads}\\n".encode())
note("start")
print("hello from", name, flush=True)
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    time.sleep(0.01)
    note("work")
with open(made + ".draft", "w") as file:
    file.write(word + name + "".join(open(path).read() for path in read) + "\\n")
os.replace(made + ".draft", made)
note("finish")
"""
NEEDS = {"a": "", "b": "", "c": "a", "d": "ab", "e": "b", "f": "cd", "g": "de", "h": "f", "i": "g", "j": "hi"}


def worker(name, needs="", seconds=0.05, word="", script=WORK, **options):
    """Return a job that notes in log.txt what it does. needs: names of jobs, of one letter."""
    command = ["-c", script, "{out}/log.txt", f"{{out}}/{name}.txt", name, str(seconds), word, *map(result_of, needs)]
    return Job(name, f"make {name}", command, [], [f"{name}.txt"], **options)


def ten_jobs(outdir, word):
    """Return the graph. Each job takes 0.05 to 0.3 seconds."""
    jobs = [worker(name, needs, 0.05 + 0.025 * n, word) for n, (name, needs) in enumerate(NEEDS.items())]
    return Graph(Path(outdir), PROGRAMS, jobs)


def notes(outdir, what=""):
    """Lines of the log, in order, each as a list of words. what: only those that begin with this word."""
    path = Path(outdir) / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split() for line in lines if line.startswith(what)]


if __name__ == "__main__":
    outdir, word, number, *launcher = sys.argv[1:]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup, tests ignore it
    ten_jobs(outdir, word).run(find_slots(int(number), *launcher) if launcher else Slots(int(number)))
