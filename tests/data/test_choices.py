"""What is held out, and the order of references: one rule for every source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_jax.data.choices import choose_views, divide, held_out, names_all, position
from cinema_jax.errors import InputError

NAMES = st.sets(st.text(max_size=3), min_size=3, max_size=30)
SHARES = {"validation": 0.1, "test": 0.1, "train": 0.8}
BOUNDS = {"validation": (0, 0.1), "test": (0.1, 0.2), "train": (0.2, 1)}


def natural(name: str) -> str:
    """The split that the hash alone gives."""
    return next(split for split, (low, high) in BOUNDS.items() if low <= position(name) < high)


@settings(deadline=None)
@given(NAMES)
def test_every_split_has_somebody_and_only_an_empty_one_takes_from_another(names):
    divided = divide(names, SHARES)
    assert divided.keys() == names
    assert set(divided.values()) == set(SHARES)
    moved = [name for name in names if divided[name] != natural(name)]
    assert {divided[name] for name in moved} <= set(SHARES) - {natural(name) for name in names}
    assert len({divided[name] for name in moved}) == len(moved)


@settings(deadline=None)
@given(NAMES, st.text(max_size=3))
def test_a_name_more_moves_none_of_the_others_but_what_filled_an_empty_split(names, another):
    before, after = divide(names, SHARES), divide(names | {another}, SHARES)
    moved = {name for name in names if before[name] != after[name]}
    assert all(natural(name) in (before[name], after[name]) for name in moved)
    if {natural(name) for name in names} == set(SHARES):
        assert not moved


def test_shares_of_many_names_are_those_asked_for():
    divided = list(divide(map(str, range(5000)), SHARES).values())
    for split, share in SHARES.items():
        # Four standard deviations of the binomial.
        assert abs(divided.count(split) / 5000 - share) < 4 * (share * (1 - share) / 5000) ** 0.5


@settings(deadline=None)
@given(st.sets(st.text(max_size=3), min_size=2, max_size=12), st.floats(0.001, 0.999))
def test_something_is_held_out_and_something_is_left_whatever_the_hashes(groups, fraction):
    assert 0 < len(held_out("here", groups, fraction, "train")) < len(groups)


@pytest.mark.parametrize("fraction", [-0.1, 1])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(InputError, match=f"validation_fraction is {fraction}; it must be at least 0 and below 1"):
        held_out("here", ["a", "b"], fraction, "all")


@pytest.mark.parametrize(
    ("prompt", "names", "named"),
    [
        ("The Dog chases a cat.", ("dog", "cat"), True),
        ("two friends meet", ("dog", "cat"), False),
        ("the dog meets a friend", ("dog", "cat"), False),
        ("hot dogs and cats", ("dog", "cat"), False),
        ("a red panda, and an owl", ("Red panda", "owl"), True),
        ("a panda, red all over, and an owl", ("red panda", "owl"), False),
        ("a teddy bear and its friend", ("teddy bear", "bear"), False),
        ("a teddy bear and a bear", ("bear", "teddy bear"), True),
        ("the dog chases the dog", ("dog", "dog"), False),
        ("ein Bärchen trifft die Eule", ("bärchen", "eule"), True),
        ("they meet", (), True),
    ],
)
def test_a_prompt_tells_who_is_who_where_it_has_every_name_as_words(prompt, names, named):
    assert names_all(prompt, names) == named


@pytest.mark.parametrize(
    ("prompt", "kept"), [("they meet", True), ("the owl meets the dog", False), ("the owl meets 1", True)]
)
def test_references_are_shuffled_only_where_the_prompt_names_them(prompt, kept):
    subjects, nouns = ("1", "2", "1"), (None, "owl", "dog")
    orders = {
        tuple(subjects[i] for i in choose_views(prompt, subjects, nouns, 3, 0.0, np.random.default_rng(seed)))
        for seed in range(30)
    }
    assert orders == ({("1", "2")} if kept else {("1", "2"), ("2", "1")})


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.floats(0.1, 1), st.integers(0, 1000))
def test_a_second_view_follows_the_first_and_subjects_with_one_kind_of_view_are_as_ever(same_clip, share, seed):
    subjects, nouns = ["a"] * len(same_clip), [None] * len(same_clip)

    def chosen(second, *more):
        return choose_views("they meet", subjects, nouns, 2, second, np.random.default_rng(seed), *more)

    assert chosen(1.0, same_clip, share)[:1] == chosen(0.0, same_clip, share)
    if len(set(same_clip)) == 1:
        assert chosen(0.0, same_clip, share) == chosen(0.0)
    if share == 1:
        assert not same_clip[chosen(0.0, same_clip, 1.0)[0]] or all(same_clip)
