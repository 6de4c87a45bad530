import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load

from data_pipelines.faults import decode_faults
from data_pipelines.features import DTYPES, FeaturesInfo, decode_features, encode_features
from data_pipelines.media import MediaError, decode_image
from data_pipelines.schema import parse
from data_pipelines.shards import open_shards, read_manifest, write_shards
from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.interop.model_folder import content_hash, describe, save_model
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.vision.towers import FeaturesConfig, example_media, vision_tower
from flamingo_jax.training.checkpoints import load_trainable
from flamingo_jax.training.loop import train
from flamingo_jax.training.metrics import read_metrics
from launch.cli import main
from launch.config import load_config
from launch.experiment import read_experiment
from launch.features import write_features
from launch.generate import continue_prompt
from launch.precomputed import common_tower
from launch.reporting import pictures

RECORDS = dict(captions=10, pages=3, videos=1)
CONFIG = "configs/tiny.py"
SIZES = dict(width=32, positions=16)  # of the tiny config's features
PLAIN = {"streams.captions.colour": "0", "streams.pages.flip": "False"}
SMALL = {"model.language.layers": "2"}
WRITTEN = [("captions", "float32"), ("captions", "bfloat16"), ("pages", "float32"), ("videos", "float32")]


pytestmark = pytest.mark.usefixtures("few_optimizations")


def copy_some(source: pathlib.Path, folder: pathlib.Path, count: int, change=lambda index, example: example) -> None:
  """The first records of a real stream, as both splits of another."""
  shards = open_shards(source)
  examples = [change(index, parse(shards[index])) for index in range(count)]
  for split in ("train", "heldout"):
    write_shards(folder / split, examples, {})


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """A vision encoder as an import would leave it, and its parameters."""
  model = read_experiment(load_config(CONFIG, {}), CONFIG).model.vision
  parameters = drawn(
    lambda key: vision_tower(model, np.dtype("float32")).init(key, example_media(model)[None])["params"]
  )
  folder = tmp_path_factory.mktemp("tower")
  save_model(folder, parameters, model, "a test")
  describe(folder, dict(kind="vision", config=dataclasses.asdict(model)))
  return folder, parameters


def drawn(initialize, seed: int = 0) -> dict[str, np.ndarray]:
  """Random parameters of a model; no gate is shut."""
  random = np.random.default_rng(seed)
  shapes = flat(jax.eval_shape(initialize, jax.random.key(0)))
  return {path: 0.3 * random.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture(scope="module")
def overrides(quickstart_data, tower, tmp_path_factory) -> dict[str, str]:
  """The tiny config over a few real records of each stream, with nothing random in their media."""
  folder = tmp_path_factory.mktemp("streams")
  for name, count in RECORDS.items():
    copy_some(quickstart_data / "streams" / name / "train", folder / name, count)
  paths = {f"streams.{name}.source": str(folder / name) for name in RECORDS} | {"frozen.vision": str(tower[0])}
  return paths | PLAIN | SMALL | {"tokenizer.path": str(quickstart_data / "language_model")}


@pytest.fixture(scope="module")
def folder(overrides, tmp_path_factory) -> pathlib.Path:
  """Features of every stream, in float32/NAME; of the captions in bfloat16/captions too."""
  folder = tmp_path_factory.mktemp("features")
  for name, dtype in WRITTEN:
    write_features(CONFIG, overrides, name, str(folder / dtype / name), dtype)
  return folder


def features_config(overrides: dict[str, str], folder: pathlib.Path, *names: str) -> dict:
  """The tiny config on features instead of pixels; of some streams only, if they are named."""
  names = names or tuple(RECORDS)
  fields = {f"streams.{name}.source": str(folder / name) for name in names}
  fields |= {f"streams.{name}.medium": "features" for name in names}
  config = load_config(CONFIG, overrides | fields)
  config["model"]["vision"] = dict(family="features", **SIZES)
  config["streams"] = {name: config["streams"][name] for name in names}
  return config


@pytest.fixture(scope="module")
def pixels(overrides):
  return read_experiment(load_config(CONFIG, overrides), CONFIG)


@pytest.fixture(scope="module")
def parameters(pixels, tower):
  """All of them, with the encoder that `frozen` gives."""
  seen = {f"vision/{path}": array for path, array in tower[1].items()}
  return drawn(pixels.objective().initialize, seed=1) | seen


def batch_of(experiment, name: str) -> dict:
  """The first batch, in the order of training but with nothing random in it."""
  return next(experiment.streams("train", training=False)[name].batches(0))


def loss_of(experiment, parameters):
  """From a batch to its summed loss."""
  has_tower = not isinstance(experiment.model.vision, FeaturesConfig)
  held = {path: array for path, array in parameters.items() if has_tower or not path.startswith("vision/")}
  loss = jax.jit(lambda held, batch: experiment.objective().loss(held, batch).total)
  return lambda batch: float(loss(held, {name: array for name, array in batch.items() if name != "faults"}))


@pytest.fixture(scope="module")
def pixel_loss(pixels, parameters):
  return loss_of(pixels, parameters)


@pytest.mark.parametrize(("name", "dtype"), WRITTEN)
def test_features_give_the_losses_that_pixels_give_through_the_encoder(
  pixels, pixel_loss, parameters, overrides, folder, name, dtype
):
  experiment = read_experiment(features_config(overrides, folder / dtype, name), "mine.py")
  found, batch = batch_of(experiment, name), batch_of(pixels, name)
  assert found["media"].dtype == DTYPES[dtype]
  for array in batch.keys() - {"media"}:
    np.testing.assert_array_equal(found[array], batch[array], err_msg=array)
  expected, loss = pixel_loss(batch), loss_of(experiment, parameters)
  tolerance = dict(float32=1e-6, bfloat16=1e-4)[dtype]
  assert loss(found) == pytest.approx(expected, rel=tolerance)
  blind = found | {"media": np.zeros_like(found["media"])}
  assert loss(blind) != pytest.approx(expected, rel=3 * tolerance)  # so it tells which features were seen


def test_a_record_keeps_what_the_encoder_says_of_each_of_its_pictures(pixels, tower, folder):
  apply = jax.jit(vision_tower(pixels.model.vision, np.dtype("float32")).apply)
  plain = pixels.streams("heldout", training=False)["captions"]
  shards = {dtype: open_shards(folder / dtype / "captions/heldout") for dtype in DTYPES}
  for index in range(RECORDS["captions"]):
    pair = parse(plain.sources[index])
    kept = {dtype: parse(one[index]) for dtype, one in shards.items()}
    assert all(dataclasses.replace(example, media=pair.media) == pair for example in kept.values())
    features = np.asarray(apply(nested(tower[1]), decode_image(pair.media[0], 32)[None]))
    found = load(kept["float32"].media[0])["features"]
    np.testing.assert_allclose(found, features, atol=1e-5)
    rounded = decode_features(kept["bfloat16"].media[0], FeaturesInfo("", "bfloat16", 1, 16, 32))
    np.testing.assert_array_equal(rounded, found.astype(DTYPES["bfloat16"]))


def test_a_film_has_the_features_of_the_frames_that_it_has():
  stored = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
  features = decode_features(encode_features(stored), FeaturesInfo("", "float32", 3, 2, 4))
  np.testing.assert_array_equal(features, stored)


@pytest.mark.parametrize(
  "stored",
  [
    b"",
    b"\x89PNG",
    np.zeros((1, 2, 5), "f"),
    np.zeros((2, 2, 4), "f"),
    np.zeros((), "f"),
    np.zeros((1, 2, 4), DTYPES["bfloat16"]),
  ],
)
def test_what_are_no_features_of_the_stream_is_a_bad_record(stored):
  encoded = stored if isinstance(stored, bytes) else encode_features(stored)
  with pytest.raises(MediaError) as error:
    decode_features(encoded, FeaturesInfo("", "float32", 1, 2, 4))
  assert error.value.cause == "bad_record"


def test_a_medium_that_could_not_be_decoded_stays_one_and_a_damaged_record_is_left_out(
  overrides, quickstart_data, tmp_path
):
  def truncate(index, example):
    return dataclasses.replace(example, media=(example.media[0][:100],)) if index == 3 else example

  copy_some(quickstart_data / "streams/captions/train", tmp_path / "broken", 6, truncate)
  path = next((tmp_path / "broken/train").glob("*.array_record"))
  data = bytearray(path.read_bytes())
  data[data.index(parse(open_shards(path.parent)[1]).media[0]) + 100] ^= 1
  path.write_bytes(data)
  changed = overrides | {"streams.captions.source": str(tmp_path / "broken")}
  assert main(command(changed, "captions", tmp_path / "captions")) == 0
  assert read_manifest(tmp_path / "captions/train")["statistics"] == {"broken_image": 1, "damaged_shard": 1}
  assert read_manifest(tmp_path / "captions/heldout")["statistics"] == {"broken_image": 1}
  experiment = read_experiment(features_config(overrides, tmp_path, "captions"), "mine.py")
  rows = list(experiment.streams("train", training=False)["captions"].rows())
  assert [bool(row["media_mask"].any()) for row in rows] == [True, True, False, True, True]
  [_, _, [fault], _, _] = decode_faults([row["faults"].item() for row in rows])
  assert (fault.cause, fault.record, fault.medium) == ("broken_image", 2, 0)
  assert not rows[2]["media"].any()


def command(overrides: dict[str, str], name: str, out: pathlib.Path, *more: str) -> list[str]:
  changes = [f"--config.{field}={value}" for field, value in overrides.items()]
  return ["data", "features", f"--config={CONFIG}", f"--stream={name}", f"--out={out}", *more, *changes]


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("photographs", {}, "--stream is 'photographs'; the config has"),
    ("captions", {"streams.captions.colour": "0.2"}, "streams.captions.colour is 0.2"),
    ("pages", {"streams.pages.flip": "True"}, "streams.pages.flip is True"),
    ("captions", {"trainable": "('^vision/encoder/', '^resampler/')"}, "trainable: vision/encoder/"),
  ],
)
def test_features_that_would_not_be_those_of_training_are_not_computed(
  overrides, tmp_path, capsys, name, changes, message
):
  assert main(command(overrides | changes, name, tmp_path / "out")) == USER_FAULT
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_features_of_several_encoders_are_refused(overrides, folder, tmp_path):
  shutil.copytree(folder / "float32", tmp_path / "mixed")
  path = tmp_path / "mixed/pages/heldout/manifest.json"
  manifest = json.loads(path.read_text())
  manifest["build"]["features"]["tower"] = "f" * 64
  path.write_text(json.dumps(manifest))
  experiment = read_experiment(features_config(overrides, tmp_path / "mixed"), "mine.py")
  with pytest.raises(UserError, match=rf"not all of one vision encoder(.|\n)*ffffffffffff: {path.parent}"):
    common_tower(experiment.stream_configs, "")


def test_features_of_another_encoder_than_the_runs_are_refused(overrides, folder, tower, tmp_path):
  experiment = read_experiment(features_config(overrides, folder / "float32"), "mine.py")
  right, others = content_hash(tower[1]), {path: 2 * array for path, array in tower[1].items()}
  assert common_tower(experiment.stream_configs, str(tower[0])) == right
  assert common_tower(experiment.stream_configs, "") == right
  save_model(tmp_path, others, experiment.model.vision, "a test")
  describe(tmp_path, dict(kind="vision", config={}))
  config = experiment.raw | {"frozen": experiment.raw["frozen"] | {"vision": str(tmp_path)}}
  with pytest.raises(UserError, match=f"{content_hash(others)[:12]}: frozen.vision, {tmp_path}"):
    read_experiment(config, "mine.py").frozen()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c["model"]["vision"].update(width=64), "model.vision.width is 64, but for the features in .* it is 32"),
    (lambda c: c["model"]["vision"].update(positions=9), "model.vision.positions is 9"),
    (lambda c: c["streams"]["videos"].update(frames=2), "streams.videos.frames is 2, but the features .* of 4 frames"),
  ],
)
def test_features_of_other_sizes_than_the_models_are_refused_when_opened(overrides, folder, change, message):
  config = features_config(overrides, folder / "float32")
  change(config)
  with pytest.raises(UserError, match=message):
    read_experiment(config, "mine.py").streams("train", training=True)


def test_pixels_are_not_read_as_features_nor_features_as_pixels(overrides, folder):
  config = features_config(overrides, pathlib.Path(overrides["streams.pages.source"]).parent)
  with pytest.raises(UserError, match=r"streams.pages.medium is 'features', but .* its media are pictures or videos"):
    read_experiment(config, "mine.py").streams("train", training=True)
  sources = {f"streams.{name}.source": str(folder / "float32" / name) for name in RECORDS}
  with pytest.raises(UserError, match=r"streams.videos.medium is 'video', but .* its media are features"):
    read_experiment(load_config(CONFIG, overrides | sources), "mine.py").streams("train", training=True)


def test_a_model_reads_features_or_has_an_encoder(overrides, folder):
  config = features_config(overrides, folder)
  config["streams"]["pages"]["medium"] = "image"
  config["frozen"]["vision"] = "random"
  with pytest.raises(UserError) as error:
    read_experiment(config, "mine.py")
  assert sorted(line.split(" is ")[0] for line in str(error.value).splitlines()) == [
    "mine.py: frozen.vision",
    "mine.py: streams.pages.medium",
  ]
  with pytest.raises(UserError, match=r"streams.captions.medium is 'features'; where model.vision.family is not"):
    read_experiment(load_config(CONFIG, overrides | {"streams.captions.medium": "features"}), "mine.py")
  contrastive = load_config("configs/quickstart_vision.py", {"streams.captions.medium": "features"})
  contrastive["streams"]["captions"].update(colour=0.0, crop=1.0)
  with pytest.raises(UserError, match=r"streams.captions.medium is 'features'; contrastive"):
    read_experiment(contrastive, "mine.py")


def test_a_run_trains_on_packed_features_and_remembers_their_encoder(overrides, folder, tower, tmp_path):
  config = features_config(overrides, folder / "bfloat16", "captions") | dict(total_steps=1)
  config["streams"]["captions"].update(pack=True, media=4, length=64, batch_size=2)
  experiment = read_experiment(config, "mine.py")
  parts = (experiment.objective(), experiment.training, experiment.feed(), experiment.frozen())
  train(*parts, lambda *_: {}, tmp_path / "run", experiment.raw)
  _, step, hashes = load_trainable(tmp_path / "run")
  assert (step, hashes["vision"]) == (1, content_hash(tower[1]))
  [line] = read_metrics(tmp_path / "run")
  assert np.isfinite(line["loss"])
  assert line["tokens"] == 60  # of which a row of one pair would have half
  with pytest.raises(UserError, match="has no vision encoder"):
    continue_prompt(str(tmp_path / "run"), "<image>", ["a.png"], 4)


def test_a_report_shows_a_gray_picture_in_the_place_of_features():
  batch = dict(media=np.zeros((1, 3, 1, 16, 32), np.float32), media_index=np.array([[-1, 0, 1]]))
  shown = pictures(batch, 0)
  assert [(picture.dtype, picture.shape[-1]) for picture in shown] == [(np.uint8, 3)] * 2
