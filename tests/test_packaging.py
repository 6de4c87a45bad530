"""What is built and installed from the tree is whole, and `flamingo --help` needs nothing that is slow to import."""

import ast
import email
import importlib.metadata
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flamingo_jax
from flamingo_jax.errors import USER_FAULT
from launch.extras import EXTRAS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("configs", "data_pipelines", "flamingo_jax", "launch")
IMPORTED_BY_HELP = """
import sys
from launch.cli import main
try:
  main(sys.argv[1:])
except SystemExit:
  pass
print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names), file=sys.stderr)
"""


def sources(*folders: str) -> set[str]:
  """Paths of all files that are ours, from the root."""
  files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
  kept = [file.relative_to(ROOT) for file in files if file.suffix not in (".pyc", ".pyo")]
  return {path.as_posix() for path in kept if not any(part.startswith(".") for part in path.parts)}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
  """A folder with the source archive and the wheel that was built from it; the tree is not touched."""
  folder = tmp_path_factory.mktemp("built")
  tree = folder / "tree"
  alone = {file.name for file in ROOT.iterdir() if file.is_file()}
  for name in sources(*PACKAGES, "benchmarks", "docs", "tests") | alone:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).symlink_to(ROOT / name)
  command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", str(tree)]
  subprocess.run(command, check=True, capture_output=True)
  return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> pathlib.Path:
  """The programs of a new environment that has the wheel, and beside it the packages of this one, but not the tree."""
  folder = tmp_path_factory.mktemp("installed")
  venv.create(folder, with_pip=False)
  programs = folder / "bin"
  [wheel] = built.glob("*.whl")
  install = [sys.executable, "-m", "pip", f"--python={programs / 'python'}", "install", "--no-deps", "--no-index"]
  subprocess.run([*install, str(wheel)], check=True, capture_output=True)
  [site_packages] = folder.glob("lib/python*/site-packages")
  # As a path of another .pth file, this folder's own .pth files are not read: they would lead to the tree.
  (site_packages / "others.pth").write_text(sysconfig.get_path("purelib"))
  return programs


def run(cwd: pathlib.Path, *command) -> subprocess.CompletedProcess:
  return subprocess.run([str(each) for each in command], cwd=cwd, check=True, capture_output=True, text=True)


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(built):
  [wheel] = built.glob("*.whl")
  found = set(zipfile.ZipFile(wheel).namelist())
  described = f"flamingo_jax-{flamingo_jax.__version__}.dist-info/"
  assert {name for name in found if not name.startswith(described)} == sources(*PACKAGES)
  assert described + "licenses/LICENSE" in found


def test_the_source_archive_has_also_tests_documentation_and_benchmarks(built):
  [archive] = built.glob("*.tar.gz")
  with tarfile.open(archive) as file:
    found = {name.partition("/")[2] for name in file.getnames()}
  rest = {
    "mkdocs.yml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
  }
  assert sources(*PACKAGES, "benchmarks", "docs", "tests") | rest <= found


def test_an_installed_package_runs_anywhere_and_finds_its_configs(installed, tmp_path):
  assert run(tmp_path, installed / "flamingo", "--version").stdout == f"flamingo_jax {flamingo_jax.__version__}\n"
  assert "VERB" in run(tmp_path, installed / "flamingo", "--help").stdout
  shown = run(tmp_path, installed / "flamingo", "config", "show", "configs/evaluation/quickstart.py").stdout
  assert (
    shown == run(ROOT, sys.executable, "-m", "launch.cli", "config", "show", "configs/evaluation/quickstart.py").stdout
  )
  where = run(tmp_path, installed / "python", "-c", "import launch; print(launch.__file__)").stdout
  assert pathlib.Path(where).is_relative_to(installed.parent)


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("data", "build-pages", "--help")])
def test_help_imports_nothing_but_ourselves_and_absl(installed, tmp_path, arguments):
  imported = run(tmp_path, installed / "python", "-c", IMPORTED_BY_HELP, *arguments).stderr.split()
  assert set(imported) == {"__main__", "absl", "flamingo_jax", "launch"}


def imports(folder: str) -> set[str]:
  """Top names of all modules that the files of a package import, anywhere in them, other than Python's and ours."""
  names = set()
  for file in (ROOT / folder).rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names.add(node.module)
  return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES}


def brought(requirements: list[str], extra: str) -> set[str]:
  """Names of the distributions that come with these requirements, and with theirs, as installed here."""
  found, left = set(), [(requirement, extra) for requirement in requirements]
  while left:
    text, extra = left.pop()
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    if name in found or (requirement.marker and not requirement.marker.evaluate(dict(extra=extra))):
      continue
    found.add(name)
    try:
      more = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # one for accelerators
      continue
    left += [(each, wanted) for each in more for wanted in ("", *requirement.extras)]
  return found


def test_every_module_comes_with_the_core_or_with_the_extra_that_is_named(built):
  [wheel] = built.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    described = file.read(f"flamingo_jax-{flamingo_jax.__version__}.dist-info/METADATA").decode()
  requirements = email.message_from_string(described).get_all("Requires-Dist")
  core, distributions = brought(requirements, ""), importlib.metadata.packages_distributions()
  for module in set.union(*map(imports, PACKAGES)):
    names = {canonicalize_name(name) for name in distributions[module]}
    extras = [extra for extra, modules in EXTRAS.items() if module in modules]
    if not extras:
      assert names & core, f"{module} comes with no requirement of the core, and launch/extras.py has it in no extra"
    for extra in extras:
      assert not names & core, f"{module} comes with the core; launch/extras.py says {extra}"
      assert names & brought(requirements, extra), f"{module} does not come with {extra}"


def test_a_verb_names_the_extra_that_it_lacks(installed, tmp_path):
  absent = "import sys; sys.modules['tensorflow'] = None; from launch.cli import main; sys.exit(main(sys.argv[1:]))"
  command = [installed / "python", "-c", absent, "train", "--config=configs/tiny.py", "--workdir=w"]
  done = subprocess.run([str(each) for each in command], cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == USER_FAULT
  assert done.stderr == "flamingo train: tensorflow is not installed; `pip install 'flamingo_jax[data]'` brings it.\n"
