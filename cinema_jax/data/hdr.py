"""High dynamic range, as phones record it, to the standard range that networks and files here are in.

FFmpeg's own conversion gives the same, but builds a table for seconds every time that it is set up.
"""

import functools

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

# `color_trc` of a video (ITU-T H.273, transfer characteristics).
CURVES = PQ, HLG = 16, 18
# cd/m^2 of HDR reference white (ITU-R BT.2408), which becomes white: what is brighter is clipped.
WHITE = 203.0
# Nominal peak and system gamma of HLG's reference display (ITU-R BT.2100).
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
# Of the reference display for standard range (ITU-R BT.1886).
GAMMA = 2.4
# Linear light with the primaries of BT.2020 to that with those of BT.709 (ITU-R BT.2087 gives the inverse).
TO_BT709 = np.float32(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
LUMA = np.float32([0.2627, 0.6780, 0.0593])


def to_sdr(pixels: UInt16[np.ndarray, "*size 3"], curve: int) -> UInt8[np.ndarray, "*size 3"]:
    """Levels of BT.2100 (PQ or HLG, BT.2020's primaries) as a display of BT.709 shows the same light, up to `WHITE`."""
    light = _light(curve)[pixels]
    if curve == HLG:
        light *= (HLG_PEAK * (light @ LUMA) ** (HLG_GAMMA - 1))[..., None]
    light = np.clip(light @ TO_BT709.T / WHITE, 0, 1)
    return np.rint(255 * light ** (1 / GAMMA)).astype(np.uint8)


@functools.cache
def _light(curve: int) -> Float32[np.ndarray, "65536"]:
    """Light of each level: cd/m^2 of PQ; of HLG the scene's, 1 at the peak (ITU-R BT.2100, tables 4 and 5)."""
    # swscale widens 8 bits by a shift: its white is 255 * 256.
    level = np.minimum(np.arange(65536) / 65280, 1)
    if curve == PQ:
        root = level ** (32 / 2523)
        ratio = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
        return np.float32(10_000 * ratio ** (16384 / 2610))
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.float32(np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12))
