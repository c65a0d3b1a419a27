"""Builds the CUDA kernels for the emulated device, and runs one operator a call on tensors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = HERE.parents[3] / "torch_utils" / "ops" / "csrc"
COMMON = ["-std=c++17", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
CHECKED = [
    "-O0",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]  # compiles in a third of -O1's time
FAST = ["-O2"]
PLAIN = ["-O0"]  # for a kernel that runs a few times only
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]  # DType of operators.h
SECTOR = 32


class KernelError(Exception):
    """The kernel did what a GPU would not forgive."""


def build(sources: list[Path], flags: list[str], folder: Path, includes: Path = HERE) -> Path:
    """Compiles the emulator and the sources, but for those whose objects lie in the folder; returns the executable."""
    units = [(HERE / "emulator.cpp", FAST), *((source, flags) for source in sources)]
    objects, running = [], []
    for source, options in units:
        objects.append(folder / f"{source.stem}.o")
        if objects[-1].exists():
            continue
        command = ["g++", "-x", "c++", *COMMON, *options, f"-I{HERE}", f"-I{includes}", "-c", str(source)]
        running.append(subprocess.Popen([*command, "-o", str(objects[-1])]))
    assert not any([process.wait() for process in running]), "the compiler refuses the kernels"
    subprocess.run(["g++", *flags, *map(str, objects), "-o", str(folder / "program")], check=True)
    return folder / "program"


def has_sanitizer(folder: Path) -> bool:
    """Whether g++ is here and its programs run with AddressSanitizer."""
    if not shutil.which("g++"):
        return False
    (folder / "nothing.cpp").write_text("int main() {}\n")
    built = subprocess.run(["g++", *CHECKED, "nothing.cpp", "-o", "nothing"], cwd=folder, capture_output=True)
    return built.returncode == 0 and subprocess.run([folder / "nothing"], capture_output=True).returncode == 0


@dataclass
class Traffic:
    """What the launch moved to and from each array: {"x": {"sectors", "requests", "bytes"}, …}."""

    arrays: dict[str, dict[str, int]]

    def sectors(self, *names: str) -> int:
        return sum(self.arrays[name]["sectors"] for name in names or self.arrays)


def compute_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


class Emulator:
    """The kernels of a folder of sources, built once."""

    def __init__(self, folder: Path, sources: Path = SOURCES, flags: list[str] = CHECKED):
        units = [HERE / "main.cpp", sources / "cuda" / "tail.cu", sources / "cuda" / "upfirdn2d.cu"]
        self.folder = folder
        self.program = build(units, flags, folder, sources)
        self._process: subprocess.Popen | None = None

    def run_tail(
        self,
        x,
        order=0,
        activation=0,
        alpha=0.2,
        gain=1.0,
        limit=float("inf"),
        channels_last=False,
        scale=None,
        noise=None,
        strength=None,
        bias=None,
        dy=None,
        v=None,
        w=None,
        x_is_output=False,
        sums=None,
        out_x=True,
        rooms=(),
        **launch,
    ):
        """x, dy, v: [n, c, p]; returns {"out", "out_x", "sums"} as tensors of the same layout, and Traffic.

        sums: whether to ask for them; by default in orders 1 and 2. rooms: {"x": bytes, …} of sparse arrays.
        """
        n, c, p = launch.pop("shape", x.shape)
        operand = compute_type(x.dtype)
        inputs = {
            "x": x,
            "scale": scale,
            "noise": noise,
            "strength": strength,
            "bias": bias,
            "dy": dy,
            "v": v,
            "w": w,
        }
        prepared = {}
        for name, tensor in inputs.items():
            if tensor is not None:
                if name in ("x", "dy", "v"):
                    prepared[name] = (tensor.transpose(1, 2) if channels_last else tensor).contiguous()
                else:
                    prepared[name] = tensor.to(operand).contiguous()
        outputs = {"out": x.numel() * x.element_size()}
        if order == 2 and out_x:
            outputs["out_x"] = outputs["out"]
        if order and sums is not False:
            outputs["sums"] = 0
        header = dict(
            operator="tail",
            order=order,
            dtype=DTYPES.index(x.dtype),
            activation=activation,
            alpha=alpha,
            gain=gain,
            limit=limit,
            n=n,
            c=c,
            p=p,
            channels_last=int(channels_last),
            x_is_output=int(x_is_output),
            noise_stride=p if noise is not None and noise.ndim == 2 else 0,
            **launch,
        )
        raw, traffic = self._run(header, prepared, outputs, dict(rooms))
        found, start = {}, 0
        for name in ("out", "out_x"):
            if name in outputs:
                image = torch.frombuffer(raw, dtype=x.dtype, count=x.numel(), offset=start) if x.numel() else x
                shape = [x.shape[0], x.shape[2], x.shape[1]]
                found[name] = image.reshape(shape).transpose(1, 2) if channels_last else image.reshape(x.shape)
                start += outputs[name]
        if "sums" in outputs:
            partial = torch.frombuffer(raw, dtype=operand, offset=start) if start < len(raw) else torch.zeros(0)
            found["sums"] = partial.to(operand).reshape(3, -1, n, c).sum(1) if n * c else torch.zeros(3, n, c)
        return found, traffic

    def run_upfirdn2d(
        self,
        x,
        f,
        out_size,
        up=(1, 1),
        down=(1, 1),
        padding=(0, 0),
        flip=False,
        gain=1.0,
        channels_last=False,
        rooms=(),
        **launch,
    ):
        """x: [n, c, h, w]; f: [fh, fw]; up, down, padding (before): (x, y). Returns [n, c, *out_size], Traffic."""
        n, c, h, w = launch.pop("shape", x.shape)
        pictures = x.shape[:2]
        arrays = {"x": (x.movedim(1, 3) if channels_last else x).contiguous(), "f": f.to(compute_type(x.dtype))}
        arrays["f"] = arrays["f"].contiguous()
        out_h, out_w = launch.pop("out_shape", out_size)
        header = dict(
            operator="upfirdn2d",
            dtype=DTYPES.index(x.dtype),
            n=n,
            c=c,
            in_h=h,
            in_w=w,
            out_h=out_h,
            out_w=out_w,
            channels_last=int(channels_last),
            filter_h=f.shape[0],
            filter_w=f.shape[1],
            up_x=up[0],
            up_y=up[1],
            down_x=down[0],
            down_y=down[1],
            pad_x=padding[0],
            pad_y=padding[1],
            flip=int(flip),
            gain=gain,
            **launch,
        )
        count = pictures.numel() * out_size[0] * out_size[1]
        raw, traffic = self._run(header, arrays, {"y": count * x.element_size()}, dict(rooms))
        y = torch.frombuffer(raw, dtype=x.dtype) if count else x.new_zeros(0)
        if channels_last:
            return y.reshape(pictures[0], *out_size, pictures[1]).movedim(3, 1), traffic
        return y.reshape(*pictures, *out_size), traffic

    def _run(self, header, inputs, outputs, rooms) -> tuple[bytearray, Traffic]:
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in inputs.items()} | outputs
        lines = [f"{key}={value}" for key, value in header.items()]
        lines += [f"{name}={size}/{rooms[name]}" if name in rooms else f"{name}={size}" for name, size in sizes.items()]
        text = ("\n".join(lines) + "\n\n").encode()
        report, raw = self._ask(text + b"".join(map(raw_bytes, inputs.values())))
        if error := report.pop("error"):
            raise KernelError(error)
        return raw, Traffic(report)

    def _ask(self, request: bytes) -> tuple[dict, bytearray]:
        """Send a request to the program, which is started at the first one and after one that it has not survived."""
        if self._process is None:
            self._words = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, env=ENVIRONMENT
            )
        process = self._process
        assert process.stdin and process.stdout
        limit = threading.Timer(300, process.kill)
        limit.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            report = json.loads(process.stdout.readline())
            raw = bytearray(process.stdout.read(report.pop("bytes")))
        except (BrokenPipeError, json.JSONDecodeError):
            process.wait()
            self._words.seek(0)
            words = self._words.read().decode(errors="replace")
            self.close()
            raise KernelError(words) from None
        finally:
            limit.cancel()
        return report, raw

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._words.close()
            self._process = None
