import os
import pathlib
import platform
import subprocess
import sys

import pytest

MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

CHILD = """
import ctypes, os, sys
from flamingo_jax.memory import use_huge_pages
print("began", os.getpid(), flush=True)
use_huge_pages()
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
address = malloc(ctypes.c_size_t(1 << 28))
inside = False
for line in open("/proc/self/smaps"):
  first = line.split()[0]
  if "-" in first:
    begin, end = (int(edge, 16) for edge in first.split("-"))
    inside = begin <= address < end
  elif inside and first == "VmFlags:":
    print("huge" if "hg" in line.split() else "small", sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""


def start(*arguments, tunables=""):
  """What a process said that asked for huge pages before it took 256 MiB."""
  environment = os.environ | {"GLIBC_TUNABLES": tunables, "PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-c", CHILD, *arguments]
  return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_a_process_starts_again_as_itself_and_once():
  *began, last = start("a b", "c")
  assert len(began) == 2 and began[0] == began[1]
  assert last.split(" ", 1)[1] == "['a b', 'c'] glibc.malloc.hugetlb=1"


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
@pytest.mark.skipif(not MODE.exists() or "[madvise]" not in MODE.read_text(), reason="the kernel takes no advice")
def test_large_allocations_lie_in_huge_pages_unless_the_user_says_otherwise():
  assert start()[-1].startswith("huge")
  assert start(tunables="glibc.malloc.arena_max=4")[-1] == "huge [] glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1"
  *began, last = start(tunables="glibc.malloc.hugetlb=0")
  assert len(began) == 1 and last == "small [] glibc.malloc.hugetlb=0"


LEFTOVERS = """
import ctypes, pathlib
from flamingo_jax.memory import give_back_freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
SIZE = 64 << 10  # glibc maps larger ones apart, and gives those back at once
taken = [libc.malloc(SIZE) for _ in range(2048)]
for address in taken:
  ctypes.memset(address, 1, SIZE)
for address in taken[:-1]:  # the last one holds the heap's end
  libc.free(address)
before = resident()
give_back_freed()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc keeps freed memory")
def test_freed_memory_between_what_is_in_use_goes_back():
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-c", LEFTOVERS]
  given_back = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
  assert int(given_back) > 100 << 20  # of 128 MiB
