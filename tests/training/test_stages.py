"""What is known of the stages, beside their losses: see test_losses.py."""

import inspect
import subprocess
import sys

import pytest
from tiny import process_environment, tiny_config

from cinema_jax import config
from cinema_jax.config import ImageFirstStageConfig
from cinema_jax.training.stages import STAGES


def test_every_stage_of_the_config_is_one_of_training_in_the_same_order():
    assert tuple(STAGES) == config.STAGES
    for name, stage in STAGES.items():
        section = tiny_config().of_stage(name)
        assert (stage.image_example is not None) == isinstance(section, ImageFirstStageConfig)
        assert {pattern.split("/")[0] for pattern in section.trainable} <= set(stage.taught(tiny_config()))
        assert (stage.told is not None) == stage.latents


@pytest.mark.parametrize("module", {inspect.getmodule(stage.example).__name__ for stage in STAGES.values()})
def test_what_makes_examples_needs_no_jax(module):
    """Data workers import it, and there are many of them."""
    script = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=process_environment(), check=False).returncode == 0
