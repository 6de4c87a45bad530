"""What goes with every export: `model_card.json` for programs, `README.md` for people."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable

import jax

from data_pipelines.shards import MANIFEST, read_manifest
from flamingo_jax import __version__
from flamingo_jax.credentials import redacted_config
from flamingo_jax.errors import UserError
from flamingo_jax.interop.exporting import PLATFORMS, forward_inputs
from flamingo_jax.interop.model_folder import DESCRIPTION
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.training.step import is_trainable
from launch.experiment import Experiment
from launch.generate import Trained
from launch.pretrained import is_model_folder

CARD, README = "model_card.json", "README.md"


def make_card(form: str, origin: str, experiment: Experiment, trained: Trained) -> dict:
  """All that is known of a model before it is written, as JSON holds it; credentials in what others wrote are hidden.

  Args:
    form: of the export.
    origin: the run and the step.
    experiment: the run.
    trained: its parameters.
  """
  data = [stream_card(name, dataclasses.asdict(stream)) for name, stream in experiment.stream_configs.items()]
  begun = [source_card("start", experiment.start)] if experiment.start else []
  frozen = [
    source_card(part, getattr(experiment.frozen_config, part)) | dict(hash=digest)
    for part, digest in trained.hashes.items()
  ]
  streams = data + [stream for part in frozen + begun for stream in part.get("data", [])]
  card = dict(
    format=form,
    origin=origin,
    step=trained.step,
    parameters=counts(experiment, trained),
    frozen=frozen,
    start=begun,
    data=data,
    licences=sorted({licence for stream in streams for licence in stream.get("licences", {})}),
    made_with=dict(flamingo_jax=__version__, jax=jax.__version__),
    config=experiment.raw,
  )
  return redacted_config(card)


def counts(experiment: Experiment, trained: Trained) -> dict[str, int]:
  """How many numbers were trained, and how many stayed."""
  learnt = sum(a.size for p, a in trained.parameters.items() if is_trainable(p, experiment.training.trainable))
  return dict(trained=int(learnt), frozen=int(sum(a.size for a in trained.parameters.values()) - learnt))


def stream_card(name: str, stream: dict) -> dict:
  """A stream of a run, and what the manifest of its training part says if that can be read."""
  known = dict(stream=name, weight=stream.get("weight", 1.0), source=stream["source"])
  folder = pathlib.Path(stream["source"]) / "train"
  try:
    manifest = read_manifest(folder)
  except UserError:
    return known | dict(manifest=None)
  digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
  return known | dict(
    manifest=digest,
    records=manifest.get("records"),
    collections=manifest.get("sources", {}),
    licences=manifest.get("licenses", {}),
  )


def source_card(part: str, source: str) -> dict:
  """Where weights came from that a run did not begin with at random; of a run of ours, also its data.

  What a run started from may be gone since: its own checkpoints have all of it.
  """
  known = dict(part=part, source=source)
  if source in ("", "random"):
    return known | dict(origin="random numbers" if source else "what computed the features in the streams")
  try:
    described = json.loads((pathlib.Path(source) / DESCRIPTION).read_text())
  except (OSError, ValueError):
    return known | dict(origin="cannot be read any more")
  if is_model_folder(source):
    return known | dict(origin=described.get("origin", "unknown"), family=described.get("family", "llama"))
  data = [stream_card(name, stream) for name, stream in described.get("streams", {}).items()]
  return known | dict(origin=f"a {described.get('objective')} run", data=data)


def write_card(folder: pathlib.Path, card: dict, text: str) -> None:
  (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False))
  (folder / README).write_text(text)


# For people.

USE = {
  "safetensors": """A model folder, as `flamingo import` writes one: every parameter by path in `model.safetensors`,
the language model's layers stacked along the first axis. A config of flamingo_jax names this folder as
`frozen.language`, `frozen.vision`, `start` or `tokenizer.path`. Without flamingo_jax:

```python
from safetensors.numpy import load_file

parameters = load_file("model.safetensors")
print(sum(array.size for array in parameters.values()), "parameters")
```""",
  "orbax": """An Orbax checkpoint of nested dicts, the language model's layers stacked along the first axis:

```python
import pathlib

import orbax.checkpoint as ocp

parameters = ocp.StandardCheckpointer().restore(pathlib.Path("checkpoint").absolute())
print(sorted(parameters))
```""",
  "openflamingo": """What OpenFlamingo's own training saves: resampler, gated layers and token tables, under
OpenFlamingo's names, in float32. The frozen parts are not here. `config.json` has the arguments of OpenFlamingo's
constructors; its `Flamingo` fixes several of them, so they are given with `functools.partial`. `language` is the
language model of transformers that this model was trained on, `vision` an object whose `.visual` returns pooled
features and tokens, as open_clip's models with `output_tokens=True`.

```python
import functools
import json

import torch
from open_flamingo.src import flamingo, flamingo_lm, helpers, utils

with open("config.json") as file:
    made_for = json.load(file)
language.resize_token_embeddings(made_for["rows"])
utils.extend_instance(language, flamingo_lm.FlamingoLMMixin)
language.set_decoder_layers_attr_name(made_for["decoder_layers"])
flamingo.PerceiverResampler = functools.partial(helpers.PerceiverResampler, **made_for["resampler"])
flamingo_lm.GatedCrossAttentionBlock = functools.partial(
    helpers.GatedCrossAttentionBlock, **made_for["cross_attention"])
tokens = made_for["added_tokens"]
model = flamingo.Flamingo(
    vision, language, tokens["<|endofchunk|>"], tokens["<image>"], vis_dim=made_for["vis_dim"],
    cross_attn_every_n_layers=made_for["cross_attn_every_n_layers"])
state = torch.load("checkpoint.pt", weights_only=True)["model_state_dict"]
keys = model.load_state_dict(state, strict=False)
assert not keys.unexpected_keys, keys.unexpected_keys
```

OpenFlamingo lets text see the last image before it. `<|endofchunk|>` is what flamingo_jax calls `<EOC>`; the ids of the
added tokens are those of `config.json`, behind all rows of the language model's table.""",
  "stablehlo": """The forward pass as one StableHLO program for {platforms}, and the parameters it takes. It needs
jax and safetensors, and no code of flamingo_jax:

```python
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

with open("model.stablehlo", "rb") as file:
    forward = jax.jit(export.deserialize(bytearray(file.read())).call)
parameters = jax.device_put(load_file("parameters.safetensors"))

tokens = np.array([[{image}, 1, 2]], np.int32)  # <image>, text
segments = np.ones_like(tokens)  # 0 is padding
media = np.zeros((1, 1, 1, {frame}), np.{media_type})
media_mask = np.ones((1, 1, 1), bool)  # which frames exist
media_index = np.array([[0, 0, 0]], np.int32)  # the medium that each token sees; -1: none
logits = forward(parameters, tokens, segments, media, media_mask, media_index)
print(logits.shape, logits.dtype)
```

| argument | type |
| --- | --- |
| parameters | as in `parameters.safetensors` |
{arguments}

It returns float32[b,l,{rows}]. Rows b, text length l, media slots n and frames f are free; {limits}. `<image>` is token
{image}, `<EOC>` {end}. Each new shape is compiled once.""",
}


def use(form: str, model: FlamingoConfig) -> str:
  """How a format is read, with code that runs in the folder of the export."""
  if form != "stablehlo":
    return USE[form]
  inputs, resampler = forward_inputs(model), model.resampler
  most = ((resampler.frames, "frames"), (getattr(resampler, "media", 0), "slots")) if resampler else ()
  limits = [f"at most {count} {what}" for count, what in most if count]
  return USE[form].format(
    platforms=", ".join(PLATFORMS),
    image=model.language.vocabulary,
    end=model.language.vocabulary + 1,
    rows=model.language.vocabulary + model.language.extra_tokens,
    frame=", ".join(map(str, inputs["media"].shape[3:])),
    media_type=inputs["media"].dtype,
    arguments="\n".join(
      f"| {name} | {array.dtype}[{','.join(map(str, array.shape))}] |" for name, array in inputs.items()
    ),
    limits=" and ".join(limits) or "nothing limits them",
  )


def render_card(card: dict, model: FlamingoConfig) -> str:
  """README.md of an export."""
  sources = card["frozen"] + card["start"]
  parts = lines(f"| {s['part']} | {s['origin']} | {s['source']} | {s.get('hash', '')} |" for s in sources)
  weights = lines(f"| `{file}` | `{digest}` |" for file, digest in card["weights"].items())
  of_parts = [row for s in sources for row in data_rows(s.get("data", []), f"{s['part']}: ")]
  data = lines(data_rows(card["data"]) + of_parts)
  licences = lines(f"- {licence}" for licence in card["licences"]) or "- none named"
  counted, made_with = card["parameters"], card["made_with"]
  return f"""# A Flamingo: {card["origin"]}

A visual language model after Alayrac et al. (2022), exported as `{card["format"]}` by flamingo_jax
{made_with["flamingo_jax"]} (JAX {made_with["jax"]}) after step {card["step"]}. {counted["trained"]:,} parameters were
trained, {counted["frozen"]:,} stayed as they were. `{CARD}` says all of this to programs.

## Use

{use(card["format"], model)}

## Weights

SHA-256 over names, types, shapes and bytes of the tensors, in the order of the names.

| file | hash |
| --- | --- |
{weights}

## What it was built on

| part | origin | source | hash |
| --- | --- | --- | --- |
{parts}

## Data

| stream | weight | records | collections | source | manifest, SHA-256 |
| --- | --- | --- | --- | --- | --- |
{data}

## Licences

Those that the manifests of the data name:

{licences}

What it was built on is under the terms of where it came from; the table above names that.

## Config

```json
{json.dumps(card["config"], indent=2, ensure_ascii=False)}
```
"""


def lines(rows: Iterable[str]) -> str:
  return "\n".join(rows)


def data_rows(streams: list[dict], prefix: str = "") -> list[str]:
  """Rows of the table of streams."""
  return [
    f"| {prefix}{stream['stream']} | {stream['weight']} | {stream.get('records', '')} | "
    f"{', '.join(stream.get('collections', {}))} | {stream['source']} | {stream['manifest'] or 'not readable'} |"
    for stream in streams
  ]
