"""Folders of HTML files with their pictures."""

import pathlib
import posixpath
from collections.abc import Iterator

from data_pipelines.build.html import BrokenPage, Page, read_page
from data_pipelines.build.inputs import Part, Source
from data_pipelines.build.interleaving import Document, Fault
from data_pipelines.build.pages import page_parts, read_file
from data_pipelines.build.pictures import FolderPictures, Pictures


def read(part: Part, source: Source) -> Iterator[Document | Fault]:
  pictures = FolderPictures(source.root, source.find)
  for name in part.files:
    path = source.root / name
    try:
      page = read_page(read_file(path), most_linked=source.settings.most_linked)
    except (OSError, BrokenPage) as error:
      yield Fault("broken_page", name, str(error))
    else:
      yield page_document(page, pictures, base_of(page, path.parent, source.root), name)


def base_of(page: Page, folder: pathlib.Path, root: pathlib.Path) -> str:
  """What relative addresses start from: the page's folder, or what its <base> says, a URL or a path."""
  if "//" in page.base:
    return page.base
  start = root if page.base.startswith("/") else folder
  return str(start / posixpath.dirname(page.base).lstrip("/"))


def page_document(page: Page, pictures: Pictures, base: str, name: str) -> Document:
  return Document(tuple(page_parts(page.content, pictures, base, describe=True)), name, page.license)
