"""The operators of StyleGAN2. `reference` defines them; the other modules are what networks call."""
