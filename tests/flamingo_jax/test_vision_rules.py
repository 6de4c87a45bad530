import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.interop import vision_rules
from flamingo_jax.interop.rules import InMemory, assemble, check_tensors, foreign_from, layouts
from flamingo_jax.models.parameters import flat
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.towers import vision_tower
from flamingo_jax.models.vision.vit import VitConfig

# What the published models' own config files say of their towers.
CLIP_LARGE = dict(
  vision_config=dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
  )
)
SIGLIP_SO400M = dict(
  vision_config=dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
    model_type="siglip_vision_model",
  )
)
IDEFICS_9B = dict(vision_config=dict(embed_dim=1280, intermediate_size=5120, num_hidden_layers=32, patch_size=14))
OPEN_CLIP_LARGE = dict(embed_dim=768, vision_cfg=dict(image_size=224, layers=24, width=1024, patch_size=14))
NFNET_F6 = dict(architecture="dm_nfnet_f6", pretrained_cfg=dict(input_size=[3, 448, 448], mean=[0.1, 0.2, 0.3]))

FORMATS = {
  "clip": (vision_rules.config_from_clip, vision_rules.clip_rules, CLIP_LARGE),
  "siglip": (vision_rules.config_from_siglip, vision_rules.clip_rules, SIGLIP_SO400M),
  "idefics": (vision_rules.config_from_idefics, vision_rules.clip_rules, IDEFICS_9B),
  "open_clip": (vision_rules.config_from_open_clip, vision_rules.open_clip_rules, OPEN_CLIP_LARGE),
  "nfnet": (vision_rules.config_from_timm, vision_rules.timm_nfnet_rules, NFNET_F6),
}


class Described:
  """A checkpoint that has exactly the tensors that rules ask for, without values."""

  path = "described"

  def __init__(self, rules):
    self.shapes = {rule.names[0]: rule.shape for rule in rules}
    self.names = sorted(self.shapes)

  def shape(self, name):
    return self.shapes[name]

  def dtype(self, name):
    return np.dtype("float32")


@pytest.mark.parametrize("name", FORMATS)
def test_rules_of_a_published_tower_make_every_parameter_once(name):
  config_from, rules_of, described = FORMATS[name]
  config = config_from(described)
  rules = rules_of(config)
  parts = [part for rule in rules for part in rule.parts]
  assert len(parts) == len(set(parts))
  pixels = jnp.zeros((1, config.image_size, config.image_size, 3), jnp.uint8)
  tower = vision_tower(config, jnp.dtype("float32"))
  shapes = flat(jax.eval_shape(lambda key: tower.init(key, pixels)["params"], jax.random.key(0)))
  found = {path: layout.shape for path, layout in layouts(Described(rules), rules).items()}
  assert found == {path: shape.shape for path, shape in shapes.items()}


@pytest.mark.parametrize(
  ("rules", "number"),
  [
    (lambda: vision_rules.clip_rules(vision_rules.config_from_clip(CLIP_LARGE)), 303_179_776 - 2048),
    (lambda: vision_rules.open_clip_rules(vision_rules.config_from_open_clip(OPEN_CLIP_LARGE)), 303_179_776 - 2048),
  ],
)
def test_a_tower_has_the_published_number_of_parameters(rules, number):
  """transformers counts CLIPVisionModel of ViT-L/14 at 303,179,776, the unused last norm included."""
  assert sum(np.prod(rule.shape, dtype=int) for rule in rules()) == number


SMALL = dict(width=8, layers=2, heads=2, image_size=12, patch_size=4, feed_forward_multiplier=1.5, attention_bias=True)
SMALL_TOWERS = {
  "clip": vision_rules.clip_rules(VitConfig(**SMALL, class_token=True, pre_norm=True, patch_bias=False)),
  "siglip": vision_rules.clip_rules(VitConfig(**SMALL)),
  "open_clip": vision_rules.open_clip_rules(VitConfig(**SMALL, class_token=True, pre_norm=True, patch_bias=False)),
  "nfnet": vision_rules.timm_nfnet_rules(
    NfnetConfig(variant="F1", depths=(1, 2), widths=(16, 48), group_width=4, final_conv=True)
  ),
}


@pytest.mark.parametrize("name", SMALL_TOWERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tensors_come_back_bit_for_bit(name, dtype):
  """Every bit pattern is allowed, those of NaNs included."""
  random = np.random.default_rng(0)
  unsigned = {"float32": np.uint32, "float16": np.uint16}[dtype]
  bits = {
    rule.names[0]: random.integers(0, np.iinfo(unsigned).max, rule.shape, unsigned, endpoint=True)
    for rule in SMALL_TOWERS[name]
  }
  tensors = InMemory({foreign: array.view(dtype) for foreign, array in bits.items()})
  check_tensors(tensors, SMALL_TOWERS[name], ())
  back = {names[0]: array for names, array in foreign_from(assemble(tensors, SMALL_TOWERS[name]), SMALL_TOWERS[name])}
  assert back.keys() == bits.keys()
  for foreign, array in back.items():
    np.testing.assert_array_equal(array.view(unsigned), bits[foreign])


def test_published_towers_differ_where_their_configs_say():
  clip, siglip = vision_rules.config_from_clip(CLIP_LARGE), vision_rules.config_from_siglip(SIGLIP_SO400M)
  idefics = vision_rules.config_from_idefics(IDEFICS_9B)
  open_clip = vision_rules.config_from_open_clip(OPEN_CLIP_LARGE, quick_gelu=True)
  assert (clip.positions, siglip.positions, idefics.positions, open_clip.positions) == (256, 729, 257, 256)
  assert (clip.feed_forward_width, siglip.feed_forward_width, idefics.feed_forward_width) == (4096, 4304, 5120)
  assert (clip.activation, siglip.activation, idefics.activation) == ("quick_gelu", "gelu_tanh", "gelu")
  assert open_clip == clip
  assert vision_rules.config_from_open_clip(OPEN_CLIP_LARGE).activation == "gelu"


def test_an_nfnet_reads_what_timm_says_of_its_pixels():
  config = vision_rules.config_from_timm(NFNET_F6)
  assert (config.variant, config.image_size, config.pixel_mean) == ("F6", 448, (0.1, 0.2, 0.3))
  assert config.pixel_deviation == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
  ("read", "message"),
  [
    (lambda: vision_rules.config_from_timm(dict(architecture="dm_nfnet_f7")), "'dm_nfnet_f7'"),
    (lambda: vision_rules.config_from_clip(dict(hidden_act="silu")), "'silu'.*quick_gelu"),
    (
      lambda: vision_rules.config_from_open_clip(dict(vision_cfg=dict(layers=2, width=64, ls_init_value=0.1))),
      "ls_init_value=0.1",
    ),
    (lambda: vision_rules.config_from_open_clip(dict(vision_cfg=dict(layers=[3, 4], width=64))), r"layers=\[3, 4\]"),
    (
      lambda: vision_rules.config_from_open_clip(dict(vision_cfg=dict(timm_model_name="convnext"))),
      "timm_model_name='convnext'",
    ),
  ],
)
def test_a_tower_that_cannot_be_read_is_named(read, message):
  with pytest.raises(UserError, match=message):
    read()


@pytest.mark.parametrize(
  ("described", "message"),
  [
    (dict(do_normalize=False), "do_normalize is False; only True is read."),
    (dict(do_rescale=False), "do_rescale is False; only True is read."),
    (dict(rescale_factor=1 / 127.5), "rescale_factor is 0.00784313725490196; only 1/255 is read."),
    (dict(image_mean=[0.5]), r"image_mean is [0.5]; it is one number a colour"),
    (dict(image_std=[0.5, 0.5, 0.0]), r"image_std is [0.5, 0.5, 0.0]; it is one number a colour, a deviation above 0."),
  ],
)
def test_pixels_that_are_prepared_otherwise_are_refused(described, message):
  with pytest.raises(UserError) as error:
    vision_rules.pixels_from_transformers(described, "clip/preprocessor_config.json")
  assert str(error.value).startswith(f"clip/preprocessor_config.json: {message}")
