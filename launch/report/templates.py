"""How pages are made: templates that escape all they are given, and files that are there as a whole or not at all."""

import os
import pathlib
from collections.abc import Callable

import jinja2

from flamingo_jax.errors import UserError


def template(name: str, **filters: Callable) -> jinja2.Template:
  """A template of this folder; `filters` are what it calls by name."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(filters)
  return environment.get_template(name)


def write_page(path: pathlib.Path, page: str) -> pathlib.Path:
  """Writes a page and returns its path; half of a surrogate pair, which no file can hold, becomes a question mark.

  Raises:
    UserError: the disk refuses.
  """
  unfinished = path.with_name(f"{path.name}.new")
  try:
    unfinished.write_bytes(page.encode("utf-8", "replace"))
    os.replace(unfinished, path)
  except OSError as error:
    raise UserError(f"{path}: the page cannot be written ({error.strerror}). Let it be written elsewhere.") from error
  return path
