"""Times OpenFlamingo's training step at the settings of train_step.py, on a GPU where there is one.

    pip install open-flamingo            # in an environment of its own
    python benchmarks/open_flamingo_step.py [--config c.json | --set dim=256] [--compile] [--checkpointing]

Its modules run as they are; the sizes that its `Flamingo` fixes (heads, latents) are handed to them. As its train.py
does, it keeps parameters in float32 and computes in bfloat16 by autocast (`--dtype float32`: without), clips gradients
to 1 and steps AdamW, here the fused one. Features of a frozen encoder are the input. Prints one JSON line with the keys
of train_step.py.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import statistics
import sys
import time
import types

import numpy as np
import torch
import transformers
from settings import STEP, read_settings, step_arguments

ADDED = ("end", "image", "padding")  # tokens at the end of the vocabulary, in the order that OpenFlamingo adds them


def main() -> None:
  parser = step_arguments(__doc__, dtype="bfloat16")
  parser.add_argument("--compile", action="store_true", help="torch.compile every layer")
  parser.add_argument("--checkpointing", action="store_true", help="compute the layers' activations again")
  options = parser.parse_args()
  settings = read_settings(options.config, options.set, STEP)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  with torch.device(device):
    model = make_model(settings, options.checkpointing)
  print(json.dumps(measure(model, settings, options, device)))


def make_model(settings: dict, checkpointing: bool) -> torch.nn.Module:
  """OpenFlamingo over a fresh Llama; its package imports a whole CLIP library, which we leave out."""
  root = pathlib.Path(importlib.util.find_spec("open_flamingo").submodule_search_locations[0])
  for name, folder in (("open_flamingo", root), ("open_flamingo.src", root / "src")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
  from open_flamingo.src import flamingo, flamingo_lm, utils

  heads = dict(dim_head=settings["dim_head"])
  flamingo.PerceiverResampler = functools.partial(
    flamingo.PerceiverResampler,
    depth=settings["resampler_depth"],
    heads=settings["resampler_heads"],
    num_latents=settings["latents"],
    **heads,
  )
  flamingo_lm.GatedCrossAttentionBlock = functools.partial(
    flamingo_lm.GatedCrossAttentionBlock, heads=settings["xattn_heads"], **heads
  )
  language = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=settings["vocab"],
      hidden_size=settings["dim"],
      intermediate_size=settings["ffn"],
      num_hidden_layers=settings["layers"],
      num_attention_heads=settings["heads"],
      num_key_value_heads=settings["kv_heads"],
      tie_word_embeddings=False,
    )
  )
  utils.extend_instance(language, flamingo_lm.FlamingoLMMixin)
  language.set_decoder_layers_attr_name("model.layers")
  model = flamingo.Flamingo(
    types.SimpleNamespace(visual=GivenFeatures()),
    language,
    eoc_token_id=settings["vocab"] - len(ADDED),
    media_token_id=settings["vocab"] - len(ADDED) + 1,
    vis_dim=settings["vis_dim"],
    cross_attn_every_n_layers=settings["every"],
    gradient_checkpointing=checkpointing,
  )
  for name, parameter in model.named_parameters():
    trained = "perceiver" in name or "gated_cross_attn_layer" in name
    parameter.requires_grad_(trained)
    if name.endswith("_gate"):
      parameter.data.fill_(0.5)
  return model


class GivenFeatures(torch.nn.Module):
  """In the encoder's place: "pixels" (n, 1, positions, width) are the features already."""

  def forward(self, pixels):
    return None, pixels[:, 0]


def measure(model: torch.nn.Module, settings: dict, options: argparse.Namespace, device: str) -> dict[str, object]:
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  if options.checkpointing:
    checkpoint(model)
  if options.compile:
    layers = model.lang_encoder._get_decoder_layers()
    model.perceiver.compile()
    for layer in layers:
      layer.decoder_layer.compile()
      if layer.gated_cross_attn_layer is not None:
        layer.gated_cross_attn_layer.compile()
  decayed = [p for name, p in model.named_parameters() if p.requires_grad and "gated_cross_attn" in name]
  others = [p for name, p in model.named_parameters() if p.requires_grad and "gated_cross_attn" not in name]
  groups = [dict(params=decayed, weight_decay=settings["weight_decay"]), dict(params=others, weight_decay=0.0)]
  optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
  tokens, labels, features = (array.to(device) for array in make_batch(settings))
  attention = torch.ones_like(tokens)
  model.train()
  times, losses = [], []
  for number in range(options.warmup + options.steps):
    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
      loss = model(features, tokens, attention_mask=attention, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    losses.append(round(loss.item(), 5))  # waits for the device
    if number >= options.warmup:
      times.append(time.perf_counter() - began)
  step_seconds = statistics.median(times)
  return dict(
    library=f"open-flamingo / torch {torch.__version__} / transformers {transformers.__version__}",
    device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
    dtype=options.dtype,
    compiled=options.compile,
    checkpointing=options.checkpointing,
    steps=len(times),
    step_ms=round(1e3 * step_seconds, 1),
    step_ms_min=round(1e3 * min(times), 1),
    step_ms_max=round(1e3 * max(times), 1),
    tokens_per_s=round(tokens.numel() / step_seconds, 1),
    trainable=sum(p.numel() for p in trained),
    parameters=sum(p.numel() for p in model.parameters()),
    peak_device_mib=torch.cuda.max_memory_allocated() >> 20 if device == "cuda" else None,
    losses=losses[:12],
    config=settings,
  )


def checkpoint(model: torch.nn.Module) -> None:
  """Wraps what OpenFlamingo marks for it, as its train.py does."""
  from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
  )

  wrap = functools.partial(checkpoint_wrapper, preserve_rng_state=False)
  marked = lambda part: getattr(part, "_use_gradient_checkpointing", False)  # noqa: E731
  apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrap, check_fn=marked)


def make_batch(settings: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
  """Tokens, labels and features, drawn as train_step.py draws them."""
  random = np.random.default_rng(0)
  end = settings["vocab"] - len(ADDED)
  tokens = random.integers(3, end, (settings["batch"], settings["text"]))
  tokens[:, np.arange(settings["images"]) * settings["text"] // (settings["images"] + 1)] = end + 1
  media = (settings["batch"], settings["images"], 1, 1, settings["vis_tokens"], settings["vis_dim"])
  features = random.standard_normal(media).astype(np.float32)
  labels = np.where(tokens == end + 1, -100, tokens)
  return torch.tensor(tokens), torch.tensor(labels), torch.tensor(features)


if __name__ == "__main__":
  main()
