"""A launcher of jobs that start at once, for tests that start many: forks of a server that has imported all they need.

`python -m helpers.warm SOCKET` is the server; `python -I -S warm.py SOCKET python PROGRAM OPTION…` has it run a
program, with this process's folder, environment and output, and ends with the program's status. As below srun, the
program is no child of its launcher, but ends with it. SOCKET.log has a line for each program that began.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


class Warm:
    """A server that runs as long as a block."""

    def __init__(self, folder: Path, root: Path) -> None:
        """folder: for the socket, whose path must be short. root: of the checkout."""
        self.socket, self.log = folder / "s", folder / "s.log"
        self.words = [sys.executable, "-I", "-S", __file__, str(self.socket)]  # before those of a program
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "helpers.warm", str(self.socket)]
        self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    def __enter__(self) -> "Warm":
        assert self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_) -> None:
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()

    def begun(self) -> list[tuple[int, list[str]]]:
        """Process ids and words of all programs that began, in order."""
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()] if self.log.exists() else []


# --- the launcher -----------------------------------------------------------------------------------------------------


def launch(path: str, words: list[str]) -> int:
    """Have a program run, and return its status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        asked = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(asked).to_bytes(4, "big")], [1, 2])
        server.sendall(asked)
        return (server.recv(1) or b"\xff")[0]


# --- the server -------------------------------------------------------------------------------------------------------


def serve(path: str) -> None:
    """Run programs until this process is killed."""
    import monai.losses
    import monai.metrics
    import monai.networks.nets  # noqa: F401
    import torch._dynamo  # noqa: F401 (an optimizer imports it)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import segmentation.run_experiment  # noqa: F401

    FigureCanvasAgg(Figure()).figure.subplots().figure.canvas.draw()  # finds fonts

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so nobody waits for the forks below
    print("ready", flush=True)
    while True:
        client = listener.accept()[0]
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve_one(client, f"{path}.log")
            os._exit(0)
        client.close()


def _serve_one(client: socket.socket, log: str) -> None:
    """Run one program as a child, which is killed if the client ends."""
    length, files, *_ = socket.recv_fds(client, 4, 2)
    with client.makefile("rb") as stream:
        words, folder, environment = json.loads(stream.read(int.from_bytes(length, "big")))
    program = os.fork()
    if program == 0:
        client.close()
        _become(words, folder, environment, files)
    with open(log, "a") as file:
        file.write(json.dumps([program, words]) + "\n")
    ended = os.pidfd_open(program)
    if client in select.select([client, ended], [], [])[0]:
        os.kill(program, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(OSError):
        client.send(bytes([status if status >= 0 else 128 - status]))


def _become(words: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Run a program in this process, then end."""
    import runpy
    import traceback

    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 0
    try:
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(launch(sys.argv[1], sys.argv[2:]))
