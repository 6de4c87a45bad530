"""Which extra of the package brings a module that is not installed."""

EXTRAS = {
  "data": (
    "array_record",
    "av",
    "cv2",
    "lxml",
    "simplejpeg",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "webencodings",
  ),
  "build": ("apache_beam", "fastwarc", "imagehash", "py3langid", "pyarrow", "sentencepiece"),
  "demo": ("anyio", "gradio", "starlette"),
  "gguf": ("gguf",),
  "meteor": ("nltk",),
  "mlflow": ("mlflow",),
  "report": ("bokeh", "jinja2"),
  "sweep": ("optuna",),
  "torch": ("torch",),
  "wandb": ("wandb",),
}


def what_brings(error: Exception) -> str:
  """How to install the module that could not be found; empty where that is not what went wrong, or it is no extra's."""
  if not isinstance(error, ModuleNotFoundError) or error.name is None:
    return ""
  package = error.name.partition(".")[0]
  extras = [extra for extra, modules in EXTRAS.items() if package in modules]
  return f"{error.name} is not installed; `pip install 'flamingo_jax[{extras[0]}]'` brings it." if extras else ""
