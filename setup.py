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
    "av>=14.1",
    "lxml>=5",
    "opencv-python-headless>=4.8",
    "pillow>=10",
    "simplejpeg>=1.7",
    "tokenizers>=0.19",
    "webencodings>=0.6",
  ],
  "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29"],
  "gguf": ["gguf>=0.10"],
  "meteor": ["nltk>=3.9"],
  "mlflow": ["mlflow>=3"],
  "plan": ["libtpu"],
  "report": ["bokeh>=3.4", "jinja2>=3.1", "pillow>=10", "pyyaml>=6"],
  "sweep": ["optuna>=4"],
  "torch": ["torch>=2.6"],
  "tpu": ["jax[tpu]"],
  "gpu": ["jax[cuda12]"],
  "wandb": ["wandb>=0.31"],
}
extras["build"] = extras["data"] + [
  "apache-beam>=2.77",
  "FastWARC>=2.0",
  "imagehash>=4.3.2",
  "py3langid>=0.4",
  "pyarrow>=25",
  "sentencepiece>=0.2",
]
extras["quickstart"] = extras["data"] + extras["gguf"] + extras["report"]
extras["demo"] = extras["quickstart"] + ["gradio>=6.17,<7"]
extras["peers"] = extras["torch"] + ["accelerate>=1", "transformers>=4.45,<5"]
extras["dev"] = (
  extras["quickstart"]
  + extras["build"]
  + extras["demo"]
  + extras["sweep"]
  + extras["plan"]
  + extras["meteor"]
  + extras["mlflow"]
  + extras["wandb"]
  + extras["docs"]
  + [
    "atheris>=3; platform_machine == 'x86_64' and sys_platform == 'linux'",
    "bandit>=1.8",
    "beartype>=0.18",
    "beautifulsoup4>=4.12",
    "build>=1.2",
    "hypothesis>=6",
    "ipykernel>=6",
    "kubeflow-trainer-api>=2.3",
    "matplotlib>=3.8",
    "mypy>=1.18",
    "nbclient>=0.10",
    "playwright>=1.45",
    "pycocoevalcap>=1.2",
    "pytest>=9.1",
    "pytest-cov>=7",
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
  author="The flamingo_jax developers",
  license="Apache-2.0",
  keywords=["Flamingo", "vision-language model", "multimodal", "few-shot learning", "JAX", "Flax", "TPU"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Environment :: GPU :: NVIDIA CUDA :: 12",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Typing :: Typed",
  ],
  python_requires=">=3.11",
  packages=find_packages(include=["flamingo_jax*", "configs*", "data_pipelines*", "launch*"]),
  package_data={
    "flamingo_jax": ["py.typed"],
    "configs": ["py.typed"],
    "data_pipelines": ["py.typed"],
    "launch": ["py.typed", "*.html.j2", "report/*.html.j2", "demo/*.html*", "demo/*.css", "demo/*.js", "container/*"],
  },
  install_requires=[
    "absl-py>=2",
    "flax>=0.10",
    "jax>=0.8.1",
    "jaxtyping>=0.2.30",
    "ml_collections>=1",
    "numpy>=2",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.17",
    "rich>=13",
    "safetensors>=0.4",
    "tensorboard>=2.16",
  ],
  extras_require=extras,
  entry_points={"console_scripts": ["flamingo=launch.cli:main"]},
)
