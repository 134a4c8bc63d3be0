"""Configs: every file of configs/ is valid, and bad values are refused by name."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import pytest

from cinema_jax.config import Config, default, parse, to_dict
from cinema_jax.config.augment import AugmentConfig
from cinema_jax.errors import InputError
from configs import demo, demo_full


@pytest.mark.parametrize("variant", ["", "smoke", "scratch"])
def test_demo_variants_parse(variant):
    assert isinstance(parse(demo.get_config(variant)), Config)


@pytest.mark.parametrize("variant", ["who", "pictures", "new_t5", "more_crowds", "demo"])
def test_pieces_of_pretraining_parse_and_each_starts_from_the_one_before(variant):
    config = parse(demo_full.get_config(variant))
    assert (config.init, config.weights.dit) == {
        "who": ("", ""),
        "pictures": ("", ""),
        "new_t5": ("", "runs/full/captioned_videos/parts/dit"),
        "more_crowds": ("runs/full/crowds", ""),
        "demo": ("runs/full/more_crowds", ""),
    }[variant]


def test_the_variant_for_own_videos_asks_for_their_folder():
    values = demo.get_config("folder")
    with pytest.raises(InputError, match=r"config\.data\.path is empty"):
        parse(values)
    values.data.path = "videos"
    config = parse(values)
    assert config.stages == ("pretrain", "align", "finetune")
    # References come out of the very videos there, and would be pasted.
    assert config.data.augment == AugmentConfig()
    assert parse(demo.get_config()).data.augment == dataclasses.replace(AugmentConfig.none(), max_side=80)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="'quick'"):
        demo.get_config("quick")


def test_defaults_survive_the_way_through_a_config_dict():
    assert parse(default()) == Config()


def test_smoke_runs_every_stage_from_random_weights():
    config = parse(demo.get_config("smoke"))
    assert config.stages == ("vae", "mllm", "t5", "pretrain", "align", "finetune")
    assert not any(dataclasses.asdict(config.weights).values())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("finetune.step", 3, r"config\.finetune\.step does not exist; .*steps"),
        ("finetune.steps", "many", r"config\.finetune\.steps is 'many'; it must be of type int"),
        ("finetune.steps", 0, r"config\.finetune\.steps is 0; it must be at least 1"),
        ("condition.conditioner", "clip", r"config\.condition\.conditioner is 'clip'; accepted: 'mllm', 't5'"),
        ("condition.text_dropout", 1.0, r"config\.condition\.text_dropout is 1.0; it must be 0 or more and below 1"),
        (
            "condition.joint_dropout",
            -0.1,
            r"config\.condition\.joint_dropout is -0.1; it must be 0 or more and below 1",
        ),
        ("condition.text_dropout", 0.95, "together below 1"),
        ("finetune.dropout", (0.1, 0.1), r"config\.finetune\.dropout: \(0.1, 0.1\) must be three shares"),
        ("mllm.dropout", (0.1, 0.1, 0.1), r"config\.mllm\.dropout is .*, but this stage drops nothing"),
        ("t5.corruption", 1.0, r"config\.t5\.corruption is 1\.0; it must lie between 0 and 1"),
        ("pretrain.references", 1.5, r"config\.pretrain\.references is 1\.5; it must lie in \[0, 1\]"),
        ("pretrain.prompts", 0.5, r"config\.pretrain\.prompts is 0\.5, which needs references"),
        ("pretrain.plots", 0.5, r"config\.pretrain\.plots is 0\.5, which needs references"),
        ("flow.subject_weight", 0.5, r"config\.flow\.subject_weight is 0\.5; it must be at least 1"),
        ("data.frames", 10, r"config\.data\.frames is 10; it must be 4k\+1, for example 9"),
        ("data.width", 70, r"config\.data\.width is 70; it must be a multiple of 16, for example 64"),
        ("data.source", "web", r"config\.data\.source is 'web'"),
        ("stages", ("pretrain", "polish"), r"config\.stages holds 'polish'"),
        ("stages", ("align", "align"), r"config\.stages holds 'align' twice"),
        ("seed", 1.5, r"config\.seed is 1.5; it must be of type int"),
        ("seed", 2**32, r"config\.seed is 4294967296; it must be from 0 to 4294967295"),
        ("data.fps", float("inf"), r"config\.data\.fps is inf; it must be above 0 and finite"),
        ("condition.text_tokens", 0, r"config\.condition\.text_tokens is 0; it must be at least 1"),
        ("flow.shift", float("nan"), r"config\.flow\.shift is nan; it must be above 0 and finite"),
        ("flow.guidance_text", float("inf"), r"config\.flow\.guidance_text is inf; it must be a finite number"),
        ("align.mse_weight", -1.0, r"config\.align\.mse_weight is -1\.0; it must be 0 or more and finite"),
        ("vae_model.dim_mult", 3, r"config\.vae_model\.dim_mult is 3; it must be a tuple"),
        ("finetune.optimizer.learning_rate", -1.0, r"config\.finetune\.optimizer: .*learning_rate"),
    ],
)
def test_bad_values_are_refused_by_name(path, value, message):
    values = to_dict(Config())
    *sections, field = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[field] = value
    with pytest.raises(InputError, match=message):
        parse(values)


NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
REFUSED = {
    "seed": (-1, 0.5, True, None, "1"),
    "data.frames": (0, -1, 6, 5.0),
    "data.height": (0, 40, -16),
    "data.threads": (-1,),
    "data.train_videos": (-1,),
    "data.fps": (0.0, *NOT_FINITE),
    "data.keep_background": (-0.1, 1.5, *NOT_FINITE),
    "condition.text_dropout": (-0.1, 1.0, *NOT_FINITE),
    "condition.reference_dropout": (-0.1, 1.0, *NOT_FINITE),
    "condition.joint_dropout": (1.0, *NOT_FINITE),
    "condition.mllm_tokens": (0,),
    "flow.time_mean": NOT_FINITE,
    "flow.time_std": (0.0, -1.0, *NOT_FINITE),
    "flow.shift": (0.0, -1.0, *NOT_FINITE),
    "flow.sample_steps": (0, -1),
    "flow.guidance_reference": NOT_FINITE,
    "flow.subject_weight": (0.5, *NOT_FINITE),
    "finetune.batch_size": (0,),
    "finetune.keep": (0,),
    "finetune.eval_every": (-1,),
    "finetune.ema_decay": (-0.1, 1.5, *NOT_FINITE),
    "finetune.optimizer.learning_rate": (0.0, *NOT_FINITE),
    "finetune.optimizer.warmup_steps": (-1,),
    "finetune.optimizer.beta1": (-0.1, 1.0, *NOT_FINITE),
    "finetune.optimizer.weight_decay": (-1.0, *NOT_FINITE),
    "finetune.optimizer.clip_norm": (0.0, float("nan")),
    "finetune.optimizer.final_fraction": (-0.1, 1.1, *NOT_FINITE),
    "vae.kl_weight": (-1.0, *NOT_FINITE),
    "t5.corruption": (0.0, 1.0, *NOT_FINITE),
    "pretrain.references": (-0.1, 1.1, *NOT_FINITE),
    "dit_model.num_layers": (0, -1),
    "data.augment.rotation": (-1.0, float("nan")),
    "evaluate_identities": (0, -1),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_field_cannot_mean_is_refused(field):
    *sections, name = field.split(".")
    for value in REFUSED[field]:
        values = demo.get_config("smoke").to_dict()
        functools.reduce(dict.__getitem__, sections, values)[name] = value
        with pytest.raises(InputError, match=name):
            parse(values)


def test_more_image_steps_than_steps_are_refused():
    values = demo.get_config("scratch")
    values.mllm.steps = 1000
    with pytest.raises(InputError, match=r"config\.mllm\.image_steps is 3000; it must be from 0 to .*steps, 1000"):
        parse(values)


def test_folder_source_needs_a_path():
    values = to_dict(Config())
    values["data"]["source"] = "folder"
    with pytest.raises(InputError, match=r"config\.data\.path is empty"):
        parse(values)


def test_the_reference_of_all_fields_is_up_to_date():
    folder = Path(__file__).parents[1] / "docs"
    spec = importlib.util.spec_from_file_location("config_reference", folder / "config_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (folder / "config.md").read_text() == module.reference()
