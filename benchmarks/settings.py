"""Settings of the benchmarks that are run beside OpenFlamingo, by name. It needs neither library."""

import argparse
import json
import pathlib

STEP = dict(
  vocab=8192, layers=12, dim=512, heads=8, kv_heads=8, ffn=2048, every=2, vis_dim=512, vis_tokens=256, images=3,
  resampler_depth=6, resampler_heads=8, latents=64, xattn_heads=8, dim_head=64, batch=4, text=256, lr=1e-4,
  weight_decay=0.1,
)  # fmt: skip
WRITING = STEP | dict(generate_batch=4, prompt=64, new_tokens=64)


def step_arguments(description: str, dtype: str) -> argparse.ArgumentParser:
  """What the benchmarks of a training step are asked; `dtype` is that of the computation, if none is named."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", type=pathlib.Path, help="a JSON file of settings")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16"))
  return parser


def read_settings(path: pathlib.Path | None, changes: list[str], defaults: dict) -> dict:
  """The defaults, changed by a file and then by KEY=VALUE. Files may hold settings of the other benchmarks, too."""
  given = json.loads(path.read_text()) if path else {}
  given |= {key: json.loads(value) for key, value in (change.split("=", 1) for change in changes)}
  unknown = given.keys() - WRITING.keys()
  if unknown:
    raise SystemExit(f"No such settings: {', '.join(sorted(unknown))}. Known: {', '.join(defaults)}.")
  return defaults | {key: value for key, value in given.items() if key in defaults}
