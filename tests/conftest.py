import gc
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # as the command `flamingo` has it
ROOT = pathlib.Path(__file__).parent.parent
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that stay: it looks at them for a third of its time


def compile_quickly() -> None:
  """Halves the time to compile what then runs for microseconds.

  XLA reads its flags once. They are put back, since libtpu and processes that tests start would read them, too, and
  libtpu ends the process over one that it does not know.
  """
  import jax  # which reads the platform from the environment when it is imported

  if jax.__version_info__ >= (0, 11):  # whose XLA ends the process over this flag
    return
  given = os.environ.get("XLA_FLAGS")
  os.environ["XLA_FLAGS"] = f"{given or ''} --xla_cpu_use_fusion_emitters=false".strip()
  jax.devices()
  os.environ.pop("XLA_FLAGS") if given is None else os.environ.update(XLA_FLAGS=given)


compile_quickly()


@pytest.fixture(scope="module")
def few_optimizations():
  """For programs that run for microseconds, whose compilation should be short."""
  import jax

  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def quickstart_data() -> pathlib.Path:
  """The quickstart's real data and language model, where `make test` has put them; made now if they are not there."""
  from launch.quickstart import quickstart

  folder = ROOT / "data" / "quickstart"
  quickstart(str(folder), "unused", {}, prepare_only=True)
  return folder


@pytest.fixture(scope="session")
def browser():
  """Chromium without a window, driven by Playwright; where there is none, such tests are skipped, but not in CI."""
  path = shutil.which("chromium")
  if path is None:
    absence = "no chromium on this machine; `apt-get install chromium` brings it"
    pytest.fail(absence) if os.environ.get("CI") else pytest.skip(absence)
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root cannot have the sandbox
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., dict[str, np.ndarray]]:
  """Writes a tiny Llama, two layers of width 16, as a GGUF file; returns its tensors by GGUF name."""
  shapes = {
    "token_embd": (40, 16),
    "output_norm": (16,),
    "output": (40, 16),
    "attn_norm": (16,),
    "attn_q": (16, 16),
    "attn_k": (8, 16),
    "attn_v": (8, 16),
    "attn_output": (16, 16),
    "ffn_norm": (16,),
    "ffn_gate": (24, 16),
    "ffn_up": (24, 16),
    "ffn_down": (16, 24),
  }

  import gguf

  def write(
    path: pathlib.Path, *, architecture: str = "llama", leave_out=(), more=(), metadata=()
  ) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    whole = ("token_embd", "output_norm", "output")
    names = [*whole, *(f"blk.{layer}.{name}" for layer in range(2) for name in shapes if name not in whole)]
    tensors = {f"{name}.weight": random.normal(size=shapes[name.split(".")[-1]]).astype(np.float32) for name in names}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in leave_out} | dict(more)
    letters = [chr(number) for number in range(ord("A"), ord("A") + 38)]
    writer = gguf.GGUFWriter(path, architecture)
    fields = dict(embedding_length=16, block_count=2, feed_forward_length=24, head_count=4, head_count_kv=2)
    fields |= dict(rope_freq_base=5000.0, layer_norm_rms_eps=1e-5, tokenizer_pre="smollm")
    fields |= dict(token_list=["<|endoftext|>", *letters, "AB"], token_merges=["A B"])
    for name, value in fields.items():
      if name not in leave_out:
        getattr(writer, f"add_{name}")(value)
    for name, value in dict(metadata).items():
      {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](name, value)
    for name, tensor in tensors.items():
      writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors

  return write
