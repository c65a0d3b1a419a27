"""The GAN: networks, losses, training loop, snapshots, and generation from a snapshot."""
