"""The documentation as a site: it is whole, needs no other host, and has every public module."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import zlib

import pytest
from bs4 import BeautifulSoup

ROOT = pathlib.Path(__file__).parent.parent.parent
LOADED = (("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
  """Built as `mkdocs build --strict` does, where a warning is an error: a dead link or anchor, a page in no menu, a
  docstring that names an argument that the function lacks."""
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
  quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
  built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=600)
  assert built.returncode == 0, built.stderr
  return folder


def inventory(site: pathlib.Path) -> set[str]:
  """Names that the reference has, from the file by which other sites link to it: four lines, then zlib."""
  lines = (site / "objects.inv").read_bytes().split(b"\n", 4)
  return {line.split()[0] for line in zlib.decompress(lines[4]).decode().splitlines()}


def public_definitions(path: pathlib.Path) -> set[str]:
  """Functions and classes at the top of a file."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}
  return {name for name in names if not name.startswith("_")}


def test_a_page_loads_nothing_from_another_host(site):
  pages = list(site.rglob("*.html"))
  assert len(pages) > 25
  for page in pages:
    html = BeautifulSoup(page.read_bytes(), "lxml")
    loaded = [tag.get(name) or "" for kind, name in LOADED for tag in html.find_all(kind)]
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page


@pytest.mark.parametrize("room", ["flamingo_jax", "data_pipelines"])
def test_the_reference_has_every_public_function_and_class(site, room):
  known = inventory(site)
  for path in (ROOT / room).rglob("*.py"):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    missing = {name for name in public_definitions(path) if f"{module}.{name}" not in known}
    assert not missing, f"{module}: {missing}"


def test_links_of_the_readme_lead_somewhere_on_a_forge_too(site):
  links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
  assert len(links) > 15
  for link in links:
    path, _, anchor = link.partition("#")
    assert (ROOT / path).is_file(), link
    if anchor:
      page = site / pathlib.PurePath(path).relative_to("docs").with_suffix(".html")
      assert f'id="{anchor}"' in page.read_text(), link
