"""The gallery, in a real browser that is cut off from any network."""

import re

import numpy as np
import pytest
from colours import COLOURS
from playwright.sync_api import Page, expect

from flamingo_jax.errors import USER_FAULT
from launch.cli import main
from launch.config import load_config
from launch.experiment import read_experiment

ROWS = 40
DESKTOP, PHONE = (1280, 900), (390, 844)
# The middle pixel of a figure's picture, as the browser has decoded it.
PIXEL = """figure => {
  const image = figure.querySelector("img"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data.slice(0, 3)];
}"""


@pytest.fixture(scope="module")
def gallery(small_data, tmp_path_factory):
  path = tmp_path_factory.mktemp("gallery") / "inspect.html"
  assert main(["data", "inspect", f"--config={small_data.config}", f"--rows={ROWS}", f"--output={path}"]) == 0
  return path


@pytest.fixture
def opened(browser, gallery):
  """Opens the page at a size. Afterwards, nothing must have gone wrong or been asked of a network."""
  pages, wrong = [], []

  def note_request(request):
    if not request.url.startswith((gallery.as_uri(), "data:")):
      wrong.append(request.url)

  def at(size: tuple[int, int], **settings) -> Page:
    page = browser.new_page(viewport=dict(width=size[0], height=size[1]), reduced_motion="reduce", **settings)
    pages.append(page)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", note_request)
    page.goto(gallery.as_uri())
    return page

  yield at
  for page in pages:
    page.close()
  assert wrong == []


def colour_of(page: Page, card, slot: str) -> str:
  red_green_blue = card.locator(f'.medium[data-slot="{slot}"]').evaluate(PIXEL)
  return min(COLOURS, key=lambda name: np.abs(np.subtract(COLOURS[name], red_green_blue)).sum())


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_is_whole_at_any_width(opened, size, colours):
  page = opened(size, color_scheme=colours)
  assert page.locator("article.row").count() == 3 * ROWS
  assert page.evaluate("document.documentElement.scrollWidth") == size[0]
  widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
  assert len(widths) > 3 * ROWS and min(widths) > 0
  cut = """[...document.querySelectorAll("article.row *")].filter(part => {
    const inner = part.getBoundingClientRect(), outer = part.closest("article").getBoundingClientRect();
    return inner.width > 1 && (inner.right > outer.right + 1 || inner.left < outer.left - 1);
  }).length"""
  assert page.evaluate(cut) == 0


def test_text_lights_the_medium_that_it_sees(opened):
  """The pictures tell by their colour whether it is the right one: the text's own, or with `next` the one after it."""
  page = opened(DESKTOP)
  looked_at = set()
  for card in page.locator("#stream-1 article.row").all():  # captions, pages, videos
    if "pages/0" not in card.inner_text():
      continue
    follows = "see the next" in card.locator("header").inner_text()
    for run in card.locator(".run.tinted").all():
      named = [name for name in COLOURS if f"this is {name}" in run.inner_text()]
      if not named:
        continue
      run.hover()
      expect(card).to_have_class(re.compile("lighting"))
      [lit] = card.locator(".medium.lit").all()
      expected = list(COLOURS)[list(COLOURS).index(named[0]) + follows]
      assert colour_of(page, card, lit.get_attribute("data-slot")) == expected
      assert lit.evaluate("figure => getComputedStyle(figure).opacity") == "1"
      others = card.locator(".medium:not(.lit)")
      assert others.evaluate_all("all => all.every(figure => getComputedStyle(figure).opacity < 0.5)")
      looked_at.add((named[0], follows))
  assert {follows for _, follows in looked_at} == {False, True}


def test_captions_packed_in_a_row_see_their_own_pictures(opened):
  page = opened(DESKTOP)
  for card in page.locator("#stream-0 article.row").all():
    documents = card.locator(".document").all()
    assert len(documents) == 3
    for document in documents:
      run = document.locator(".run.tinted")
      [named] = [name for name in COLOURS if f"this is {name}" in run.inner_text()]
      assert colour_of(page, card, run.get_attribute("data-slot")) == named


def test_the_keyboard_does_what_hovering_does(opened):
  page = opened(DESKTOP)
  card = page.locator("#stream-2 article.row").first
  card.locator(".medium").focus()
  expect(card.locator(".run.lit")).to_have_count(1)
  page.keyboard.press("Tab")
  expect(card.locator(".run.tinted")).to_be_focused()
  expect(card.locator(".medium.lit")).to_have_count(1)
  described = card.locator(".run.tinted").get_attribute("aria-describedby")
  assert page.locator(f"#{described}").inner_text().split()[-4:] == ["0", "video,", "4", "frames"]
  page.mouse.click(5, 5)
  expect(card.locator(".lit")).to_have_count(0)


def test_what_was_skipped_is_named_where_it_is_missing(opened):
  page = opened(DESKTOP)
  cards = [card for card in page.locator("#stream-1 article.row").all() if "pages/1" in card.inner_text()]
  assert cards
  for card in cards:
    assert "skipped: broken_image" in card.locator('.medium[data-slot="1"]').inner_text()
    assert card.locator('.medium[data-slot="0"] img').count() == 1


def test_text_of_the_data_is_never_taken_for_markup(opened):
  page = opened(DESKTOP)
  assert page.title().startswith("What the model sees")
  assert "<script>document.title = 'taken'</script>" in page.locator("#stream-1").inner_text()


def test_the_numbers_are_those_of_the_batches(opened, small_data):
  page = opened(DESKTOP)
  experiment = read_experiment(load_config(str(small_data.config), {}), "config.py")
  for number, (_, stream) in enumerate(experiment.streams("train", training=True).items()):
    rows = []
    for _, batch in zip(range(3), stream.batches(), strict=False):
      rows += list(zip(batch["segments"], batch["loss_weights"], strict=True))
    for card, (segments, weights) in zip(page.locator(f"#stream-{number} article.row").all(), rows, strict=False):
      said = [int(word) for word in re.findall(r"\d+", card.locator("svg").get_attribute("aria-label"))]
      assert said == [(segments > 0).sum(), len(segments), (weights > 0).sum(), segments.max()]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--stream=audio"], "--stream is 'audio'; .* has captions, pages, videos"),
    (["--rows=0"], "--rows is 0; it is at least 1"),
    (["--step=0"], "--step is 0; the first step is 1"),
    ([f"--step={10**20 - 1}"], "--step is 9{20}; .* and the last 2147483647"),
    (["--output=/nowhere/at/all.html"], "/nowhere/at/all.html: the page cannot be written"),
    (["--config.streams.pages.source=/nowhere"], "/nowhere/train does not exist"),
  ],
)
def test_what_is_asked_wrongly_is_said_in_one_message(small_data, capsys, arguments, message):
  assert main(["data", "inspect", f"--config={small_data.config}", *arguments]) == USER_FAULT
  assert re.search(message, capsys.readouterr().err)
