import dataclasses
import pathlib

import pytest

from flamingo_jax.errors import UserError
from launch.cli import main, take_overrides
from launch.config import build, literal, load_config
from launch.experiment import TokenizerConfig


def write(tmp_path: pathlib.Path, body: str) -> str:
  path = tmp_path / "mine.py"
  path.write_text(body)
  return str(path)


@pytest.fixture
def mine(tmp_path) -> str:
  """A config file like a user's, with a value of every kind."""
  return write(
    tmp_path,
    """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(dict(
    seed=0,
    name="run",
    rate=1e-4,
    tied=True,
    trainable=("^resampler/",),
    optimizer=dict(learning_rate=1e-4, warmup_steps=10),
    streams=dict(pages=dict(length=64, flip=False)),
  ))
""",
  )


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("3", 3),
    ("-1", -1),
    ("3e-4", 3e-4),
    ("True", True),
    ("false", False),
    ("('^a', 'b')", ("^a", "b")),
    ("['a']", ["a"]),
    ("data/shards", "data/shards"),
    ("^resampler/", "^resampler/"),
    ("", ""),
  ],
)
def test_values_are_python_literals_and_all_else_is_text(text, value):
  assert literal(text) == value
  assert type(literal(text)) is type(value)


def test_overrides_reach_every_depth_and_leave_the_rest(mine):
  before = load_config(mine, {})
  after = load_config(mine, {"seed": "7", "optimizer.learning_rate": "3e-4", "streams.pages.flip": "true"})
  assert (after["seed"], after["optimizer"]["learning_rate"], after["streams"]["pages"]["flip"]) == (7, 3e-4, True)
  after["seed"], after["optimizer"]["learning_rate"], after["streams"]["pages"]["flip"] = 0, 1e-4, False
  assert after == before


def test_a_text_field_stays_text(mine):
  assert load_config(mine, {"name": "2024"})["name"] == "2024"


def test_overrides_are_told_from_other_arguments():
  arguments = ["train", "--config=c.py", "--config.seed=3", "--workdir", "w", "--config.model.dtype", "float32"]
  rest, overrides = take_overrides(arguments)
  assert rest == ["train", "--config=c.py", "--workdir", "w"]
  assert overrides == {"seed": "3", "model.dtype": "float32"}
  assert take_overrides(["--config.a.b=c=d"])[1] == {"a.b": "c=d"}
  assert take_overrides(["--config.a", "-1", "--config.b="])[1] == {"a": "-1", "b": ""}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.seed"], "--config.seed: has no value"),
    (["--config.seed", "--workdir=w"], "--config.seed: has no value"),
    (["--config.seed", "--config.total_steps=3"], "--config.seed: has no value"),
    (["--config.seed", "--", "--on=local"], "--config.seed: has no value"),
    (["--config.=3"], "--config.=3: names no field"),
    (["--config.", "3"], "--config.: names no field"),
    (["--config.optimizer..beta1=3"], "--config.optimizer..beta1=3: names no field"),
  ],
)
@pytest.mark.parametrize("verb", ["train", "config", "demo"])
def test_an_override_without_a_name_or_a_value_is_refused(verb, arguments, message, capsys):
  with pytest.raises(SystemExit):
    main([verb, *arguments])
  assert f"error: {message}" in capsys.readouterr().err


def test_every_override_that_names_nothing_is_said_at_once(mine):
  overrides = {
    "optimiser.learning_rate": "1",
    "streams.page.length": "1",
    "optimizer": "adam",
    "streams.pages": "none",
    "seed.x": "1",
  }
  with pytest.raises(UserError) as error:
    load_config(mine, overrides)
  faults = str(error.value).splitlines()
  assert len(faults) == 5
  assert all(fault.startswith(f"{mine}: --config.") for fault in faults)
  assert "optimiser: no such field; did you mean optimizer?" in faults[0]
  assert "streams.page: no such field; did you mean streams.pages?" in faults[1]
  assert "optimizer: is a group of fields; set one of learning_rate, warmup_steps" in faults[2]
  assert "streams.pages: is a group of fields; set one of flip, length" in faults[3]
  assert "seed.x: seed is a value, not a group of fields" in faults[4]


def test_a_config_of_the_package_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config("configs/tiny.py", {})["objective"] == "flamingo"


def test_a_file_in_the_folder_goes_before_the_packages(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "tiny.py").write_text(
    "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict(dict(objective='mine'))"
  )
  assert load_config("configs/tiny.py", {}) == {"objective": "mine"}


def test_a_file_that_is_not_there_is_refused_with_those_that_are():
  with pytest.raises(UserError) as error:
    load_config("configs/flamingo_3000b.py", {})
  assert "configs/flamingo_3000b.py: no such config file" in str(error.value)
  assert "configs/quickstart.py" in str(error.value)
  assert "__init__" not in str(error.value)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config(:", "SyntaxError: "),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("def get_config(): return missing", "NameError: name 'missing' is not defined"),
    ("config = 1", "defines no get_config()"),
    ("def get_config(): return 3", "get_config() returns 3"),
  ],
)
def test_a_config_that_fails_is_the_users_to_mend(tmp_path, body, message):
  path = write(tmp_path, body)
  with pytest.raises(UserError) as error:
    load_config(path, {})
  assert str(error.value).startswith(f"{path}: ")
  assert message in str(error.value)


def test_a_file_that_is_not_python_is_refused(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=r"a config ends in \.py"):
    load_config(str(tmp_path / "config.json"), {})


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float
  steps: int = 5


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner
  other: Inner = Inner(0.5)
  patterns: tuple[str, ...] = ("a",)
  tied: bool = True
  name: str = "x"


def test_dataclasses_are_built_from_nested_values():
  faults = []
  values = dict(inner=dict(rate=1), patterns=["b", "c"], name="y")
  assert build(Outer, values, "model", faults) == Outer(Inner(1.0), patterns=("b", "c"), name="y")
  assert faults == []


def test_every_fault_of_a_group_is_named_with_its_path_and_the_nearest_name():
  values = dict(
    inner=dict(rat=1.0, steps=2.5),
    other=dict(rate="fast", steps=True),
    patterns="^a",
    tied=1,
    name=None,
    zzzzzz=1,
  )
  faults = []
  assert build(Outer, values, "model", faults) is None
  assert sorted(faults) == sorted(
    [
      "model.inner.rat: no such field; did you mean model.inner.rate?",
      "model.inner.rate: missing.",
      "model.inner.steps is 2.5; it is of type int.",
      "model.other.rate is 'fast'; it is of type float.",
      "model.other.steps is True; it is of type int.",
      "model.patterns is '^a'; it is a tuple of strings, such as ('^resampler/',).",
      "model.tied is 1; it is of type bool.",
      "model.name is None; it is of type str.",
      "model.zzzzzz: no such field; known there: inner, other, patterns, tied, name.",
    ]
  )


@pytest.mark.parametrize("value", [5, "text", None, ["rate"]])
def test_a_value_where_a_group_should_be_is_named(value):
  faults = []
  assert build(Outer, dict(inner=value), "model", faults) is None
  assert faults == [f"model.inner is {value!r}; it is a group of fields: rate, steps."]
  faults = []
  assert build(Inner, value, "inner", faults) is None
  assert faults == [f"inner is {value!r}; it is a group of fields: rate, steps."]


@pytest.mark.parametrize("value", [(1, 2), ("a", 1), 3, {"a": "b"}])
def test_a_tuple_field_takes_strings_only(value):
  faults = []
  assert build(Outer, dict(inner=dict(rate=1.0), patterns=value), "", faults) is None
  assert faults == [f"patterns is {value!r}; it is a tuple of strings, such as ('^resampler/',)."]


@pytest.mark.parametrize("value", [[1], (), ["a"]])
def test_several_where_one_or_none_should_be_are_named(value):
  faults = []
  build(TokenizerConfig, dict(path="models/mine", bos=value), "tokenizer", faults)
  assert faults == [f"tokenizer.bos is {value!r}; it is of type int."]
