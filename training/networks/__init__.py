"""Generator, discriminator, and the layers that they share."""
