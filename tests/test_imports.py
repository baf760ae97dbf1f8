"""Who may import whom: data flows one way, the judge shares no code with the judged, and imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("envs", "marl", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
}
SERVICES = {"marl.results", "marl.statistics", "marl.metrics"}
LAYERS = (
    {"types"},
    {"rollout", "networks", "recurrent", "sequence", "minibatch", "fused"},
    {"policy", "critic", "mixing", "hindsight"},
    {"credit", "learn", "oracle"},
)
FACE = {"envs", "envs.base", "envs.noise", "envs.parallel", "envs.external", "envs.check"}  # what marl may name of envs
THIRD_PARTY = {"envs": {"torch", "numpy", "pettingzoo", "gymnasium"}, "marl": {"torch", "numpy", "pettingzoo"}}
# The extra `fast`: loaded on use only.
COMPILED = {name for name in FILES if name.startswith("marl.fused")}


def imports(name: str, top_level_only: bool = False) -> set[str]:
    """Absolute names of the modules that a module imports; names under TYPE_CHECKING count unless top_level_only."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(FILES[name].read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            inside = {f"{source}.{alias.name}" for alias in node.names} & set(FILES)
            found |= inside
            if len(inside) < len(node.names):  # some name is the package's own, not a module of it
                found.add(source)
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or "TYPE_CHECKING" in ast.unparse(
            getattr(node, "test", ast.Constant(0))
        )
        if not (top_level_only and late):
            nodes += ast.iter_child_nodes(node)
    return found - {name}


def ours(names: set[str]) -> set[str]:
    """Those of our own packages."""
    return {name for name in names if name.split(".")[0] in ("envs", "marl", "benchmarks")}


def layer(name: str) -> int:
    """0 for the services, then the order of LAYERS; whatever else marl has stands with `experiment`, on top."""
    if name in SERVICES:
        return 0
    part = name.split(".")[1] if "." in name else ""
    return next((k for k, parts in enumerate(LAYERS, 1) if part in parts), len(LAYERS) + 1)


def test_packages_point_one_way() -> None:
    """envs knows nothing of learning; marl knows no benchmark and no concrete game; figures read results only."""
    assert {"envs.base", "marl.results", "benchmarks.figures.style"} <= set(FILES), "the test looks at the real files"
    for name in FILES:
        used = ours(imports(name))
        if name.startswith("envs"):
            assert not {n for n in used if not n.startswith("envs")}, (name, used)
        elif name.startswith("marl"):
            assert not {n for n in used if n.startswith("benchmarks")}, (name, used)
            assert {n for n in used if n.startswith("envs")} <= FACE, f"{name} names a concrete game: {used}"
        elif name.startswith("benchmarks.figures"):
            allowed = {n for n in used if n in SERVICES or n.startswith("benchmarks.figures")}
            assert used == allowed and "torch" not in {n.split(".")[0] for n in imports(name)}, (name, used)
    assert not ours(imports("envs.noise")) and ours(imports("envs.base")) <= {"envs.noise"}


def test_layers_of_marl_point_left() -> None:
    """types, rollouts and networks, policies and critics, then credit, learning and oracles, at last experiments."""
    for name in [name for name in FILES if name.startswith("marl.")]:
        used = {n for n in ours(imports(name)) if n.startswith("marl")}
        if name in SERVICES:
            assert not ours(imports(name)), f"{name} must import nothing of ours"
        elif layer(name) <= len(LAYERS):
            assert not used & SERVICES, f"{name}: only experiments and benchmarks use {used & SERVICES}"
            assert "marl" not in used, f"{name} imports the package that imports it"
            assert all(layer(n) <= layer(name) for n in used), (name, used)
        for judge, judged in (("marl.credit", "marl.oracle"), ("marl.oracle", "marl.credit")):
            assert not (name.startswith(judge) and any(n.startswith(judged) for n in used)), (name, used)
        if name.startswith("marl.learn"):
            assert not {n for n in used if n.startswith(("marl.credit", "marl.oracle"))}, (name, used)


def test_no_cycles() -> None:
    """Modules can be read, and loaded, in an order: no module needs one that needs it."""
    graph = {name: {n for n in imports(name, top_level_only=True) if n in FILES} for name in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_the_reader_sees_what_it_should() -> None:
    """The control: imports inside functions, `from package import module` and relative ones are found."""
    assert "scipy.stats" in imports("marl.statistics") and "scipy.stats" not in imports("marl.statistics", True)
    assert "marl.statistics" in imports("benchmarks.figures.bars") and "marl" not in imports("benchmarks.figures.bars")
    assert "pandas" in imports("marl.results") and "pandas" not in imports("marl.results", True)


def test_imports_at_the_top_are_the_declared_ones() -> None:
    """Rules and learning need torch, numpy and PettingZoo only; everything else is loaded where it is used."""
    for name in FILES:
        package = name.split(".")[0]
        if package in THIRD_PARTY:
            foreign = {n.split(".")[0] for n in imports(name, top_level_only=True)} - {"envs", "marl"}
            foreign -= sys.stdlib_module_names | ({"numba", "llvmlite"} if name in COMPILED else set())
            if name not in COMPILED:
                assert not COMPILED & imports(name, top_level_only=True), f"{name} loads compiled code at its top"
            assert foreign <= THIRD_PARTY[package], f"{name} imports {foreign - THIRD_PARTY[package]} at its top"


def test_importing_loads_no_table_and_no_plot() -> None:
    """`import marl, envs` in a fresh process: pandas, scipy, seaborn and matplotlib are loaded on use."""
    code = "import sys, marl, envs; print(sorted({'pandas', 'scipy', 'seaborn', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
