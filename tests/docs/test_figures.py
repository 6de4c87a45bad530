"""The figures and the table of docs/miniature.md, from a sweep whose numbers are made up."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from configs.miniature.findings import get_sweep
from flamingo_jax.training.metrics import TIMED

ROOT = pathlib.Path(__file__).parent.parent.parent
GAIN = "visual_gain/pages/other_media"


@pytest.fixture(scope="module")
def miniature():
  spec = importlib.util.spec_from_file_location("miniature_figures", ROOT / "docs/figures/miniature.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_setting_of_the_sweep_has_a_name(miniature):
  changes = [{name: value for name, value in each.items() if name != "seed"} for each in get_sweep()["changes"]]
  assert {json.dumps(each) for each in changes} == set(miniature.SETTINGS)


def test_table_has_means_and_intervals_and_each_figure_every_setting(miniature, tmp_path, capsys):
  accuracies, trials = {0: (0.2, 0.4, 0.45), 1: (0.5,)}, {0: [], 1: []}
  for setting, values in accuracies.items():
    for seed, value in enumerate(values):
      name = f"setting{setting}-{seed}"
      (tmp_path / "trials" / name).mkdir(parents=True)
      with (tmp_path / "trials" / name / "metrics.jsonl").open("w") as file:
        for step in (1, 2):
          line = {"step": step, GAIN: -step, "heldout/text_loss/pages": 1.0, "heldout/text_loss/captions": 2.0}
          few = {f"few_shot/naming_{n}/{k}": value + n / 10 - 0.05 for n in range(2) for k in miniature.SHOTS}
          print(json.dumps(line | few | dict.fromkeys(TIMED, 1.0)), file=file)
      changes = {"seed": seed} | ({"model.cross_attention.gated": False} if setting else {})
      trials[setting].append({"name": name, "state": "done", "changes": changes})
  trials[1].append({"name": "not there", "state": "running", "changes": {}})
  settings = [{"changes": {"config": miniature.CONFIG}, "trials": trials[n]} for n in (1, 0)]
  (tmp_path / "outcomes.json").write_text(json.dumps({"settings": settings}))
  miniature.main(str(tmp_path), str(tmp_path))
  _, _, recipe, gates, _, *order = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
  low, high = stats.t.interval(0.95, 2, np.mean(accuracies[0]), stats.sem(accuracies[0]))
  assert recipe[:3] == ["| the recipe", "3", f"{(low + high) / 2:.2f} ± {(high - low) / 2:.2f}"]
  assert gates[:3] == ["| no gates", "1", "0.50"] and gates[-2:] == ["2.00", "66.5 |"]
  assert order[2:] == [["| no gates", "-4.2", "+0.15 |"]]  # 66.5 - 70.7 and 0.5 - 0.35
  for name in ("shots", "visual_gain"):
    assert "no gates" in (tmp_path / f"miniature_{name}.svg").read_text()
