"""Libraries without operators, which compile fast, and scripts that replace compilers."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import ROOT
from torch_utils.ops import build, native

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler named c++")


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


class Toy:
    """A library without operators, and a compiler that counts its calls and waits while the file `hold` exists."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = folder / "toy.cpp"
        self.source.write_text('#include "toy.h"\nextern "C" int toy() { return NUMBER; }\n')
        self.header = folder / "toy.h"
        self.header.write_text("#define NUMBER 7\n")
        self.hold, self.log = folder / "hold", folder / "compiled.log"
        self.compiler = script(
            folder / "g++",
            f'case "$*" in *" -c "*) echo x >> {self.log}; while [ -e {self.hold} ]; do sleep 0.02; done;; esac',
            'exec c++ "$@"',
        )
        self.extensions = folder / "extensions"
        self.library = build.Library("cpu", folder, ("toy.cpp",), build.LIBRARIES["cpu"].flags)

    def compilations(self) -> int:
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def number(self) -> int:
        return ctypes.CDLL(str(native.status("cpu").file)).toy()

    def process(self) -> subprocess.Popen:
        """Start another process that loads the library and prints the result."""
        code = f"""
from pathlib import Path
from types import SimpleNamespace
from torch_utils.ops import build, native
native.PATIENCE = 0.1
build.LIBRARIES["cpu"] = build.Library("cpu", Path({str(self.folder)!r}), ("toy.cpp",), {self.library.flags!r})
print(native.available("cpu"))
"""
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
