"""`python -m slices` is dataset_tool.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python <project>/slices` finds them too

from dataset_tool import main
from dnnlib.system import run

if __name__ == "__main__":
    run(main, prog_name="python -m slices")
