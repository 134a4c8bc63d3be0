"""A batch in parts, one after the other or on several devices, has the gradient of the batch as a whole."""

import subprocess
import sys

import accumulated
import numpy as np
import pytest
from hosts import environment

# Losses over tokens, of which samples have unequally many; the others are means over samples, whose parts are alike.
OVER_TOKENS = ("mllm", "t5")
OTHERS = ("vae", "pretrain", "align", "finetune")


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """What `accumulated.py` leaves of some stages."""

    def of(*stages):
        folder = tmp_path_factory.mktemp("accumulated")
        command = [sys.executable, accumulated.__file__, folder, *stages]
        done = subprocess.run(
            command, env=environment(folder, devices=8), stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return {stage: np.load(folder / f"{stage}.npz") for stage in stages}

    return of


def assert_alike(found):
    paths = [name.removeprefix("whole/") for name in found.files if name.startswith("whole/")]
    largest = max(np.abs(found[f"whole/{path}"]).max() for path in paths if path != "loss")
    assert largest > 1e-3
    for way in accumulated.WAYS:
        for path in paths:
            whole = found[f"whole/{path}"]
            # A bias of keys moves no attention: its gradient is nothing but rounding.
            near = 1e-5 * np.abs(whole).max() + 1e-12 * largest
            np.testing.assert_allclose(found[f"{way}/{path}"], whole, rtol=1e-5, atol=near, err_msg=f"{way}: {path}")


def test_texts_of_unequal_length_count_by_their_tokens_in_every_part(gradients):
    for found in gradients(*OVER_TOKENS).values():
        assert_alike(found)


@pytest.mark.release
def test_every_other_stage_accumulates_the_gradient_of_the_whole_batch(gradients):
    for found in gradients(*OTHERS).values():
        assert_alike(found)
