"""Pictures as subjects: one more changes nothing for the others but where it must."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_jax.data.critters import Critters
from cinema_jax.data.critters.cutout import Cutout, find_cutouts, never_seen, split_cutouts
from cinema_jax.data.critters.identity import SPLITS

NAMES = st.sets(st.sampled_from([f"{word}{i}" for word in ("owl", "car", "dog") for i in range(12)]), min_size=3)


def cutouts(names) -> list[Cutout]:
    return [Cutout(Path(f"{name}.png")) for name in sorted(names)]


def split_of(names) -> dict[str, str]:
    return {cutout.key: split for split in SPLITS for cutout in split_cutouts(cutouts(names), split)}


def write(folder: Path, *names: str, level: int = 90) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        picture = np.full((30, 40, 4), level, np.uint8)
        picture[..., 3] = 0
        picture[5:25, 5:35] = (*name.encode()[:3].ljust(3), 255)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder


@settings(deadline=None)
@given(NAMES, st.sampled_from(["new", "another", "third"]))
def test_a_picture_more_moves_none_of_the_others_once_every_split_has_its_own(names, new):
    # Enough of others that no split is empty by their hashes.
    names = names | {f"thing{chr(97 + i)}" for i in range(26)}
    before, after = split_of(names), split_of(names | {new})
    assert {name: after[name] for name in names} == before


def test_all_pictures_of_a_subject_are_in_one_split():
    names = [f"{word}_{i}" for word in "abcdefghijklmno" for i in range(3)]
    found = split_of(names)
    assert all(len({found[f"{word}_{i}"] for i in range(3)}) == 1 for word in "abcdefghijklmno")
    assert set(found.values()) == set(SPLITS)


def test_a_picture_more_changes_only_the_scenes_that_it_plays_in():
    names = [f"thing{chr(97 + i)}" for i in range(13)]
    before, after = (Critters(size=200, cutouts=cutouts(them)) for them in (names, [*names, "new"]))
    played = 0
    for index in range(200):
        cast = [actor.subject.key for actor in before.scene(index).actors]
        now = [actor.subject.key for actor in after.scene(index).actors]
        assert len(now) == len(cast)
        if "new" in now:
            played += 1
            assert set(now) - {"new"} < set(cast) or len(cast) == 1
        else:
            assert now == cast
            assert before.scene(index).action == after.scene(index).action
    # Two of fourteen in the mean.
    assert 10 < played < 60


def test_no_scene_shows_two_pictures_of_one_subject():
    critters = Critters(size=50, cutouts=cutouts(["owl_1", "owl_2", "owl_3", "dog", "cat"]))
    for index in range(50):
        subjects = [actor.subject.subject for actor in critters.scene(index).actors]
        assert len(set(subjects)) == len(subjects)


def test_the_content_of_a_scene_is_that_of_the_pictures_that_play(tmp_path):
    def contents(folder):
        critters = Critters(size=60, cutouts=find_cutouts(folder))
        scenes = [{actor.subject.key for actor in critters.scene(i).actors} for i in range(60)]
        return scenes, [json.dumps(critters.content(i)) for i in range(60)]

    names = ["owl", "dog", "cat", "car", "cup"]
    scenes, before = contents(write(tmp_path / "first", *names))
    assert contents(write(tmp_path / "copy", *names)) == (scenes, before)
    write(tmp_path / "other", *names)
    _, after = contents(write(tmp_path / "other", "owl", level=91))
    assert [one != other for one, other in zip(before, after, strict=True)] == ["owl" in cast for cast in scenes]


def test_what_a_run_has_not_seen_is_what_it_held_out_for_tests_and_what_it_did_not_have(tmp_path):
    names = [f"t{chr(97 + i)}" for i in range(14)]
    trained = write(tmp_path / "trained", *names)
    there = find_cutouts(write(tmp_path / "there", *names, "new"))
    held = {cutout.key for cutout in split_cutouts(find_cutouts(trained), "test")}
    assert {cutout.key for cutout in never_seen(there, trained)} == held | {"new"}


@pytest.mark.parametrize(
    ("name", "subject"), [("owl_2", "owl"), ("Red-Panda 10", "red panda"), ("b2", "b2"), ("7", "7")]
)
def test_a_number_at_the_end_of_a_name_is_that_of_the_picture(name, subject):
    assert Cutout(Path(f"{name}.png")).subject == subject
