import itertools
import math
from fractions import Fraction

from flamingo_jax.ops.remat import POLICIES
from flamingo_jax.parallel.fit import Length, length_faults, row_faults
from flamingo_jax.planning.search import candidates

ROWS = {"pages": 8, "pairs": 16}
LENGTHS = [Length("heads", 4, "model"), Length("width", 24, "fsdp")]


def test_all_that_fits_is_found_once_and_the_config_itself_comes_first():
  found = list(candidates(dict(replica=-1, fsdp=2, model=2), 8, "products", ROWS, LENGTHS))
  first = found[0]
  assert (first.mesh, first.remat, first.rows) == (dict(replica=2, fsdp=2, model=2), "products", ROWS)
  keys = [(tuple(each.mesh.values()), each.remat, tuple(each.rows.values())) for each in found]
  meshes = [
    (replica, fsdp, model)
    for replica, fsdp, model in itertools.product((1, 2, 4, 8), repeat=3)
    if replica * fsdp * model == 8 and 4 % model == 0 and 24 % fsdp == 0
  ]
  expected = {
    (mesh, policy, (int(8 * scale), int(16 * scale)))
    for mesh, policy, scale in itertools.product(meshes, POLICIES, (1, 2, 4, Fraction(1, 2), Fraction(1, 4)))
    if int(8 * scale) % (mesh[0] * mesh[1]) == 0
  }
  assert len(keys) == len(set(keys)) and set(keys) == expected
  for each in found:
    assert math.prod(each.mesh.values()) == 8
    assert not row_faults(each.rows, each.mesh["replica"] * each.mesh["fsdp"])
    assert not length_faults(LENGTHS, each.mesh)


def test_a_mesh_that_makes_other_devices_still_has_neighbours():
  found = list(candidates(dict(replica=1, fsdp=1, model=2), 8, "", ROWS, LENGTHS))
  assert {each.remat for each in found} == {""}
  assert found[0].mesh["model"] in (2, 4)
