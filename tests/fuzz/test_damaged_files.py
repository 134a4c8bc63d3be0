"""No damaged or hostile file ends in a stack trace, whatever kind it is of."""

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS
from fuzz.trying import Seeds

# Variants of each kind that the suite tries; benchmarks/README.md says how to try more.
EACH = 12


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def seeds(request, tmp_path_factory):
    return Seeds(request.param, tmp_path_factory.mktemp("files"))


def test_every_variant_is_taken_or_refused_in_one_sentence(seeds):
    seeds.check()

    @seed(1)
    @settings(
        max_examples=max(4, round(EACH * seeds.target.share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def attempt(number):
        seeds.attempt(number)

    attempt()
