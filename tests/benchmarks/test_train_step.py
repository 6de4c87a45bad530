import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SMALL = dict(
  vocab=64, layers=2, dim=16, heads=2, kv_heads=2, ffn=24, every=1, vis_dim=16, vis_tokens=4, images=2,
  resampler_depth=1, resampler_heads=2, latents=3, xattn_heads=2, dim_head=8, batch=2, text=16, lr=0.01,
)  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "benchmarks/train_step.py", *arguments]
  return subprocess.run(command, cwd=ROOT, env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}, capture_output=True)


def test_the_step_is_timed_and_its_model_learns_the_batch(tmp_path):
  config = tmp_path / "small.json"
  config.write_text(json.dumps(SMALL))
  found = json.loads(run("--config", str(config), "--dtype=bfloat16", "--steps=4", "--set", "batch=3").stdout)
  assert found["config"] == SMALL | {"batch": 3, "weight_decay": 0.1, "model": "bfloat16"}
  assert abs(found["losses"][0] - math.log(SMALL["vocab"])) < 0.5
  assert found["losses"][-1] < found["losses"][0]
  assert found["step_ms_min"] <= found["step_ms"] <= found["step_ms_max"]
  seconds = found["step_ms"] / 1e3
  tokens = found["config"]["batch"] * SMALL["text"]
  assert math.isclose(found["tokens_per_s"], tokens / seconds, rel_tol=0.05)


def test_a_setting_that_there_is_not_is_named():
  result = run("--set", "depth=3")
  assert result.returncode == 1
  assert b"No such settings: depth. Known: vocab, layers," in result.stderr
