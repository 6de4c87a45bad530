"""What benchmarks are asked: refused in words where it makes no sense."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

from benchmarks import compile_time

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch):
  """They import each other by name."""
  monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("train_step", ["--set", "dim"], "argument --set: invalid assignment value: 'dim'"),
    ("train_step", ["--set", "dim=x"], "argument --set: invalid assignment value: 'dim=x'"),
    ("train_step", ["--set", "dim=true"], "dim is True; it is a whole number of at least 1"),
    ("train_step", ["--set", "batch=0"], "batch is 0; it is a whole number of at least 1"),
    ("train_step", ["--set", "lr=NaN"], "lr is nan; it is a number of at least 0"),
    ("train_step", ["--set", "wings=3"], "No such settings: wings. Known: vocab,"),
    ("train_step", ["--set", "heads=3"], "language.heads is 3, which does not divide language.width, 512"),
    ("train_step", ["--config", "nofile.json"], "nofile.json is no JSON file of settings"),
    ("train_step", ["--steps", "0"], "argument --steps: 0 is not at least 1"),
    ("generate", ["--repeats", "0"], "argument --repeats: 0 is not at least 1"),
    ("stream_memory", ["--steps", "19"], "argument --steps: 19 is not at least 20"),
    ("fuzz_stream", ["--records", "2"], "argument --records: 2 is not at least 3"),
    ("help_time", ["--rounds", "0"], "argument --rounds: 0 is not at least 1"),
    ("packing", ["--steps", "0"], "argument --steps: 0 is not at least 1"),
    ("start_up", ["--config.seed"], "--config.seed: has no value, as --config.seed=3 has"),
    ("fault_injection", ["--config.=3"], "--config.=3: names no field"),
    ("fuzz", ["nosuch"], "argument target: invalid choice: 'nosuch' (choose from"),
  ],
)
def test_what_makes_no_sense_is_refused_in_words(monkeypatch, capsys, script, arguments, message):
  monkeypatch.setattr(sys, "argv", [script, *arguments])
  with pytest.raises(SystemExit) as ended:
    importlib.import_module(script).main()
  assert message in f"{capsys.readouterr().err}{ended.value}"


def test_the_ratio_is_of_the_deepest_over_the_shallowest_in_any_order(monkeypatch):
  cached = jax.config.jax_enable_compilation_cache
  monkeypatch.setattr(compile_time, "compile_at", lambda config, layers, every: (layers, layers))
  found = compile_time.measure("mine.py", [24, 96, 12, 48], 2)
  jax.config.update("jax_enable_compilation_cache", cached)
  assert found["ratio"] == 96 / 12


def test_growth_is_told_by_the_steps_at_which_memory_was_read(monkeypatch, tmp_path):
  """39 steps at twenty places, and a MiB more with each step."""
  stream_memory, steps = importlib.import_module("stream_memory"), []
  monkeypatch.setattr(stream_memory, "STREAMS", {})
  monkeypatch.setattr(stream_memory, "write_sources", lambda folder: None)
  monkeypatch.setattr(stream_memory, "byte_tokenizer", lambda folder: None)
  monkeypatch.setattr(stream_memory, "without_skipped", lambda *arguments: ((steps.append(1), {}) for _ in range(39)))
  monkeypatch.setattr(stream_memory, "mixture", lambda streams, seed: None)
  monkeypatch.setattr(stream_memory, "resident_mib", lambda: float(len(steps)))
  found = stream_memory.measure(tmp_path, 39)
  assert len(found["resident_mib"]) == 20 and found["resident_mib"][-1] == 39
  np.testing.assert_allclose(found["mib_per_1000_steps"], 1000)
