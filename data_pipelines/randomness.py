"""Randomness without a state: a permutation of which one place is computed alone, and numbers that a key names."""

import hashlib
import struct

import numpy as np
import tensorflow as tf

SALT = 498247692  # a third number of the key; any would do


def shuffled(indices: np.ndarray, counts: np.ndarray | int, seed: int, key: np.ndarray) -> np.ndarray:
  """Where each index goes in a permutation of range(count), int64.

  Args:
    indices: int64 of any shape, each from 0 to its count - 1.
    counts: int64, how many numbers are permuted; it broadcasts against the indices, as does the key.
    seed: of all permutations.
    key: int64; with the seed and the count it says which permutation is meant.
  """
  indices, counts, key = np.broadcast_arrays(np.asarray(indices, np.int64), counts, key)
  keys = np.stack([np.full(key.size, SALT, np.int64), np.full(key.size, seed, np.int64), key.reshape(-1)], axis=1)
  moved = tf.raw_ops.RandomIndexShuffle(
    index=indices.reshape(-1), seed=keys, max_index=counts.reshape(-1).astype(np.int64) - 1, rounds=4
  )
  return moved.numpy().reshape(indices.shape)


def draw(*key: int) -> list[float]:
  """Eight numbers in [0, 1), the same for the same key and unlike those of any other; its parts have 64 bits each."""
  digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key)).digest()
  return [(word >> 11) / 2**53 for word in struct.unpack("<8Q", digest)]
