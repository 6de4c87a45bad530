import base64
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from bs4 import BeautifulSoup
from looking import DESKTOP, PHONE, opened, stays_inside
from PIL import Image

from launch.report import Generation, ParameterRow, Report, TrainingExample, render
from launch.report.curves import latest, series, smooth
from launch.report.page import reading
from launch.reporting import slowest_hosts

HOSTILE = "<script>alert(1)</script>"
STEPS, EVERY, LAYERS = 120, 20, (0, 6, 12, 18, 24)


def media(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
  rng = np.random.default_rng(frames)
  ramp = np.linspace(0, 255, width)[None, None, :, None] * np.ones((frames, height, 1, 3))
  return np.clip(ramp + rng.normal(0, 20, ramp.shape), 0, 255).astype(np.uint8)


def flamingo_metrics(gains: dict[str, tuple[float, float]]) -> list[dict]:
  """A run of STEPS steps whose losses fall; `gains` are the final gains over other media and over none."""
  rng = np.random.default_rng(0)
  lines = []
  for step in range(1, STEPS + 1):
    fall = math.exp(-step / 40)
    line = {
      "step": step,
      "loss": 3 + 2 * fall + rng.normal(0, 0.1),
      "learning_rate": 1e-4 * min(1, step / 10),
      "gradient_norm": 1 + rng.exponential(0.3),
      "tokens": 4096 * step,
      "seconds": 2.0 * step,
      "tokens_per_second": 2048 + rng.normal(0, 40),
    }
    for stream, (other, none) in gains.items():
      line |= {f"{kind}/{stream}": 3 + fall + rng.normal(0, 0.15) for kind in ("loss", "text_loss")}
      if step % EVERY == 0 or step == 1:
        line |= {f"heldout/{kind}/{stream}": 3.2 + fall for kind in ("loss", "text_loss")}
        line[f"train/text_loss/{stream}"] = 3.0 + fall
        line[f"visual_gain/{stream}/other_media"] = other * step / STEPS
        line[f"visual_gain/{stream}/no_media"] = none * step / STEPS
        for layer in LAYERS:
          line[f"gates/attention/{layer}"] = 0.01 * (layer + 1) * (1 - fall)
          line[f"gates/feed_forward/{layer}"] = -0.003 * (layer + 3) * (1 - fall)
      if step == 1:
        line |= {f"baseline/heldout/text_loss/{stream}": 3.9, f"baseline/train/text_loss/{stream}": 3.8}
    lines.append(line)
  return lines


def contrastive_metrics() -> list[dict]:
  lines = [{"step": step, "loss": 4.0 / step, "loss/captions": 4.0 / step} for step in range(1, 31)]
  lines[-1]["heldout/loss/captions"] = 0.75
  return lines


def page_example() -> TrainingExample:
  return TrainingExample(
    stream="pages",
    tokens=("<BOS>", "The", " tool", "<image>", " cuts", " the", "<EOC>", "<image>", f" {HOSTILE}", " end", "<EOC>"),
    loss_weights=(0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1),
    media_index=(-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1),
    media=(media(1), media(1, 400, 300)),
  )


def video_example() -> TrainingExample:
  return TrainingExample("videos", ("<image>", " A", " bike"), (0, 1, 1), (0, 0, 0), (media(8),))


def full_report() -> Report:
  metrics = flamingo_metrics({"pages": (-0.08, -0.21), "videos": (0.002, 0.03)})
  metrics[-1] |= {"skipped/pages/picture too small": 17, "skipped/pages/not/readable": 3, "skipped/videos/short": 0}
  return Report(
    title=f"A run {HOSTILE}",
    metrics=metrics,
    examples=(page_example(), video_example()),
    generations=(
      Generation(
        "pages",
        "<image> The tool",
        (media(1),),
        f" is {HOSTILE}",
        f" was {HOSTILE}",
        f" no {HOSTILE}",
        step=120,
        earlier=((40, "at first"), (80, f" then {HOSTILE}")),
      ),
      Generation("videos", "<image>", (media(4),), "", "A bike.", ""),
    ),
    parameters=(ParameterRow("resampler", 300, 0), ParameterRow("language model", 0, 900)),
    config=f"seed: 0\nname: {HOSTILE}",
    streams=("pages", "videos"),
    facts={"steps": "120", "devices": "1 x cpu"},
  )


def nothing() -> Report:
  return Report("Empty", [], (), (), (), "", ("pages",), {})


@pytest.fixture(scope="module")
def html() -> str:
  return render(full_report())


@pytest.fixture(scope="module")
def page(html) -> BeautifulSoup:
  return BeautifulSoup(html, "lxml")


def section_ids(report: Report) -> set[str]:
  return {section["id"] for section in BeautifulSoup(render(report), "lxml").find_all("section")}


def test_nothing_is_loaded_from_outside(page):
  addresses = [tag[name] for tag in page.find_all(True) for name in ("src", "href", "data") if tag.has_attr(name)]
  assert addresses
  assert all(address.startswith(("data:", "#")) for address in addresses)
  assert not page.find_all("link")
  assert not [style for style in page.find_all("style") if "url(" in style.text or "@import" in style.text]
  assert "default-src 'none'" in page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]


def test_text_of_the_run_is_never_markup(html, page):
  assert not [script for script in page.find_all("script") if script.text.strip() == "alert(1)"]
  assert HOSTILE not in html
  shown = page.find("section", id="generations").text
  assert all(f"{word} {HOSTILE}" in shown for word in ("is", "was", "no"))
  assert shown.index("at first") < shown.index(f"then {HOSTILE}") < shown.rindex(f"is {HOSTILE}")
  assert HOSTILE in page.find("section", id="examples").text
  assert HOSTILE in page.find("h1").text
  assert HOSTILE in page.find("pre").text


def test_stream_names_do_not_break_out_of_the_scripts():
  report = dataclasses.replace(nothing(), streams=(HOSTILE,), metrics=flamingo_metrics({HOSTILE: (-0.1, -0.1)}))
  html = render(report)
  assert HOSTILE not in html
  assert "</script><script>alert" not in html


def test_one_picture_a_frame(page):
  pictures = page.find("section", id="examples").find_all("img")
  assert len(pictures) == 1 + 1 + 8
  assert len(page.find("section", id="generations").find_all("img")) == 1 + 4
  assert all(picture["src"].startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for picture in pictures)


def test_large_pictures_are_made_small_and_small_ones_left(page):
  sizes = [picture_size(picture["src"]) for picture in page.find("section", id="examples").find_all("img")[:2]]
  assert sizes == [(64, 48), (120, 160)]


def picture_size(address: str) -> tuple[int, int]:
  return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size


def test_tint_changes_exactly_where_the_medium_changes(page):
  for example, card in zip(full_report().examples, page.select(".example"), strict=True):
    runs = [(int(run["data-slot"]), run.text) for run in card.select(".run")]
    rows = zip(example.media_index, example.tokens, strict=True)
    grouped = itertools.groupby(rows, key=lambda row: row[0])
    assert runs == [(slot, "".join(token for _, token in row)) for slot, row in grouped]
    for run in card.select(".run"):
      assert ("tinted" in run["class"]) == (run["data-slot"] != "-1")
      frame = card.select(".medium")[int(run["data-slot"])]
      assert run["data-slot"] == "-1" or run["class"][-1] == frame["class"][-1]


def test_the_text_of_an_example_is_kept_to_the_letter(page):
  for example, card in zip(full_report().examples, page.select(".example"), strict=True):
    assert card.select_one(".text").text == "".join(example.tokens)


def test_tokens_without_loss_and_special_tokens_are_marked(page):
  card = page.select_one(".example")
  assert [quiet.text for quiet in card.select(".quiet")] == ["<BOS>", "<image>", "<image>", " end"]
  assert [chip.text for chip in card.select(".chip")] == ["<BOS>", "<image>", "<EOC>", "<image>", "<EOC>"]


def test_headline_compares_with_the_frozen_language_model(page):
  rows = [[cell.text.strip() for cell in row.find_all("td")] for row in page.select("#result tbody tr")]
  assert rows[0] == [
    "pages", "3.800", "3.050", "\u22120.750", "3.900", "3.250", "\u22120.650", "\u22120.080", "\u22120.210",
  ]  # fmt: skip
  assert rows[1][-2:] == ["+0.002", "+0.030"]


@pytest.mark.parametrize(
  ("other", "none", "verdict"),
  [
    (-0.1, -0.2, "Looking helps: held-out loss is 0.100 lower than with other examples' media and 0.200 lower"),
    (0.0, -0.2, "Having media helps, but what they show does not: held-out loss is the same as"),
    (-0.1, 0.1, "It tells its own media from others', yet does no better than with none"),
    (0.1, 0.0, "Looking does not help: held-out loss is 0.100 higher"),
    (None, -0.2, "Having media helps: held-out loss is 0.200 lower than with no media."),
    (None, 0.2, "Looking does not help: held-out loss is 0.200 higher than with no media."),
    (-0.2, None, "Looking helps: held-out loss is 0.200 lower than with other examples' media."),
    (0.2, None, "Looking does not help: held-out loss is 0.200 higher than with other examples' media."),
    (math.nan, -0.2, ""),
    (-0.1, -math.inf, ""),
  ],
)
def test_the_reading_follows_the_numbers(other, none, verdict):
  line = {"step": 1, "visual_gain/pages/other_media": other, "visual_gain/pages/no_media": none}
  assert reading([line], "pages").startswith(verdict) and bool(verdict) == bool(reading([line], "pages"))


def test_a_run_that_ended_without_finite_losses_is_shown_as_such():
  report = full_report()
  broken = {name: math.nan if "pages" in name and isinstance(value, float) else value for name, value in
            report.metrics[-1].items()}  # fmt: skip
  broken |= {"visual_gain/pages/no_media": -math.inf, "gates/attention/0": math.inf, "gates/attention/6": math.nan}
  page = BeautifulSoup(render(dataclasses.replace(report, metrics=[*report.metrics[:-1], broken])), "lxml")
  cells = page.select("#result tbody tr")[0].find_all("td")
  assert [cell.text.strip() for cell in cells] == [
    "pages", "3.800", "nan", "+nan", "3.900", "nan", "+nan", "+nan", "\u2212inf",
  ]  # fmt: skip
  assert not any("better" in cell["class"] for cell in cells[1:])
  assert not [words for words in page.select(".readings li") if "pages" in words.text]


def test_a_gain_that_does_not_carry_over_is_said():
  line = {"step": 1}
  for part, loss in (("train", 2.0), ("heldout", 4.0)):
    line |= {f"baseline/{part}/text_loss/pages": 3.0, f"{part}/text_loss/pages": loss}
  assert reading([line], "pages") == "The gain on training text does not carry over to held-out text."
  assert reading([{"step": 1}], "pages") == ""


def test_parameters_are_summed(page):
  total = [cell.text.strip() for cell in page.select("#parameters tr.total td")]
  assert total == ["total", "300", "900", "25.0 %"]


def test_skipped_records_by_cause_and_none_where_none(page):
  rows = [[cell.text.strip() for cell in row.find_all("td")] for row in page.select("#skipped tbody tr")]
  assert rows == [["pages", "17", "picture too small"], ["", "3", "not/readable"], ["videos", "none", ""]]


def test_sections_without_data_are_left_out(page):
  everything = {"result", "curves", "gates", "examples", "generations", "parameters", "skipped", "config"}
  assert {section["id"] for section in page.find_all("section")} == everything
  assert section_ids(nothing()) == set()
  contrastive = dataclasses.replace(nothing(), streams=("captions",), metrics=contrastive_metrics())
  assert section_ids(contrastive) == {"result", "curves", "skipped"}
  assert section_ids(dataclasses.replace(nothing(), missing={"Generations": "no checkpoint"})) == {"missing"}


def test_links_lead_to_the_sections_that_are_there(page):
  assert {link["href"] for link in page.select("nav a")} == {
    f"#{section['id']}" for section in page.find_all("section")
  }


def test_a_contrastive_run_shows_where_its_loss_began_and_ended():
  report = dataclasses.replace(nothing(), streams=("captions",), metrics=contrastive_metrics())
  page = BeautifulSoup(render(report), "lxml")
  assert [cell.text.strip() for cell in page.select("#result td")] == ["captions", "4.000", "0.133", "0.750"]
  assert "frozen LM" not in page.select_one("#curves").text


def test_every_chart_has_its_place_and_bokeh_is_inside(html, page):
  titles = [caption.b.text for caption in page.select(".chart figcaption")]
  assert titles == [
    "pages", "videos", "Whole loss", "Learning rate", "Gradient norm", "Tokens per second",
    "Against other examples' media", "Against no media",
    "At the end, by layer", "Over the steps: attention", "Over the steps: feed forward",
  ]  # fmt: skip
  assert len(page.select(".chart [data-root-id]")) == len(titles)
  assert "Bokeh" in html and "Bokeh" not in render(nothing())


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_is_whole_at_any_width_and_its_slider_smooths(browser, html, tmp_path, size, colours):
  (tmp_path / "report.html").write_text(html)
  differing = """share => {
    const slider = document.getElementById("smoothing");
    slider.value = share;
    slider.dispatchEvent(new Event("input"));
    const found = [...Bokeh.documents[0].all_models].filter(model => model.name === "smoothed");
    return found.filter(({data}) => data.raw.some((value, place) => value !== data.smooth[place])).length;
  }"""
  with opened(browser, tmp_path / "report.html", size, color_scheme=colours) as shown:
    shown.locator(".chart canvas").first.wait_for()
    assert stays_inside(shown, size[0], "article")
    assert [shown.evaluate(differing, share) for share in (0, 5)] == [0, 5]  # two streams, loss, norm, speed
    assert shown.locator("output").inner_text() == "over 5 % of the run"


def test_a_long_run_stays_light():
  lines = [{"step": step, "loss": 1.0, "loss/pages": 1.0} for step in range(1, 30_001)]
  short = render(dataclasses.replace(nothing(), metrics=lines[:1500]))
  long = render(dataclasses.replace(nothing(), metrics=lines))
  assert len(long) - len(short) < 20_000


def test_smoothing_keeps_a_constant_and_steps_over_gaps():
  np.testing.assert_allclose(smooth(np.asarray([2.0, math.nan, 2.0, 2.0])), 2.0)
  assert np.isnan(smooth(np.asarray([math.nan, 1.0]))[0])


def test_series_holds_only_the_lines_that_have_the_metric():
  metrics = [{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": math.nan}, {"step": 4, "a": None}]
  assert series(metrics, "a").steps.tolist() == [1, 3]
  assert math.isnan(latest(metrics, "a")) and latest(metrics[:2], "a") == 1.0
  assert not series(metrics, "b")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"loss_weights": (1,)}, "3 tokens, 1 loss weights, 3 media indices"),
    ({"media_index": (0, 1, 0)}, "attends to media slot 1, but there are 1 slots"),
    ({"media": (np.zeros((1, 4, 4, 3), np.float32),)}, "media slot 0 is float32"),
    ({"media": (np.zeros((4, 4, 3), np.uint8),)}, "takes uint8"),
  ],
)
def test_an_example_that_does_not_fit_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(video_example(), **changes)


def test_the_hosts_that_others_wait_for_are_named_slowest_first():
  lines = [{f"host_seconds/{host}": 1.0 for host in range(12)} for _ in range(4)]
  for line, host in zip(lines, (11, 11, 11, 2), strict=True):
    line[f"host_seconds/{host}"] = 3.0
  shown = slowest_hosts([{}, *lines])  # a first step of a run that had one host then
  assert list(shown)[:2] == ["host 11", "host 2"] and len(shown) == 8
  assert shown["host 11"] == "slowest in 75% of steps; mean 2.500 s, at most 3.000 s"
  assert slowest_hosts([]) == slowest_hosts([{"step": 1}]) == {}
