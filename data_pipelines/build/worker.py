"""A worker process of a build on one machine: Beam's own, but silent as long as nothing is wrong."""

import logging
import sys


def main() -> None:
  logging.disable(logging.WARNING)  # before the import, which has warnings of its own
  from apache_beam.runners.worker import sdk_worker_main

  sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
  main()
