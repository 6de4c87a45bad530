"""Options of the benchmarks that run `flamingo train` with a config and `--config.field=value`."""

import argparse
import sys

from flamingo_jax.errors import UserError
from launch.cli import take_overrides


def parse_with_overrides(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
  """The parser's options, and the overrides as `flamingo train` takes them; exits as the parser does."""
  try:
    given, overrides = take_overrides(sys.argv[1:])
  except UserError as error:
    parser.error(str(error))
  return parser.parse_args(given), [f"--config.{name}={value}" for name, value in overrides.items()]
