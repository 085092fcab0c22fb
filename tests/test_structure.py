"""Each module knows only those below it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules() -> dict[str, Path]:
    """Every module of ours by its full name."""
    found = {}
    for base in (ROOT, ROOT / "kernels"):
        for path in base.glob("actqkv_*/**/*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module may import when it runs, inside functions too, but not for its annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = modules()
    graph = {}
    for module, path in paths.items():
        names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
        # The last part is a module, or a name inside one.
        graph[module] = {name if name in paths else name.rpartition(".")[0] for name in names} & paths.keys()
    assert "actqkv_cli.commands.ask" in graph["actqkv_cli.main"]  # in a function
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


def test_what_a_kernel_is_not_specialized_for_is_among_its_parameters() -> None:
    """Triton takes any name there, and compiles anew for the values of the parameter that was meant."""
    checked = 0
    for path in (ROOT / "kernels").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for kernel in (node for node in nodes if isinstance(node, ast.FunctionDef)):
            parameters = {argument.arg for argument in kernel.args.args}
            for call in (decorator for decorator in kernel.decorator_list if isinstance(decorator, ast.Call)):
                for keyword in call.keywords:
                    if keyword.arg == "do_not_specialize" and isinstance(keyword.value, ast.List):
                        assert {*ast.literal_eval(keyword.value)} <= parameters
                        checked += 1
    assert checked
