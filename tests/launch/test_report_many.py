"""The report of several runs, in a real browser that is cut off from any network."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from bs4 import BeautifulSoup
from finished import write_work
from looking import CONTRAST, DESKTOP, PHONE, opened, stays_inside
from test_report_page import HOSTILE, STEPS, flamingo_metrics, media

from flamingo_jax.credentials import HIDDEN
from flamingo_jax.training.workdir import note
from launch import cli
from launch.experiment import EvaluationConfig
from launch.generate import open_run
from launch.report import Generation
from launch.report.runs import ShownRun, render, results
from launch.reporting import facts, generations, spread
from launch.reporting_runs import distinct_names

SECRET = "correct-horse-battery-staple"


def shown(name: str, shift: float, **changes) -> ShownRun:
  """A run whose losses are those of `flamingo_metrics`, moved."""
  lines = flamingo_metrics({"pages": (-0.1, -0.2), "videos": (0.01, 0.02)})
  lines = [{key: value + shift * key.endswith("loss/pages") for key, value in line.items()} for line in lines]
  sample = Generation(
    "pages", "<image> The tool", (media(1),), f"{name} {HOSTILE}", " truth", "", 40, ((20, "before"),)
  )
  config = {"seed": 0, "optimizer.learning_rate": 1e-3 * (1 + shift), "trainable": ["a", "b"]}
  facts = {
    "goodput": "40% of 3.0 min in 1 start",
    "input wait": "3.0% of the time in steps",
    "device memory": "9.00 GiB",
  }
  run = ShownRun(name, f"/runs/{name}", ("pages", "videos"), lines, facts, config, (sample,))
  return dataclasses.replace(run, **changes)


def three() -> list[ShownRun]:
  """The last one has half the steps, another stream alone, and no samples."""
  short = [{key.replace("pages", "captions"): value for key, value in line.items()} for line in shown("", 0).metrics]
  short = [{key: value for key, value in line.items() if "videos" not in key} for line in short]
  other = dict(
    streams=("captions",), metrics=short[: STEPS // 2], samples=(), facts={}, config={"objective": "contrastive"}
  )
  return [shown("one", 0.0), shown(f"two {HOSTILE}", 0.5), shown("three", 0.0, note="no checkpoint", **other)]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("page") / "runs.html"
  path.write_text(render(three()))
  return path


@pytest.fixture(scope="module")
def page(path) -> BeautifulSoup:
  return BeautifulSoup(path.read_text(), "lxml")


def table(page: BeautifulSoup, section: str) -> list[list[str]]:
  return [[cell.text.strip() for cell in row.find_all("td")] for row in page.select(f"#{section} tbody tr")]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_is_whole_at_any_width(browser, path, size, colours):
  with opened(browser, path, size, color_scheme=colours) as page:
    page.locator(".chart canvas").first.wait_for()
    assert stays_inside(page, size[0], "article")
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.title() == "3 runs"


def test_the_slider_smooths_every_curve_anew(browser, path):
  averages = """share => {
    const slider = document.getElementById("smoothing");
    slider.value = share;
    slider.dispatchEvent(new Event("input"));
    const found = [...Bokeh.documents[0].all_models].filter(model => model.name === "smoothed");
    return found.map(model => [[...model.data.raw], [...model.data.smooth]]);
  }"""
  with opened(browser, path) as page:
    page.locator(".chart canvas").first.wait_for()
    at = {share: page.evaluate(averages, share) for share in (0, 10)}
  assert len(at[0]) == 2 * 2 + 1 + 3 * 3  # two runs of two streams, one of one, and whole loss, gradient norm, speed
  assert all(raw == smooth for raw, smooth in at[0])
  for raw, smooth in at[10]:
    decay = math.exp(-1 / (0.1 * len(raw)))
    weights = np.tril(decay ** np.subtract.outer(np.arange(len(raw)), np.arange(len(raw))))
    np.testing.assert_allclose(smooth, weights @ raw / weights.sum(axis=1), rtol=1e-9)


def test_hovering_tells_what_every_run_logged_at_a_step(browser, path):
  with opened(browser, path) as page:
    chart = page.locator(".chart").first  # pages
    chart.locator("canvas").first.wait_for()
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    names = page.locator(".bk-tooltip-row-label")
    names.first.wait_for()
    values = page.locator(".bk-tooltip-row-value").all_inner_texts()
    told = dict(zip([name.rstrip(": ") for name in names.all_inner_texts()], values, strict=True))
  step = int(told["step"])
  assert STEPS / 3 < step < STEPS
  for run in three()[:2]:
    assert float(told[run.name]) == pytest.approx(run.metrics[step - 1]["text_loss/pages"], rel=1e-4)


def test_results_name_the_lowest(page):
  rows = {row[0]: row[1:] for row in table(page, "results")}
  one, two, _ = three()
  ends = [run.metrics[-1]["heldout/text_loss/pages"] for run in (one, two)]
  assert rows["pages held-out loss"] == [f"{ends[0]:.3f}", f"{ends[1]:.3f}", ""]
  assert rows["captions visual gain, no media"][:2] == ["", ""]
  best = [cell.text for cell in page.select("#results .best")]
  assert f"{ends[0]:.3f}" in best and f"{ends[1]:.3f}" not in best


def test_a_run_that_ended_without_finite_losses_is_never_the_best():
  """One is sound, one low until its losses are none, and one has never had any."""
  sound, low, none = (shown(name, shift) for name, shift in (("sound", 0.0), ("low", -0.5), ("none", 0.0)))
  pages = [name for name in sound.metrics[-1] if "pages" in name]
  for run, begins in ((low, 50), (none, 0)):
    for line in run.metrics[begins:]:
      line |= {name: math.nan for name in pages if name in line}
  for order in ((none, low, sound), (sound, low, none)):
    rows = {row.label: row for row in results(order, ["pages"])}
    place = order.index(sound)
    for label in ("training loss, smoothed", "held-out loss", "visual gain, no media"):
      assert rows[label].best == {place}
      assert [math.isfinite(value) for value in rows[label].values] == [number == place for number in range(3)]
    assert rows["least held-out loss"].best == {1}  # its checkpoint may be there
    assert math.isnan(rows["least held-out loss"].values[order.index(none)])


def test_facts_and_configs_stand_side_by_side(page):
  assert ["input wait", "3.0% of the time in steps", "3.0% of the time in steps", ""] in table(page, "facts")
  assert table(page, "config") == [
    ["objective", "(absent)", "(absent)", "contrastive"],
    ["optimizer.learning_rate", "0.001", "0.0015", "(absent)"],
    ["seed", "0", "0", "(absent)"],
    ["trainable", "['a', 'b']", "['a', 'b']", "(absent)"],
  ]


def test_samples_of_one_prompt_are_together(page):
  (card,) = page.select("#samples article")
  assert len(card.select("img")) == 1
  texts = [part.text.split() for part in card.select(".by-run")]
  assert [words[:3] for words in texts] == [["one,", "step", "40"], ["two", "<script>alert(1)</script>,", "step"]]
  assert all(words[-3:] == ["step", "20:", "before"] for words in texts)
  assert "three has none: no checkpoint" in page.select_one("#samples .notes").text


def test_text_of_the_runs_is_never_markup_and_nothing_is_loaded(page, path):
  assert HOSTILE not in path.read_text()
  addresses = [tag[name] for tag in page.find_all(True) for name in ("src", "href", "data") if tag.has_attr(name)]
  assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
  assert "default-src 'none'" in page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]


def test_earlier_checkpoints_are_spread():
  assert spread([], 3) == []
  assert spread([10, 20], 3) == [10, 20]
  assert spread([10, 20, 30, 40, 50, 60, 70], 3) == [10, 30, 50]


def test_names_are_as_short_as_they_can_be():
  paths = [pathlib.Path(path) for path in ("/runs/a/flamingo", "/runs/b/flamingo", "/runs/b/vision")]
  assert distinct_names(paths) == ["a/flamingo", "b/flamingo", "b/vision"]
  assert distinct_names(paths[1:]) == ["flamingo", "vision"]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, write_gguf) -> list[str]:
  """Work directories: one whole but for its data, one with a record alone; their configs hold a credential."""
  folder = write_work(tmp_path_factory.mktemp("work"), write_gguf)
  whole, bare = folder / "run", folder / "bare"
  bare.mkdir()
  config = json.loads((whole / "config.json").read_text())
  config["start"] = ""
  (bare / "config.json").write_text(json.dumps(config | {"seed": 7}))
  for workdir in (whole, bare):
    lines = [
      {"step": step, "loss": 1.0 / step, "loss/captions": 1.0 / step, "tokens": 9, "seconds": 2.0}
      | {"tokens_per_second": 4.5, "input_wait": 0.25, "goodput": 0.5, "device_memory": 3 * 2**29}
      for step in range(1, 6)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = dict.fromkeys(("restore", "replayed", "compile", "start_up"), 0.0)
    note(workdir, "start", step=0, seconds=seconds, devices=f"1 x https://me:{SECRET}@example.org")
  return [str(whole), str(bare)]


def test_the_command_writes_one_page_of_several_runs(two_runs, tmp_path, capsys):
  out = tmp_path / "compared.html"
  assert cli.main(["report", *two_runs, f"--out={out}"]) == 0
  page = BeautifulSoup(out.read_text(), "lxml")
  rows = {row[0]: row[1:] for row in table(page, "facts")}
  assert rows["input wait"] == ["25.0% of the time in steps"] * 2
  assert rows["device memory"] == ["1.50 GiB at most"] * 2
  assert table(page, "config") == [["seed", "0", "7"]]
  assert "bare has none" in page.select_one("#samples .notes").text
  assert SECRET not in out.read_text() and HIDDEN in rows["devices"][0]


def test_the_page_of_one_run_says_what_is_not_there_any_more(two_runs, tmp_path, capsys):
  out = tmp_path / "bare.html"
  assert cli.main(["report", two_runs[1], f"--out={out}"]) == 0
  page = BeautifulSoup(out.read_text(), "lxml")
  assert page.select_one("#curves") and not page.select_one("#generations")
  assert "Generations: " in page.select_one("#missing").text
  assert "bare: no checkpoints there." in page.select_one("#missing").text


def test_a_run_without_samples_is_reported_without(two_runs):
  experiment = open_run(two_runs[0])
  silent = dataclasses.replace(experiment, evaluation=EvaluationConfig(samples=0))
  assert generations(silent, pathlib.Path(two_runs[0]), silent.tokenizer()) == ()


def test_times_are_rounded_before_they_are_cut_into_minutes(two_runs):
  experiment = open_run(two_runs[0])
  lines = [{"seconds": 119.7, "tokens": 9, "tokens_per_second": 1.0, "input_wait": 0.0}]
  assert facts(experiment, lines, [])["time in steps"] == "2 min 0 s"


def test_what_cannot_be_reported_is_said(two_runs, tmp_path, capsys):
  assert cli.main(["report", *two_runs]) == 2
  assert "--out is needed: 2 runs share one page" in capsys.readouterr().err
  assert cli.main(["report", two_runs[0], two_runs[0] + "/.", f"--out={tmp_path / 'a.html'}"]) == 2
  assert "given more than once" in capsys.readouterr().err
  assert cli.main(["report", *two_runs, str(tmp_path), f"--out={tmp_path / 'a.html'}"]) == 2
  assert "config.json: missing" in capsys.readouterr().err
  assert not (tmp_path / "a.html").exists()
