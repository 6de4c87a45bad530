"""The page of `flamingo demo`, served as the command does and used in a real browser that may ask nobody else."""

import base64
import mimetypes
import os
import re
import socket

import jax
import numpy as np
import pytest
from evaluated import film
from finished import STEP, write_run
from looking import CONTRAST, DESKTOP, PHONE, stays_inside
from PIL import Image
from playwright.sync_api import Page, expect

from flamingo_jax.errors import USER_FAULT
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.sampling import GREEDY, Sampling
from launch.cli import main
from launch.config import load_config
from launch.demo.page import serving
from launch.generate import continue_prompt

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
TEXTS = ("Output: one", "Output: two", "Output:")
LONG = "Here are a still picture and a film of three seconds; tell us what colours you see in it."
NEW = 8


@pytest.fixture(scope="module", autouse=True)
def few_optimizations():
  """These programs run for microseconds, so it is their compilation that should be short."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def run(quickstart_data, tmp_path_factory):
  """A tiny model whose gates are open, so that pictures count; of five layers, with which its words vary."""
  config = load_config("configs/tiny.py", {"model.language.layers": "5"})
  config["tokenizer"]["path"] = str(quickstart_data / "language_model")
  return write_run(tmp_path_factory.mktemp("run"), config)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Three pictures as JPEGs, a film, and two files that are not what they are called."""
  folder = tmp_path_factory.mktemp("files")
  for number, name in enumerate(("one.jpg", "two.jpg", "three.jpg")):
    rough = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(rough).resize((320, 240), Image.Resampling.BICUBIC).save(folder / name, "JPEG")
  film(folder / "film.mp4")
  (folder / "notes.jpg").write_text("milk, bread, butter\n" * 9)
  Image.effect_noise((90, 90), 60).save(folder / "cut.png")
  (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:4000])
  return folder


@pytest.fixture(scope="module")
def address(run):
  with serving(str(run), "127.0.0.1", free_port()) as address:
    yield address


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


@pytest.fixture
def opened(browser, address):
  """Opens the page at a size. Afterwards nothing must have been asked of anybody else, nor have gone wrong."""
  pages, wrong = [], []

  def at(size=DESKTOP, **settings) -> Page:
    page = browser.new_page(viewport=dict(width=size[0], height=size[1]), reduced_motion="reduce", **settings)
    pages.append(page)
    page.on("request", lambda request: wrong.append(request.url) if not own(request.url) else None)
    page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.locator(".drop").wait_for()
    return page

  def own(url: str) -> bool:
    return url.startswith((address, "data:", "blob:"))

  yield at
  for page in pages:
    assert page.title().startswith("Flamingo")
    page.close()
  assert wrong == []


def choose(page: Page, paths) -> None:
  """Gives files by the page's own chooser."""
  page.locator(".drop input").set_input_files(paths)


def let_fall(page: Page, paths) -> None:
  """Drops files on the page, as from a folder's window."""
  files = [
    (path.name, mimetypes.guess_type(path)[0] or "", base64.b64encode(path.read_bytes()).decode()) for path in paths
  ]
  carried = page.evaluate_handle(
    """files => {
      const carried = new DataTransfer();
      for (const [name, type, text] of files)
        carried.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name, {type}));
      return carried;
    }""",
    files,
  )
  page.locator(".drop").dispatch_event("dragover", {"dataTransfer": carried})
  expect(page.locator(".drop.over")).to_have_count(1)
  page.locator(".drop").dispatch_event("drop", {"dataTransfer": carried})
  expect(page.locator(".drop.over")).to_have_count(0)


def drop(page: Page, files, *names: str, give=let_fall) -> None:
  """Gives files and waits until each is shown or refused."""
  before = page.locator(".part, .faults .fault").count()
  give(page, [files / name for name in names])
  expect(page.locator(".part, .faults .fault")).to_have_count(before + len(names))
  expect(page.locator(".reading")).to_have_count(0)


def fill(page: Page, *texts: str) -> None:
  for place, text in enumerate(texts):
    page.locator(".words").nth(place).fill(text)


def names(page: Page) -> list[str]:
  return page.locator(".part figcaption").all_inner_texts()


def written(page: Page) -> str:
  """What the model writes after the prompt on the page."""
  page.get_by_label("number input for New tokens, at most").fill(str(NEW))
  page.get_by_label("number input for New tokens, at most").press("Tab")
  page.evaluate("document.querySelector('.answer .status').textContent = 'not yet'")
  page.locator("#write").click()
  expect(page.locator(".answer.done .status")).to_contain_text(" s. ", timeout=90_000)
  return page.locator(".answer .text").inner_text()


def generated(run, files, order, texts=TEXTS, how=GREEDY, seed=0) -> str:
  """What `flamingo generate` prints for the same prompt."""
  prompt = "<EOC>".join(f"<image>{text}" for text in texts)
  return continue_prompt(str(run), prompt, [str(files / name) for name in order], NEW, how, seed)


def test_a_prompt_of_two_shots_is_answered_as_generate_answers_it(opened, run, files):
  """In the order that parts have been moved to, by dragging and by buttons, one of them removed."""
  page = opened()
  drop(page, files, "three.jpg", "two.jpg", "two.jpg", "one.jpg")
  page.locator(".part").nth(1).get_by_label("Remove").click()
  page.locator(".part").nth(2).locator(".grip").drag_to(page.locator(".part").nth(0))
  assert names(page) == ["one.jpg", "three.jpg", "two.jpg"]
  page.locator(".part").nth(1).get_by_label("Move down").click()
  order = names(page)
  assert order == ["one.jpg", "two.jpg", "three.jpg"]
  fill(page, *TEXTS)
  expected = generated(run, files, order)
  assert written(page) == expected
  assert expected not in ("", generated(run, files, order[::-1]))
  runs = page.locator("#sight .run.tinted")
  assert runs.evaluate_all("runs => runs.map(run => run.dataset.slot)") == ["0", "1", "2"]
  assert runs.nth(1).inner_text() == "<image>Output: two<EOC>"
  assert runs.nth(2).inner_text().endswith(expected)
  assert page.locator("#sight .run:not(.tinted)").all_inner_texts() == ["<BOS>"]
  runs.nth(1).hover()
  assert page.locator(".lit").evaluate_all("parts => parts.map(part => part.dataset.slot)") == ["1"] * 3


def test_a_video_and_text_alone_are_answered_as_generate_answers_them(opened, run, files):
  page = opened()
  page.get_by_text("Add text alone").click()
  drop(page, files, "two.jpg", "film.mp4", give=choose)
  expect(page.locator(".part.film img")).to_have_count(4)
  fill(page, LONG, *TEXTS[1:])
  page.locator(".part").nth(0).get_by_text("<EOC>").click()  # the first picture belongs to the text
  answer = written(page)
  prompt = f"{LONG}<image>{TEXTS[1]}<EOC><image>{TEXTS[2]}"
  assert answer == continue_prompt(str(run), prompt, [str(files / "two.jpg"), str(files / "film.mp4")], NEW) != ""
  assert page.locator("#sight .run:not(.tinted)").all_inner_texts() == [f"<BOS>{LONG}"]
  assert page.locator("#sight .thumb").nth(1).locator("img").count() == 4


def test_draws_and_beams_are_those_of_generate(opened, run, files):
  page = opened()
  drop(page, files, "two.jpg")
  fill(page, LONG)
  expect(page.get_by_label("number input for Temperature")).to_be_hidden()
  page.get_by_label("Sampling").check()
  page.get_by_label("number input for Temperature").fill("1.3")
  page.get_by_label("Top-k (0: all)").fill("40")
  page.get_by_label("Seed").fill("7")
  assert written(page) == generated(run, files, ["two.jpg"], [LONG], Sampling(1.3, 40, 0.9), 7)
  page.get_by_label("Beam search").check()
  expect(page.get_by_label("number input for Temperature")).to_be_hidden()
  page.get_by_label("number input for Length penalty").fill("0.5")
  assert written(page) == generated(run, files, ["two.jpg"], [LONG], Beams(3, 0.5))


def test_bad_uploads_are_refused_in_the_page_and_the_good_ones_stay(opened, files):
  page = opened()
  drop(page, files, "notes.jpg", "one.jpg", "cut.png")
  faults = sorted(page.locator(".faults .fault").all_inner_texts())
  assert faults[0].startswith("cut.png: is a damaged picture (") and "Give the whole file." in faults[0]
  assert faults[1].startswith("notes.jpg: holds text, not a picture. Give a JPEG, PNG")
  assert names(page) == ["one.jpg"]
  assert "Traceback" not in page.content()


def test_a_card_that_is_removed_while_it_is_sent_leaves_the_others(opened, files):
  page, held = opened(), []
  drop(page, files, "one.jpg")
  page.route(re.compile("/upload"), lambda route: held.append(route), times=1)
  choose(page, [files / "notes.jpg"])
  expect(page.locator(".reading")).to_have_count(1)
  page.locator(".reading").get_by_label("Remove").click()
  with page.expect_response(re.compile("/component_server")) as looked_at:
    held[0].continue_()
  looked_at.value.finished()
  drop(page, files, "two.jpg")
  assert names(page) == ["one.jpg", "two.jpg"]
  assert page.locator(".faults .fault").count() == 0


def test_a_number_that_no_device_holds_is_told_where_the_answer_would_be(opened, files):
  page = opened()
  drop(page, files, "one.jpg")
  page.get_by_label("Sampling").check()
  page.get_by_label("Top-k (0: all)").fill(str(10**12))
  page.locator("#write").click()
  expect(page.locator(".answer .fault")).to_contain_text("top_k is 1000000000000; it is from 1 to")


def test_what_cannot_be_written_is_told_where_the_answer_would_be(opened, files):
  page = opened()
  page.locator("#write").click()
  expect(page.locator(".answer .fault")).to_have_text("The prompt is empty. Drop a picture, write some text, or both.")
  drop(page, files, "one.jpg")
  fill(page, "as in <image>")
  page.locator("#write").click()
  expect(page.locator(".answer .fault")).to_contain_text("Part 1 has <image> in its text.")


def test_what_is_typed_and_how_files_are_called_stays_text(opened, files, tmp_path):
  page = opened()
  hostile = tmp_path / "a&lt;img onerror=alert(1)>.jpg"
  hostile.write_bytes((files / "one.jpg").read_bytes())
  drop(page, tmp_path, hostile.name)
  fill(page, HOSTILE)
  written(page)
  assert HOSTILE in page.locator("#sight .text").inner_text()
  assert page.locator("#sight .text img, .part figcaption *").count() == 0


def test_writing_is_stopped_and_begun_again(opened, files):
  page = opened()
  drop(page, files, "one.jpg")
  fill(page, LONG)
  page.get_by_label("Sampling").check()
  page.get_by_label("number input for New tokens, at most").fill("512")
  page.get_by_label("Seed").fill("3")
  page.locator("#write").click()
  expect(page.locator(".answer.writing .status")).to_have_text(re.compile(r"^\d+ tokens\.$"), timeout=90_000)
  page.locator("#stop").click()
  expect(page.locator(".answer.done .status")).to_contain_text("Stopped.", timeout=60_000)
  page.wait_for_timeout(1000)  # in which what Gradio does after an answer is done
  page.evaluate("document.querySelector('.answer').className = 'answer writing'")  # as a late word would show it
  expect(page.locator(".answer.done .status")).to_contain_text("Stopped.")
  page.get_by_label("Greedy").check()
  assert written(page) != ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_and_can_be_read(size, scheme, opened, files):
  page = opened(size, color_scheme=scheme)
  drop(page, files, "one.jpg", "film.mp4", "notes.jpg")
  fill(page, "a" * 60, "Output:")
  page.get_by_label("Sampling").check()
  expect(page.get_by_label("Seed")).to_be_visible()
  written(page)
  for card in (".part", "#answer", "#sight", "#gates"):
    assert stays_inside(page, size[0], card)
  assert page.evaluate(CONTRAST) >= 4.5


def test_gates_are_told_by_layer(opened, run):
  page = opened()
  shown = page.locator("#gates .line").all_inner_texts()
  assert [line.split()[0] for line in shown] == ["layer", "0", "2", "4"]
  assert all(value[0] in "+\N{MINUS SIGN}" for line in shown[1:] for value in line.split()[1:])
  assert f"{STEP}" in page.locator(".masthead").inner_text()


def test_no_file_of_this_machine_is_served_or_looked_at(opened, address, run):
  page = opened()
  for path in (run / "config.json", "/etc/hostname"):
    assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)
  assert page.request.get(address).headers["content-security-policy"].startswith("default-src 'self'")


def test_a_proxy_is_not_asked_for_the_page_of_this_machine(run, monkeypatch):
  for name, value in (("HTTP_PROXY", f"http://127.0.0.1:{free_port()}"), ("NO_PROXY", "example.org"), ("no_proxy", "")):
    monkeypatch.setenv(name, value)
  with serving(str(run), "127.0.0.1", free_port()) as address:
    assert address.startswith("http://127.0.0.1:")
  assert os.environ["no_proxy"].startswith("example.org,")


def test_a_port_that_is_taken_and_a_folder_without_a_run_are_told(address, run, tmp_path, capsys):
  port = int(address.rstrip("/").rpartition(":")[2])
  for asked, fault in (
    ([f"--checkpoint={run}", f"--port={port}"], f"127.0.0.1:{port}: nothing can listen there"),
    ([f"--checkpoint={run}", "--port=70000"], "127.0.0.1:70000: nothing can listen there"),
    ([f"--checkpoint={tmp_path}", f"--port={free_port()}"], "config.json: missing. Give the work directory"),
  ):
    assert main(["demo", *asked]) == USER_FAULT
    assert fault in capsys.readouterr().err
