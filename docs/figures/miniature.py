"""Draws the figures of docs/miniature.md, and prints its table, from the folder of the sweep.

python docs/figures/miniature.py runs/miniature/findings docs/figures
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot

from flamingo_jax.training.metrics import read_metrics
from launch.sweep.outcomes import half_interval

SHOTS = (0, 1, 2, 4, 8)
CHANCE = 0.25
GAIN = "visual_gain/pages/other_media"
SETTINGS = {  # what a setting changes -> (its name here, the overall score of the paper's table 3)
  "{}": ("the recipe", "70.7"),
  '{"streams.pages.weight": 0.0}': ("no interleaved pages", "53.4"),
  '{"streams.captions.weight": 0.0}': ("no captions", "60.9"),
  '{"mixture": "round_robin", "total_steps": 3000}': ("round robin", "62.9"),
  '{"model.cross_attention.gated": false}': ("no gates", "66.5"),
  '{"model.cross_attention.every": 2}': ("a gated layer before every 2nd", "68.2"),
  '{"model.cross_attention.previous_media": true}': ("all previous pictures", "63.5"),
  '{"config": "configs/miniature/mlp.py"}': ("an MLP for the resampler", "66.6"),
  '{"trainable": ["^resampler/", "^language/", "extra_"]}': ("language model trained too", "62.7"),
  '{"config": "configs/miniature/flamingo_small.py"}': ("half the language model", ""),
}
RECIPE, CONFIG = "the recipe", "configs/miniature/flamingo.py"


def main(sweep: str, out: str) -> None:
  matplotlib.rcParams |= {"svg.hashsalt": "flamingo_jax", "svg.fonttype": "none", "font.size": 9}  # the same each time
  settings = read_settings(pathlib.Path(sweep))
  print(table(settings), order(settings), sep="\n\n")
  for name, figure in (("shots", draw_shots(settings)), ("visual_gain", draw_gain(settings))):
    figure.savefig(pathlib.Path(out) / f"miniature_{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def read_settings(sweep: pathlib.Path) -> dict[str, list[list[dict]]]:
  """The lines of metrics.jsonl with an evaluation, of every finished trial of every setting, by the setting's name."""
  settings: dict[str, list[list[dict]]] = {name: [] for name, _ in SETTINGS.values()}
  for setting in json.loads((sweep / "outcomes.json").read_text())["settings"]:
    config = setting["changes"]["config"]
    other = {} if config == CONFIG else {"config": config}
    for trial in setting["trials"]:
      if trial["state"] == "done":
        changes = other | {field: value for field, value in trial["changes"].items() if field != "seed"}
        lines = read_metrics(sweep / "trials" / trial["name"])
        settings[SETTINGS[json.dumps(changes)][0]].append([line for line in lines if GAIN in line])
  return {name: trials for name, trials in settings.items() if trials}


def accuracies(trials: Sequence[Sequence[dict]], shots: int) -> list[float]:
  """The last ones of each trial, means over its benchmarks."""
  return [
    float(np.mean([value for field, value in lines[-1].items() if field.endswith(f"/{shots}") and "naming" in field]))
    for lines in trials
  ]


def said(values: Sequence[float]) -> str:
  """A mean with half its 95% interval, where there are several values."""
  half = half_interval(values)
  return f"{np.mean(values):.2f}" if half is None else f"{np.mean(values):.2f} ± {half:.2f}"


def table(settings: dict[str, list[list[dict]]]) -> str:
  """Markdown: accuracy by shots, nats of held-out pages and captions, and the paper's overall score."""
  paper = dict(SETTINGS.values())
  rows = [["what differs", "seeds", *map(str, SHOTS), "pages", "captions", "paper"], ["---"] * 10]
  for name, trials in settings.items():
    columns = [accuracies(trials, shots) for shots in SHOTS]
    columns += [[lines[-1][f"heldout/text_loss/{stream}"] for lines in trials] for stream in ("pages", "captions")]
    rows.append([name, str(len(trials)), *map(said, columns), paper[name]])
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def order(settings: dict[str, list[list[dict]]]) -> str:
  """Markdown: what each setting of the paper's table 3 loses there, most first, and here at the most shots."""
  paper = {name: float(score) for name, score in SETTINGS.values() if score and name in settings}
  mean = {name: np.mean(accuracies(settings[name], SHOTS[-1])) for name in paper}
  rows = [["what differs", "paper, overall score", f"here, accuracy at {SHOTS[-1]} shots"], ["---"] * 3]
  for name in sorted(paper, key=paper.__getitem__):
    if name != RECIPE:
      rows.append([name, f"{paper[name] - paper[RECIPE]:+.1f}", f"{mean[name] - mean[RECIPE]:+.2f}"])
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw_shots(settings: dict[str, list[list[dict]]]) -> pyplot.Figure:
  """Accuracy by number of shots, a panel for each setting, the recipe in all of them."""
  others = [name for name in settings if name != RECIPE]
  figure, axes = pyplot.subplots(3, 3, figsize=(9, 7.5), sharex=True, sharey=True, layout="constrained")
  for axis in axes.flat[len(others) :]:
    axis.set_visible(False)
  for axis, name in zip(axes.flat, others, strict=False):
    axis.axhline(CHANCE, color="0.7", linewidth=1, linestyle=":")
    for each, color in ((RECIPE, "0.55"), (name, "#b3410e")):
      columns = np.asarray([accuracies(settings[each], shots) for shots in SHOTS])
      axis.plot(columns, color=color, linewidth=0.8, alpha=0.35)
      axis.plot(columns.mean(axis=1), color=color, linewidth=2, marker="o", markersize=4)
    axis.set_title(name, fontsize=9)
    axis.set_xticks(range(len(SHOTS)), map(str, SHOTS))
    axis.set_ylim(0.1, 1)
    axis.spines[["top", "right"]].set_visible(False)
  figure.supxlabel("shots", fontsize=9)
  figure.supylabel("accuracy: every seed, and their mean (grey: the recipe; dots: chance)", fontsize=9)
  return figure


def draw_gain(settings: dict[str, list[list[dict]]]) -> pyplot.Figure:
  """Visual gain over training, a line for each setting."""
  figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
  colors = pyplot.get_cmap("tab10").colors
  for color, (name, trials) in zip(colors, settings.items(), strict=False):
    gains = np.asarray([[line[GAIN] for line in lines] for lines in trials])
    ends = np.asarray([line["step"] / lines[-1]["step"] for lines in trials[:1] for line in lines])
    axis.plot(ends, gains.mean(axis=0), color=color, label=name, linewidth=2 if name == RECIPE else 1.2)
  axis.set_xlabel("share of training")
  axis.set_ylabel("nats a token, own pictures less other ones")
  axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
  axis.spines[["top", "right"]].set_visible(False)
  return figure


if __name__ == "__main__":
  main(*sys.argv[1:])
