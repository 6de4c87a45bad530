"""Randomness without a state: a permutation of which one place is computed alone, and numbers that a key names."""

import hashlib
import struct

import numpy as np

ROUNDS = 16  # from which on all orders of five are equally likely; twelve are too few


def shuffled(indices: np.ndarray, counts: np.ndarray | int, seed: int, key: np.ndarray) -> np.ndarray:
  """Where each index goes in a permutation of range(count), int64.

  A Feistel network (Luby and Rackoff 1988) on the numbers of a square that is as large as the count or a little larger,
  walked until it comes to a number below the count (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

  Args:
    indices: int64 of any shape, each from 0 to its count - 1.
    counts: int64, how many numbers are permuted; it broadcasts against the indices, as does the key.
    seed: of all permutations, 64 bits.
    key: int64; with the seed and the count it says which permutation is meant.
  """
  indices, counts, key = np.broadcast_arrays(np.asarray(indices, np.int64), counts, key)
  moved, counts = indices.astype(np.uint64).reshape(-1), counts.astype(np.uint64).reshape(-1)
  keys = scattered(scattered(np.full(key.size, seed % 2**64, np.uint64)) ^ key.astype(np.uint64).reshape(-1))
  left = np.arange(moved.size)  # those that are not below their count, or were not moved yet
  while left.size:
    moved[left] = walked(moved[left], counts[left], keys[left])
    left = left[moved[left] >= counts[left]]
  return moved.astype(np.int64).reshape(indices.shape)


def walked(numbers: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """One pass through the network, uint64 [n]: each is a row and a column, and one is moved by what the other says."""
  columns = np.ceil(np.sqrt(counts)).astype(np.uint64)
  rows = (counts + columns - np.uint64(1)) // columns
  row, column = numbers // columns, numbers % columns
  for number in range(0, ROUNDS, 2):
    row = (row + scattered(keys + np.uint64(number) ^ scattered(column))) % rows
    column = (column + scattered(keys + np.uint64(number + 1) ^ scattered(row))) % columns
  return row * columns + column


def scattered(numbers: np.ndarray) -> np.ndarray:
  """A permutation of 64 bits in which each bit depends on all (splitmix64's; Steele and others 2014), uint64 [n]."""
  numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
  numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return numbers ^ (numbers >> np.uint64(31))


def draw(*key: int) -> list[float]:
  """Eight numbers in [0, 1), the same for the same key and unlike those of any other; its parts have 64 bits each."""
  digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key)).digest()
  return [(word >> 11) / 2**53 for word in struct.unpack("<8Q", digest)]
