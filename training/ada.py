"""Adaptive discriminator augmentation: how probable augmentations are (Karras et al. 2020, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnnlib.cli import Checked, limited
from training.config import AugmentConfig

LEAKS = 0.8  # from this probability on, a generator learns to make augmented images (Karras et al. 2020, section 2.2)


@dataclass(frozen=True)
class Ada(Checked):
    """Probability of each augmentation, and what it is to be adapted to."""

    p: float = limited(least=0, most=1)
    signs: float = 0.0  # sum of sign(D(x)) over the reals that were judged since p last moved
    reals: int = limited(default=0, least=0)  # their number

    def seen(self, signs: float, reals: int) -> Ada:
        """Return the record after more real images were judged."""
        return replace(self, signs=self.signs + signs, reals=self.reals + reals)

    def adapted(self, config: AugmentConfig, batch: int, step: int) -> Ada:
        """Return the record after step number `step`, counted from 1, of `batch` images.

        Every `interval` steps, p moves towards more augmentation if the mean sign r_t (equation 1) is above the target,
        else towards less. The published code has no upper bound; here p ends at 1, as nothing is more than always.
        """
        if config.target is None or step % config.interval or not self.reals:
            return self
        overfitting = self.signs / self.reals - config.target
        direction = (overfitting > 0) - (overfitting < 0)
        p = self.p + direction * batch * config.interval / (config.kimg * 1000)
        return Ada(min(max(p, 0.0), 1.0))


def leak_warning(p: float) -> str:
    """Say what happens at a probability of augmentations of LEAKS or more."""
    return (
        f"augmentations have a probability of {p:.2f}: from {LEAKS} on they leak, so fakes come out turned or "
        "discolored themselves; look at the sheets, and train on more slices"
    )
