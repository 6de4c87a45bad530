"""Configs of absurd values: refused at the door, in words."""

import pathlib

import pytest

from flamingo_jax.errors import UserError
from launch.config import literal, load_config
from launch.experiment import read_experiment

TINY = str(pathlib.Path(__file__).parents[2] / "configs" / "tiny.py")


@pytest.mark.parametrize("text", ["[" * 10_000, "(" * 150, "{[]: 1}", "-" * 100_000 + "1", "'\0'", "\ud800"])
def test_what_is_no_literal_is_text(text):
  assert literal(text) == text


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("model.language.layers", "1000000000000"),  # of which a list would be made
    ("model.vision.width", "-1"),
    ("optimizer.learning_rate", "1" + "0" * 400),
    ("model.vision.pixel_mean", f"(1{'0' * 400}, 0, 0)"),
  ],
)
def test_a_size_that_cannot_be_is_refused(name, value):
  with pytest.raises(UserError, match=name.replace(".", r"\.")):
    read_experiment(load_config(TINY, {name: value}), TINY)


@pytest.mark.parametrize("config", [[], "text", None, {"objective": []}, {"objective": {}}, {}])
def test_what_is_no_config_is_refused(config):
  with pytest.raises(UserError, match=r"config\.json: "):
    read_experiment(config, "config.json")
