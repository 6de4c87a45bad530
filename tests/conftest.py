import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def quickstart_data() -> pathlib.Path:
  """The quickstart's real data and language model, where `make test` has put them; made now if they are not there."""
  from launch.quickstart import quickstart

  folder = ROOT / "data" / "quickstart"
  quickstart(str(folder), "unused", {}, prepare_only=True)
  return folder
