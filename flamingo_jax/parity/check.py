"""Holds our models against reference arrays that other implementations wrote.

    python -m flamingo_jax.parity.check --reference DIR

DIR has, per case, NAME.json (sizes), NAME.npz (inputs, outputs, gradients) and NAME.safetensors (the other
implementation's own state dict). Each is imported by the rules that `flamingo import` uses, run in float32, and
compared: the largest error of each array relative to the largest magnitude of the reference. The exit code is 1 when an
error is over its limit, greedy tokens differ, a foreign parameter is not consumed, or a case is of an unknown kind.
"""

import argparse
import pathlib
import sys

import jax
from rich.console import Console
from rich.table import Table

from flamingo_jax.errors import UserError
from flamingo_jax.parity.comparison import Case, is_gradient, read_cases
from flamingo_jax.parity.reference_cases import KINDS


def main(arguments: list[str] | None = None) -> int:
  """Prints a row a case; 0 when all pass."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--reference", required=True, type=pathlib.Path, help="the folder with the cases")
  folder = parser.parse_args(arguments).reference
  jax.config.update("jax_default_matmul_precision", "highest")
  jax.config.update("jax_disable_most_optimizations", True)  # these models run for microseconds and compile for seconds
  console = Console(width=120)
  table = Table("case", "outputs", "gradients", "arrays", "result", title=f"relative errors against {folder}")
  failures = []
  try:
    for case in read_cases(folder):
      failures += report(case, table)
  except UserError as error:
    print(f"parity: {error}", file=sys.stderr)
    return 1
  console.print(table)
  for failure in failures:
    print(failure)
  return 1 if failures else 0


def report(case: Case, table: Table) -> list[str]:
  """Adds a row; returns a line for everything that fails."""
  kind = next((kind for kind in KINDS if case.name.startswith(kind)), None)
  if kind is None:
    table.add_row(case.name, "", "", "", "skipped")
    return [f"{case.name}: a kind of case that is not known: {', '.join(KINDS)}."]
  try:
    findings = KINDS[kind](case)
  except UserError as error:
    table.add_row(case.name, "", "", "", "FAILS")
    return [f"{case.name}: {error}"]
  worst = {
    kind: max((f.error for f in findings if is_gradient(f.array) == kind), default=None) for kind in (False, True)
  }
  failing = [f"{case.name}: {f.array}: error {f.error:.1e}, limit {f.limit:.1e}" for f in findings if not f.passes]
  shown = ["" if error is None else f"{error:.1e}" for error in (worst[False], worst[True])]
  table.add_row(case.name, *shown, str(len(findings)), "FAILS" if failing else "ok")
  return failing


if __name__ == "__main__":
  sys.exit(main())
