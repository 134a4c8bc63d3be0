"""Figures of own clips that need no other network."""

import numpy as np

from cinema_jax.data.example import Conditions, Reference
from cinema_jax.evaluation.own import figures

RED, BLUE, GREY = (220, 40, 40), (40, 40, 220), (120, 120, 120)


def reference(colour, noun: str) -> Reference:
    return Reference(np.full((20, 20, 3), colour, np.uint8), None, "a", noun)


def video(colour) -> np.ndarray:
    """A moving square of the colour on a grey scene."""
    frames = np.full((5, 64, 64, 3), GREY, np.uint8)
    for i, frame in enumerate(frames):
        frame[20:44, 4 * i : 4 * i + 24] = colour
    return frames


TOLD = [Conditions("c", "p", (reference(RED, "car"),)), Conditions("c", "p", (reference(BLUE, "boat"),))]
REAL = [video(RED), video(BLUE)]


def test_subjects_are_found_by_their_own_reference_and_not_in_swapped_videos():
    assert figures(REAL, REAL, TOLD)["likeness"] == 1
    assert figures(REAL[::-1], REAL, TOLD)["likeness"] == 0
    assert figures(REAL, REAL, TOLD)["chance"] == 0.5


def test_likeness_is_left_out_where_all_subjects_have_one_name():
    told = [Conditions("c", "p", (reference(colour, "car"),)) for colour in (RED, BLUE)]
    assert figures(REAL, REAL, told)["likeness"] is None


def test_sharpness_and_motion_are_those_over_those_of_the_real_clips():
    found = figures([np.full_like(one, 90) for one in REAL], REAL, TOLD)
    assert (found["sharpness"], found["motion"]) == (0, 0)
    still = [np.repeat(one[:1], 5, axis=0) for one in REAL]
    assert figures(still, still, TOLD)["sharpness"] == 1
