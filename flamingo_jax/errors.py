"""What is meant for a person to read, and the codes by which whoever started a process tells how it ended."""

DONE = 0
USER_FAULT = 2  # something to mend first; starting again does not help. 1 is left to what Python itself dies of
PREEMPTED = 75  # state is saved: start again
HUNG = 76  # no step ended in time; stacks are written: start again
PEER_LOST = 77  # another process of the job is gone: start all again


class UserError(Exception):
  """Something the user can mend: a path, a config field, a file, the network.

  The message names what was found and what would be right; the command line prints it without a stack trace.
  """


class Preempted(Exception):
  """The machine asked the run to stop, and the run has saved where it is. Ends a process with PREEMPTED."""


class PeerLost(Exception):
  """A process of the job has stopped answering; the message names it. Ends a process with PEER_LOST."""
