"""Entry point of `python -m training`, which does the same as train.py."""

import sys
from pathlib import Path

# `python <project>/training` puts this folder on the path, not the checkout that holds train.py and the packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.system import run
from train import main

if __name__ == "__main__":
    run(main, prog_name="python -m training")
