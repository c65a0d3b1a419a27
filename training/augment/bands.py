"""Band filter: four octave bands of the contrasts, each with a gain (Karras et al. 2020, appendix B).

The bands come from the sym2 wavelet: its squared low-pass and high-pass filters add up to the identity. The low-pass
part is divided again, with filters stretched by 2 and by 4. So the four bands add up to the identity too.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from torch_utils.sending import send

NUM_BANDS = 4
# Expected share of each band, from the lowest to the highest, in the power of images: theirs falls as 1/f.
_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
# Low-pass filter of the sym2 wavelet.
_SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)


def total_gains(gains: torch.Tensor) -> torch.Tensor:
    """Multiply single gains, each drawn for one band, to the bands' gains. [N, 4] -> [N, 4].

    Each of the four is renormalized such that it would keep the expected power of an image on its own.
    """
    total = torch.ones_like(gains)
    for band, share in enumerate(_POWER):
        gain = gains[:, band]
        total[:, band] *= gain
        total /= (1 - share + share * gain.square()).sqrt()[:, None]
    return total


def filter_bands(contrasts: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Multiply the bands of contrasts by gains, along both axes. Beyond its edges an image is its own reflection.

    contrasts: [N, C, W, W]. gains: [N, 4], on the host.
    """
    dtype, device = contrasts.dtype, contrasts.device
    # A filter along an axis of W pixels is a matrix [W, W], whatever lies beyond the edges.
    bands = send(torch.from_numpy(_matrices(contrasts.shape[-1])).to(dtype), device)  # [4, W, W]
    # [N, 1, W, W]: one matrix for all contrasts of an image.
    matrices = torch.einsum("nb,bij->nij", send(gains.to(contrasts.dtype), contrasts.device), bands).unsqueeze(1)
    return matrices @ contrasts @ matrices.transpose(2, 3)


def _bank() -> np.ndarray:
    """Return the filters of the bands, [4, 43], from the lowest to the highest."""
    low = np.asarray(_SYM2)
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    low2, high2 = (np.convolve(f, f[::-1]) / 2 for f in (low, high))  # their sum is 1 in the middle, else 0
    bands, coarse = [], np.ones(1)
    for level in range(NUM_BANDS - 1):
        bands.append(np.convolve(coarse, _stretched(high2, 2**level)))
        coarse = np.convolve(coarse, _stretched(low2, 2**level))
    bands.append(coarse)
    longest = len(coarse)
    return np.stack([np.pad(band, (longest - len(band)) // 2) for band in reversed(bands)])


def _stretched(taps: np.ndarray, factor: int) -> np.ndarray:
    """Put factor − 1 zeros between taps."""
    stretched = np.zeros((len(taps) - 1) * factor + 1)
    stretched[::factor] = taps
    return stretched


@functools.lru_cache(maxsize=8)
def _matrices(width: int) -> np.ndarray:
    """Return each band's filter with reflection as a matrix, float64 [4, width, width]."""
    bank = _bank()
    half = bank.shape[1] // 2
    period = max(2 * (width - 1), 1)  # a row of pixels and its reflection, without its ends
    matrices = np.zeros([len(bank), width, width])
    for tap in range(-half, half + 1):
        source = (np.arange(width) + tap) % period
        source = np.minimum(source, period - source)  # as often reflected as needed
        matrices[:, np.arange(width), source] += bank[:, half + tap, None]  # each row has one source
    return matrices
