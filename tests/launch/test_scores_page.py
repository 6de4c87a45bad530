"""The page of an evaluation, in a real browser that is cut off from any network."""

import itertools
import json
import math
import pathlib
import statistics

import numpy as np
import pytest
from bs4 import BeautifulSoup
from evaluated import (
  COLOURS,
  HOSTILE,
  actions,
  begin,
  benchmark,
  captioned,
  evaluate,
  memes,
  ranks,
  without_answers,
  writes,
)
from hypothesis import given
from hypothesis import strategies as st
from looking import CONTRAST, DESKTOP, PHONE, PIXEL, opened, stays_inside

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.predictions import predictions_path, read_predictions, read_scores
from flamingo_jax.evaluation.prompts import EndOfChunk, Medium, Text, written
from flamingo_jax.evaluation.published import FLAMINGO_9B, OPENFLAMINGO_9B
from launch.report.examples import MOST_SHOTS, prompt_pieces
from launch.report.score_chart import BOTTOM, HEIGHT, TOP, WIDTH, Line, score_chart, ticks
from launch.report.scores import picked, write_scores_page

WORDS = "a wall \ud83d"  # half a pair of surrogates cannot be stored


def caption(plan, place) -> str:
  """Right for some; the more shots, the more; blind it is never right."""
  query, setting = plan.benchmark.queries[place], plan.setting
  if setting.control == "image_blind":
    return "a wall"
  right = (place + setting.seed) % 5 <= setting.shots
  return query.references[0] if right else [HOSTILE, WORDS, "nothing alike", ""][place % 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("scores")
  out, data = root / "evaluation", root / "data"
  begin(out)
  support, queries = captioned(data, "train", 24, f"a {{colour}} wall {HOSTILE}"), captioned(data, "test", 12)
  several = benchmark("coco", queries, support, shots=(0, 2, 12), seeds=(0, 1, 2))
  evaluate(out, several, writes(caption, after="Output: and on"))
  for control in ("image_blind", "shuffled_shots"):
    evaluate(out, benchmark("coco", queries, support, shots=(2,)), writes(caption), control=control)
  hateful = benchmark(
    "memes",
    memes(data, "test", 12),
    memes(data, "train", 6),
    task="hateful_memes",
    split="dev_seen",
    shots=(4,),
    orders=2,
  )
  evaluate(out, hateful, ranks(lambda query: [0.0, query.label - (len(query.id) % 2) * 1.5]))
  rareact = benchmark("rareact", actions(data / "films", 6), split="all", shots=(0,), absent=3)
  evaluate(out, rareact, ranks(lambda query: [0.0, float(query.label)]))
  hidden = benchmark("vqav2", without_answers(queries), support, split="test-dev", shots=(2,))
  evaluate(out, hidden, writes(lambda plan, place: "grey"))
  evaluate(out, benchmark("flickr30k", queries, support, shots=(2,)), writes(caption), finish=False)
  (data / "test" / "3.jpg").unlink()
  (data / "test" / "1.jpg").write_bytes(b"no picture")
  return out


@pytest.fixture(scope="module")
def report(folder) -> pathlib.Path:
  assert write_scores_page(folder) == folder / "report.html"
  return folder / "report.html"


@pytest.fixture(scope="module")
def page(report) -> BeautifulSoup:
  return BeautifulSoup(report.read_text("utf-8"), "lxml")


def section(page: BeautifulSoup, name: str):
  [found] = [each for each in page.find_all("section") if each.h2 and each.h2.text.split()[0] == name]
  return found


def cells(found) -> list[list[str]]:
  return [[" ".join(cell.stripped_strings) for cell in row.find_all("td")] for row in found.select("tbody tr")]


def scores_of(folder, **fields) -> list[dict]:
  return [each for each in read_scores(folder) if fields.items() <= each.items()]


def test_of_several_seeds_mean_spread_and_each_are_shown(folder, page):
  [row] = [row for row in cells(section(page, "coco")) if row[0] == "2" and not row[2]]
  found = [100 * each["score"] for each in scores_of(folder, benchmark="coco", shots=2, control="")]
  assert len(found) == 3 and len(set(found)) > 1
  assert row[3] == f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"
  each = [f"seed {seed}: {score:.1f}" for seed, score in enumerate(found)]
  assert all(words in row[4] for words in each)
  first = scores_of(folder, benchmark="coco", shots=2, control="", seed=0)[0]
  assert f"{100 * first['low']:.1f} to {100 * first['high']:.1f}" in row[4]


def test_published_figures_stand_beside_and_are_called_so(page):
  found = section(page, "coco")
  heads = [" ".join(head.stripped_strings) for head in found.select("thead th")]
  row = next(row for row in cells(found) if row[0] == "0")
  for model, figures in (("Flamingo 9B", FLAMINGO_9B), ("OpenFlamingo 9B", OPENFLAMINGO_9B)):
    of_model = heads[3:].index(model)  # the first three head groups of columns
    assert row[of_model] == f"{figures['coco'][0]:.1f}"
  assert "published, not run here" in heads
  assert "are of the split test_seen" in section(page, "memes").text  # ours are of dev_seen
  assert "published" not in section(page, "vqav2").text  # nothing of ours is known to hold against it


def test_controls_have_rows_with_what_they_changed(folder, page):
  [plain] = scores_of(folder, benchmark="coco", shots=2, control="", seed=0)
  rows = {row[2]: row for row in cells(section(page, "coco")) if row[2]}
  assert set(rows) == {"image blind", "shuffled shots"}
  for control, row in rows.items():
    [blind] = scores_of(folder, benchmark="coco", control=control.replace(" ", "_"))
    change = 100 * (np.mean(blind["per_example"]) - np.mean(plain["per_example"]))
    assert row[5].replace("\N{MINUS SIGN}", "-").split()[0] == f"{change:+.1f}"
  assert rows["image blind"][3] == f"{100 * scores_of(folder, control='image_blind')[0]['score']:.1f}"


def test_what_has_no_score_is_said(page):
  [row] = cells(section(page, "vqav2"))
  assert row[:4] == ["2", "at random", "", "answers kept back"]
  assert "flickr30k-2-random-seed0" in page.find(id="unfinished").text
  assert "6 examples (3 without their film left out)" in section(page, "rareact").text


def test_the_gallery_has_the_best_and_the_worst(folder, page):
  result = scores_of(folder, benchmark="coco", shots=0, seed=0)[0]
  lines = read_predictions(predictions_path(folder, result["setting"]))[1]
  own = {line["id"]: score for line, score in zip(lines, result["per_example"], strict=True)}
  cards = section(page, "coco").select_one("details.gallery").select("article")
  shown = [(card.header.b.text, card.header.span.text, card.select_one(".score").text) for card in cards]
  assert [why for why, _, _ in shown] == ["best"] * 2 + ["worst"] * 2 + ["at random"] * 2
  assert len({name for _, name, _ in shown}) == 6
  assert all(score == f"{100 * own[name]:.1f}" for _, name, score in shown)
  ranked = sorted(own.values())
  assert sorted(own[name] for why, name, _ in shown if why == "best") == ranked[-2:]
  assert sorted(own[name] for why, name, _ in shown if why == "worst") == ranked[:2]


def test_prompts_and_answers_are_kept_to_the_letter(folder, page):
  """In the page each marker is drawn as one and text is text, a caption that spells a marker included."""
  for details in section(page, "coco").select("details.gallery"):
    for card in details.select("article"):
      [found] = [
        line
        for result in scores_of(folder, benchmark="coco")
        if details.summary.text.strip().startswith(summary(result))
        for line in read_predictions(predictions_path(folder, result["setting"]))[1]
        if line["id"] == card.header.span.text
      ]
      assert card.select_one(".whole .text").text == found["prompt"]
      assert len(card.select(".whole .chip")) == found["prompt"].count("<EOC>") + len(found["media"])
      shown = storable(found["prediction"])
      assert card.select_one(".prediction").text == (shown or "(nothing)")
      raw = card.select_one(".raw .text")
      assert (raw.text if raw else f" {shown}") == storable(found["raw"])


def summary(result: dict) -> str:
  chosen = f"{result['shots']} shots" + " at random" * (result["shots"] > 0)
  control = f", {result['control'].replace('_', ' ')}" if result["control"] else f"{result['metric']}"
  return f"{chosen}, seed {result['seed']}{control}"


def storable(text: str) -> str:
  return text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_is_whole_at_any_width(browser, report, size, colours):
  with opened(browser, report, size, color_scheme=colours) as shown:
    assert stays_inside(shown, size[0], "article")
    assert shown.evaluate(CONTRAST) >= 4.5
    assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_pictures_stand_with_the_words_that_name_them(browser, report):
  with opened(browser, report) as shown:
    looked_at = set()
    for figure in shown.locator("#benchmark-0 figure.shot:has(img)").all()[:40]:
      red_green_blue = figure.locator("img").evaluate(PIXEL)
      seen = min(COLOURS, key=lambda name: np.abs(np.subtract(COLOURS[name], red_green_blue)).sum())
      words = figure.locator("figcaption").text_content()
      assert words == f"Output: a {seen} wall {HOSTILE}"
      looked_at.add(seen)
    assert looked_at == set(COLOURS)


def test_of_films_the_middle_of_the_clip_is_shown(browser, report):
  """The film is red, green and blue for a second each; the clip of number n is its second n modulo 3."""
  with opened(browser, report) as shown:
    cards = shown.locator("section:has(h2:text('rareact')) article").all()
    assert len(cards) == 6
    for card in cards:
      second = int(card.locator("header .id").text_content().removeprefix("clip-")) % 3
      expected = list(COLOURS.values())[second]
      assert np.abs(np.subtract(card.locator(".film img").evaluate(PIXEL), expected)).max() < 40


def test_media_that_are_gone_or_broken_leave_a_box_that_says_so(page):
  boxes = {box.b.text: box.text for box in page.select(".gone")}
  assert "the file is not there" in boxes["3.jpg"]
  assert "broken image" in boxes["1.jpg"]


def test_of_many_shots_the_last_are_shown_and_all_are_told(page):
  [card, *_] = [
    details.article for details in section(page, "coco").select("details.gallery") if "12 shots" in details.summary.text
  ]
  assert len(card.select("figure.shot")) == MOST_SHOTS
  assert card.select_one(".unseen").text == f"{12 - MOST_SHOTS} more shots before these"


def test_ranked_candidates_are_shown_with_their_likelihoods(page):
  found = section(page, "memes")
  for card in found.select("article"):
    rows = [list(row.stripped_strings) for row in card.select(".candidates li")]
    assert [row[0] for row in rows] == ["1", "2"] and float(rows[0][-1]) >= float(rows[1][-1])
    assert rows[0][1] == card.select_one(".prediction").text
    assert [row[1] for row in rows if "label" in row] == [card.select_one(".references .text").text]
  assert "the first of 2 orders" in found.select_one(".whole summary").text


def test_text_of_data_and_model_is_never_taken_for_markup(browser, report, page):
  assert not page.find_all("script") and not page.find_all("link", rel="stylesheet")
  assert HOSTILE not in report.read_text("utf-8")
  assert "default-src 'none'" in page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
  with opened(browser, report, bypass_csp=True) as shown:  # escaping alone has to do
    assert shown.title().startswith("Evaluation: ")
    assert shown.locator("script").count() == 0 and shown.locator("img[src=x]").count() == 0
    assert HOSTILE in shown.locator("#benchmark-0").inner_text()
    assert json.loads(shown.locator("#config pre").inner_text())["note"] == HOSTILE


def test_links_lead_to_what_is_there(page):
  assert [link.text for link in page.select("nav a")] == ["coco", "memes", "rareact", "vqav2", "Config"]
  assert all(page.find(id=link["href"][1:]) for link in page.select("nav a"))


def test_points_of_the_chart_are_where_their_scores_are():
  lines = [
    Line("ours", "red", False, {0: [(20.0, 10.0, 30.0)], 4: [(40.0, None, None), (60.0, 50.0, 70.0)]}),
    Line("blind", "blue", True, {4: [(20.0, None, None)]}),
  ]
  found = score_chart(lines, {"theirs": {0: 30.0, 32: 80.0}})
  heights = {float(label): y for y, label in found.y_ticks}
  (low, y_low), *_, (high, y_high) = sorted(heights.items())

  def score(y: float) -> float:
    return low + (y - y_low) / (y_high - y_low) * (high - low)

  ours, blind = found.lines
  assert [score(y) for _, y, _ in ours.points] == pytest.approx([20, 50])  # of two seeds the mean
  assert [(score(a), score(b)) for _, a, b in ours.whiskers] == [pytest.approx((10, 30)), pytest.approx((50, 70))]
  assert [score(y) for _, y, _ in blind.points] == pytest.approx([20]) and blind.whiskers == ()
  places = dict(zip(("0", "4", "32"), (x for x, _ in found.x_ticks), strict=True))
  assert ours.points[1][0] == blind.points[0][0] == places["4"]
  assert (places["4"] - places["0"]) / (places["32"] - places["0"]) == pytest.approx(math.log(5) / math.log(33))
  assert all(0 < x < WIDTH and TOP <= y <= HEIGHT - BOTTOM for line in found.lines for x, y, _ in line.points)


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=6), st.integers(0, 32))
def test_names_beside_lines_never_cover_each_other(ends, shots):
  found = score_chart([Line("ours", "red", False, {shots: [(50.0, None, None)]})], {str(e): {8: e} for e in ends})
  ys = [name.y for name in found.names]
  assert all(below - above >= 13 - 1e-9 for above, below in itertools.pairwise(ys))
  assert all(TOP <= y <= HEIGHT - BOTTOM for y in ys)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_round_and_inside(low, width):
  found = ticks(low, low + width)
  assert 2 <= len(found) <= 6
  assert low - 1e-9 <= found[0] and found[-1] <= low + width + 1e-9
  digits = f"{found[1] - found[0]:.3e}"
  assert float(digits.split("e")[0]) in (1, 2, 5)


@given(st.lists(st.just(Medium("a")) | st.just(EndOfChunk()) | st.builds(Text, st.text(alphabet="<>\\imageEOC x"))))
def test_a_written_prompt_is_read_back_to_the_letter(prompt):
  found = list(prompt_pieces(written(tuple(prompt))))
  markers = [piece for piece in prompt if not isinstance(piece, Text)]
  assert [piece.text == "<image>" for piece in found if piece.special] == [isinstance(each, Medium) for each in markers]
  assert "".join(piece.text for piece in found if not piece.special) == "".join(
    piece.text for piece in prompt if isinstance(piece, Text)
  )


def test_examples_without_a_best_are_drawn_at_random():
  assert {why for why, _ in picked(None, 20)} == {why for why, _ in picked(np.ones(20), 20)} == {"at random"}
  assert sorted(place for _, place in picked(None, 3)) == [0, 1, 2]
  assert sorted(place for _, place in picked(np.array([0.0, 1.0, 0.0]), 3)) == [0, 1, 2]


def test_folders_without_an_evaluation_are_named(tmp_path, folder):
  with pytest.raises(UserError, match="no evaluation is there"):
    write_scores_page(tmp_path / "nowhere")
  (tmp_path / "config.json").write_text('{"seed": 0}')
  with pytest.raises(UserError, match="names no checkpoint"):
    write_scores_page(tmp_path)
  begin(tmp_path)
  queries = captioned(tmp_path / "data", "test", 3)
  evaluate(tmp_path, benchmark("coco", queries, queries, shots=(1,)), writes(caption), finish=False)
  with pytest.raises(UserError, match=r"none of its settings is finished \(coco-1-random-seed0\)"):
    write_scores_page(tmp_path)


def test_damaged_files_are_named(tmp_path):
  begin(tmp_path)
  queries = captioned(tmp_path / "data", "test", 3)
  evaluate(tmp_path, benchmark("coco", queries, queries, shots=(1,)), writes(caption))
  path = predictions_path(tmp_path, "coco-1-random-seed0")
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:-1]))
  with pytest.raises(UserError, match="scores of 3 examples, but there are 2 predictions"):
    write_scores_page(tmp_path)
  path.write_text("".join([*lines[:-1], '{"id": "test/2"}\n']))
  with pytest.raises(UserError, match=r"coco-1-random-seed0\.jsonl, line 4: lacks prompt"):
    write_scores_page(tmp_path)
  [score] = read_scores(tmp_path)
  del score["metric"]
  (tmp_path / "scores.json").write_text(json.dumps([score]))
  with pytest.raises(UserError, match="entry 0 lacks metric"):
    write_scores_page(tmp_path)
