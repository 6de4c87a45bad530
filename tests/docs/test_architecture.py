"""The rooms of docs/architecture.md import from themselves and from below, as it says."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs/architecture.md").read_text()
ROOMS = [name.strip("/").replace("/", ".") for name in re.findall(r"^\| `([\w/]+)` \|", TEXT, re.MULTILINE)]
UNDER_ALL = ("flamingo_jax.errors", "flamingo_jax.credentials")


def imported(path: pathlib.Path) -> set[str]:
  """Modules that a file imports, wherever in it."""
  nodes = list(ast.walk(ast.parse(path.read_text())))
  plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
  named = {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
  return plain | named


def room_of(module: str) -> str | None:
  """The room of a module; None of what is under all, or not ours."""
  if module.startswith(UNDER_ALL) or module == "flamingo_jax.__version__":
    return None
  return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), None)


def files_of(room: str) -> list[pathlib.Path]:
  return list((ROOT / room.replace(".", "/")).rglob("*.py"))


def test_every_folder_of_code_is_a_room():
  folders = {path.parent.name for path in (ROOT / "flamingo_jax").glob("*/__init__.py")}
  assert {room.removeprefix("flamingo_jax.") for room in ROOMS} == folders | {"launch", "configs", "data_pipelines"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_from_below(room):
  allowed = ROOMS[ROOMS.index(room) :]
  for path in files_of(room):
    for module in imported(path):
      assert room_of(module) in (*allowed, None), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "data_pipelines"])
def test_no_other_room_imports_tensorflow(room):
  for path in files_of(room):
    assert not {module for module in imported(path) if module.split(".")[0] == "tensorflow"}, path


def test_data_pipelines_know_no_models():
  for path in files_of("data_pipelines"):
    ours = {module for module in imported(path) if module.startswith("flamingo_jax")}
    assert all(module.startswith((*UNDER_ALL, "flamingo_jax.ops.labels")) for module in ours), path
