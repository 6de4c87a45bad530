"""What tests of pages ask a real browser."""

import contextlib
import pathlib
import re

from playwright.sync_api import Browser, Page

DESKTOP, PHONE = (1280, 900), (390, 844)
# The middle pixel of a picture, as the browser has decoded it.
PIXEL = """image => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data.slice(0, 3)];
}"""
# The least contrast (WCAG 2) of any text with what is behind it.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const parts = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => parts(colour).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = part => {
    const colour = getComputedStyle(part).backgroundColor;
    return parts(colour)[3] > 200 || !part.parentElement ? colour : behind(part.parentElement);
  };
  let least = 21;
  for (const part of document.querySelectorAll("body *")) {
    if (![...part.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || part.closest("svg")) continue;
    const [one, other] = [light(getComputedStyle(part).color), light(behind(part))];
    least = Math.min(least, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
  }
  return least;
}"""
BOKEH_SAYS = re.compile(r"\[bokeh .*\] setting log level to")
OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"


@contextlib.contextmanager
def opened(browser: Browser, path: pathlib.Path, size: tuple[int, int] = DESKTOP, **settings):
  """A page of a file with all that is folded laid open; it must ask no network for anything, nor complain."""
  wrong = []
  page = browser.new_page(viewport=dict(width=size[0], height=size[1]), reduced_motion="reduce", **settings)

  def note_request(request):
    if not request.url.startswith((path.as_uri(), "data:")):
      wrong.append(request.url)

  page.on("console", lambda message: BOKEH_SAYS.match(message.text) or wrong.append(message.text))
  page.on("pageerror", lambda error: wrong.append(str(error)))
  page.on("request", note_request)
  page.goto(path.as_uri())
  page.evaluate(OPEN_ALL)
  yield page
  page.close()
  assert wrong == []


def stays_inside(page: Page, width: int, card: str) -> bool:
  """Whether the page is no wider than the window, and nothing sticks out of its cards."""
  sticking_out = f"""[...document.querySelectorAll("{card} *")].filter(part => {{
    const inner = part.getBoundingClientRect(), outer = part.closest("{card}").getBoundingClientRect();
    return inner.width > 1 && (inner.right > outer.right + 1 || inner.left < outer.left - 1);
  }}).length"""
  return page.evaluate("document.documentElement.scrollWidth") == width and page.evaluate(sticking_out) == 0
