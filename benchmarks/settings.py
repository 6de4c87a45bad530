"""Settings of the benchmarks that are run beside OpenFlamingo, by name. It needs neither library."""

import argparse
import json
import math
import pathlib
from collections.abc import Callable

STEP = dict(
  vocab=8192, layers=12, dim=512, heads=8, kv_heads=8, ffn=2048, every=2, vis_dim=512, vis_tokens=256, images=3,
  resampler_depth=6, resampler_heads=8, latents=64, xattn_heads=8, dim_head=64, batch=4, text=256, lr=1e-4,
  weight_decay=0.1,
)  # fmt: skip
WRITING = STEP | dict(generate_batch=4, prompt=64, new_tokens=64)


def step_arguments(description: str, dtype: str) -> argparse.ArgumentParser:
  """What the benchmarks of a training step are asked; `dtype` is that of the computation, if none is named."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  add_settings(parser)
  parser.add_argument("--steps", type=at_least(1), default=8)
  parser.add_argument("--warmup", type=at_least(0), default=2)
  parser.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16"))
  return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", type=settings_file, default={}, help="a JSON file of settings")
  parser.add_argument("--set", type=assignment, action="append", default=[], metavar="KEY=VALUE")


def at_least(least: int) -> Callable[[str], int]:
  def whole(text: str) -> int:
    if int(text) < least:
      raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return int(text)

  return whole


def settings_file(path: str) -> dict:
  try:
    given = json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise argparse.ArgumentTypeError(f"{path} is no JSON file of settings ({error})") from error
  if not isinstance(given, dict):
    raise argparse.ArgumentTypeError(f"{path} is no JSON file of settings (it holds no object)")
  return given


def assignment(text: str) -> tuple[str, object]:
  name, _, value = text.partition("=")
  return name, json.loads(value)


def read_settings(given: dict, changes: list[tuple[str, object]], defaults: dict) -> dict:
  """The defaults, changed by a file's settings and then by others, which may be those of the other benchmarks, too."""
  given = given | dict(changes)
  if unknown := given.keys() - WRITING.keys():
    raise SystemExit(f"No such settings: {', '.join(sorted(unknown))}. Known: {', '.join(WRITING)}.")
  settings = defaults | {key: value for key, value in given.items() if key in defaults}
  for key, value in settings.items():
    kind, least = ("whole number", 1) if type(defaults[key]) is int else ("number", 0)
    if type(value) not in (int, type(defaults[key])) or not least <= value < math.inf:
      raise SystemExit(f"{key} is {value!r}; it is a {kind} of at least {least}.")
  return settings
