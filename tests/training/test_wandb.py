import importlib.util
import sys
import types

import pytest

from cinema_jax.errors import InputError
from cinema_jax.training.wandb import WandB, check_installed


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that writes down what it is told."""
    calls = []
    run = types.SimpleNamespace(
        define_metric=lambda *args, **options: calls.append(("define", *args, options)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    module = types.SimpleNamespace(init=lambda **options: calls.append(("init", options)) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_scalars_are_logged_over_their_stages_own_steps(wandb, tmp_path):
    sink = WandB("cinema", tmp_path, {"seed": 0})
    for step in (1, 2):
        sink("align", step, {"loss": step / 2})
    sink.close()
    (_, options), *rest = wandb
    assert (options["project"], options["resume"], options["config"]) == ("cinema", "allow", {"seed": 0})
    assert rest == [
        ("define", "align/*", {"step_metric": "align/step"}),
        ("log", {"align/step": 1, "align/loss": 0.5}),
        ("log", {"align/step": 2, "align/loss": 1.0}),
        ("finish",),
    ]


def test_a_run_that_goes_on_keeps_its_id(wandb, tmp_path):
    for _ in range(2):
        WandB("cinema", tmp_path, {})
    first, second = (options["id"] for _, options in wandb)
    assert first == second


def test_missing_package_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--wandb needs the package wandb, which is not installed: pip install wandb"):
        check_installed()
