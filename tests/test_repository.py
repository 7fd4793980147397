"""What must stay true of the whole repository: its README, its layout, what its code never does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parent.parent
PRODUCT = ("service", "worker", "bench")

# Spelled with character classes so that this file does not match itself.
REGISTRY_HOSTS = (
    r"pypi[.]org|pythonhoste[d]|download[.]pytorch|registry[.]npmj|deb[.]debian|ghcr[.]io"
)
MACHINE_PATHS = r"/wor[k]/|/roo[t]/|/hom[e]/\w|/User[s]/\w|/tmp/tea[m]"

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows (and that were not just deleted), relative to the root."""
    command = ["git", "ls-files", "-z", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listing.split("\0") if name]
    return [path for path in paths if (ROOT / path).exists()]


def is_module(path: Path) -> bool:
    return path.suffix == ".py" and path.name != "__init__.py"


def product_modules() -> list[Path]:
    return [path for path in tracked(*PRODUCT) if path.suffix == ".py"]


def readme_tree() -> list[str]:
    """The paths of the README's file tree: two spaces per level, `name  what it is`."""
    block = re.search(r"## File tree\n.*?```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "README.md has no '## File tree' with a code block"
    paths, parents = [], []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [line.split()[0]]
        assert len(line.split()) > 1, f"{parents[-1]} has no description"
        paths.append("".join(parents))
    return paths


def test_the_file_tree_names_nothing_that_does_not_exist() -> None:
    files = {path.as_posix() for path in tracked()}
    folders = {f"{parent.as_posix()}/" for path in tracked() for parent in path.parents}
    assert set(readme_tree()) - files - folders == set()


def test_the_file_tree_names_every_top_level_folder_and_module() -> None:
    tree = readme_tree()
    assert len(tree) == len(set(tree))
    folders = {f"{path.parts[0]}/" for path in tracked() if len(path.parts) > 1}
    modules = {path.as_posix() for path in tracked(*PRODUCT) if is_module(path)}
    assert (folders | modules) - set(tree) == set()


def test_the_settings_table_names_every_setting_and_its_default() -> None:
    table = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| `MIRAGE_(\w+)` \| `?(.*?)`? \|", table, re.M)
    assert rows == [(n.upper(), str(f.default)) for n, f in Settings.model_fields.items()]


def test_no_registry_hosts_and_no_paths_of_somebodys_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights
        found += [
            f"{path}: {match}" for match in re.findall(f"{REGISTRY_HOSTS}|{MACHINE_PATHS}", text)
        ]
    assert found == []


def unsafe(node: ast.AST) -> str | None:
    """What is wrong with one piece of syntax, if it can run or unpack somebody else's code."""
    if isinstance(node, ast.Import):
        return next((n.name for n in node.names if n.name.split(".")[0] in UNSAFE_MODULES), None)
    if isinstance(node, ast.ImportFrom):
        return node.module if (node.module or "").split(".")[0] in UNSAFE_MODULES else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name):
        return node.func.id if node.func.id in UNSAFE_CALLS else None
    called = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "torch.load" and options.get("weights_only") != "True":
        return called
    return "allow_pickle" if options.get("allow_pickle", "False") != "False" else None


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("eval('1')", "eval"),
        ("torch.load(path)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("torch.load(path, weights_only=True)", None),
        ("model.eval()", None),
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str, wrong: str | None) -> None:
    assert next(filter(None, map(unsafe, ast.walk(ast.parse(code)))), None) == wrong


def test_product_code_unpickles_and_evaluates_nothing() -> None:
    found = [
        f"{path}:{getattr(node, 'lineno', 0)}: {unsafe(node)}"
        for path in product_modules()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if unsafe(node)
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        path.as_posix()
        for path in product_modules()
        if (text := (ROOT / path).read_text()).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


@pytest.mark.parametrize("module", ["service.app", "service.cli", "service.demo.walks"])
def test_the_service_runs_without_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'worker' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or "torch or worker was imported"


def test_pinned_versions_are_plain_pins() -> None:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [
        line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)
    ] == []
    names = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = set(re.findall(r'"([a-z][a-z0-9-]*)>=', project)) - {"setuptools"}
    assert wanted - names == set()


def test_all_product_code_is_type_checked() -> None:
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert set(checked["packages"]) == set(PRODUCT)


def test_ci_runs_what_a_person_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail" and commands[-1] == "make check test"
    assert len(commands) == 3
