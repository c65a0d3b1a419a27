"""The judge: a U-Net trained on real, generated or mixed slices, and its Dice on the slices of other patients."""
