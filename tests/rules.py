"""The rules of the project's shape: functions from a parsed file to a list of violations."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: From the bottom up; a module imports from its own layer and from those below.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "problem"}),
    frozenset({"constraints", "storage"}),
    frozenset({"solvers", "baselines", "backend", "native", "theory"}),
    frozenset({"plus", "lower_bound", "allocate"}),
    frozenset({"methods", "spec", "artifacts", "models", "fetching", "gguf_folder"}),
    frozenset({"options", "checkpoint", "certificate"}),
    frozenset(
        {"memory", "plan", "record", "evaluate", "report", "table", "table_page", "convergence", "calibrate"}
    ),
    frozenset({"compress", "export"}),
    frozenset({"cli"}),
)
SOLVING = frozenset({"solvers", "baselines", "backend", "native", "plus", "methods", "spec"})
#: What a package must not import although it lies below: export and compress meet only through artifacts.
FORBIDDEN: Mapping[str, frozenset[str]] = {
    "export": (SOLVING - {"solvers"}) | {"calibrate", "memory", "plan", "compress"},
    "compress": frozenset({"calibrate", "export"}),
    "calibrate": frozenset({"methods", "spec", "solvers", "baselines", "backend"}),
}
#: Imports inside functions that the rules above would refuse: (module, package), each for the reason given.
LAZY_EXCEPTIONS: Mapping[tuple[str, str], str] = {
    (
        "export.package",
        "calibrate",
    ): "compares the written folder's logits with the compressed model in torch",
}
#: The packages that may import a heavy library, even lazily.
OWNERS: Mapping[str, frozenset[str]] = {
    "torch": frozenset({"calibrate"}),
    "transformers": frozenset({"calibrate"}),
    "datasets": frozenset({"calibrate"}),
    "onnx": frozenset({"export"}),
    "onnx_ir": frozenset({"export"}),
    "onnxruntime": frozenset({"export"}),
    "onnxruntime_genai": frozenset({"export"}),
    "gguf": frozenset({"gguf_folder", "fetching"}),
    "huggingface_hub": frozenset({"fetching"}),
}
CORE = frozenset({"errors", "problem", "constraints", "theory"}) | SOLVING
MAX_LINES, MAX_FILE = 80, 400
MAX_POSITIONAL, MAX_PARAMETERS = 3, 8
MUTATORS = frozenset(
    {"append", "add", "update", "pop", "clear", "extend", "insert", "setdefault", "remove", "popitem"}
)
Rule = Callable[["Source"], list[str]]


@dataclass(frozen=True)
class Source:
    """Hold one parsed file under its dotted name, without the leading awp_edge."""

    name: str
    text: str

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def tree(self) -> ast.Module:
        return parse(self.text)


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def dotted(path: Path, root: Path, *, prefix: str) -> str:
    parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
    return ".".join([prefix, *parts] if prefix else parts) or "__init__"


@cache
def library() -> tuple[Source, ...]:
    """Return every module of the package: awp_edge/ and export/."""
    found = []
    for folder, prefix in (("awp_edge", ""), ("export", "export")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.append(Source(dotted(path, ROOT / folder, prefix=prefix), path.read_text()))
    return tuple(found)


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def imports(source: Source) -> Iterator[tuple[str, bool]]:
    """Yield (dotted name, whether it is imported with the module) for every import."""
    top = {id(node) for node in source.tree.body}
    is_package = any(other.name.startswith(source.name + ".") for other in library())
    parents = source.name.split(".") if is_package else source.name.split(".")[:-1]
    parents = [] if source.name == "__init__" else parents
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["awp_edge", *parents[: len(parents) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            yield from ((".".join([*base, alias.name]), id(node) in top) for alias in node.names)


def layer(package: str) -> int | None:
    return next((i for i, packages in enumerate(LAYERS) if package in packages), None)


# ------------------------------------------------------------------------------------------------ rules
def rule_directions(source: Source) -> list[str]:
    """Imports go downwards, lazy ones too."""
    if source.name == "__init__":
        return []
    here, found = layer(source.package), []
    if here is None:
        return [f"{source.name} belongs to no layer: add it to LAYERS"]
    for name, at_top in imports(source):
        package = name.split(".")[1] if name.startswith("awp_edge.") else None
        if package is None or layer(package) is None or package == source.package:
            continue
        if not at_top and (source.name, package) in LAZY_EXCEPTIONS:
            continue
        if layer(package) > here or package in FORBIDDEN.get(source.package, ()):
            found.append(f"{source.name} imports {name}")
    return found


def rule_owners(source: Source) -> list[str]:
    """Only its owners import a heavy library; the core imports NumPy and the standard library alone."""
    found = []
    for name, _ in imports(source):
        root = name.split(".")[0]
        foreign = root not in sys.stdlib_module_names and root not in ("awp_edge", "numpy")
        if source.package not in OWNERS.get(root, {source.package}) or (source.package in CORE and foreign):
            found.append(f"{source.name} imports {root}")
    return found


def rule_lengths(source: Source) -> list[str]:
    """No function above 80 lines, no file above 400."""
    found = [
        f"{source.name}.{f.name} has {lines(f)} lines" for f in functions(source) if lines(f) > MAX_LINES
    ]
    n = source.text.count("\n")
    return found + ([f"{source.name} has {n} lines"] if n > MAX_FILE else [])


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def rule_parameters(source: Source) -> list[str]:
    """At most three positional parameters, eight in all; no positional bools; every one annotated."""
    found = []
    for f in functions(source):
        positional = [a for a in f.args.posonlyargs + f.args.args if a.arg not in ("self", "cls")]
        everything = positional + f.args.kwonlyargs
        if len(positional) > MAX_POSITIONAL or (len(everything) > MAX_PARAMETERS and not is_command(f)):
            found.append(
                f"{source.name}.{f.name} takes {len(positional)} positional of {len(everything)} parameters"
            )
        found += [f"{source.name}.{f.name}: positional bool {a.arg}" for a in positional if is_bool(a)]
        missing = [a.arg for a in everything if a.annotation is None] + (
            ["return"] if f.returns is None else []
        )
        found += [f"{source.name}.{f.name}: no type for {name}" for name in missing]
    return found


def is_bool(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) in ("bool", "bool | None")


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether typer reads the signature as command-line options."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def rule_module_state(source: Source) -> list[str]:
    """Mutable containers at module level are constants: upper case, never changed; no `global`."""
    found = [
        f"{source.name}: global {', '.join(n.names)}"
        for n in ast.walk(source.tree)
        if isinstance(n, ast.Global)
    ]
    containers = set()
    for node in source.tree.body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Dict | ast.List | ast.Set):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            containers |= {t.id for t in targets if isinstance(t, ast.Name)}
    found += [
        f"{source.name}: {name} is not a constant" for name in containers - {"__all__"} if not name.isupper()
    ]
    changed = [n for n in ast.walk(source.tree) if changes(n) in containers]
    return found + [f"{source.name}: line {n.lineno} changes {changes(n)}" for n in changed]


def changes(node: ast.AST) -> str | None:
    """Return the name whose contents a node changes, if any."""
    target = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        target = node.func.value
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        target = node.value
    return target.id if isinstance(target, ast.Name) else None


def rule_no_side_effects(source: Source) -> list[str]:
    """Importing defines names and does nothing else."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
        ast.AsyncFunctionDef,
    )
    return [
        f"{source.name}: line {node.lineno} runs at import"
        for node in source.tree.body
        if not isinstance(node, allowed)
        and not is_docstring(node)
        and not is_guard(node)
        and not registers(node)
    ]


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def registers(node: ast.stmt) -> bool:
    """Return whether a statement adds a command to a typer application."""
    return (
        isinstance(node, ast.Expr)
        and re.match(r"app\.(command|add_typer|callback)\(", ast.unparse(node)) is not None
    )


def rule_no_prints(source: Source) -> list[str]:
    """The library logs; only the command line's console prints."""
    if source.package == "cli":
        return []
    calls = (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))
    return [f"{source.name}: line {c.lineno} prints" for c in calls
            if ast.unparse(c.func) in ("print", "sys.stdout.write", "sys.stderr.write")]  # fmt: skip


def rule_docstrings(source: Source) -> list[str]:
    """Every public module, class, function and method says what it does, first in one line."""
    return [f"{name} has no docstring" for name, node in public(source) if not one_line_first(node)]


def public(source: Source) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    yield source.name, source.tree
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{source.name}.{node.name}", node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if (
                    isinstance(inner, ast.FunctionDef)
                    and not inner.name.startswith("_")
                    and not is_stub(inner)
                ):
                    yield f"{source.name}.{node.name}.{inner.name}", inner


def is_stub(method: ast.FunctionDef) -> bool:
    """Return whether a method is only declared (`...`): the class that implements it documents it."""
    return ast.unparse(method.body[-1]) == "..." and len(method.body) == 1


def one_line_first(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    if isinstance(node, ast.Module) and not node.body:
        return True
    return bool((ast.get_docstring(node) or "").strip())


RULES: tuple[Rule, ...] = (
    rule_directions,
    rule_owners,
    rule_lengths,
    rule_parameters,
    rule_module_state,
    rule_no_side_effects,
    rule_no_prints,
    rule_docstrings,
)
