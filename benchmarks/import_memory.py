"""How much memory an import takes: a synthetic Llama of 3 GiB, sparse on disk, to a model folder.

    python benchmarks/import_memory.py [--folder DIR]

Prints one JSON line. The limit is twice the largest tensor and 1 GiB. Linux only: the peak is read from /proc.
"""

import argparse
import json
import pathlib
import re
import tempfile
import time

import numpy as np

WIDTH, FEED_FORWARD, VOCABULARY, LAYERS, HEADS = 2048, 5632, 32_000, 30, 32
MIB = 2**20


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", help="where 7 GiB are free (default: the system's temporary folder)")
  with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
    print(json.dumps(measure(pathlib.Path(folder))))


def measure(folder: pathlib.Path) -> dict[str, float]:
  from launch.importing import import_checkpoint

  size, largest = write_llama(folder / "llama")
  before, began = peak_mib(), time.perf_counter()
  import_checkpoint("hf-lm", str(folder / "llama"), str(folder / "imported"))
  growth = peak_mib() - before
  limit = 2 * largest / MIB + 1024
  return dict(
    file_mib=round(size / MIB),
    largest_tensor_mib=round(largest / MIB),
    growth_mib=round(growth),
    limit_mib=round(limit),
    growth_over_limit=round(growth / limit, 2),
    seconds=round(time.perf_counter() - began, 1),
  )


def peak_mib() -> float:
  """The most memory this process has had."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def write_llama(folder: pathlib.Path) -> tuple[int, int]:
  """Zeros in bfloat16, as transformers lays them out; returns the bytes of all tensors, and of the largest."""
  folder.mkdir()
  config = dict(
    model_type="llama",
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=FEED_FORWARD,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  )
  (folder / "config.json").write_text(json.dumps(config))
  sizes = {name: 2 * int(np.prod(shape)) for name, shape in llama_shapes().items()}
  ends = np.cumsum(list(sizes.values()))
  header = {
    name: dict(dtype="BF16", shape=shape, data_offsets=[int(end) - sizes[name], int(end)])
    for (name, shape), end in zip(llama_shapes().items(), ends, strict=True)
  }
  encoded = json.dumps(header).encode()
  with (folder / "model.safetensors").open("wb") as file:
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    file.truncate(8 + len(encoded) + int(ends[-1]))
  return int(ends[-1]), max(sizes.values())


def llama_shapes() -> dict[str, tuple[int, ...]]:
  square, up, down = (WIDTH, WIDTH), (FEED_FORWARD, WIDTH), (WIDTH, FEED_FORWARD)
  layer = {f"self_attn.{name}_proj": square for name in "qkvo"}
  layer |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
  layer |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
  shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
  shapes |= {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
  return {f"{name}.weight": shape for name, shape in shapes.items()}


if __name__ == "__main__":
  main()
