"""The recipe of the image, as far as it can be held without building one: what it copies, ignores and installs."""

import fnmatch
import pathlib
import re
import runpy

import pytest
import setuptools

ROOT = pathlib.Path(__file__).parent.parent.parent
RECIPE = (ROOT / "launch" / "container" / "Dockerfile").read_text()


@pytest.fixture
def packaging(monkeypatch) -> dict:
  """What setup.py tells setuptools."""
  told = {}
  monkeypatch.setattr(setuptools, "setup", lambda **arguments: told.update(arguments))
  monkeypatch.chdir(ROOT)
  runpy.run_path("setup.py")
  return told


def copied() -> list[str]:
  return [name for line in re.findall(r"^COPY (.+)$", RECIPE, re.MULTILINE) for name in line.split()[:-1]]


def ignored(path: str) -> bool:
  """Of .dockerignore, the last line that fits decides."""
  found = False
  for line in (ROOT / ".dockerignore").read_text().splitlines():
    pattern = line.removeprefix("!").removeprefix("**/")
    parts = pathlib.PurePosixPath(path).parts
    if line.startswith("**/"):
      fits = any(fnmatch.fnmatch(part, pattern) for part in parts)
    else:
      fits = fnmatch.fnmatch(parts[0], pattern)
    if fits and line and not line.startswith("#"):
      found = not line.startswith("!")
  return found


def test_all_that_is_copied_is_there_and_not_ignored():
  assert copied()
  for name in copied():
    assert (ROOT / name).exists(), name
    assert not ignored(name), name


def test_nothing_else_is_sent_to_be_built():
  for name in (".git/config", ".venv/bin/python", "data/x", "runs/mine/config.json", ".env", "tests/conftest.py"):
    assert ignored(name), name
  assert ignored("launch/__pycache__/cli.cpython-311.pyc")


def test_every_package_of_the_project_and_what_setup_reads_is_copied(packaging):
  packages = {name.partition(".")[0] for name in packaging["packages"]}
  read = set(re.findall(r'here / "([^"]+)"', (ROOT / "setup.py").read_text()))
  assert packages and read
  assert {pathlib.PurePosixPath(name).parts[0] for name in packages | read} <= set(copied())


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_the_extras_that_it_installs_exist(packaging, accelerator):
  [extras] = re.findall(r'pip install .*"\.\[(.+)\]"', RECIPE)
  for extra in extras.replace("${ACCELERATOR}", accelerator).split(","):
    assert extra in packaging["extras_require"]


def test_it_runs_flamingo_as_a_user_of_its_own(packaging):
  [program] = re.findall(r'^ENTRYPOINT \["(.+)"\]$', RECIPE, re.MULTILINE)
  assert program in [script.partition("=")[0] for script in packaging["entry_points"]["console_scripts"]]
  [user] = re.findall(r"^USER (\w+)$", RECIPE, re.MULTILINE)
  assert re.search(rf"^RUN useradd .*\b{user}$", RECIPE, re.MULTILINE)
  assert RECIPE.index(f"USER {user}") > RECIPE.index("pip install")
  [version] = re.findall(r"^ARG PYTHON=(.+)$", RECIPE, re.MULTILINE)
  assert [int(part) for part in version.split(".")] >= [
    int(part) for part in packaging["python_requires"].removeprefix(">=").split(".")
  ]
