"""The guidance chain against its definition, with a network that counts its calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.diffusion.guidance import FULL, REFERENCES_ONLY, UNCONDITIONAL, guidance_coefficients, guided

CONDITIONS = {
    branch: {"text": jnp.full((2, 3), 1.0 + i), "entities": (jnp.full((2, 2, 2), 10.0 * i), jnp.array([i, 2 * i]))}
    for i, branch in enumerate((UNCONDITIONAL, REFERENCES_ONLY, FULL))
}


class Network:
    """A velocity that every input changes, and a record of the batch sizes it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, z, time, conditions):
        self.batches.append(len(z))
        entities, lengths = conditions["entities"]
        extra = conditions["text"].mean(1) ** 2 + jnp.sin(entities.sum((1, 2))) + lengths
        return z * time[:, None] + extra[:, None]


Z, TIME = jnp.arange(8.0).reshape(2, 4), jnp.array([0.3, 0.7])


@pytest.mark.parametrize(
    ("text", "reference"), [(6.0, 3.0), (1.0, 1.0), (4.0, 4.0), (1.0, 2.5), (0.0, 1.5), (0.0, 0.0)]
)
def test_guided_velocity_is_the_chain_of_differences(text, reference):
    none, refs, full = (Network()(Z, TIME, CONDITIONS[b]) for b in (UNCONDITIONAL, REFERENCES_ONLY, FULL))
    expected = none + reference * (refs - none) + text * (full - refs)
    network = Network()
    got = guided(network, CONDITIONS, guidance_coefficients(text, reference))(Z, TIME)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert len(network.batches) == 1, "one call of the network"
    in_turn = guided(Network(), CONDITIONS, guidance_coefficients(text, reference), in_turn=True)(Z, TIME)
    np.testing.assert_allclose(in_turn, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reference", "branches"),
    [
        (6.0, 3.0, [UNCONDITIONAL, REFERENCES_ONLY, FULL]),
        (4.0, 4.0, [UNCONDITIONAL, FULL]),
        (7.0, 1.0, [REFERENCES_ONLY, FULL]),
        (1.0, 1.0, [FULL]),
        (0.0, 2.0, [UNCONDITIONAL, REFERENCES_ONLY]),
        (0, 0, [UNCONDITIONAL]),
    ],
)
def test_branches_without_influence_are_not_computed(text, reference, branches):
    coefficients = guidance_coefficients(text, reference)
    assert list(coefficients) == branches
    assert sum(coefficients.values()) == pytest.approx(1)
    network = Network()
    guided(network, {b: CONDITIONS[b] for b in branches}, coefficients)(Z, TIME)
    assert network.batches == [2 * len(branches)]


def test_a_negative_prompt_is_what_guidance_leads_away_from():
    # It enters as the text of the branches without text, and there with a factor below zero.
    coefficients = guidance_coefficients(6.0, 1.0)
    negative = {**CONDITIONS, REFERENCES_ONLY: {**CONDITIONS[REFERENCES_ONLY], "text": jnp.full((2, 3), 5.0)}}
    moved = guided(Network(), negative, coefficients)(Z, TIME) - guided(Network(), CONDITIONS, coefficients)(Z, TIME)
    np.testing.assert_allclose(moved, (1 - 6.0) * (5.0**2 - 2.0**2) * np.ones((2, 4)), rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["guidance_text", "guidance_reference"])
def test_scales_that_are_not_finite_are_refused_by_name_and_value(name, bad):
    with pytest.raises(ValueError, match=f"{name} is {bad}"):
        guidance_coefficients(**{"guidance_text": 1.0, "guidance_reference": 1.0, name: bad})


def test_missing_or_differing_conditions_are_refused():
    coefficients = guidance_coefficients(6.0, 3.0)
    with pytest.raises(ValueError, match=r"lacks .*references=False"):
        guided(Network(), {FULL: CONDITIONS[FULL], REFERENCES_ONLY: CONDITIONS[FULL]}, coefficients)
    shorter = {**CONDITIONS, UNCONDITIONAL: {**CONDITIONS[FULL], "text": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"text.*\(2, 2\)"):
        guided(Network(), shorter, coefficients)
    with pytest.raises(ValueError, match="empty"):
        guided(Network(), CONDITIONS, {})


def test_new_scales_do_not_compile_anew():
    network = Network()

    @jax.jit
    def velocity(coefficients, z, time):
        return guided(network, CONDITIONS, coefficients)(z, time)

    first = velocity(guidance_coefficients(6.0, 3.0), Z, TIME)
    second = velocity(guidance_coefficients(5.0, 2.0), Z, TIME)
    assert len(network.batches) == 1
    assert not np.allclose(first, second)


def test_conditions_without_any_reference_slot_are_fine():
    conditions = {b: (x["text"], jnp.zeros((2, 0, 3))) for b, x in CONDITIONS.items()}
    got = guided(lambda z, time, c: z + c[0][:, :1], conditions, guidance_coefficients(6.0, 3.0))(Z, TIME)
    np.testing.assert_allclose(got, Z + (1 - 3) * 1 + (3 - 6) * 2 + 6 * 3, rtol=1e-6)


def test_half_precision_velocities_are_summed_in_fp32():
    def network(z, time, conditions):
        return Network()(z, time, conditions).astype(jnp.bfloat16)

    assert guided(network, CONDITIONS, guidance_coefficients(6.0, 3.0))(Z, TIME).dtype == jnp.float32
