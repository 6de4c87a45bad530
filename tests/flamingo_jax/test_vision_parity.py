"""Our vision towers against those they are read from, on small random instances: features, gradients, names."""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.interop import vision_rules
from flamingo_jax.interop.importing import FORMATS
from flamingo_jax.interop.rules import InMemory, assemble, check_tensors, foreign_from
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.vision.nfnet import NfnetConfig
from flamingo_jax.models.vision.towers import vision_tower
from flamingo_jax.models.vision.vit import resize_positions

torch = pytest.importorskip("torch")

SIZES = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=16)
SIZES |= dict(patch_size=4)


@contextlib.contextmanager
def without_torchvision(*packages: str):
  """Lets single modules of packages be imported whose own `__init__` needs torchvision; nothing of it is used."""
  before = set(sys.modules)
  for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc", *packages):
    sys.modules[name] = types.ModuleType(name)
  for name in packages:
    parent = name.rpartition(".")[0]
    paths = sys.modules[parent].__path__ if parent else None
    sys.modules[name].__path__ = importlib.machinery.PathFinder.find_spec(name, paths).submodule_search_locations
  sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.BatchNorm2d
  yield
  for name in set(sys.modules) - before:
    if name.partition(".")[0] in ("torchvision", *packages):
      del sys.modules[name]


@pytest.fixture(scope="module")
def transformers():
  return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def open_clip():
  """open_clip's module of transformers."""
  if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed")
  with without_torchvision("open_clip"):
    return importlib.import_module("open_clip.transformer")


@pytest.fixture(scope="module")
def timm_nfnet():
  """timm's module of NFNets."""
  if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed")
  with without_torchvision("timm", "timm.models", "timm.data"):
    sys.modules["timm"].__version__ = "of no interest"
    constants = importlib.import_module("timm.data.constants")
    vars(sys.modules["timm.data"]).update(vars(constants))
    return importlib.import_module("timm.models.nfnet")


def randomize(module, seed: int = 0):
  """Random parameters; no norm, bias or gain is left at its start."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if name.endswith("gain") or (("norm" in name or "ln_" in name) and name.endswith("weight")):
        parameter.copy_(1 + 0.2 * noise)
      elif parameter.ndim < 2 or "embed" in name:
        parameter.copy_(0.3 * noise)
      else:
        parameter.copy_(noise * parameter[0].numel() ** -0.5)
  return module.requires_grad_(True).eval()


def arrays_of(module) -> dict[str, np.ndarray]:
  return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def assert_same_tower(jit, module, features_of, config, rules, ignored):
  """Holds our tower to a foreign module: names and shapes, features of random images, gradients, and the way back.

  Args:
    jit: how ours is compiled.
    module: the foreign one.
    features_of: (module, images [B, 3, H, W]) to features [B, S, V].
    config: of our tower.
    rules: that take the module's tensors to ours.
    ignored: patterns of its tensors that ours does without.
  """
  theirs = arrays_of(module)
  size = config.image_size
  images = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(1))
  expected = features_of(module.double(), images.double())  # so that only our rounding counts
  weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
  (expected * weights).sum().backward()

  check_tensors(InMemory(theirs), rules, ignored)
  parameters = assemble(InMemory(theirs), rules)
  tower = vision_tower(config, jnp.dtype("float32"))
  pixels = jnp.zeros((1, size, size, 3), jnp.uint8)
  fresh = flat(jax.eval_shape(lambda key: tower.init(key, pixels)["params"], jax.random.key(0)))
  assert {path: array.shape for path, array in parameters.items()} == {p: s.shape for p, s in fresh.items()}

  def weighted(parameters, images, weights):
    features = tower.apply(nested(parameters), images, method="encode")
    return (features * weights).sum(), features

  images = images.numpy().transpose(0, 2, 3, 1)
  gradients, features = jit(jax.grad(weighted, has_aux=True))(parameters, images, weights.numpy())
  expected = expected.detach().numpy()
  assert features.shape == expected.shape == (2, config.positions, config.width)
  np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)

  wanted = {name: parameter.grad.numpy() for name, parameter in module.named_parameters() if parameter.grad is not None}
  # The gradient of a key's bias is zero but for rounding, which the others' size decides.
  floor = 1e-2 * max(np.abs(gradient).max() for gradient in wanted.values())
  found = {names[0]: gradient for names, gradient in foreign_from(gradients, rules)}
  for name, gradient in found.items():
    tolerance = 1e-4 * max(np.abs(wanted[name]).max(), floor)
    np.testing.assert_allclose(gradient, wanted[name], atol=tolerance, rtol=0, err_msg=name)

  for names, array in foreign_from(parameters, rules):
    np.testing.assert_array_equal(array, theirs[names[0]], strict=True)


@pytest.mark.parametrize(("activation", "keep_class_token"), [("quick_gelu", False), ("gelu", True)])
def test_clip_of_transformers(jit, transformers, activation, keep_class_token):
  described = transformers.CLIPVisionConfig(**SIZES, hidden_act=activation, layer_norm_eps=1e-3)
  module = randomize(transformers.CLIPVisionModel(described))
  config = vision_rules.config_from_clip(described.to_dict())
  config = dataclasses.replace(config, keep_class_token=keep_class_token)
  features = lambda module, images: module(images).last_hidden_state[:, 0 if keep_class_token else 1 :]  # noqa: E731
  assert_same_tower(jit, module, features, config, vision_rules.clip_rules(config), vision_rules.CLIP_IGNORED)


def test_clip_of_transformers_through_its_last_norm(jit, transformers):
  """Which transformers itself applies to the class token only."""
  described = transformers.CLIPVisionConfig(**SIZES)
  module = randomize(transformers.CLIPVisionModel(described))
  config = vision_rules.config_from_clip(described.to_dict())
  config = dataclasses.replace(config, keep_class_token=True, final_norm=True)
  features = lambda module, images: module.vision_model.post_layernorm(module(images).last_hidden_state)  # noqa: E731
  assert_same_tower(jit, module, features, config, vision_rules.clip_rules(config), vision_rules.CLIP_IGNORED)


def test_clip_of_transformers_within_the_whole_model(jit, transformers):
  text = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=30)
  described = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=12)
  module = randomize(transformers.CLIPModel(described))
  config = vision_rules.config_from_clip(described.to_dict())
  features = lambda module, images: module.vision_model(images).last_hidden_state[:, 1:]  # noqa: E731
  assert_same_tower(jit, module, features, config, vision_rules.clip_rules(config), vision_rules.CLIP_IGNORED)


def test_siglip_of_transformers(jit, transformers):
  described = transformers.SiglipVisionConfig(**SIZES | dict(image_size=18), layer_norm_eps=1e-3)
  module = randomize(transformers.SiglipVisionModel(described))
  config = vision_rules.config_from_siglip(described.to_dict())
  features = lambda module, images: module(images).last_hidden_state  # noqa: E731
  assert_same_tower(jit, module, features, config, vision_rules.clip_rules(config), vision_rules.SIGLIP_IGNORED)


def test_idefics_of_transformers(jit, transformers):
  sizes = {**SIZES, "embed_dim": SIZES["hidden_size"]}
  del sizes["hidden_size"]
  described = transformers.IdeficsConfig(
    vision_config=sizes,
    vocab_size=30,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=2,
    additional_vocab_size=2,
  )
  module = randomize(transformers.IdeficsForVisionText2Text(described))
  config = vision_rules.config_from_idefics(described.to_dict())
  rules = vision_rules.clip_rules(config, prefix="model.vision_model.")
  ignored = (*vision_rules.IDEFICS_VISION_IGNORED, r"^(?!model\.vision_model\.)")
  features = lambda module, images: module.model.vision_model(images).last_hidden_state  # noqa: E731
  assert_same_tower(jit, module, features, config, rules, ignored)


PIXELS = dict(image_mean=[0.2, 0.4, 0.6], image_std=[0.3, 0.2, 0.1])


@pytest.mark.parametrize(
  ("form", "written"), [("hf-clip", PIXELS), ("hf-clip", None), ("hf-siglip", PIXELS), ("hf-siglip", None)]
)
def test_pixels_are_prepared_as_transformers_prepares_them(jit, transformers, tmp_path, form, written):
  """An imported tower, from pictures on; without a file beside it, as the class of transformers does by default."""
  kind = {"hf-clip": "CLIP", "hf-siglip": "Siglip"}[form]
  described = getattr(transformers, f"{kind}VisionConfig")(**SIZES)
  module = randomize(getattr(transformers, f"{kind}VisionModel")(described))
  module.save_pretrained(tmp_path)
  processor = getattr(transformers, f"{kind}ImageProcessor")(do_resize=False, do_center_crop=False, **written or {})
  if written:
    processor.save_pretrained(tmp_path)
  picture = np.random.default_rng(0).integers(0, 256, (SIZES["image_size"], SIZES["image_size"], 3), np.uint8)
  with torch.no_grad():
    expected = module(processor(picture, return_tensors="pt")["pixel_values"]).last_hidden_state.numpy()
  source = FORMATS[form](tmp_path)
  parameters = assemble(source.tensors, source.rules)
  features = jit(vision_tower(source.config, jnp.dtype("float32")).apply)(nested(parameters), picture[None])
  np.testing.assert_allclose(features, expected[:, -source.config.positions :], atol=1e-5 * np.abs(expected).max())


def test_idefics_takes_the_pixels_of_its_own_processor(transformers, tmp_path):
  sizes = {**SIZES, "embed_dim": SIZES["hidden_size"]}
  config = transformers.IdeficsConfig(vision_config=sizes, vocab_size=30, hidden_size=16, intermediate_size=20,
                                      num_hidden_layers=1, num_attention_heads=2, additional_vocab_size=2)  # fmt: skip
  transformers.IdeficsForVisionText2Text(config).save_pretrained(tmp_path)
  processor = transformers.IdeficsImageProcessor()
  found = FORMATS["idefics"](tmp_path).config.vision
  assert (list(found.pixel_mean), list(found.pixel_deviation)) == (processor.image_mean, processor.image_std)
  transformers.IdeficsImageProcessor(**PIXELS).save_pretrained(tmp_path)
  found = FORMATS["idefics"](tmp_path).config.vision
  assert (list(found.pixel_mean), list(found.pixel_deviation)) == (PIXELS["image_mean"], PIXELS["image_std"])


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_as_openflamingo_reads_it(jit, open_clip, quick_gelu):
  vision = dict(image_size=16, layers=3, width=24, head_width=8, patch_size=4, mlp_ratio=1.7)
  config = vision_rules.config_from_open_clip(dict(vision_cfg=vision, quick_gelu=quick_gelu))
  sizes = {name: value for name, value in vision.items() if name != "head_width"}
  act_layer = open_clip.QuickGELU if quick_gelu else torch.nn.GELU
  module = randomize(
    open_clip.VisionTransformer(**sizes, heads=3, output_dim=12, output_tokens=True, act_layer=act_layer)
  )

  def features(module, images):
    module.ln_post = torch.nn.Identity()  # newer versions of open_clip apply it to the tokens, too
    return module(images)[1]

  rules = vision_rules.open_clip_rules(config, prefix="")
  assert_same_tower(jit, module, features, config, rules, vision_rules.OPEN_CLIP_IGNORED)


def test_nfnet_of_timm(jit, timm_nfnet):
  sizes = timm_nfnet._dm_nfnet_cfg(depths=(2, 1, 3), channels=(32, 64, 48))
  sizes = dataclasses.replace(sizes, stem_chs=16, group_size=8, num_features=96)
  module = randomize(timm_nfnet.NormFreeNet(sizes, num_classes=5))
  config = NfnetConfig(
    variant="F0", depths=(2, 1, 3), widths=(32, 64, 48), group_width=8, image_size=37, final_conv=True
  )
  features = lambda module, images: module.forward_features(images).flatten(2).transpose(1, 2)  # noqa: E731
  rules = vision_rules.timm_nfnet_rules(config)
  assert_same_tower(jit, module, features, config, rules, vision_rules.TIMM_NFNET_IGNORED)


def test_nfnet_of_timm_up_to_its_last_stage(jit, timm_nfnet):
  sizes = timm_nfnet._dm_nfnet_cfg(depths=(1, 2), channels=(32, 32))
  sizes = dataclasses.replace(sizes, stem_chs=16, group_size=4)
  module = randomize(timm_nfnet.NormFreeNet(sizes, num_classes=5))
  config = NfnetConfig(variant="F0", depths=(1, 2), widths=(32, 32), group_width=4, image_size=16)
  features = lambda module, images: module.stages(module.stem(images)).flatten(2).transpose(1, 2)  # noqa: E731
  rules = vision_rules.timm_nfnet_rules(config)
  assert_same_tower(jit, module, features, config, rules, vision_rules.TIMM_NFNET_IGNORED)


@pytest.mark.parametrize("side", [4, 9, 14])
def test_positions_are_resized_as_by_open_clip(side):
  embeddings = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
  grid = torch.from_numpy(embeddings[1:]).reshape(1, 7, 7, 6).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
  expected = resized.permute(0, 2, 3, 1).reshape(side**2, 6).numpy()
  np.testing.assert_allclose(resize_positions(embeddings, side, class_token=True)[1:], expected, atol=1e-5)
