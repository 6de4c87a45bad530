"""What the page sends becomes the prompt that `flamingo generate` takes, and files are shown or refused."""

import io
import pathlib

import numpy as np
import pytest
from evaluated import film
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.tokenizer import byte_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.sampling import GREEDY, Sampling
from launch.demo.page import DRAWN, GREEDILY, SEARCHED, decoding
from launch.demo.prompt import MOST_CHARACTERS, MOST_MEDIA, Part, media_files, prompt_text, read_parts
from launch.demo.uploads import MOST_BYTES, read_upload
from launch.demo.writing import prompt_runs

FRAMES = dict(frames=4, frames_per_second=1.0)


def sent(path="", text="", ends=True) -> dict:
  return dict(path=str(path), text=text, ends=ends)


@pytest.fixture
def cat(tmp_path) -> pathlib.Path:
  """An upload."""
  path = tmp_path / "uploads" / "ab12" / "cat.jpg"
  path.parent.mkdir(parents=True)
  Image.new("RGB", (60, 40), (200, 120, 40)).save(path, "JPEG")
  return path


def test_examples_end_and_the_last_part_stays_open(cat):
  value = [sent(text="Describe."), sent(cat, "Output: a cat"), sent(cat, " and", ends=False), sent(cat, "Output:")]
  parts = read_parts(value, cat.parent.parent)
  assert prompt_text(parts) == "Describe.<EOC><image>Output: a cat<EOC><image> and<image>Output:"
  assert media_files(parts) == [str(cat)] * 3


@given(st.lists(st.builds(Part, st.sampled_from(("", "a.jpg")), st.text("ab <>\n"), st.booleans()), min_size=1))
def test_a_prompt_has_one_marker_for_each_file_and_all_texts_in_order(parts):
  text = prompt_text(parts)
  assert text.count("<image>") == len(media_files(parts))
  assert text.count("<EOC>") == sum(part.ends for part in parts[:-1])
  assert text.replace("<image>", "").replace("<EOC>", "") == "".join(part.text for part in parts)


@pytest.mark.parametrize("value", [None, "<image>", {}, [1], [dict(path="a.jpg")], [sent() | dict(ends=1)]])
def test_what_no_page_sends_is_refused(value, tmp_path):
  with pytest.raises(UserError, match="not a prompt"):
    read_parts(value, tmp_path)


def test_no_file_beside_the_uploads_is_opened(cat):
  uploads = cat.parent.parent
  outside = uploads.parent / "secret.jpg"
  outside.write_bytes(cat.read_bytes())
  link = cat.with_name("link.jpg")
  link.symlink_to(outside)
  for path in (
    outside,
    link,
    f"{cat.parent}/../../secret.jpg",
    cat.with_name("gone.jpg"),
    cat.parent,
    "a\0b",
    "x" * 5000,
  ):
    with pytest.raises(UserError, match=r"Part 1: .* is no longer here"):
      read_parts([sent(path)], uploads)


def test_all_faults_of_a_prompt_are_told(cat):
  value = [sent(cat, "<image>")] * (MOST_MEDIA + 1) + [sent(text="a<EOC>" + "b" * MOST_CHARACTERS)]
  with pytest.raises(UserError) as caught:
    read_parts(value, cat.parent.parent)
  lines = str(caught.value).splitlines()
  assert len(lines) == 2 + MOST_MEDIA + 2
  assert lines[0] == "The prompt has 34 pictures and videos; it may have 33. Remove some."
  assert lines[1].startswith("The prompt has 20,") and "it may have 20,000" in lines[1]
  assert lines[2].startswith("Part 1 has <image> in its text") and lines[-1].startswith("Part 35 has <EOC> in its text")
  for empty in ([], [sent(text=" \n")]):
    with pytest.raises(UserError, match="The prompt is empty"):
      read_parts(empty, cat.parent.parent)


def test_pictures_and_videos_are_shown(cat, tmp_path):
  assert read_upload(cat, **FRAMES).shape == (1, 160, 240, 3)
  film(tmp_path / "film.mp4")
  colours = read_upload(tmp_path / "film.mp4", **FRAMES)[:, 90, 120]
  assert [colour.argmax() for colour in colours] == [0, 1, 2, 2]  # a second each of red, green and blue


def damaged(kind: str) -> bytes:
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
  file = io.BytesIO()
  noise.save(file, kind)
  return file.getvalue()[: len(file.getvalue()) // 2]


def huge() -> bytes:
  file = io.BytesIO()
  Image.new("1", (9000, 9000)).save(file, "PNG")
  return file.getvalue()


@pytest.mark.parametrize(
  ("name", "content", "fault"),
  [
    ("notes.jpg", b"milk, bread, butter\n" * 40, "notes.jpg: holds text, not a picture. Give a JPEG, PNG"),
    ("notes.mp4", "Käse".encode(), "notes.mp4: holds text, not a video. Give a JPEG"),
    ("page.png", b"<html><script>alert(1)</script>", "page.png: holds text, not a picture"),
    ("nothing.png", b"", "nothing.png: is empty. Give a JPEG"),
    ("cut.png", damaged("PNG"), r"cut.png: is a damaged picture \(image file is truncated.*\). Give the whole file"),
    ("cut.jpg", damaged("JPEG"), r"cut.jpg: is a damaged picture .* Give the whole file"),
    ("program.gif", bytes(range(256)) * 4, "program.gif: holds no picture of a format that is read here"),
    ("program.mp4", bytes(range(256)) * 4, "program.mp4: holds no video of a format that is read here"),
    ("wide.png", huge(), r"wide.png: is too large \(9000 x 9000 pixels; at most 50000000 are decoded\). Scale it down"),
  ],
)
def test_bad_files_are_refused_by_name_with_what_would_be_right(name, content, fault, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=f"^{fault}"):
    read_upload(tmp_path / name, **FRAMES)


def test_heavy_files_are_refused_unread(tmp_path):
  with (tmp_path / "heavy.png").open("wb") as file:
    file.truncate(MOST_BYTES + 2**20)
  with pytest.raises(UserError, match=r"heavy.png: has 65 MiB; at most 64 are read"):
    read_upload(tmp_path / "heavy.png", **FRAMES)


def test_runs_are_cut_where_another_picture_is_seen_and_keep_letters_of_several_tokens():
  tokenizer = byte_tokenizer()
  words = [tokenizer.encode(text) for text in ("für ", "Käse", "ö")]
  tokens = np.array([*words[0], tokenizer.image, *words[1], tokenizer.end_of_chunk, tokenizer.image, *words[2]])
  index = np.cumsum(tokens == tokenizer.image) - 1
  runs = prompt_runs(tokens, index, tokenizer)
  assert [(run.slot, [piece.text for piece in run.pieces]) for run in runs] == [
    (-1, ["für "]), (0, ["<image>", "Käse", "<EOC>"]), (1, ["<image>", "ö"]),
  ]  # fmt: skip


def test_only_what_a_mode_uses_counts():
  settings = dict(temperature=0.7, top_k=5, top_p=0.9, beams=4, length_penalty=0.5)
  assert decoding(GREEDILY, **settings) == GREEDY
  assert decoding(DRAWN, **settings) == Sampling(0.7, 5, 0.9)
  assert decoding(SEARCHED, **settings) == Beams(4, 0.5)
  with pytest.raises(UserError, match="top_k is -1"):
    decoding(DRAWN, **settings | dict(top_k=-1))
