"""The one exception that is meant for a person to read."""


class UserError(Exception):
  """Something the user can mend: a path, a config field, a file, the network.

  The message names what was found and what would be right; the command line prints it without a stack trace.
  """
