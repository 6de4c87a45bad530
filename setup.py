"""Packaging: the core trains on arrays; everything else is an extra (docs/dependencies.md says why each is here)."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "flamingo_jax/__init__.py").read_text()).group(1)

extras = {
  "data": [
    "tensorflow-cpu>=2.16; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "tensorflow>=2.16; platform_machine != 'x86_64' or sys_platform != 'linux'",
    "tensorflow-datasets>=4.9.7",
    "array_record>=0.6",
    "av>=12",
    "lxml>=5",
    "opencv-python-headless>=4.8",
    "pillow>=10",
    "simplejpeg>=1.7",
    "tokenizers>=0.19",
  ],
  "gguf": ["gguf>=0.10"],
  "meteor": ["nltk>=3.9"],
  "plan": ["libtpu"],
  "report": ["bokeh>=3.4", "jinja2>=3.1", "pillow>=10", "pyyaml>=6"],
  "torch": ["torch>=2.6"],
  "tpu": ["jax[tpu]"],
  "gpu": ["jax[cuda12]"],
}
extras["build"] = extras["data"] + [
  "apache-beam>=2.77",
  "FastWARC>=2.0",
  "imagehash>=4.3.2",
  "py3langid>=0.4",
  "pyarrow>=25",
]
extras["quickstart"] = extras["data"] + extras["gguf"] + extras["report"]
extras["peers"] = extras["torch"] + ["accelerate>=1", "transformers>=4.45,<5"]
extras["dev"] = (
  extras["quickstart"]
  + extras["build"]
  + extras["plan"]
  + extras["meteor"]
  + [
    "atheris>=3; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "bandit>=1.8",
    "beartype>=0.18",
    "beautifulsoup4>=4.12",
    "hypothesis>=6",
    "playwright>=1.45",
    "pycocoevalcap>=1.2",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "scikit-learn>=1.5",
  ]
)

setup(
  name="flamingo_jax",
  version=version,
  description="Flamingo-style visual language models in JAX, from a laptop to a TPU pod",
  long_description=(here / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["flamingo_jax*", "configs*", "data_pipelines*", "launch*"]),
  package_data={"launch": ["*.html.j2", "report/*.html.j2"], "flamingo_jax": ["py.typed"]},
  install_requires=[
    "absl-py>=2",
    "chex>=0.1.86",
    "flax>=0.10",
    "jax>=0.7",
    "jaxtyping>=0.2.30",
    "ml_collections>=0.1.1",
    "numpy>=1.26",
    "optax>=0.2.3",
    "orbax-checkpoint>=0.11",
    "rich>=13",
    "safetensors>=0.4",
    "tensorboardX>=2.6",
  ],
  extras_require=extras,
  entry_points={"console_scripts": ["flamingo=launch.cli:main"]},
)
