"""What a contrastive run classifies: settings, and the quickstart's own pictures with their candidates."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.tokenizer import byte_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.vision.vit import VitConfig
from launch.config import load_config
from launch.experiment import read_experiment
from launch.zero_shot import ZeroShotConfig, read_zero_shot

MODEL = ContrastiveConfig(vision=VitConfig(image_size=16), length=12)


@pytest.fixture
def pictures(tmp_path):
  """Three held-out pictures, red, green and blue, each with the names of all three."""
  names = ["red", "green", "blue"]
  lines = []
  for place, name in enumerate(names):
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[..., place] = 255
    Image.fromarray(colour).save(tmp_path / f"{name}.png")
    about = dict(id=name, split="heldout", image=f"{name}.png", captions=[name], candidates=names, label=place)
    lines.append(json.dumps(about))
  (tmp_path / "captions.jsonl").write_text("\n".join(lines))
  return tmp_path


def test_pictures_and_texts_are_read_as_training_has_them(pictures):
  tokenizer = byte_tokenizer()
  config = ZeroShotConfig(str(pictures), task="matching", prompts=("a {}",))
  [benchmark] = read_zero_shot({"colours": config}, MODEL, tokenizer)
  assert [(example.options[example.label], example.id) for example in benchmark.examples] == [
    ("red", "red"),
    ("green", "green"),
    ("blue", "blue"),
  ]
  [frame] = benchmark.read(benchmark.examples[2].medium)
  assert frame.shape == (16, 16, 3)
  assert frame[8, 8].tolist() == [0, 0, 255]
  tokens = benchmark.encode("a red").tolist()
  assert tokens == [tokenizer.bos, tokenizer.image, *tokenizer.encode("a red"), tokenizer.end_of_chunk, tokenizer.eos]
  assert len(benchmark.encode("a very long name indeed")) == 12


def test_some_are_drawn_and_always_the_same(pictures):
  config = ZeroShotConfig(str(pictures), task="matching", queries=2)
  first, second = (read_zero_shot({"colours": config}, MODEL, byte_tokenizer())[0].examples for _ in range(2))
  assert first == second
  assert len(first) == 2


def test_every_data_set_that_is_not_there_is_named(tmp_path):
  configs = {name: ZeroShotConfig(str(tmp_path / name)) for name in ("imagenet", "matching")}
  with pytest.raises(UserError) as error:
    read_zero_shot(configs, MODEL, byte_tokenizer())
  assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["zero_shot.imagenet", "zero_shot.matching"]


def faults(config: dict) -> list[str]:
  with pytest.raises(UserError) as error:
    read_experiment(config, "mine.py")
  return [line.removeprefix("mine.py: ") for line in str(error.value).splitlines()]


def test_settings_that_cannot_be_are_named_together():
  config = load_config("configs/quickstart_vision.py", {})
  config["zero_shot"] = dict(
    coco=dict(folder="a"),
    imagenet=dict(folder="b", split="heldout", queries=-1, prompts=("a photo",)),
    matching=dict(foldr="c"),
  )
  assert [fault.split(" is ")[0].split(":")[0] for fault in faults(config)] == [
    "zero_shot.matching.foldr",
    "zero_shot.matching.folder",
    "zero_shot.coco.task",
    "zero_shot.imagenet.split",
    "zero_shot.imagenet.queries",
    "zero_shot.imagenet.prompts",
  ]


def test_a_run_that_does_not_match_pictures_classifies_none():
  config = load_config("configs/tiny.py", {})
  config["zero_shot"] = dict(imagenet=dict(folder="b"))
  assert faults(config) == ["zero_shot: given to a flamingo run; only a contrastive one classifies so."]


def test_a_folder_is_known_from_wherever_the_run_is_read(tmp_path, monkeypatch):
  config = load_config("configs/quickstart_vision.py", {})
  config["zero_shot"] = dict(matching=dict(folder="data/mine"))
  monkeypatch.chdir(tmp_path)
  assert read_experiment(config, "mine.py").zero_shot["matching"].folder == str(tmp_path / "data/mine")


def test_a_text_tower_begins_with_fresh_embeddings_only_where_it_trains_them():
  config = load_config("configs/quickstart_vision.py", {"frozen.language": ""})
  [fault] = faults(config)
  assert fault.startswith("frozen.language is empty, and trainable leaves out text/embeddings.")
  config["trainable"] = ("",)
  experiment = read_experiment(config, "mine.py")
  assert experiment.frozen().parameters == {}


def test_settings_of_the_loss_are_checked_together():
  config = load_config("configs/quickstart_vision.py", {})
  config["model"] |= dict(loss="hinge", label_smoothing=0.1, temperature=0.0, remat="some")
  assert [fault.split(" is ")[0] for fault in faults(config)] == [
    "model.loss",
    "model.remat",
    "model.label_smoothing",
    "model.temperature",
  ]
