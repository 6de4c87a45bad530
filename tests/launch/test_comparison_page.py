"""Two evaluations side by side, in a real browser that is cut off from any network."""

import dataclasses
import io
import itertools
import pathlib

import numpy as np
import pytest
from bs4 import BeautifulSoup
from evaluated import HOSTILE, begin, benchmark, captioned, evaluate, memes, ranks, writes
from looking import CONTRAST, DESKTOP, PHONE, opened, stays_inside
from rich.console import Console

from flamingo_jax.errors import USER_FAULT, UserError
from flamingo_jax.evaluation.predictions import predictions_path, read_predictions, read_scores
from flamingo_jax.evaluation.tasks.example import Example
from launch.cli import main
from launch.report.comparison import EACH_WAY, MOST_SHOWN, compare, compare_evaluations, comparison_table

QUERIES = 80


@dataclasses.dataclass(frozen=True)
class Two:
  """The folders of two evaluations, and the page that compares them."""

  a: pathlib.Path
  b: pathlib.Path
  page: pathlib.Path


def named(queries: tuple[Example, ...]) -> tuple[Example, ...]:
  """Questions whose answer is the colour."""
  return tuple(
    dataclasses.replace(query, question="Which colour?", references=(query.references[1].split()[-1],))
    for query in queries
  )


def colour(right) -> str:
  """Says the right colour to the queries for which `right` is true, by their number, and what is hostile to others."""

  def say(plan, place) -> str:
    query = plan.benchmark.queries[place]
    return query.references[0] if right(place, int(query.id.split("/")[1])) else f"no colour {HOSTILE}"

  return say


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Two:
  """Of 80 questions A alone answers 13, B alone 20, both 7; B was asked two more, and A has two more settings."""
  root = tmp_path_factory.mktemp("compared")
  data, a, b = root / "data", root / "a", root / "b"
  support = named(captioned(data, "train", 8))
  queries = named(captioned(data, "test", QUERIES + 2))
  for folder in (a, b):
    begin(folder)
  asked = dict(split="test", shots=(2,))
  only_a, only_b = (lambda _, number: number % 4 == 0), (lambda _, number: number % 3 == 1)
  evaluate(a, benchmark("msvdqa", queries[:QUERIES], support, **asked), writes(colour(only_a)))
  evaluate(b, benchmark("msvdqa", queries[::-1], support, **asked), writes(colour(only_b), after=" Question: on"))
  evaluate(a, benchmark("msrvttqa", queries[:4], support, **asked), writes(colour(only_a)))
  evaluate(a, benchmark("ivqa", queries[:4], support, **asked), writes(colour(only_a)), finish=False)
  for folder, skill in ((a, 0.2), (b, 2.0)):
    noise = np.random.default_rng(3).normal(size=20)
    shown = benchmark("hateful_memes", memes(data, "memes", 20), split="test_seen", shots=(0,))
    evaluate(folder, shown, ranks(lambda query, s=skill, n=noise: [0.0, s * query.label + n[int(query.id[6:])]]))
  page = compare(str(a), str(b), str(root / "page.html"))
  assert page == root / "page.html"
  return Two(a, b, page)


@pytest.fixture(scope="module")
def page(two) -> BeautifulSoup:
  return BeautifulSoup(two.page.read_text("utf-8"), "lxml")


def right_ones(two: Two) -> tuple[set[str], set[str]]:
  """Of the questions that both have, those that either answers right, by its own scores."""
  found = []
  for folder in (two.a, two.b):
    [result] = [each for each in read_scores(folder) if each["task"] == "msvdqa"]
    lines = read_predictions(predictions_path(folder, result["setting"]))[1]
    own = zip(lines, result["per_example"], strict=True)
    found.append({line["id"] for line, score in own if score == 1 and int(line["id"][5:]) < QUERIES})
  return found[0], found[1]


def ids(cards) -> list[str]:
  return [card.locator("header .id").text_content() for card in cards.all()]


def test_the_table_has_the_numbers_of_both(two, page):
  rows = {
    row.a.text: [" ".join(cell.stripped_strings) for cell in row.find_all("td")] for row in page.select("tbody tr")
  }
  row = rows["msvdqa-2-random-seed0"]
  a, b = ({each["task"]: each for each in read_scores(folder)} for folder in (two.a, two.b))
  right_a, right_b = right_ones(two)
  assert row[2:4] == [f"{100 * side['msvdqa']['score']:.1f}" for side in (a, b)]
  assert row[4] == f"{100 * (len(right_b) - len(right_a)) / QUERIES:+.1f}"
  assert row[6:] == [
    str(len(right_a - right_b)),
    str(len(right_b - right_a)),
    str(len(right_a ^ right_b)),
    str(QUERIES),
  ]
  [compared] = [
    each for each in compare_evaluations(two.a, two.b).settings if each.results[0]["task"] == "hateful_memes"
  ]
  difference = 100 * (b["hateful_memes"]["score"] - a["hateful_memes"]["score"])
  assert rows["hateful_memes-0-random-seed0"][4] == f"{difference:+.1f}"
  low, high = compared.comparison.interval
  said = rows["hateful_memes-0-random-seed0"][5].replace("\N{MINUS SIGN}", "-")
  assert said == f"{100 * low:+.1f} to {100 * high:+.1f}"
  assert 100 * low < difference < 100 * high


def test_what_is_not_compared_is_told(page):
  notes = page.select_one("#settings .notes").text
  assert "Only in A: msrvttqa-2-random-seed0." in notes
  assert "Not finished in A: ivqa-2-random-seed0." in notes
  own = page.select_one("#setting-0 .notes").text
  assert "2 examples are only in B." in own
  assert f"over the {QUERIES} examples that both have" in own


def test_filters_show_what_only_one_got_right(browser, two):
  right_a, right_b = right_ones(two)
  with opened(browser, two.page) as shown:
    section = shown.locator("#setting-0")
    cards = section.locator("article:visible")
    assert cards.count() == MOST_SHOWN
    for label, only in (("only A right", right_a - right_b), ("only B right", right_b - right_a)):
      section.get_by_label(label).check()
      assert EACH_WAY <= len(ids(cards)) < MOST_SHOWN and set(ids(cards)) < only
      assert f"{len(ids(cards))} of {len(only)}" in section.locator("label", has_text=label).inner_text()
    assert shown.locator("#setting-1 article:visible").count() == 20  # each setting has its own filter
    section.get_by_label("all").check()
    assert cards.count() == MOST_SHOWN


def test_the_largest_changes_come_first(page):
  for section in page.select("section[id^=setting-]"):
    changes = [abs(float(b.text.replace("\N{MINUS SIGN}", "-"))) for b in section.select("header > b")]
    assert len(changes) > 5 and changes[0] > 0
    assert all(before >= after for before, after in itertools.pairwise(changes))


def test_both_answers_stand_beside_the_prompt_that_was_the_same(browser, two):
  right_a, _ = right_ones(two)
  with opened(browser, two.page) as shown:
    shown.locator("#setting-0").get_by_label("only A right").check()
    for card in shown.locator("#setting-0 article:visible").all():
      a, b = (card.locator(f".both .{side}") for side in "ab")
      assert card.locator("header .id").text_content() in right_a
      reference = card.locator(".references .text").text_content()
      assert a.locator(".prediction").text_content() == reference
      assert b.locator(".prediction").text_content() == f"no colour {HOSTILE}"
      assert b.locator(".raw .text").text_content() == f" no colour {HOSTILE} Question: on"
      assert [side.locator(".score").text_content() for side in (a, b)] == ["100.0", "0.0"]
      assert card.locator(".prompt").count() == 1 and card.locator(".prompt img").count() == 3


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_is_whole_at_any_width(browser, two, size, colours):
  with opened(browser, two.page, size, color_scheme=colours) as shown:
    assert stays_inside(shown, size[0], "article")
    assert shown.evaluate(CONTRAST) >= 4.5


def test_text_of_data_and_model_is_never_taken_for_markup(browser, two, page):
  assert not page.find_all("script")
  assert HOSTILE not in two.page.read_text("utf-8")
  with opened(browser, two.page, bypass_csp=True) as shown:  # escaping alone has to do
    assert shown.title() == f"{two.a} and {two.b}"
    assert shown.locator("script").count() == 0 and shown.locator("img[src=x]").count() == 0
    assert HOSTILE in shown.locator("#setting-0").inner_text()


def test_a_control_is_held_against_what_it_controls(tmp_path):
  """The two differ in nothing but the control, so that is what is compared; both prompts are shown."""
  data = tmp_path / "data"
  queries, support = captioned(data, "test", 6), captioned(data, "train", 5)
  for name, control in (("a", ""), ("b", "image_blind")):
    begin(tmp_path / name, control)
    evaluate(
      tmp_path / name, benchmark("coco", queries, support, shots=(2, 4)), writes(lambda *_: "a"), control=control
    )
  compared = compare_evaluations(tmp_path / "a", tmp_path / "b")
  assert compared.notes == ("No settings agree in all; these agree in all but control: none in A, image_blind in B.",)
  assert [len(setting.shown[0].prompts) for setting in compared.settings] == [2, 2]
  seeing, blind = compared.settings[1].shown[0].prompts
  assert [len(shot.media) for shot in (*seeing.shots, seeing.query)] == [1] * 5
  assert not any(shot.media for shot in (*blind.shots, blind.query))
  assert [shot.text for shot in seeing.shots] == [shot.text for shot in blind.shots]


def test_an_evaluation_is_the_same_as_itself(two):
  compared = compare_evaluations(two.a, two.a)
  assert len(compared.settings) == len(read_scores(two.a))
  for setting in compared.settings:
    assert setting.comparison.difference == 0 and setting.comparison.interval == (0, 0)
    assert not setting.comparison.differing.any()


def test_the_terminal_has_the_same_numbers(two, page):
  file = io.StringIO()
  Console(width=120, file=file).print(comparison_table(compare_evaluations(two.a, two.b)))
  printed = file.getvalue()
  for row in page.select("tbody tr"):
    name, _, *scores, difference, interval = [" ".join(cell.stripped_strings) for cell in row.find_all("td")][:6]
    [line] = [line for line in printed.splitlines() if name in line]
    assert all(figure in line for figure in (*scores, difference, interval))
  assert "33/80" in printed


def test_the_command_prints_the_table_and_writes_the_page(two, tmp_path, capsys):
  out = tmp_path / "page.html"
  assert main(["evaluate", "--compare", str(two.a), str(two.b), f"--out={out}"]) == 0
  printed = capsys.readouterr().out
  assert "Only in A: msrvttqa-2-random-seed0." in printed and str(out) in printed
  assert out.read_bytes() == two.page.read_bytes()


def test_evaluations_without_a_common_setting_are_named(two, tmp_path, capsys):
  begin(tmp_path)
  queries = captioned(tmp_path / "data", "test", 3)
  evaluate(tmp_path, benchmark("coco", queries, queries, shots=(1,)), writes(lambda *_: "a"))
  with pytest.raises(UserError, match="no setting in common") as fault:
    compare_evaluations(two.a, tmp_path)
  assert f"{tmp_path}: coco-1-random-seed0" in str(fault.value)
  assert f"{two.a}: msvdqa-2-random-seed0, msrvttqa-2-random-seed0, hateful_memes-0-random-seed0" in str(fault.value)
  assert main(["evaluate", "--compare", str(two.a), str(tmp_path / "nothing")]) == USER_FAULT
  assert "nothing: no evaluation is there" in capsys.readouterr().err
