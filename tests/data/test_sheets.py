import numpy as np
import pytest

from cinema_jax.data.sheets import Group, Row, contact_sheet, spread


def flat(colour, height=16, width=16):
    return np.full((height, width, 3), colour, np.uint8)


def test_groups_of_all_rows_stand_in_columns_at_a_readable_size():
    rows = [
        Row([Group("references", [flat((250, 0, 0))]), Group("real", [flat((0, 250, 0))] * 3)], "a caption " * 20),
        Row([Group("references", [flat((250, 0, 0), 8, 16)] * 2), Group("real", [flat((0, 250, 0), 300, 200)])]),
    ]
    sheet = np.asarray(contact_sheet(rows, tile=64)).astype(int)
    red = (sheet == (250, 0, 0)).all(-1)
    green = np.abs(sheet - (0, 250, 0)).max(-1) <= 1
    assert red.sum() == 64 * 64 + 2 * 32 * 64
    assert green.sum() == 3 * 64 * 64 + 64 * 43
    assert red.any(0).nonzero()[0].max() < green.any(0).nonzero()[0].min()


def test_empty_groups_take_no_room():
    with_none = contact_sheet([Row([Group("references", []), Group("generated", [flat((0, 0, 9))])])], tile=32)
    without = contact_sheet([Row([Group("generated", [flat((0, 0, 9))])])], tile=32)
    assert np.array_equal(np.asarray(with_none), np.asarray(without))


def test_rows_with_different_groups_are_refused():
    with pytest.raises(ValueError, match="same number"):
        contact_sheet([Row([Group("a", [])]), Row([])])


def test_spread_takes_first_and_last():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert [frame[0, 0, 0] for frame in spread(frames, 3)] == [0, 4, 8]
    assert len(spread(frames[:2], 5)) == 2
