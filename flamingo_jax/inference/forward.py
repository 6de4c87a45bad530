"""The model over new tokens, after what a cache remembers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flamingo_jax.inference.cache import Cache, MediaPart, TextPart, Written
from flamingo_jax.inference.weights import Weights
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.models.gated_cross_attention import GatedCrossAttention, attention_of
from flamingo_jax.models.language.decoder import Decoder, DecoderLayer, Past, gated_layers
from flamingo_jax.ops.attention import KeyValue, Visibility
from flamingo_jax.ops.sharding import constrain

Text = dict[str, Array]  # tokens, segments, media_index [B, L]; and media, media_mask where there are new media


@dataclasses.dataclass(frozen=True)
class Read:
  """What reading a text gives.

  Attributes:
    states: after the last layer, before the last norm, [B, L, D].
    text: the keys and values of the new tokens.
    media: the media parts as the token after each row's last sees them.
    lengths: int32 [B], how many new tokens each row has.
  """

  states: Float[Array, "B L D"]
  text: TextPart
  media: tuple[MediaPart, ...]
  lengths: Int[Array, " B"]


def read(config: FlamingoConfig, weights: Weights, cache: Cache, text: Text) -> Read:
  """Reads text, and media with it, after a cache.

  Args:
    config: of the model.
    weights: of `unroll`.
    cache: of what came before; its rows divide those of the text.
    text: rows of tokens, padding behind. `media_index` counts the media given here; -1 stands for what the cache saw
      last.
  """
  present, index = text["segments"] > 0, text["media_index"]
  rows, length = present.shape
  before = jnp.repeat(cache.length, rows // cache.rows, axis=0)
  positions = jnp.where(present, before[:, None] + jnp.arange(length), -1)
  known = tuple(part.positions for part in cache.text)
  pasts = [
    Past(tuple(part.layers[layer] for part in cache.text), (*known, positions)) for layer in range(len(weights.layers))
  ]
  media, slots = cache.media, 0
  if "media" in text:
    media, slots = (*media, look(config, weights, text["media"], text["media_mask"])), text["media"].shape[1]
  masks = [seen_before(part, index, config.cross_attention.previous_media) for part in cache.media]
  if slots:
    masks.append(seen_now(media[-1], index, slots, config.cross_attention.previous_media))
  masks = [mask & present[:, :, None] for mask in masks]
  mask = Visibility(present.astype(jnp.int32), present.astype(jnp.int32), causal=True)
  x, layers = through_layers(config, weights, text["tokens"], positions, mask, pasts, media, masks)
  lengths = present.sum(axis=1, dtype=jnp.int32)
  last = index[jnp.arange(rows), lengths - 1]
  return Read(x, TextPart(layers, positions), after(config, cache.media, media, slots, last), lengths)


def step(
  config: FlamingoConfig, weights: Weights, cache: Cache, written: Written, tokens: Int[Array, " B"]
) -> tuple[Written, Float[Array, "B vocabulary"]]:
  """Reads one more token of each row: into the room, and to the logits of the next."""
  rows = tokens.shape[0]
  positions = (cache.length + written.count)[:, None]
  places = jax.lax.dynamic_update_slice_in_dim(written.positions, positions, written.count, 1)
  known = tuple(part.positions for part in cache.text)
  pasts = [
    Past(tuple(part.layers[layer] for part in cache.text), (*known, places), room, written.count)
    for layer, room in enumerate(written.layers)
  ]
  masks = [jnp.repeat(part.seen, rows // part.seen.shape[0], axis=0)[:, None] for part in cache.media]
  x, layers = through_layers(config, weights, tokens[:, None], positions, None, pasts, cache.media, masks)
  return Written(layers, places, written.count + 1), next_logits(config, weights, x)[:, 0]


def through_layers(
  config: FlamingoConfig,
  weights: Weights,
  tokens: Int[Array, "B L"],
  positions: Int[Array, "B L"],
  mask: Visibility | None,
  pasts: list[Past],
  media: tuple[MediaPart, ...],
  masks: list[Bool[Array, "B L M"]],
) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
  """The states of new tokens, and their keys and values in each language layer.

  Args:
    config: of the model.
    weights: of `unroll`.
    tokens: the new ones.
    positions: of the new tokens; -1 is padding.
    mask: which of the new tokens see one another, where there is no past.
    pasts: of each language layer.
    media: what gated layers read.
    masks: which tokens read which latents of each part of the media.
  """
  dtype, after = jnp.dtype(config.dtype), config.cross_attention.after
  gated = {layer: number for number, layer in enumerate(gated_layers(len(pasts), config.cross_attention))}
  parts = [tuple(part.layers[number] for part in media) for number in range(len(gated))]
  x = language_tables(config, weights, lambda decoder: decoder.place(decoder.embed(tokens), jnp.maximum(positions, 0)))
  x, kept = constrain(x, "batch", None, None), []
  for layer, past in enumerate(pasts):
    number = gated.get(layer)
    if number is not None and not after:
      x = gated_layer(config, weights.gated[number], x, parts[number], masks)
    plain = DecoderLayer(config.language, dtype, config.attention)
    x, own = plain.apply({"params": weights.layers[layer]}, x, mask, positions, past)
    kept.append(own)
    if number is not None and after:
      x = gated_layer(config, weights.gated[number], x, parts[number], masks)
  return x, tuple(kept)


def gated_layer(config: FlamingoConfig, parameters: dict, x: Array, parts: tuple[KeyValue, ...], masks: list) -> Array:
  """One gated layer; where no medium was ever given it sees one latent that nothing may read."""
  layer = GatedCrossAttention(config.cross_attention, jnp.dtype(config.dtype), config.attention)
  if not parts:
    nothing = jnp.zeros((x.shape[0], config.cross_attention.heads, 1, config.cross_attention.head_width), x.dtype)
    parts, masks = (KeyValue(nothing, nothing),), [jnp.zeros((*x.shape[:2], 1), bool)]
  return layer.apply({"params": parameters}, x, parts, masks)


def next_logits(config: FlamingoConfig, weights: Weights, x: Float[Array, "B L D"]) -> Float[Array, "B L vocabulary"]:
  """Float32 logits of states, each of the token that follows."""
  return language_tables(config, weights, lambda decoder: decoder.unembed(decoder.norm(x)))


def language_tables(config: FlamingoConfig, weights: Weights, use) -> Array:
  """Applies `use` to the language model without its layers."""
  decoder = Decoder(config.language, jnp.dtype(config.dtype), config.cross_attention, implementation=config.attention)
  return decoder.apply({"params": weights.tables}, method=use)


# Media.


def look(config: FlamingoConfig, weights: Weights, media: Array, mask: Bool[Array, "B N F"]) -> MediaPart:
  """Media to the keys and values of all gated layers, N * R of them; `seen` says which media exist."""
  latents = Flamingo(config).apply({"params": weights.vision}, media, mask, method=Flamingo.see)
  rows, slots, count, width = latents.shape
  flat = latents.reshape(rows, slots * count, width)
  attend = attention_of(config.cross_attention, config.language.width, jnp.dtype(config.dtype), config.attention)
  layers = tuple(
    attend.apply({"params": parameters["attention"]}, flat, method="remember") for parameters in weights.gated
  )
  return MediaPart(layers, jnp.repeat(mask.any(axis=-1), count, axis=1))


def seen_before(part: MediaPart, index: Int[Array, "B L"], previous: bool) -> Bool[Array, "B L M"]:
  """Which latents of an earlier part tokens read: those who have no medium of their own, or with `previous` all."""
  seen = jnp.repeat(part.seen, index.shape[0] // part.seen.shape[0], axis=0)[:, None, :]
  return jnp.broadcast_to(seen, (*index.shape, seen.shape[-1])) if previous else seen & (index < 0)[:, :, None]


def seen_now(part: MediaPart, index: Int[Array, "B L"], slots: int, previous: bool) -> Bool[Array, "B L M"]:
  """Which latents of the media that come with the tokens each of them reads."""
  slot = jnp.repeat(jnp.arange(slots), part.seen.shape[1] // slots)
  own = slot <= index[:, :, None] if previous else slot == index[:, :, None]
  return own & part.seen[:, None, :]


def after(
  config: FlamingoConfig,
  before: tuple[MediaPart, ...],
  media: tuple[MediaPart, ...],
  slots: int,
  last: Int[Array, " B"],
) -> tuple[MediaPart, ...]:
  """The media parts for the tokens to come, who see what the last token saw.

  Args:
    config: of the model.
    before: the parts there were.
    media: the same with what is new.
    slots: N, of the new media; 0: there are none.
    last: the media index of each row's last token.
  """
  if not slots:
    return before
  new, rows = media[-1], last.shape[0]
  if config.cross_attention.previous_media:
    return (*before, dataclasses.replace(new, seen=seen_now(new, last[:, None], slots, True)[:, 0]))

  def own(latents: Array, axis: int) -> Array:
    """The last medium of each row."""
    cut = latents.reshape(*latents.shape[:axis], slots, -1, *latents.shape[axis + 1 :])
    return jnp.take_along_axis(cut, jnp.maximum(last, 0).reshape(-1, *[1] * (cut.ndim - 1)), axis).squeeze(axis)

  layers, seen = jax.tree.map(lambda heads: own(heads, 2), new.layers), own(new.seen, 1)
  if not before:
    return (MediaPart(layers, seen & (last >= 0)[:, None]),)

  def or_earlier(new: Array, earlier: Array) -> Array:
    earlier = jnp.repeat(earlier, rows // earlier.shape[0], axis=0)
    return jnp.where((last >= 0).reshape(-1, *[1] * (new.ndim - 1)), new, earlier)

  return (jax.tree.map(or_earlier, MediaPart(layers, seen), before[0]),)
