import numpy as np
import pytest
from PIL import Image

from data_pipelines.clips import decode_clip
from data_pipelines.media import decode_image
from data_pipelines.prompts import prompt_batch
from flamingo_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, picture, encode_film):
  """Two pictures, a film of half a second in upper case, and what is neither."""
  (tmp_path / "a.png").write_bytes(picture(1))
  (tmp_path / "b.jpg").write_bytes(picture(2, format="JPEG"))
  film = encode_film([Image.new("RGB", (32, 32), (40 * i,) * 3) for i in range(5)])
  (tmp_path / "c.MP4").write_bytes(film)
  (tmp_path / "cut.mp4").write_bytes(film[:-50])
  (tmp_path / "text.png").write_text("no picture")
  (tmp_path / "text.mp4").write_text("no film")
  (tmp_path / "folder.png").mkdir()
  return tmp_path


@pytest.fixture
def batch(folder, tokenizer):
  def make(text: str, *names: str):
    files = [str(folder / name) for name in names]
    return prompt_batch(text, files, tokenizer, image_size=16, frames=4, frames_per_second=5)

  return make


def test_a_few_shot_prompt_becomes_the_row_that_a_page_would_give(batch, folder, tokenizer):
  row = batch("<image>Output: a<EOC><image>Output:", "a.png", "b.jpg")
  first, second = tokenizer.encode("Output: a"), tokenizer.encode("Output:")
  image, end = tokenizer.image, tokenizer.end_of_chunk
  assert row["tokens"].tolist() == [[tokenizer.bos, image, *first, end, image, *second]]
  assert row["media_index"].tolist() == [[-1, *[0] * (len(first) + 2), *[1] * (len(second) + 1)]]
  assert row["loss_weights"].tolist() == [[0, 0, *[1] * (len(first) + 1), 0, *[1] * len(second)]]
  assert (row["segments"] == 1).all()
  expected = [decode_image((folder / name).read_bytes(), 16) for name in ("a.png", "b.jpg")]
  np.testing.assert_array_equal(row["media"], np.stack(expected)[None, :, None])
  assert row["media_mask"].tolist() == [[[True], [True]]]


def test_shapes_and_dtypes_are_those_of_a_batch(batch):
  row = batch("<image>the<image>", "a.png", "c.MP4")
  assert {name: (array.dtype.name, array.shape) for name, array in row.items()} == dict(
    tokens=("int32", (1, 4)),
    segments=("int32", (1, 4)),
    loss_weights=("float32", (1, 4)),
    media=("uint8", (1, 2, 4, 16, 16, 3)),
    media_mask=("bool", (1, 2, 4)),
    media_index=("int32", (1, 4)),
  )


def test_a_picture_beside_a_video_has_one_frame_and_the_rest_masked(batch, folder):
  row = batch("<image>a picture<EOC><image>a film", "a.png", "c.MP4")
  film, exists = decode_clip((folder / "c.MP4").read_bytes(), 16, frames=4, per_second=5, span=(0.0, np.inf), start=0.0)
  assert exists.tolist() == [True, True, True, False]  # five frames at ten a second: 0.0, 0.2 and 0.4 s
  np.testing.assert_array_equal(row["media"][0, 1], film)
  np.testing.assert_array_equal(row["media"][0, 0, 0], decode_image((folder / "a.png").read_bytes(), 16))
  assert not row["media"][0, 0, 1:].any()
  assert row["media_mask"].tolist() == [[[True, False, False, False], exists.tolist()]]


def test_a_prompt_without_media_sees_none(batch, tokenizer):
  row = batch("Output: a<EOC>Output:")
  assert row["media"].shape == (1, 1, 1, 16, 16, 3)
  assert not row["media_mask"].any()
  assert (row["media_index"] == -1).all()
  assert (row["tokens"] == tokenizer.end_of_chunk).sum() == 1


def test_an_empty_prompt_is_the_beginning_of_a_document(batch, tokenizer):
  assert batch("")["tokens"].tolist() == [[tokenizer.bos]]


@pytest.mark.parametrize(
  ("text", "names", "message"),
  [
    ("<image>a<image>", ["a.png"], "2 <image> markers, but 1 files"),
    ("a", ["a.png"], "0 <image> markers, but 1 files"),
    ("<Image>a", ["a.png"], "0 <image> markers, but 1 files"),
    ("<image>", [], "1 <image> markers, but 0 files"),
  ],
)
def test_markers_and_files_that_do_not_match_are_refused(batch, text, names, message):
  with pytest.raises(UserError, match=message):
    batch(text, *names)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("none.png", r"none\.png: cannot be read \(No such file"),
    ("folder.png", r"folder\.png: cannot be read \(Is a directory"),
    ("text.png", r"text\.png: broken_image: .*Give a PNG"),
    ("text.mp4", r"text\.mp4: broken_video: .*Give a PNG"),
    ("cut.mp4", r"cut\.mp4: broken_video: .*Give a PNG"),
  ],
)
def test_a_file_that_cannot_be_used_is_named(batch, name, message):
  with pytest.raises(UserError, match=message):
    batch("<image>", name)
