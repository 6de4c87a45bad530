"""The parity command on cases that a real peer writes here, and on ones that were tampered with."""

import json
import shutil

import numpy as np
import pytest

from flamingo_jax.parity import check as parity

torch = pytest.importorskip("torch")
pytest.importorskip("einops_exts")
peer = pytest.importorskip("flamingo_pytorch.flamingo_pytorch")
save_file = pytest.importorskip("safetensors.torch").save_file

SIZES = dict(dim=16, dim_head=4, heads=2)


def randomize(module) -> None:
  """No gate, norm or bias stays where it starts."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator) + 0.3 * (parameter.ndim == 1))


def write_case(folder, name: str, module, inputs: dict, extra: dict, sizes: dict) -> None:
  """A case as the reference folder holds them: state dict, inputs, output, and all gradients."""
  randomize(module)
  inputs = {key: torch.tensor(array, requires_grad=True) for key, array in inputs.items()}
  places = {key: torch.tensor(array) for key, array in extra.items()}
  output = module(*inputs.values(), **places)
  cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
  (output * cotangent).sum().backward()
  arrays = {key: tensor.detach() for key, tensor in inputs.items()} | places
  arrays |= dict(output=output.detach(), cotangent=cotangent)
  arrays |= {f"grad_input:{key}": tensor.grad for key, tensor in inputs.items()}
  arrays |= {f"grad:{key}": parameter.grad for key, parameter in module.named_parameters()}
  np.savez(folder / f"{name}.npz", **{key: tensor.numpy() for key, tensor in arrays.items()})
  save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, folder / f"{name}.safetensors")
  (folder / f"{name}.json").write_text(json.dumps(sizes))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("reference")
  random = np.random.default_rng(0)
  features = random.normal(size=(2, 3, 5, 16)).astype(np.float32)
  resampler = SIZES | dict(depth=2, num_latents=3, num_media_embeds=4)
  write_case(folder, "luc_resampler", peer.PerceiverResampler(**resampler), dict(features=features), {}, resampler)
  text = random.normal(size=(2, 8, 16)).astype(np.float32)
  media = random.normal(size=(2, 3, 4, 16)).astype(np.float32)
  places = np.zeros((2, 8), bool)
  places[0, [2, 5]] = places[1, [0, 1, 4]] = True
  gated = SIZES | dict(only_attend_immediate_media=True)
  module = peer.GatedCrossAttentionBlock(**gated)
  write_case(folder, "luc_xattn_immediate", module, dict(text=text, media=media), dict(media_locations=places), gated)
  (folder / "VERSIONS.json").write_text("{}")
  return folder


@pytest.fixture
def reference(written, tmp_path):
  return shutil.copytree(written, tmp_path / "reference")


def change(path, **changes) -> None:
  with np.load(path) as arrays:
    kept = dict(arrays)
  np.savez(path, **kept | {name: function(kept) for name, function in changes.items()})


def test_modules_that_agree_pass(written, capsys):
  assert parity.main(["--reference", str(written)]) == 0
  printed = capsys.readouterr().out
  assert "luc_resampler" in printed
  assert "luc_xattn_immediate" in printed


@pytest.mark.parametrize("array", ["output", "grad:latents", "grad_input:features", "grad:layers.1.0.to_kv.weight"])
def test_an_error_of_a_thousandth_fails_and_is_named(reference, capsys, array):
  change(reference / "luc_resampler.npz", **{array: lambda arrays: arrays[array] * np.float32(1.001)})
  assert parity.main(["--reference", str(reference)]) == 1
  assert f"luc_resampler: {array}: error 1.0e-03" in capsys.readouterr().out


def test_a_gradient_that_ours_lack_fails(reference, capsys):
  change(reference / "luc_xattn_immediate.npz", **{"grad:attn.mystery": lambda arrays: arrays["grad:attn_gate"]})
  assert parity.main(["--reference", str(reference)]) == 1
  assert "grad:attn.mystery: error inf" in capsys.readouterr().out


def test_a_foreign_parameter_that_nobody_takes_fails(reference, capsys):
  path = reference / "luc_xattn_immediate.safetensors"
  tensors = {**peer.GatedCrossAttentionBlock(**SIZES).state_dict(), "attn.mystery": torch.zeros(3)}
  save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
  assert parity.main(["--reference", str(reference)]) == 1
  assert "not known: attn.mystery [3]" in capsys.readouterr().out


def test_a_case_of_an_unknown_kind_fails(reference, capsys):
  for ending in (".npz", ".json", ".safetensors"):
    shutil.copy(reference / f"luc_resampler{ending}", reference / f"new_resampler{ending}")
  assert parity.main(["--reference", str(reference)]) == 1
  assert "new_resampler: a kind of case that is not known" in capsys.readouterr().out


def test_an_empty_folder_is_an_error(tmp_path, capsys):
  assert parity.main(["--reference", str(tmp_path)]) == 1
  assert "no cases there" in capsys.readouterr().err
