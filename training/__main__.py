"""`python -m training` is train.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python <project>/training` finds them too

from dnnlib.system import run
from train import main

if __name__ == "__main__":
    run(main, prog_name="python -m training")
