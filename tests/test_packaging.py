"""What is installed under which name, and that Hugging Face's package `kernels` stays theirs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "actqkv_cli", "kernels", "tests", "sample_docs"}


def python(script: str, *more_path: Path) -> str:
    """What a fresh interpreter in the repository's root prints."""
    path = os.pathsep.join(map(str, more_path))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_folder_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "kernels").iterdir() if path.suffix == ".py"] == []
    assert (ROOT / "kernels" / "actqkv_kernels" / "__init__.py").is_file()


def test_transformers_imports_from_the_repository_root_and_our_folder_is_not_taken_for_theirs() -> None:
    found = python(
        "import transformers.modeling_utils, sys\n"
        "from transformers.utils import import_utils\n"
        "module = sys.modules.get('kernels')\n"
        "print(import_utils.is_kernels_available(), getattr(module, '__file__', None))"
    )
    available, file = found.split(maxsplit=1)
    assert available == "False" or not file.startswith(str(ROOT))
    assert file == "None" or not file.startswith(str(ROOT))


def test_where_their_package_is_installed_it_is_the_one_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("theirs = True\n")
    info = tmp_path / "kernels-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.0.1\n")
    found = python(
        "import kernels, transformers.modeling_utils\nprint(kernels.theirs, kernels.__file__)",
        ROOT / "kernels",
        tmp_path,
    )
    assert found == f"True {tmp_path / 'kernels' / '__init__.py'}"


def test_importing_our_kernels_loads_neither_triton_nor_transformers() -> None:
    script = "import actqkv_kernels, sys; print(*({'triton', 'transformers'} & set(sys.modules)))"
    assert python(script, ROOT / "kernels") == ""


def test_pyproject_names_the_two_packages_and_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["actqkv_cli", "kernels/actqkv_kernels"]
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)
    assert project["project"]["scripts"] == {"actqkv": "actqkv_cli.__main__:main"}
    assert project["project"]["requires-python"] == ">=3.11"
    assert (ROOT / "actqkv_cli" / "py.typed").is_file()


def test_every_package_that_is_imported_is_declared() -> None:
    """Third-party modules that the code names, against the dependencies in pyproject.toml."""
    import ast

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    more = project["optional-dependencies"]
    asked = [*project["dependencies"], *more["bench"], *more["serve"]]
    declared = {dependency.split("[")[0].split(">")[0].replace("-", "_") for dependency in asked}
    declared |= {"Stemmer"} if "PyStemmer" in declared else set()  # is imported by another name
    # These are what transformers and torch themselves stand on.
    declared |= {"numpy", "huggingface_hub", "tokenizers", "tqdm"}
    used = set()
    for path in [*(ROOT / "actqkv_cli").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            used |= {name.split(".")[0] for name in names}
    assert used - declared - sys.stdlib_module_names == {"actqkv_cli", "actqkv_kernels"}


def test_the_top_level_holds_only_what_was_agreed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP
