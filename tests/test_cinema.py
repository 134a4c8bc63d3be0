"""The whole model: what reaches it from prompt and references, and what must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_run, tiny_config

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters.source import Critters, reference
from cinema_jax.data.pipeline import Examples
from cinema_jax.devices import sharding
from cinema_jax.diffusion.guidance import FULL, REFERENCES_ONLY, UNCONDITIONAL
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts as kinds
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import Sampler, sampler_of
from cinema_jax.training.stages import STAGES
from cinema_jax.training.state import stage_seed, trainable

PARTS = ("vae", "t5", "mllm", "aligner", "dit")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.open(tiny_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def parts(run):
    """The model and its parameters, none of them at the zeros or ones that networks start from."""
    configs = run.part_configs(PARTS)
    params = {path: jnp.asarray(x) for name in PARTS for path, x in random_params(name, configs[name]).items()}
    return Cinema(run.config, configs), params


def test_a_part_is_described_as_this_precision_has_it_and_not_as_the_last_mesh_or_caller_left_it(run):
    config = run.part_config("dit")
    with jax.set_mesh(sharding.make_mesh()):
        shapes = kinds.structure("dit", config)[1]
    assert {x.sharding for x in shapes.values()} == {None}
    assert {x.dtype for x in shapes.values()} == {np.dtype(np.float32)}
    shapes.clear()
    with jax.enable_x64(True):
        assert np.dtype(np.float64) in {x.dtype for x in kinds.structure("dit", config)[1].values()}
    assert {x.dtype for x in kinds.structure("dit", config)[1].values()} == {np.dtype(np.float32)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has all parts."""
    return Run.load(random_run(tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture(scope="module")
def references(run):
    source = run.source("train")
    subjects = [actor.subject for index in range(20) for actor in source.scene(index).actors]
    return tuple(reference(subject, np.random.default_rng(i)) for i, subject in enumerate(subjects[:3]))


def stack(examples):
    return {name: jnp.stack([example[name] for example in examples]) for name in examples[0]}


def test_a_sample_gets_the_same_alone_and_beside_samples_with_other_numbers_of_references(run, parts, references):
    cinema, params = parts
    preprocessor = run.preprocessor()
    prompts = ["the bird jumps up", "two friends meet on a meadow", ""]
    examples = [preprocessor.conditions(p, references[:n]) for p, n in zip(prompts, (0, 1, 3), strict=True)]
    latents = np.random.default_rng(1).standard_normal((3, 2, 4, 4, 4), np.float32)
    times = np.asarray([0.2, 0.5, 0.9], np.float32)

    @jax.jit
    def velocity(batch, latents, times):
        return cinema.velocity(params, latents, times, cinema.conditions(params, batch))

    together = velocity(stack(examples), latents, times)
    for i, example in enumerate(examples):
        alone = velocity(stack([example]), latents[i : i + 1], times[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=2e-5)
    # The comparison would be empty if the conditions had no influence.
    other = velocity(stack(examples[::-1]), latents, times)
    assert np.abs(other - together).max() > 1e-3


@pytest.mark.parametrize("stage", ["align", "finetune", "pretrain"])
def test_no_gradient_reaches_a_frozen_part(run, parts, stage):
    cinema, params = parts
    source = run.source("train")
    latents = np.random.default_rng(1).standard_normal((2, 2, 4, 4, 4), np.float32)
    examples = Examples(source, run.preprocessor(), range(2), latents)
    batch = stack([STAGES[stage].example(examples, row, np.random.default_rng(row)) for row in range(2)]) | {
        "index": jnp.arange(2)
    }
    loss = STAGES[stage].loss(cinema)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    used = {path: x for path, x in params.items() if path.split("/")[0] in STAGES[stage].parts}
    matched, _ = trainable(used, getattr(run.config, stage).trainable)

    def of_all(params):
        return loss(params, batch, keys)[0]

    # The trainer differentiates the trainable ones only; here even a gradient of all must miss MLLM, T5 and VAE
    # wherever they only make targets or conditions that are frozen.
    gradients = jax.jit(jax.grad(of_all))(used)
    moving = {path for path, gradient in gradients.items() if np.abs(gradient).max() > 0}
    assert all(path in moving for path in matched if "bias" not in path and "entit" not in path)
    # The VAE would have one through the references, but its latents of the videos are those of before.
    assert {path.split("/")[0] for path in moving} - {"vae"} == set(STAGES[stage].taught(run.config))


@pytest.mark.parametrize(
    ("stage", "pattern", "conditioner", "named", "taught"),
    [
        ("finetune", "mllm/.*", "mllm", "mllm", "aligner, dit"),
        ("finetune", "(vae|dit)/.*", "mllm", "vae", "aligner, dit"),
        ("pretrain", ".*", "mllm", "vae", "t5, dit"),
        ("align", "(dit|t5)/.*", "mllm", "dit, t5", "aligner"),
    ],
)
def test_patterns_of_parts_that_a_stage_does_not_teach_are_refused(
    run, parts, stage, pattern, conditioner, named, taught
):
    _, params = parts
    own = dataclasses.replace(getattr(run.config, stage), trainable=(pattern,))
    condition = dataclasses.replace(run.config.condition, conditioner=conditioner)
    config = dataclasses.replace(run.config, condition=condition, **{stage: own})
    used = [path for path in params if path.split("/")[0] in STAGES[stage].needed(config)]
    STAGES[stage].check_trainable(run.config, used)
    with pytest.raises(InputError) as caught:
        STAGES[stage].check_trainable(config, used)
    assert f"config.{stage}.trainable holds {pattern!r}, which names parameters of {named};" in str(caught.value)
    assert f"can train {taught} alone" in str(caught.value)


def test_each_stage_has_noise_and_times_of_its_own():
    seeds = {stage_seed(seed, name) for seed in (0, 1) for name in STAGES}
    assert len(seeds) == 2 * len(STAGES)
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_that_sample_are_held_in_the_type_that_they_compute_in(finished, precision):
    """As `plan --sampler` counts them."""
    sampler = sampler_of(Run(dataclasses.replace(finished.config, precision=precision), finished.workdir))
    assert sampler.params.keys() == sampler.cinema.shapes.keys()
    assert {x.dtype for x in sampler.params.values()} == {jnp.dtype(precision)}


def test_null_conditions_are_the_same_arrays_in_training_and_sampling(run, parts):
    cinema, params = parts
    source = run.source("train")
    index = next(i for i in range(50) if len(source.scene(i).actors) == 2)
    condition = dataclasses.replace(
        run.config.condition, text_dropout=0.999999, reference_dropout=0.0, joint_dropout=0.0
    )
    augment = dataclasses.replace(run.config.data.augment, min_scale=1.0, rotation=0.0, brightness=0.0, contrast=0.0)
    augment = dataclasses.replace(augment, saturation=0.0, max_side=1024)
    data = dataclasses.replace(run.config.data, keep_background=0.0, augment=augment)
    sampler = Sampler(cinema, params, run.preprocessor())
    told = source.conditions(index, np.random.default_rng(3))
    request = Request(told.prompt, told.references)
    latents = np.zeros((index + 1, 2, 4, 4, 4), np.float32)
    for dropped, branch in (
        (condition, REFERENCES_ONLY),
        (dataclasses.replace(condition, text_dropout=0.0, joint_dropout=0.999999), UNCONDITIONAL),
        (dataclasses.replace(condition, text_dropout=0.0), FULL),
    ):
        config = dataclasses.replace(run.config, condition=dropped, data=data)
        preprocessor = dataclasses.replace(run.preprocessor(), config=config)
        training = Examples(source, preprocessor, range(len(latents)), latents)
        batch = stack([training.finetune(index, np.random.default_rng(3))])
        for trained, sampled in zip(
            jax.jit(cinema.conditions)(params, batch), sampler.conditions([request], branch), strict=True
        ):
            np.testing.assert_array_equal(trained, sampled)


@pytest.mark.parametrize("conditioner", ["mllm", "t5"])
@pytest.mark.parametrize("entities", [True, False])
def test_ablation_switches_change_what_they_name(run, parts, references, conditioner, entities):
    cinema, params = parts
    condition = dataclasses.replace(run.config.condition, conditioner=conditioner, entities=entities)
    config = dataclasses.replace(run.config, condition=condition)
    switched, preprocessor = Cinema(config, cinema.part_configs), Run(config, run.workdir).preprocessor()
    batches = [stack([preprocessor.conditions("they meet", references[:n])]) for n in (1, 2)]
    one, two = (jax.jit(switched.conditions)(params, batch) for batch in batches)
    assert one.entities.shape[1] == (3 if entities else 0)
    # T5 reads the prompt alone; the MLLM sees the pictures even without entity tokens.
    assert bool(np.array_equal(one.text, two.text)) == (conditioner == "t5")


@pytest.mark.parametrize(("init", "kept"), [("aligned", True), ("random", False)])
def test_finetune_takes_the_aligner_as_it_was_aligned_or_anew(finished, init, kept):
    condition = dataclasses.replace(finished.config.condition, aligner_init=init)
    switched = Run(dataclasses.replace(finished.config, condition=condition), finished.workdir)
    drawn = "aligner" in STAGES["finetune"].afresh(switched.config)
    found, before = switched.params("aligner", drawn), finished.params("aligner")
    assert found.keys() == before.keys()
    assert {np.array_equal(found[path], before[path]) for path in before} == {kept}


@pytest.mark.parametrize("stage", ["align", None])
def test_an_aligner_that_finetune_draws_anew_is_elsewhere_the_one_that_is_there(finished, stage):
    condition = dataclasses.replace(finished.config.condition, aligner_init="random")
    switched = Run(dataclasses.replace(finished.config, condition=condition), finished.workdir)
    for path, x in switched.params("aligner", bool(stage and STAGES[stage].afresh(switched.config))).items():
        np.testing.assert_array_equal(x, finished.params("aligner")[path])


def test_the_embedded_source_is_what_the_demo_trains_on(run):
    assert isinstance(run.source("train"), Critters)


def test_only_drawn_critters_have_known_attributes(run):
    assert run.draws_critters
    for changes in ({"source": "folder", "path": "videos"}, {"subjects": "cutouts"}):
        data = dataclasses.replace(run.config.data, **changes)
        assert not Run(dataclasses.replace(run.config, data=data), run.workdir).draws_critters
