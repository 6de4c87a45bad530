"""docs/paper.md names files, functions, classes and config fields that are there."""

import ast
import pathlib
import re

import pytest

from configs import base

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs/paper.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
PLACES = [row for row in ROWS if len(row) == 5 and row[2].startswith("`")]
FIELDS = [row[4] for row in PLACES if row[4]] + [row[1] for row in ROWS if len(row) == 4 and row[1].startswith("`")]
RUNS = (base.flamingo(), base.contrastive(), base.evaluation())
DEFAULTS = {"streams": base.stream(), "benchmarks": base.benchmark()}


def code(cell: str) -> str:
  [name] = re.findall(r"`([^`]+)`", cell)
  return name


def defined(path: pathlib.Path) -> set[str]:
  """Functions, classes and constants at the top of a file."""
  tree = ast.parse(path.read_text()).body
  names = {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}
  targets = (target for node in tree if isinstance(node, ast.Assign) for target in node.targets)
  return names | {target.id for target in targets if isinstance(target, ast.Name)}


def has(config, names: list[str]) -> bool:
  for name in names:
    if name not in config:
      return False
    config = config[name]
  return True


def test_the_tables_are_read_at_all():
  assert len(PLACES) > 35 and len(FIELDS) > 30


@pytest.mark.parametrize("row", PLACES, ids=lambda row: row[1])
def test_a_file_has_the_name_that_the_map_gives_it(row):
  assert code(row[3]) in defined(ROOT / code(row[2]))


@pytest.mark.parametrize("field", sorted({code(field) for field in FIELDS}))
def test_a_field_is_one_of_a_config(field):
  group, _, rest = field.partition(".NAME.")
  found = has(DEFAULTS[group], [rest]) if rest else any(has(config, field.split(".")) for config in RUNS)
  assert found, field
