import dataclasses

import jax
import numpy as np
import pytest
from jax import export

from flamingo_jax.interop.exporting import (
  PLATFORMS,
  export_forward,
  forward_inputs,
  openflamingo_description,
  openflamingo_faults,
  openflamingo_tensors,
)
from flamingo_jax.models.flamingo import FlamingoConfig, initialize, stacked
from flamingo_jax.models.parameters import flat
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.towers import FeaturesConfig


@pytest.fixture(scope="module")
def fitting(tiny) -> FlamingoConfig:
  """`tiny` as OpenFlamingo could have built it."""
  return changed(
    tiny,
    resampler=dict(activation="gelu"),
    cross_attention=dict(activation="gelu"),
    language=dict(extra_tokens=3),
  )


def changed(config: FlamingoConfig, **parts: dict) -> FlamingoConfig:
  return dataclasses.replace(
    config, **{part: dataclasses.replace(getattr(config, part), **fields) for part, fields in parts.items()}
  )


def shapes(config: FlamingoConfig) -> dict[str, jax.ShapeDtypeStruct]:
  return flat(jax.eval_shape(lambda key: initialize(config, key), jax.random.key(0)))


def trained(config: FlamingoConfig) -> list[str]:
  """What is trained by default."""
  words = ("resampler/", "gated_cross_attention/", "extra_")
  return [path for path in shapes(config) if any(word in path for word in words)]


def test_a_model_of_openflamingos_architecture_has_no_fault(fitting):
  assert openflamingo_faults(fitting, "llama", trained(fitting)) == []


@pytest.mark.parametrize(
  ("part", "field", "value"),
  [
    ("cross_attention", "activation", "squared_relu"),
    ("cross_attention", "norm", "rms"),
    ("cross_attention", "norm_epsilon", 1e-6),
    ("cross_attention", "head_norm", "rms"),
    ("cross_attention", "gated_feed_forward", True),
    ("cross_attention", "vector_gates", True),
    ("cross_attention", "after", True),
    ("cross_attention", "offset", 0),
    ("cross_attention", "blind_sees_all", True),
    ("resampler", "activation", "squared_relu"),
    ("resampler", "head_norm", "layer"),
    ("language", "extra_tokens", 4),
  ],
)
def test_what_openflamingo_cannot_hold_is_named(fitting, part, field, value):
  (fault,) = openflamingo_faults(changed(fitting, **{part: {field: value}}), "llama", [])
  assert fault.startswith(f"model.{part}.{field} is {value!r}; OpenFlamingo")


def test_all_that_openflamingo_cannot_hold_is_named_at_once(tiny):
  faults = openflamingo_faults(dataclasses.replace(tiny, resampler=None), "gpt2", ["vision/patch_embedding/kernel"])
  assert [fault.split(" is ")[0].split(";")[0] for fault in faults] == [
    "model.cross_attention.activation",
    "model.resampler",
    "the language model",
    "1 parameters were trained that an OpenFlamingo checkpoint leaves out, vision/patch_embedding/kernel first",
  ]


def test_every_trained_number_goes_into_the_checkpoint_once_with_the_tokens_in_upstreams_order(
  fitting, random_parameters
):
  parameters = stacked(random_parameters(lambda key: initialize(fitting, key)))
  found = openflamingo_tensors(fitting, "llama", parameters)
  table = found.pop("lang_encoder.model.embed_tokens.weight")
  image, end, pad = parameters["language/extra_embeddings"]
  np.testing.assert_array_equal(table, [*parameters["language/embeddings"], end, image, pad])
  # The layers that (i + 1) % 2 == 0 chooses among four.
  assert {name.split(".")[3] for name in found if name.startswith("lang_encoder.")} == {"1", "3"}
  others = [array for path, array in parameters.items() if path.startswith("resampler/") or "/gated_" in path]
  numbers = [np.sort(np.concatenate([array.ravel() for array in arrays])) for arrays in (found.values(), others)]
  np.testing.assert_array_equal(*numbers)
  assert all(array.dtype == np.float32 for array in found.values())


def test_frozen_rows_in_bfloat16_keep_their_values(fitting, random_parameters):
  parameters = stacked(random_parameters(lambda key: initialize(fitting, key)))
  short = parameters["language/embeddings"].astype("bfloat16")
  found = openflamingo_tensors(fitting, "llama", parameters | {"language/embeddings": short})
  table = found["lang_encoder.model.embed_tokens.weight"]
  np.testing.assert_array_equal(table[:32], short.astype(np.float32))
  np.testing.assert_array_equal(table[33], parameters["language/extra_embeddings"][0])


def test_the_description_numbers_the_added_tokens_behind_the_vocabulary(fitting):
  described = openflamingo_description(fitting, "llama")
  assert (described["rows"], described["cross_attn_every_n_layers"]) == (35, 2)
  assert described["added_tokens"] == {"<|endofchunk|>": 32, "<image>": 33, "<PAD>": 34}
  assert described["resampler"]["dim_head"] == 8  # the width 16 over two heads
  two = openflamingo_description(changed(fitting, language=dict(extra_tokens=2)), "llama")
  assert (two["rows"], two["added_tokens"]) == (34, {"<|endofchunk|>": 32, "<image>": 33})


@pytest.fixture(scope="module")
def program(tiny, parameters):
  return export.deserialize(bytearray(export_forward(tiny, parameters)))


@pytest.mark.parametrize("sizes", [dict(rows=1, length=6), dict(rows=3, length=10, media=3, frames=1)])
def test_one_program_takes_any_number_of_rows_tokens_and_media(tiny, program, parameters, logits, make_batch, sizes):
  batch = make_batch(**sizes)
  found = jax.jit(program.call)(parameters, *(batch[name] for name in forward_inputs(tiny)))
  assert program.platforms == PLATFORMS
  np.testing.assert_allclose(found, logits(parameters, batch), rtol=1e-5, atol=1e-5)


def test_a_clip_longer_than_the_temporal_embeddings_is_refused(tiny, program, parameters, make_batch):
  batch = make_batch(frames=3)
  with pytest.raises(ValueError, match="refining shapes"):
    program.call(parameters, *(batch[name] for name in forward_inputs(tiny)))


@pytest.mark.parametrize(
  "changes",
  [
    dict(language=dict(positions="alibi", extra_tokens=0)),
    dict(language=dict(positions="learned", position_rows=16, tied_embeddings=False)),
    dict(language=dict(positions="relative", key_value_heads=4)),
    dict(vision=dict(class_token=True, pre_norm=True), language=dict(query_key_norm=True)),
    dict(resampler=dict(media=4, frames=0, head_norm="layer")),
    dict(cross_attention=dict(previous_media=True, vector_gates=True, after=True)),
  ],
  ids=lambda changes: "-".join(changes),
)
def test_every_kind_of_model_becomes_a_program_for_every_platform(tiny, changes):
  config = changed(tiny, **changes)
  program = export.deserialize(bytearray(export_forward(config, shapes(config))))
  rows = config.language.vocabulary + config.language.extra_tokens
  (logits,) = program.out_avals
  assert (str(logits.shape[:2]), logits.shape[2], logits.dtype) == ("(b, l)", rows, np.float32)


@pytest.mark.parametrize("vision", [FeaturesConfig(width=16, positions=5), NfnetConfig(variant="F0", image_size=32)])
def test_a_program_takes_what_its_vision_encoder_takes(tiny, vision):
  config = dataclasses.replace(tiny, vision=vision, resampler=None)
  program = export.deserialize(bytearray(export_forward(config, shapes(config))))
  media = program.in_avals[-3]
  frame = (5, 16) if isinstance(vision, FeaturesConfig) else (32, 32, 3)
  assert (media.shape[3:], media.dtype) == (frame, np.float32 if isinstance(vision, FeaturesConfig) else np.uint8)
