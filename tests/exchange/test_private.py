"""What is published says what data a run used, and not where it lay."""

import dataclasses
import json

import pytest

from cinema_jax.config import Config, DataConfig, WeightsConfig, parse, to_dict
from cinema_jax.errors import InputError
from cinema_jax.exchange.card import _data
from cinema_jax.exchange.sources import copy_companions
from cinema_jax.experiment.pipelines import without_sources

HOME = "/home/alice/secret"
DATA = {
    "the videos of `clips`": DataConfig(source="folder", path=f"{HOME}/clips"),
    "the prepared records of `clips`": DataConfig(source="records", path=f"{HOME}/clips/"),
    "drawn critters with the subjects of `pictures`": DataConfig(subjects=f"{HOME}/pictures"),
    "drawn critters": DataConfig(),
}


@pytest.mark.parametrize("told", DATA)
def test_the_card_names_the_data_that_were_used(told):
    assert _data(DATA[told]) == told


@pytest.mark.parametrize("told", DATA)
def test_a_published_config_holds_no_path(told):
    weights = WeightsConfig(**{field.name: f"{HOME}/{field.name}" for field in dataclasses.fields(WeightsConfig)})
    config = dataclasses.replace(Config(), init=f"{HOME}/run", weights=weights, data=DATA[told])
    values = without_sources(to_dict(config))
    assert "/" not in json.dumps(values["data"] | values["weights"]) + values["init"]
    assert HOME not in json.dumps(values)
    assert parse(values).data.source == config.data.source


def test_no_link_takes_another_file_of_this_machine_into_a_copy(tmp_path):
    for name in ("source", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere/secret").write_text("secret")
    (tmp_path / "source/tokenizer.json").write_text("{}")
    copy_companions(tmp_path / "source", tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["tokenizer.json"]
    (tmp_path / "source/vocab.json").symlink_to(tmp_path / "elsewhere/secret")
    with pytest.raises(InputError, match=r"vocab\.json leads out of .*source"):
        copy_companions(tmp_path / "source", tmp_path / "copy")
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "copy").iterdir())
