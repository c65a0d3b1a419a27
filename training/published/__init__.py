"""Import of checkpoints that the published StyleGAN2-ADA code saved as pickles. Nothing in them is executed."""
