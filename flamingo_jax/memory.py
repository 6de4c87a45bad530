"""How a process gets its memory and gives it back. Imports no JAX: some is settled before anything large is loaded."""

import ctypes
import os
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
  """Starts this command again, in the same process, with large allocations in huge pages; once, and on Linux alone.

  XLA on CPUs asks for the memory of a step's activations anew at every step. In small pages, a step of 1 GB takes
  270,000 page faults, and products then read through as many entries. glibc reads the setting only when a process
  starts; another C library ignores it. Whoever sets it, to 0 for instance, keeps what they set.
  """
  given = os.environ.get(TUNABLES, "")
  if sys.platform != "linux" or HUGE_PAGES in given:
    return
  os.environ[TUNABLES] = ":".join(filter(None, (given, f"{HUGE_PAGES}=1")))
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back_freed() -> None:
  """Hands freed memory back to the system, where the C library keeps it.

  glibc keeps what lies between allocations still in use. XLA's compiler leaves half a gigabyte so on CPUs, which a
  process would hold beside its arrays for the rest of a run.
  """
  if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # no other library has it
    trim(0)
