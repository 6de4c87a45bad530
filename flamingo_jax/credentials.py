"""Passwords, tokens and keys: kept out of configs, and out of all that is written or printed.

A config is written whole into work directories, reports and model cards. So it may hold no credential at all, and is
refused where it does (`credential_faults`); what needs one reads it from its own environment variable or file. Texts
that others made, such as exceptions and the configs of old runs, are `redacted` where they are printed or published.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "[hidden]"
SHORTEST = 8  # characters of a secret; shorter values of variables stand in texts by chance
SECRET_NAME = re.compile(r"((^|_)(API_?KEY|KEY|TOKEN|SECRET|CREDENTIALS?)|PASSWORD|PASSWD)$", re.IGNORECASE)
# What is hidden is the group `secret`. One slash: what is left of "//" in a path that was made absolute.
PATTERNS = tuple(
  re.compile(pattern, re.DOTALL)
  for pattern in (
    r"(?i)\b[a-z][a-z0-9+.-]{0,20}:/{1,2}(?P<secret>[^/\s@:\"'?#]*:[^/\s@\"'?#]+|[^/\s@:\"'?#]{16,})@",
    r"(?i)[?&;][a-z0-9_-]{0,40}?(?:token|key|secret|passw(?:or)?d|pwd|sig(?:nature)?|credential|auth(?:orization)?)"
    r"=(?P<secret>[^&\s\"'<>;#]+)",
    r"(?i)\b(?:bearer|authorization:\s*basic)\s+(?P<secret>[a-z0-9+/=._~-]{16,})",
    r"\b(?P<secret>(?:hf_|gh[opsu]_|sk-(?:proj-|ant-)?)[A-Za-z0-9]{20,})",
    r"\b(?P<secret>(?:github_pat_|glpat-|xox[abprs]-|ya29\.|AIza)[A-Za-z0-9_-]{16,}|A[KS]IA[A-Z0-9]{16})",
    r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$))",
  )
)


def secret_values(environment: Mapping[str, str] = os.environ) -> list[str]:
  """The values of variables whose names say that they are secret, such as HF_TOKEN; the longest first."""
  values = {value for name, value in environment.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
  return sorted(values, key=len, reverse=True)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
  """The text with what is or looks like a credential hidden; the rest of a URL stays."""
  for value in secret_values(environment):
    text = text.replace(value, HIDDEN)
  for pattern in PATTERNS:
    text = pattern.sub(without_secret, text)
  return text


def without_secret(found: re.Match) -> str:
  """What was found, its group `secret` hidden."""
  start, stop = (place - found.start() for place in found.span("secret"))
  return found[0][:start] + HIDDEN + found[0][stop:]


def redacted_config(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
  """A copy of nested dicts, lists and tuples with every text in them `redacted`, names included."""
  if isinstance(value, str):
    return redacted(value, environment)
  if isinstance(value, dict):
    return {redacted_config(name, environment): redacted_config(each, environment) for name, each in value.items()}
  return type(value)(redacted_config(each, environment) for each in value) if type(value) in (list, tuple) else value


def credential_faults(config: Any, environment: Mapping[str, str] = os.environ) -> list[str]:
  """One line a field of a config that holds a credential; the credential itself is not in it."""
  return [
    f"{field} holds a password, token or key: a config is written into work directories, reports and model cards. "
    "Take it out, and give it in the environment variable or credentials file of what needs it."
    for field, text in texts_in(config)
    if redacted(text, environment) != text
  ]


def texts_in(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
  """(field, text) of every text in nested dicts and lists."""
  if isinstance(value, str):
    yield where, value
  elif isinstance(value, dict):
    for name, each in value.items():
      yield from texts_in(each, f"{where}.{name}".removeprefix("."))
  elif isinstance(value, list | tuple):
    for each in value:
      yield from texts_in(each, where)
