"""Operators of StyleGAN2. `reference` defines them in plain PyTorch; networks call the functions of other modules."""
