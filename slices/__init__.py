"""The joint slice: what its channels mean, how it is stored, made from volumes, and shown."""

import sys

import dnnlib

if not hasattr(dnnlib, "require_ground"):  # StyleGAN2 and its relatives have a package of this name, too
    # A folder without __init__.py is a namespace package, which has a __path__ but no __file__.
    found = getattr(dnnlib, "__file__", None) or next(iter(dnnlib.__path__))
    print(f"error: another project's dnnlib was found first: {found}; call from another folder", file=sys.stderr)
    raise SystemExit(2)
