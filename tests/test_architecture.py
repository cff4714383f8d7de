"""Imports point down. A new module finds its room here, or the tests name it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dither"

# room: (its modules, the rooms right below it). A room may import itself and whatever lies below.
ROOMS = {
    "cli": ("cli __main__ listing", "runner report compare public"),
    "papers": ("papers", "public models data measures train figure"),
    "integrations": ("integrations", "inject explicit"),
    "compare": ("compare", "runner"),
    "public": ("__init__", "explicit measures runner compare"),
    "runner": ("runner judge workers screen provenance", "train store report"),
    "report": ("report", "store"),
    "store": ("store", "figure"),
    "figure": ("figure table identity catalogue needs", "train"),
    "train": ("train watch optimiser", "explicit models data measures"),
    "models": ("models stack", "data"),
    "data": ("data idx readers", "files noise"),
    "measures": ("measures", "explicit"),
    "explicit": (
        "explicit pull apart replay nodes read second expected",
        "inject loss ghost estimate",
    ),
    "inject": (
        "inject injection clock shadow recompute ranks seeds site hooks compiled forward after",
        "noise",
    ),
    "files": ("files", ""),
    "noise": ("noise laws draw fill schedule", ""),
    "loss": ("loss columns", ""),
    "ghost": ("ghost contract patches uses rules layout", "noise"),
    "estimate": ("estimate", ""),
    "errors": ("errors", ""),
}
CORE = {"noise", "inject", "explicit", "loss", "ghost", "estimate", "measures", "errors"}
ROOM_OF = {module: room for room, (modules, _) in ROOMS.items() for module in modules.split()}
LONGEST = 400  # lines; over that there are two ideas in a file


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """dither.papers.levi2022.fig3 is in the room of dither.papers."""
    inside = module.split(".")[1:]
    return ROOM_OF.get(inside[0] if inside else "__init__")


@cache
def reach(room: str) -> frozenset[str]:
    """The room and all that lies below it."""
    below = ROOMS[room][1].split()
    return frozenset({room, "errors"}).union(*map(reach, below))


@cache
def imports(module: str, *, everywhere: bool = True) -> frozenset[str]:
    """What a module imports when it runs; without `everywhere`, when it is imported."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            assert node.module
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in FILES else node.module for part in parts}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return frozenset(found)


def ours(names: frozenset[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "dither"}


def test_the_rooms_are_a_ladder():
    def climb(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, f"rooms above themselves: {' → '.join((*path, room))}"
        for below in ROOMS[room][1].split():
            climb(below, (*path, room))

    for room in ROOMS:
        climb(room, ())


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    room = room_of(module)
    assert room, f"{module} has no room: put it into ROOMS in {Path(__file__).name}"
    wrong = {
        name: room_of(name)
        for name in ours(imports(module))
        if name != "dither.errors" and room_of(name) not in reach(room)
    }
    assert not wrong, f"{module} (in {room}) imports what is not below it: {wrong}"


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) in CORE])
def test_the_core_needs_torch_and_numpy_only(module):
    allowed = {"torch", "numpy", "dither"} | sys.stdlib_module_names
    strange = {name for name in imports(module) if name.split(".")[0] not in allowed}
    assert not strange, f"{module} is core and imports {strange}"


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) != "papers"])
def test_nobody_imports_the_papers(module):
    assert not {name for name in imports(module) if name.startswith("dither.papers")}


def test_the_page_needs_no_torch():
    seen, todo = set(), {"dither.report"}
    while todo:
        module = todo.pop()
        seen.add(module)
        found = imports(module, everywhere=False)
        assert not {n for n in found if n.split(".")[0] == "torch"}, f"report loads {module}: torch"
        todo |= {name for name in ours(found) if name in FILES and name != "dither"} - seen


def test_importing_dither_leaves_the_laboratory_alone():
    heavy = "matplotlib polars typer rich scipy sklearn mlxtend torchmetrics foolbox distributed"
    code = f"import sys, dither; print(*[m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()


@pytest.mark.parametrize("folder", ["dither", "tests", "benchmarks", "docs"])
def test_no_file_is_too_long(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {path: n for path, n in lengths.items() if n > LONGEST}
