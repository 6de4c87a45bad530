"""What the test of sharded inference runs on one device and on eight, in a process of its own."""

import contextlib

import jax
import numpy as np
from sharded_runs import MODEL, make_batch

from flamingo_jax.inference.beam import search
from flamingo_jax.inference.decoding import decode
from flamingo_jax.inference.prefill import extend, prefill
from flamingo_jax.inference.sampling import Sampling
from flamingo_jax.inference.scoring import score_options
from flamingo_jax.inference.weights import unroll
from flamingo_jax.models.flamingo import initialize
from flamingo_jax.models.parameters import flat
from flamingo_jax.parallel.mesh import MeshConfig, global_batch, make_mesh, parameter_shardings, place

NEW, STOP = 4, (5,)
TEXT = ("tokens", "segments", "media_index", "media", "media_mask")


def run(mesh: list[int] | None) -> dict:
  """Tokens and scores after one prefix and eight queries; on a mesh, or without one on the first device."""
  boxed = jax.eval_shape(lambda key: initialize(MODEL, key), jax.random.key(0))
  random = np.random.default_rng(0)
  values = {path: random.normal(size=p.shape, scale=0.4).astype(np.float32) for path, p in flat(boxed).items()}
  batch = make_batch(seed=1)
  batch["media_mask"][...] = True
  queries = {name: batch[name] for name in TEXT}
  prefix = {name: make_batch(seed=2)[name][:1] for name in TEXT}
  prefix["media_mask"] = np.ones_like(prefix["media_mask"])
  devices = None if mesh is None else make_mesh(MeshConfig(*mesh))
  with contextlib.nullcontext() if devices is None else jax.set_mesh(devices):
    if devices is not None:
      shardings = parameter_shardings(boxed, devices)
      values = {path: place(array, shardings[path]) for path, array in values.items()}
      queries = global_batch(queries, devices)
    weights = unroll(MODEL, values)
    cache = extend(MODEL, weights, prefill(MODEL, weights, prefix), queries)
    limits = dict(new_tokens=NEW, stop=STOP)
    drawn = decode(MODEL, weights, cache, sampling=Sampling(1.0, top_k=9), key=jax.random.key(0), **limits)
    beams = search(MODEL, weights, cache, **limits)
    scores = score_options(MODEL, weights, cache, [[[1, 2], [3]]] * 8)
    kernel = weights.layers[0]["attention"]["query"]["turned"]
    return dict(
      greedy=decode(MODEL, weights, cache, **limits).lists(),
      drawn=drawn.lists(),
      beams=np.asarray(beams.tokens).tolist(),
      scores=np.concatenate(scores).tolist(),
      share=kernel.addressable_shards[0].data.size / kernel.size,
      keys=cache.text[1].layers[0].key.addressable_shards[0].data.size / cache.text[1].layers[0].key.size,
    )
