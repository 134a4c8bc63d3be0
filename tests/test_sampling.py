"""What reaches a sampled video: prompt, pictures, guidance and times; and what does not."""

import dataclasses
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_run

from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import Sampler, sampler_of

STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose times are neither evenly spaced nor unshifted."""
    found = Run.load(random_run(tmp_path_factory.mktemp("runs") / "run"))
    flow = dataclasses.replace(
        found.config.flow, shift=3.0, spacing="cosine", solver="euler", guidance_text=3.0, guidance_reference=2.0
    )
    return dataclasses.replace(found, config=dataclasses.replace(found.config, flow=flow))


@pytest.fixture(scope="module")
def sampler(run):
    return sampler_of(run)


@pytest.fixture(scope="module")
def pictures(run):
    """Of four subjects."""
    source = run.source("validation")
    told = [source.conditions(index, np.random.default_rng(index)).references for index in range(8)]
    return [reference for references in told for reference in references][:4]


@pytest.fixture(scope="module")
def asked(pictures):
    return Request("the bird jumps up", tuple(pictures[:2]), seed=7, negative_prompt="it is green")


@pytest.fixture(scope="module")
def latents(sampler):
    """Of one request, with changes of the settings."""

    def latents(request, **changes):
        return np.asarray(sampler.latents([request], sampler.settings(steps=STEPS, **changes)))

    return latents


@pytest.fixture(scope="module")
def expected(latents, asked):
    return latents(asked)


def test_latents_follow_the_guided_velocity_at_the_times_of_the_config(sampler, asked, expected):
    """Euler's method, by hand."""
    key = jax.random.fold_in(jax.random.key(asked.seed, impl="threefry2x32"), zlib.crc32(b"flow.noise"))
    z = np.asarray(jax.random.normal(key, expected.shape[1:]))
    told = [
        sampler.read(sampler.params, collate([sampler.preprocessor.conditions(*branch)]))
        for branch in (
            (asked.negative_prompt, ()),
            (asked.negative_prompt, asked.references),
            (asked.prompt, asked.references),
        )
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *told)
    velocity = jax.jit(sampler.cinema.velocity)
    # A third and two thirds as a cosine has them, 1/4 and 3/4, and then s t / (1 + (s - 1) t).
    times = [1.0, 3 * 0.75 / (1 + 2 * 0.75), 3 * 0.25 / (1 + 2 * 0.25), 0.0]
    for now, following in itertools.pairwise(times):
        neither, references, both = np.asarray(
            velocity(sampler.params, jnp.stack([z] * 3), jnp.full(3, now, jnp.float32), stacked)
        )
        guided = neither + 2 * (references - neither) + 3 * (both - references)
        z = z + (following - now) * guided
    np.testing.assert_allclose(expected[0], z, atol=1e-4 * np.abs(z).max())


def test_another_prompt_makes_another_video(latents, asked, expected):
    assert differ(latents(dataclasses.replace(asked, prompt="the snail sleeps")), expected)


def test_another_picture_makes_another_video(latents, asked, pictures, expected):
    other = (asked.references[0], pictures[2])
    assert differ(latents(dataclasses.replace(asked, references=other)), expected)


def test_another_order_of_the_pictures_makes_another_video(latents, asked, expected):
    assert differ(latents(dataclasses.replace(asked, references=asked.references[::-1])), expected)


def test_another_mask_makes_another_video(latents, asked, expected):
    first, second = asked.references
    whole = (dataclasses.replace(first, mask=None), second)
    assert differ(latents(dataclasses.replace(asked, references=whole)), expected)


def test_another_negative_prompt_makes_another_video(latents, asked, expected):
    assert differ(latents(dataclasses.replace(asked, negative_prompt="")), expected)


@pytest.mark.parametrize("scale", ["guidance_text", "guidance_reference"])
def test_another_guidance_makes_another_video(latents, asked, expected, scale):
    assert differ(latents(asked, **{scale: 5.0}), expected)


@pytest.mark.parametrize("change", [{"solver": "unipc"}, {"spacing": "uniform"}])
def test_another_way_of_sampling_makes_another_video(latents, asked, expected, change):
    assert differ(latents(asked, **change), expected)


def differ(one, other) -> bool:
    """By more than rounding."""
    return np.abs(one - other).max() > 1e-2 * other.std()


def test_same_seed_same_bytes_and_companions_change_nothing(sampler, latents, pictures, asked, expected):
    np.testing.assert_array_equal(latents(asked), expected)
    others = [Request("they meet", tuple(pictures[1:4]), seed=7), Request("", (), seed=7)]
    assert all(differ(latents(other), expected) for other in others)
    for companions in (others, others[::-1]):
        together = np.asarray(sampler.latents([asked, *companions], sampler.settings(steps=STEPS)))
        np.testing.assert_allclose(together[0], expected[0], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("text", "reference", "branches"), [(1.0, 1.0, 1), (3.0, 3.0, 2), (3.0, 2.0, 3), (1.0, 2.0, 3), (0.0, 2.0, 2)]
)
def test_branches_of_factor_zero_are_not_computed(sampler, asked, monkeypatch, text, reference, branches):
    rows = []
    monkeypatch.setattr(sampler.cinema, "velocity", lambda params, z, *rest: rows.append(len(z)) or jnp.zeros_like(z))
    anew = Sampler(sampler.cinema, sampler.params, sampler.preprocessor)
    anew.latents([asked], anew.settings(steps=STEPS, guidance_text=text, guidance_reference=reference))
    # Traced once, for all steps, with one row for each branch.
    assert rows == [branches]
