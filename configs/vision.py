"""Vision encoders, as the fields of `model.vision`; `family` says which kind one is."""


def encoder(**changes) -> dict:
  """A bidirectional transformer: under every ViT, and the text tower of contrastive training."""
  defaults = dict(
    width=256,
    layers=4,
    heads=4,
    feed_forward_multiplier=4.0,  # hidden width of the feed-forward blocks, times the width
    activation="gelu",  # or "quick_gelu", "gelu_tanh", "relu", "squared_relu"
    norm_epsilon=1e-5,
    attention_bias=False,  # on queries, keys, values and outputs
    final_norm=True,  # after the last layer
  )
  return defaults | changes


def vit(**changes) -> dict:
  """A vision transformer; the defaults are the quickstart's, small enough to train at home."""
  defaults = encoder() | dict(
    family="vit",  # or "nfnet", or "features": media that were encoded before; each has fields of its own
    image_size=64,  # pixels a side
    patch_size=8,
    patch_bias=True,
    class_token=False,  # one more position, learned, before the patches
    keep_class_token=False,  # it comes out too, before the grid
    pre_norm=False,  # a norm between the embeddings and the first layer
    pixel_mean=(0.5, 0.5, 0.5),  # of each colour, where 255 counts as 1
    pixel_deviation=(0.5, 0.5, 0.5),
  )
  return defaults | changes


def clip_vit(**changes) -> dict:
  """Radford et al., 2021; the last layer's grid comes out as it is."""
  switches = dict(attention_bias=True, final_norm=False, patch_bias=False, class_token=True, pre_norm=True)
  pixels = dict(pixel_mean=(0.48145466, 0.4578275, 0.40821073), pixel_deviation=(0.26862954, 0.26130258, 0.27577711))
  return vit(image_size=224, patch_size=14, **switches, **pixels, **changes)


def clip_vit_l14() -> dict:
  """OpenAI's ViT-L/14, of OpenFlamingo; their own weights always mean the quick GELU."""
  return clip_vit(width=1024, layers=24, heads=16, activation="quick_gelu")


def clip_vit_h14() -> dict:
  """LAION's ViT-H/14, of IDEFICS, which reads the class token too."""
  return clip_vit(width=1280, layers=32, heads=16, keep_class_token=True)


def siglip_so400m() -> dict:
  """SigLIP-SO400M/14 at 384 pixels (Zhai et al., 2023)."""
  return vit(
    width=1152,
    layers=27,
    heads=16,
    feed_forward_multiplier=4304 / 1152,
    activation="gelu_tanh",
    norm_epsilon=1e-6,
    attention_bias=True,
    image_size=384,
    patch_size=14,
  )


def nfnet(variant: str, **changes) -> dict:
  """Brock et al., 2021: "F0" to "F6"."""
  defaults = dict(
    family="nfnet",
    variant=variant,
    depths=(1, 2, 6, 3),  # blocks of each stage in F0; the variants are 2 to 7 times as deep
    widths=(256, 512, 1536, 1536),  # of each stage
    group_width=128,  # channels that the 3 x 3 convolutions read together
    image_size=320,  # pixels a side
    final_conv=False,  # the convolution before the classifier's pooling, to twice the width, is applied too
    pixel_mean=(0.485, 0.456, 0.406),  # of each colour, where 255 counts as 1
    pixel_deviation=(0.229, 0.224, 0.225),
  )
  return defaults | changes


def nfnet_f0() -> dict:
  """The ablations' small one."""
  return nfnet("F0")


def nfnet_f6() -> dict:
  """The paper's."""
  return nfnet("F6")


def features(width: int, positions: int) -> dict:
  """No encoder: every stream's media are features that `flamingo data features` computed; it says how many."""
  return dict(
    family="features",
    width=width,  # V
    positions=positions,  # S, of a picture
  )
