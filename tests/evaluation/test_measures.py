"""The packaged judge and every measure, on videos of which the answer is known."""

import dataclasses

import cv2
import numpy as np
import pytest

from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.source import reference
from cinema_jax.evaluation import actions, benchmark
from cinema_jax.evaluation import suite as suites
from cinema_jax.evaluation.figures import figure
from cinema_jax.evaluation.judging import Eyes
from cinema_jax.evaluation.lessons import centre_bumps
from cinema_jax.evaluation.measures import Names, consistency, measure
from cinema_jax.evaluation.pastes import closeness
from cinema_jax.evaluation.suite import Suite
from cinema_jax.evaluation.tracking import track


@pytest.fixture(scope="module")
def eyes():
    return Eyes()


@pytest.fixture(scope="module")
def suite():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "_GALLERY", 160)
        return Suite(9, 64, 64, per_count=6)


@pytest.fixture(scope="module")
def names(eyes, suite):
    return benchmark.read_names(eyes, suite)


@pytest.fixture(scope="module")
def real(suite):
    return [suite.real(case) for case in suite.cases]


@pytest.fixture(scope="module")
def result(eyes, names, suite, real):
    return benchmark.judge(eyes, names, suite.cases, real, "real")


def mean(sums, name):
    totals, counts = zip(*(case[name] for case in sums), strict=True)
    return figure(np.array(totals), np.array(counts)).value


def test_a_real_video_shows_its_own_subjects_and_no_others(result):
    assert mean(result.own, "identity") >= 0.95
    assert mean(result.own, "strangers") <= 0.1
    assert mean(result.shuffled, "identity") <= 0.1
    assert mean(result.shuffled, "strangers") >= 0.9


def test_real_videos_do_what_their_prompts_say(result):
    for name in ("binding", "action", "direction", "place"):
        assert mean(result.own, name) >= 0.95, name


def test_real_subjects_stay_who_they_are(result):
    assert mean(result.own, "consistency") > 0.9
    assert mean(result.shuffled, "consistency") < 0.5


def test_subjects_are_found_where_they_are(eyes, names, suite, real):
    distances = []
    for case, video in zip(suite.cases, real, strict=True):
        truth = suite.source.tracks(case.index)
        tracked = track(eyes.look(video), names.references[case.id], case.count, eyes.scale)
        distances.append(np.linalg.norm(tracked.positions - truth.centers / 64, axis=-1)[truth.visible > 0.6])
    assert np.median(np.concatenate(distances)) < 0.06  # of the frame's height: 4 of 64 pixels


def measured(eyes, names, case, video):
    return measure(eyes, names, case, video, eyes.look(video))


def test_a_still_video_has_no_motion(eyes, names, suite, real):
    still = np.repeat(real[-1][4:5], 9, axis=0)
    found = measured(eyes, names, suite.cases[-1], still)
    assert found.sums["motion"][0] == found.sums["change"][0] == 0
    np.testing.assert_allclose(consistency(found, found)[0], 3, rtol=1e-5)


def test_an_empty_video_shows_nobody(eyes, names, suite):
    video = suite.cases[0].scene.background.render(64, 64)[None].repeat(9, axis=0)
    assert measured(eyes, names, suite.cases[0], video).sums["present"][0] == 0


def test_swapped_actors_fail_binding(eyes, names, suite, real):
    rows = [row for row, case in enumerate(suite.cases) if case.count == 2 and case.scene.action == "jump over"]
    case, video = suite.cases[rows[0]], real[rows[0]]
    swapped = dataclasses.replace(case, references=case.references[::-1], others=case.others[::-1])
    backwards = Names({case.id: names.references[case.id][::-1]}, names.gallery)
    right, wrong = measured(eyes, names, case, video).sums, measured(eyes, backwards, swapped, video).sums
    assert right["binding"] == (1, 1)
    assert wrong["binding"] == (0, 1)
    # Everybody is there all the same.
    assert wrong["identity"] == right["identity"]


def test_a_mirrored_video_goes_the_wrong_way(eyes, names, suite, real):
    row = next(row for row, case in enumerate(suite.cases) if case.scene.action == "walk" and "to the" in case.prompt)
    case, video = suite.cases[row], real[row]
    assert measured(eyes, names, case, video).sums["direction"] == (1, 1)
    assert measured(eyes, names, case, video[:, :, ::-1]).sums["direction"] == (0, 1)


def test_another_size_is_judged_alike(eyes, names, suite, real):
    large = np.stack([cv2.resize(frame, (160, 160), interpolation=cv2.INTER_CUBIC) for frame in real[0]])
    assert measured(eyes, names, suite.cases[0], large).sums["identity"] == (1, 1)


def test_a_pasted_reference_is_found(suite, real):
    picture, video = suite.cases[0].references[0], real[0].copy()
    scale = 36 / max(picture.mask.shape)
    size = [round(side * scale) for side in picture.mask.shape[::-1]]
    image, mask = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (picture.image, picture.mask))
    part = video[:, 20 : 20 + size[1], 10 : 10 + size[0]]
    part[:] = np.where(mask[..., None] > 127, image, part)
    drawn, other = closeness(video, [picture])[0], closeness(real[0], [picture])[0]
    assert drawn > 0.9
    assert other < drawn - 0.1


@pytest.mark.parametrize(
    ("action", "moves", "right"),
    [
        ("jump over", [(0.7, 0.4), (0.0, 0.0)], True),
        ("jump over", [(0.0, 0.0), (0.7, 0.4)], False),
        ("jump and watch", [(0.0, 0.0), (0.1, 0.0), (0.5, 0.4)], False),
        ("dance together", [(0.0, 0.0), (0.1, 0.0)], None),
    ],
)
def test_who_moves_most_plays_the_first_role(action, moves, right):
    positions = np.linspace(0, 1, 5)[:, None, None] * np.array(moves)
    assert actions.bound(action, positions) is right


@pytest.mark.parametrize("side", [1, -1])
def test_whoever_is_chased_is_ahead(side):
    behind, ahead = np.linspace(0.1, 0.4, 5), np.linspace(0.5, 0.8, 5)
    positions = np.stack([np.stack([side * x, 0 * x], axis=-1) for x in (behind, ahead)], axis=1)
    assert actions.bound("chase", positions) is True
    assert actions.bound("chase", positions[:, ::-1]) is False


def test_every_place_of_the_prompt_is_known():
    for number, (name, place) in enumerate(PLACES.items()):
        assert actions.place(f"it jumps {place.words}", name) == number
    assert actions.place("it jumps", "beach") is None


def test_masks_and_bumps_are_where_the_subjects_are(suite):
    case = suite.cases[-1]
    masks, truth = case.scene.masks(0.5, 64, 64), suite.source.tracks(case.index)
    assert masks.sum(axis=0).max() == 1
    for mask, bump, visible, box in zip(masks, centre_bumps(masks), truth.visible[4], truth.boxes[4], strict=True):
        rows, columns = np.nonzero(mask)
        corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_array_less([box[0] - 1, box[1] - 1, *corners[2:]], [*corners[:2], box[2] + 1, box[3] + 1])
        if visible > 0.5:
            row, column = np.unravel_index(bump.argmax(), bump.shape)
            assert abs(4 * row + 2 - rows.mean()) <= 2.5
            assert abs(4 * column + 2 - columns.mean()) <= 2.5


def test_references_of_one_subject_are_alike(eyes, suite):
    subjects = [case.scene.actors[0].subject for case in suite.cases]
    rng = np.random.default_rng(0)
    first, second = (eyes.names([reference(subject, rng) for subject in subjects]) for _ in range(2))
    assert ((first @ second.T).argmax(axis=1) == np.arange(len(subjects))).mean() > 0.9
