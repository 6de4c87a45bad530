"""What `fuzz.py` fuzzes: each target takes bytes to a call of ours, and says what may be raised there.

Bytes become a file where its layout is ours to check to the last byte. A header, a pickle or a config would hardly be
hit within a file: there bytes say what is changed in a sound one.
"""

import copy
import dataclasses
import io
import json
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from flamingo_jax.errors import UserError

# What stands in a JSON file or a config where something else should.
ODD = (
  None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**12, 10**400, 0.0, 0.5, -1.5, 1e308, float("nan"),
  float("inf"), "", "x", "random", "(", "llama", "\ud800", "\0", [], [0], [1, 2], ["x"], [None], [[[]]], {}, {"x": 1},
  {"family": "nfnet"}, {"family": []},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
  """What is run on each input, what may come out of it, and what it begins with."""

  run: Callable[[bytes], None]
  allowed: tuple[type[Exception], ...]
  seeds: tuple[bytes, ...]


def empty(folder: pathlib.Path) -> Target:
  """Nothing: what the fuzzer itself takes."""
  return Target(lambda data: None, (), (b"\0",))


def safetensors(folder: pathlib.Path) -> Target:
  """A safetensors file, all of whose tensors are read. After a first byte 1 comes the header alone."""
  import numpy as np
  from safetensors.numpy import save

  from flamingo_jax.interop.model_folder import content_hash_of
  from flamingo_jax.interop.tensor_files import open_tensors

  path = folder / "model.safetensors"

  def run(data: bytes) -> None:
    if data[:1] == b"\1":
      data = b" " + struct.pack("<Q", len(data) - 1) + data[1:] + bytes(64)
    path.write_bytes(data[1:])
    tensors = open_tensors(path)
    for name in tensors.names:
      tensors.read(name)
    content_hash_of(path)

  arrays = {"a": np.ones((2, 3), np.float32), "b/c": np.zeros(0, np.float16), "d": np.ones((), np.int64)}
  sound = save(arrays, {"format": "pt"})
  spans = dict(a=("F32", [4, 2], [0, 32]), b=("U8", [32], [32, 64]))
  fields = ("dtype", "shape", "data_offsets")
  header = json.dumps({name: dict(zip(fields, values, strict=True)) for name, values in spans.items()})
  return Target(run, (UserError,), (b"\0" + sound, b"\0" + save({}), b"\1" + header.encode()))


def gguf(folder: pathlib.Path) -> Target:
  """A GGUF file: config, rules, tokenizer and every tensor."""
  from data_pipelines.tokenizer import save_bpe
  from flamingo_jax.interop.importing import open_gguf
  from flamingo_jax.interop.rules import assemble, check_tensors

  path, out = folder / "model.gguf", folder / "out"
  out.mkdir()

  def run(data: bytes) -> None:
    path.write_bytes(data)
    source = open_gguf(path)
    save_bpe(out, **source.tensors.tokenizer())
    for name in source.tensors.names:
      source.tensors.read(name)
    check_tensors(source.tensors, source.rules, source.ignored)
    assemble(source.tensors, source.rules)

  return Target(run, (UserError,), tuple(small_ggufs(folder / "seed.gguf")))


def small_ggufs(path: pathlib.Path) -> Iterator[bytes]:
  """Llamas of one layer: plain, quantized, and one of another architecture."""
  import gguf
  import numpy as np

  shapes = dict.fromkeys(("attn_q", "attn_output", "attn_k", "attn_v"), (4, 4)) | dict(attn_norm=(4,), ffn_norm=(4,))
  shapes |= dict(ffn_gate=(6, 4), ffn_up=(6, 4), ffn_down=(4, 6))
  tensors = {f"blk.0.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
  tensors |= {"token_embd.weight": np.ones((5, 4), np.float32), "output_norm.weight": np.ones(4, np.float32)}
  quantized = gguf.quants.quantize(np.ones((5, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
  for architecture, extra in (("llama", None), ("llama", quantized), ("gpt2", None)):
    writer = gguf.GGUFWriter(path, architecture)
    fields = dict(embedding_length=4, block_count=1, feed_forward_length=6, head_count=2, head_count_kv=2)
    fields |= dict(rope_freq_base=5000.0, layer_norm_rms_eps=1e-5, tokenizer_pre="smollm")
    fields |= dict(token_list=["<|endoftext|>", "A", "B", "C", "AB"], token_merges=["A B"])
    for name, value in fields.items():
      getattr(writer, f"add_{name}")(value)
    for name, tensor in tensors.items():
      writer.add_tensor(name, tensor)
    if extra is not None:
      writer.add_tensor("quantized.weight", extra, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path.read_bytes()


def torch(folder: pathlib.Path) -> Target:
  """A file of `torch.save`, all of whose tensors are read. After a first byte 1 comes its pickle alone."""
  import torch

  from flamingo_jax.interop.tensor_files import open_tensors

  path = folder / "pytorch_model.bin"
  file = io.BytesIO()
  torch.save({"model_state_dict": {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}}, file)
  sound = file.getvalue()
  with zipfile.ZipFile(file) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  pickle = next(name for name in members if name.endswith("data.pkl"))

  def run(data: bytes) -> None:
    path.write_bytes(packed(members | {pickle: data[1:]}) if data[:1] == b"\1" else data[1:])
    tensors = open_tensors(path)
    for name in tensors.names:
      tensors.read(name)

  return Target(run, (UserError,), (b"\0" + sound, b"\1" + members[pickle]))


def packed(members: dict[str, bytes]) -> bytes:
  """A zip archive without compression."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return file.getvalue()


def folders(folder: pathlib.Path) -> Target:
  """The JSON files of published models. The first byte names a model; the rest changes what its files say."""
  import numpy as np
  from safetensors.numpy import save_file

  from flamingo_jax.interop.importing import FORMATS
  from flamingo_jax.interop.rules import check_tensors
  from launch.importing import added_tokens, read_tokenizer

  index = "model.safetensors.index.json"
  save_file({"a": np.ones(2, np.float32)}, folder / "part.safetensors")
  models = [(form, described | {index: INDEX, "tokenizer.json": TOKENIZER}) for form, described in DESCRIPTIONS]

  def run(data: bytes) -> None:
    form, described = models[data[0] % len(models)] if data else models[0]
    described = edited(described, data[1:])
    for name, content in described.items():
      text = content if isinstance(content, str) else json.dumps(content)
      (folder / name).write_text(text, errors="surrogatepass")
    read_tokenizer_of(folder)
    source = FORMATS[form](folder)
    check_tensors(source.tensors, source.rules, source.ignored)

  def read_tokenizer_of(folder: pathlib.Path) -> None:
    added_tokens(folder)
    read_tokenizer(folder / "tokenizer.json")

  seeds = (bytes([number, *changes]) for number in range(len(models)) for changes in EDITS)
  return Target(run, (UserError,), tuple(seeds))


LLAMA = dict(
  model_type="llama", vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
  intermediate_size=6, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, head_dim=2,
  tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
)  # fmt: skip
TOWER = dict(
  hidden_size=4, embed_dim=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8,
  patch_size=4, hidden_act="gelu", layer_norm_eps=1e-5,
)  # fmt: skip
PERCEIVER = dict(
  resampler_depth=1, resampler_n_latents=2, resampler_n_heads=2, resampler_head_dim=2, qk_layer_norms_perceiver=False
)
IDEFICS = LLAMA | dict(
  model_type="idefics", perceiver_config=PERCEIVER, vision_config=TOWER, additional_vocab_size=2, use_resampler=True,
  cross_layer_interval=1, qk_layer_norms=True, alpha_type="vector",
)  # fmt: skip
NEOX = LLAMA | dict(
  model_type="gpt_neox", attention_bias=True, hidden_act="gelu", layer_norm_eps=1e-5, use_parallel_residual=True,
  rotary_pct=0.25,
)  # fmt: skip
OPT = LLAMA | dict(
  model_type="opt", ffn_dim=6, activation_function="relu", max_position_embeddings=8, do_layer_norm_before=True,
  word_embed_proj_dim=4,
)  # fmt: skip
MPT = dict(
  model_type="mpt", vocab_size=5, d_model=4, n_layers=1, n_heads=2, expansion_ratio=2, attn_config=dict(alibi=True),
  no_bias=True,
)  # fmt: skip
GPT2 = dict(
  model_type="gpt2", vocab_size=5, n_embd=4, n_layer=1, n_head=2, n_inner=None, n_positions=8,
  activation_function="gelu_new", layer_norm_epsilon=1e-5,
)  # fmt: skip
OPEN_CLIP = dict(
  model_cfg=dict(vision_cfg=dict(image_size=8, layers=1, width=4, head_width=2, patch_size=4, mlp_ratio=2.0)),
  preprocess_cfg=dict(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
)
TIMM = dict(architecture="dm_nfnet_f0", pretrained_cfg=dict(input_size=[3, 32, 32], mean=[0.5] * 3, std=[0.5] * 3))
MOSAIC = MPT | dict(model_type="mosaic_gpt")
DESCRIPTIONS = (
  *(("hf-lm", {"config.json": config}) for config in (LLAMA, NEOX, OPT, MPT, MOSAIC, GPT2)),
  ("hf-clip", {"config.json": dict(vision_config=TOWER)}),
  ("hf-siglip", {"config.json": TOWER}),
  ("open-clip", {"open_clip_config.json": OPEN_CLIP}),
  ("timm-nfnet", {"config.json": TIMM}),
  ("idefics", {"config.json": IDEFICS}),
)
INDEX = dict(weight_map=dict(a="part.safetensors"))
TOKENIZER = dict(
  version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, post_processor=None, decoder=None,
  pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
  model=dict(type="BPE", vocab=dict(a=0, b=1, ab=2), merges=["a b"]),
)  # fmt: skip
EDITS = (b"", b"\0\0\5", b"\0\4\xff", b"\0\7\x20\0\3\2", b"\1text: {[")


def edited(value: dict, data: bytes) -> dict:
  """A copy of nested dicts with changes, three bytes each: a kind of change, the place of a value, an odd value.

  A change of kind 1 makes text of the value's JSON and writes the rest of the bytes over it.
  """
  value = json.loads(json.dumps(value))
  rest = iter(data)
  for kind in rest:
    places = list(places_in(value))
    holder, name = places[next(rest, 0) % len(places)]
    if kind % 4 == 1 and holder is value and isinstance(holder[name], dict):
      text, written = json.dumps(holder[name]), bytes(rest).decode(errors="surrogateescape")
      holder[name] = text[: len(text) // 2] + written + text[len(text) // 2 + len(written) :]
    elif kind % 4 == 2:
      holder.pop(name)
    else:
      holder[name] = copy.deepcopy(ODD[next(rest, 0) % len(ODD)])
    if not any(True for _ in places_in(value)):
      break
  return value


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
  """(dict or list, key) of each value within, outer ones first."""
  inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
  for name, _ in inside:
    yield value, name
  for _, inner in inside:
    yield from places_in(inner)


def examples(folder: pathlib.Path) -> Target:
  """A record of a shard; what can be read is written again, and read alike."""
  from data_pipelines.schema import Example, parse, serialize

  def run(data: bytes) -> None:
    example = parse(data)
    if parse(serialize(example)) != example:
      raise AssertionError("reads otherwise once it was written")

  seeds = (
    Example(("", "a caption"), (b"picture",), "mine/a", "CC0"),
    Example(("one", "two", "", "ünï"), (b"", b"\xff\xd8\xff", b"x" * 40), "s", ""),
    Example(("", "film"), (b"film",), "s", "CC0", 0.5, 1.25),
  )
  return Target(run, (UserError,), tuple(map(serialize, seeds)))


def pages(folder: pathlib.Path) -> Target:
  """An HTML page to the texts and pictures of a document, as a build of pages reads it."""
  from data_pipelines.build.html import BrokenPage, read_page
  from data_pipelines.build.interleaving import Lost, interleave
  from data_pipelines.build.pictures import FolderPictures, UrlPictures
  from data_pipelines.build.readers.html import base_of, page_document
  from data_pipelines.build.texts import tidy

  (folder / "a.png").write_bytes(b"picture")
  within, known = FolderPictures(folder), UrlPictures(lambda url: b"picture" if "a" in url else None)

  def run(data: bytes) -> None:
    page = read_page(data, most_linked=0.5)
    for pictures, base in ((within, base_of(page, folder, folder)), (known, "https://x.org/")):
      document = page_document(page, pictures, base, "page")
      tidy("".join(part for part in document.parts if isinstance(part, str)))
      interleave(part for part in document.parts if not isinstance(part, Lost))

  return Target(run, (BrokenPage,), tuple(PAGES))


PAGES = (
  b"""<!DOCTYPE html><html><head><meta charset="utf-8"><base href="sub/"><title>t</title></head><body>
<nav><a href="x">x</a></nav><main><h1>Head</h1><p>Text <b>bold</b> more.</p><figure><img src="a.png" alt="A thing">
<figcaption>A thing</figcaption></figure><pre>one
two</pre><p class="sidebar">no</p></main><a rel="license" href="cc">l</a></body></html>""",
  b"""<?xml version="1.0" encoding="iso-8859-1"?><article><header><h2>\xe9</h2></header><picture>
<source srcset="a.png 2x, b.png 1x"><img width="1" height="2px" data-src="a.png"></picture><img src="data:image/png
;base64,aGk="><ul><li><a>1</a><li><a>2</a><li><a>3</a></ul><img src="../../a.png"><img src="http://[/"></article>""",
  "\ufeff<p>utf-16 <img src='a.png' alt='file.png'></p>".encode("utf-16-le"),
  b'<meta charset="punycode"><p style="display: none" aria-hidden="true">x</p><form><p>kept</p></form>',
)


def configs(folder: pathlib.Path) -> Target:
  """A run's config. The first byte names one; up to a byte 255 the next change it, then come overrides, one a line."""
  from launch.config import override, run_file
  from launch.experiment import read_experiment

  root = pathlib.Path(__file__).parent.parent / "configs"
  names = ("tiny", "quickstart", "quickstart_vision", "idefics_9b")
  bases = [run_file(root / f"{name}.py", "get_config").to_dict() for name in names]

  def run(data: bytes) -> None:
    changes, _, overrides = data[1:].partition(b"\xff")
    config = edited(bases[data[0] % len(bases)] if data else bases[0], changes)
    for line in filter(None, overrides.decode(errors="surrogateescape").split("\n")):
      name, _, text = line.partition("=")
      override(config, name, text)
    read_experiment(json.loads(json.dumps(config)), "config.json")

  lines = (b"optimizer.learning_rate=3e-4\nmodel.language.layers=4", b"streams.pages.source=('a', 'b')\nseed=[", b"")
  changes = (b"", b"\0\5\3", b"\2\7", b"\0\x20\x0c\0\x21\x17")
  seeds = (bytes([base]) + edit + b"\xff" + line for base in range(len(bases)) for edit in changes for line in lines)
  return Target(run, (UserError,), tuple(seeds))


TARGETS: dict[str, Callable[[pathlib.Path], Target]] = {
  "empty": empty,
  "safetensors": safetensors,
  "gguf": gguf,
  "torch": torch,
  "folders": folders,
  "examples": examples,
  "pages": pages,
  "configs": configs,
}
