import dataclasses

import pytest
import tensorflow as tf

from data_pipelines.schema import Example, parse, serialize
from flamingo_jax.errors import UserError

RAW = {"texts": [b"a", b"b"], "media": [b"x"], "source": [b"s"], "license": [b"l"], "clip_microseconds": [0]}


def raw_record(**fields) -> bytes:
  """A record made with protos alone, without the schema."""
  features = {}
  for name, values in fields.items():
    if values and isinstance(values[0], int):
      features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    else:
      features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize(
  "example",
  [
    Example(("Before <image> ", "ü\n\n<EOC>", ""), (b"\x89PNG\0\0", b""), "gimp/a.html", "CC0-1.0"),
    Example(("only text",), (), "s/x", ""),
    Example(("", "a film"), (b"\0\0\0",), "s/x", "l", clip_start=1.25, clip_end=2.669333),
    Example(("", "to its end"), (b"film",), "s/x", "l", clip_start=3.0),
  ],
)
def test_every_field_survives_the_way_to_disk_and_back(example):
  assert parse(serialize(example)) == example


def test_a_literal_marker_stays_text():
  example = parse(serialize(Example(("say <image> twice: <image>",), (), "s/x", "l")))
  assert example.texts == ("say <image> twice: <image>",)
  assert example.media == ()


def test_the_record_is_an_ordinary_tf_example():
  assert parse(raw_record(**RAW)) == Example(("a", "b"), (b"x",), "s", "l")
  fields = tf.train.Example.FromString(serialize(Example(("a", "b"), (b"x",), "s", "l", 0.5, 1.0))).features.feature
  assert list(fields["texts"].bytes_list.value) == [b"a", b"b"]
  assert list(fields["clip_microseconds"].int64_list.value) == [500_000, 1_000_000]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"texts": [b"a"]}, "1 texts around 1 media"),
    ({"texts": [b"a", b"\xff"]}, "utf-8"),
    ({"source": []}, "source"),
    ({"license": [3]}, ""),
    ({"clip_microseconds": []}, ""),
    ({"clip_microseconds": [1, 2, 3]}, ""),
    ({"clip_microseconds": [2, 1]}, "not a span"),
  ],
)
def test_a_malformed_record_is_refused(change, message):
  with pytest.raises(UserError, match=f"not an Example of schema version 1: .*{message}"):
    parse(raw_record(**{**RAW, **change}))


@pytest.mark.parametrize("record", [b"", b"garbage", serialize(Example(("a",), (), "s", "l"))[:-3]])
def test_bytes_that_are_no_record_are_refused(record):
  with pytest.raises(UserError):
    parse(record)


def test_counts_that_do_not_fit_are_refused_at_once():
  with pytest.raises(ValueError, match="2 texts around 2 media"):
    Example(("a", "b"), (b"x", b"y"), "s", "l")


def test_an_example_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Example(("a",), (), "s", "l").source = "other"
