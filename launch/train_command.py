"""The one command that every launcher runs, wherever: `flamingo train`."""

import dataclasses

from flamingo_jax.credentials import credential_faults
from flamingo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
  """What is trained.

  Attributes:
    config: a Python file.
    workdir: of the run.
    overrides: of fields of the config.
    allow_changed: as for `flamingo train`.
    peer_timeout: seconds after which a process that is not heard of is lost.
  """

  config: str
  workdir: str
  overrides: dict[str, str]
  allow_changed: str = ""
  peer_timeout: float = 100.0

  def arguments(self) -> list[str]:
    """All but what makes a process one of several."""
    given = [f"--config={self.config}", f"--workdir={self.workdir}"]
    given += [f"--config.{name}={value}" for name, value in self.overrides.items()]
    return given + ([f"--allow-changed={self.allow_changed}"] if self.allow_changed else [])

  def train(self) -> list[str]:
    """The verb and its arguments, for the program `flamingo`."""
    return ["train", *self.arguments()]


def check_no_credentials(run: Run) -> None:
  """Raises UserError for a password, token or key, before a script, a cluster or another machine is given it."""
  fields = {"--config": run.config, "--workdir": run.workdir, "--allow-changed": run.allow_changed}
  faults = credential_faults(fields | {f"--config.{name}": value for name, value in run.overrides.items()})
  if faults:
    raise UserError("\n".join(faults))
