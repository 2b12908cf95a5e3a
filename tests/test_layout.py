"""The house stands as layout.md draws it: packages, links, names and the direction of imports."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
OUTSIDE = ("solvers", "guidance")  # packages that stand at the top and are installed inside diffsample
FACADE = "diffsample"  # re-exports everything, and nothing inside the package imports names from it
APPLICATIONS = (  # may use the models
    "diffsample.__main__",
    "diffsample.catalogue",
    "diffsample.certify",
    "diffsample.choices",
    "diffsample.command",
    "diffsample.certify_sampler",
    "diffsample.contract",
    "diffsample.demo",
    "diffsample.orders",
    "diffsample.particle_demo",
    "diffsample.running",
    "diffsample.sampler_catalogue",
    "diffsample.schedule_files",
    "diffsample.search_command",
    "diffsample.sweep_command",
    "diffsample.token_choices",
    "diffsample.token_demo",
    "diffsample.training",
    "diffsample.training_tokens",
)


def name_of(path: Path) -> str:
    """Import name of a source file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("diffsample", *parts) if parts[0] in OUTSIDE else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> Iterator[Path]:
    """Every Python file that is installed; each once, whether or not the clone has the links."""
    for path in sorted((ROOT / "diffsample").rglob("*.py")):
        if path.relative_to(ROOT / "diffsample").parts[0] not in OUTSIDE:  # older Pythons walk through links
            yield path
    for top in OUTSIDE:
        yield from sorted((ROOT / top).rglob("*.py"))


MODULES = {name_of(path): path for path in source_files()}


def parent(module: str) -> str:
    """The package that a module stands in; a package is its own."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def imports(module: str) -> Iterator[str]:
    """Absolute names imported anywhere in a module; `from a import b` counts as a and as a.b."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(sources: list[str], *packages: str) -> list[str]:
    """Imports of `packages` by the modules in `sources`."""
    return sorted(
        f"{source} -> {target}"
        for source in sources
        for target in set(imports(source))
        if any(f"{target}.".startswith(f"diffsample.{package}.") for package in packages)
    )


def inside(*packages: str) -> list[str]:
    return [m for m in MODULES if any(f"{m}.".startswith(f"diffsample.{package}.") for package in packages)]


def test_package_list_equals_the_packages_on_disk():
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)


def test_every_source_file_belongs_to_a_listed_package():
    assert {parent(module) for module in MODULES} <= set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("top", OUTSIDE)
def test_link_points_to_the_top_level_package(top: str):
    link = ROOT / "diffsample" / top
    # git writes a link as a small file that holds the target where the file system has no links
    target = os.readlink(link) if link.is_symlink() else link.read_text().strip()
    assert target.replace("\\", "/") == f"../{top}"
    assert SETUPTOOLS["package-dir"][f"diffsample.{top}"] == top


@pytest.mark.parametrize("top", OUTSIDE)
def test_top_level_name_is_refused_with_the_remedy(top: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=rf"import diffsample\.{top}"):
        importlib.import_module(top)


@pytest.mark.parametrize("top", OUTSIDE)
def test_installed_name_is_the_file_in_this_repository(top: str):
    module = importlib.import_module(f"diffsample.{top}")
    assert Path(str(module.__file__)).resolve() == ROOT / top / "__init__.py"


def test_imports_are_absolute_and_exist():
    for module in MODULES:
        for target in imports(module):
            name, _, attribute = target.rpartition(".")
            if target.startswith("diffsample."):
                assert target in MODULES or name in MODULES, f"{module} imports {target}, and {attribute} is nowhere"
            assert target.split(".")[0] not in OUTSIDE, f"{module} imports {target}: write diffsample.{target}"


def test_core_imports_no_algorithm():
    core = [m for m in MODULES if parent(m) == "diffsample" and m not in (FACADE, *APPLICATIONS)]
    assert arrows(core, "solvers", "guidance", "smc", "discrete", "search") == []


def test_solvers_and_guidance_do_not_import_each_other():
    assert arrows(inside("solvers"), "guidance") + arrows(inside("guidance"), "solvers") == []


def test_the_particle_loop_imports_no_family_built_on_it():
    loop = [m for m in MODULES if parent(m) == "diffsample.smc" and MODULES[m].name != "__init__.py"]
    assert arrows(loop, "smc.products", "smc.rewards", "smc.paths", "smc.tokens", "smc.estimators") == []


def test_search_imports_the_core_and_solvers_alone():
    assert arrows(inside("search"), "guidance", "smc", "discrete") == []
    assert arrows(inside("solvers", "guidance", "smc", "discrete"), "search") == []


def test_algorithms_do_not_import_models():
    algorithms = set(MODULES) - set(inside("exact", "nets")) - {FACADE, *APPLICATIONS}
    assert arrows(sorted(algorithms), "exact", "nets") == []


def test_no_public_function_bears_the_name_of_its_module():
    for module, path in MODULES.items():
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert module.rpartition(".")[2] not in functions, f"{module} has a function of the same name"


def test_no_export_hides_a_module():
    for package in SETUPTOOLS["packages"]:
        for node in ast.parse(MODULES[package].read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module != package:
                exported = {f"{package}.{alias.asname or alias.name}" for alias in node.names}
                assert not exported & set(MODULES), f"{package} exports a name that hides its module"


def build(project: Path, kind: str, out: Path) -> Path:
    """Build a `wheel` or an `sdist` of a project with the installed setuptools; no network."""
    command = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", command], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.mark.slow
def test_wheel_built_from_the_sdist_contains_every_file(tmp_path: Path):
    pytest.importorskip("setuptools", minversion="77")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "notebooks")
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, symlinks=True, ignore=unwanted)
    weights = project / "diffsample" / "nets" / "weights" / "deep" / "down" / "probe.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"0")

    sdist = build(project, "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]

    installed = {path.relative_to(ROOT) for path in MODULES.values()}
    expected = {str(Path("diffsample") / p) if p.parts[0] in OUTSIDE else str(p) for p in installed}
    assert {name for name in names if name.endswith(".py")} == expected
    assert {"diffsample/py.typed", "diffsample/nets/weights/deep/down/probe.bin"} <= names
    assert licences
