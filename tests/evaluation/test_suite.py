"""The suite's cases are fixed, held out, and hard."""

import hashlib

import cv2
import numpy as np
import pytest

from cinema_jax.data.critters.cutout import find_cutouts
from cinema_jax.errors import InputError
from cinema_jax.evaluation.benchmark import partners
from cinema_jax.evaluation.suite import CANDIDATES, Suite, _body


@pytest.fixture(scope="module")
def suite():
    return Suite(9, 64, 64)


def test_the_prompts_never_change(suite):
    text = "\n".join(f"{case.id} {case.index} {case.prompt} {case.order} {case.others}" for case in suite.cases)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "0ff0ecfd7a9bb0d9"


def test_each_number_of_subjects_is_asked_for_72_times_and_in_both_ways(suite):
    for count in (1, 2, 3):
        cases = [case for case in suite.cases if case.count == count]
        assert len(cases) == 72
        assert 0.1 < sum(case.vague for case in cases) / 72 < 0.4


def test_nobody_was_ever_trained_on(suite):
    subjects = [actor.subject for case in suite.cases for actor in case.scene.actors]
    assert {subject.split for subject in [*subjects, *suite._gallery]} == {"test"}


def test_candidates_are_others_of_the_same_kind(suite):
    case = suite.cases[-1]
    for actor, rows in zip(case.scene.actors, case.others, strict=True):
        others = [suite._gallery[row] for row in rows]
        assert len(set(rows)) == CANDIDATES - 1
        assert sum(other.species == actor.subject.species for other in others) >= 21
        assert sum(other.color == actor.subject.color for other in others) >= 21


def test_no_candidate_has_the_body_of_a_subject_of_the_video(suite):
    for case in suite.cases:
        seen = {_body(actor.subject) for actor in case.scene.actors}
        for rows in case.others:
            assert seen.isdisjoint(_body(suite._gallery[row]) for row in rows)


def test_references_stand_in_the_order_of_the_roles_and_are_shown_in_the_model_s(suite):
    for case in suite.cases:
        assert [picture.subject for picture in case.references] == [actor.subject.key for actor in case.scene.actors]
        assert sorted(case.order) == list(range(case.count))
        assert not case.vague or case.order == tuple(range(case.count))


def test_partners_are_other_cases_with_as_many_subjects(suite):
    for row, other in enumerate(partners(suite.cases)):
        assert other != row
        assert suite.cases[other].count == suite.cases[row].count


def test_pictures_play_the_suite_and_are_told_from_the_others(tmp_path):
    for number in range(8):
        picture = np.full((40, 30, 4), 25 * number, np.uint8)
        picture[..., 3] = 0
        picture[5:35, 5:25, 3] = 255
        cv2.imwrite(str(tmp_path / f"thing{number}.png"), picture)
    cutouts = find_cutouts(tmp_path)
    suite = Suite(9, 64, 64, per_count=3, cutouts=cutouts)
    assert suite.candidates == 6
    for case in suite.cases:
        seen = {actor.subject.key for actor in case.scene.actors}
        for rows in case.others:
            assert len(set(rows)) == 5
            assert seen.isdisjoint(suite.gallery[row].subject for row in rows)
    with pytest.raises(InputError, match="there are 5 cut-out pictures; the suite needs at least 6"):
        Suite(9, 64, 64, cutouts=cutouts[:5])
