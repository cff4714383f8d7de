"""The house: which room may import which. A room is a folder of dither/."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dither"

# A room may import itself, the rooms named here, and the files at the root.
LIBRARY = ["noise", "loss", "engine", "attach", "regulariser", "measures"]
ROOMS = {
    "engine": [],
    "noise": [],
    "loss": [],
    "attach": ["noise"],
    "regulariser": ["attach", "engine", "loss", "noise"],
    "measures": ["regulariser", "attach", "engine", "loss", "noise"],
    "integrations": ["regulariser", "attach", "noise"],
    "nn": ["attach", "noise"],
    "lab": LIBRARY,
    "papers": [*LIBRARY, "lab"],
}
AT_THE_ROOT = [
    "errors",
    "estimate",
    "precision",
    "calling",
    "plain",
    "schedule",
    "torch_internals",
    "halves",
    "picture",
    "signs",
    "text",
]
NAMES_ONLY = ["__init__", "__main__"]  # they pass names on, and are above all

# The floors of the laboratory, the highest first. A floor may import itself and all below it.
FLOORS = [
    "cli",
    "check listing planning sweep",
    "compare reproduce",
    "page",
    "runs",
    "training",
    "nets",
    "data",
    "catalogue",
    "figure",
    "table identity wording rule original terminal parsing",
]
FLOOR = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
LONGEST = 400  # lines; over that there are two ideas in a file
FOLDERS = ["dither", "tests", "benchmarks", "docs"]

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module: str) -> str:
    """The folder, or for a file at the root its name."""
    return [*module.split("."), "__init__"][1]


def floor_of(module: str) -> int:
    """Of a module of the laboratory; its face is above all."""
    inside = module.split(".")[2:]
    return FLOOR[inside[0]] if inside else 1


@cache
def imports(module: str, *, everywhere: bool = True) -> frozenset[str]:
    """What a module names in its imports; without `everywhere`, what it loads at once."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(FILES[module].read_text(encoding="utf-8"))]
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
            todo += [*node.orelse, *(node.body if everywhere else [])]
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return frozenset(found)


def ours(module: str) -> set[str]:
    """The modules of dither it imports; those that pass names on stand for nothing."""
    return {name for name in imports(module) if name in FILES and name != "dither"}


INSIDE = [module for module in FILES if room_of(module) not in NAMES_ONLY]


def test_every_file_has_a_room():
    assert {room_of(module) for module in INSIDE} == {*ROOMS, *AT_THE_ROOT}


def test_imports_point_down():
    wrong = []
    for module in INSIDE:
        room = room_of(module)
        may = [room, *ROOMS.get(room, []), *AT_THE_ROOT]
        wrong += [f"{module} → {name}" for name in ours(module) if room_of(name) not in may]
        assert "dither" not in imports(module) or room == "papers", f"{module} imports the face"
    assert not wrong


def test_imports_of_the_laboratory_point_down():
    rooms = [m for m in INSIDE if room_of(m) == "lab"]
    wrong = [
        f"{module} → {name}"
        for module in rooms
        for name in ours(module)
        if room_of(name) == "lab" and floor_of(name) > floor_of(module)
    ]
    assert not wrong


def test_there_is_no_circle():
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' → '.join((*path, module))}"
        if module not in done:
            for name in ours(module):
                walk(name, (*path, module))
            done.add(module)

    for module in INSIDE:
        walk(module, ())


def test_the_library_needs_torch_and_numpy_only():
    allowed = {"torch", "numpy", "dither", "typing_extensions"} | sys.stdlib_module_names
    library = [m for m in INSIDE if room_of(m) in [*LIBRARY, "nn", *AT_THE_ROOT]]
    strange = [(m, n) for m in library for n in imports(m) if n.split(".")[0] not in allowed]
    assert not strange


def test_the_page_needs_no_torch():
    seen, todo = set(), {"dither.lab.page.report"}
    while todo:
        module = todo.pop()
        seen.add(module)
        found = imports(module, everywhere=False)
        assert not {n for n in found if n.split(".")[0] == "torch"}, f"report loads {module}: torch"
        todo |= {name for name in found if name in FILES and name != "dither"} - seen


def test_importing_dither_leaves_the_laboratory_alone():
    heavy = "matplotlib polars typer rich scipy sklearn mlxtend torchmetrics foolbox distributed"
    code = f"import sys, dither; print(*[m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()


def test_only_the_library_is_installed():
    """As without the packages of dither[lab]: all but `compare`, `reproduce` and `sweep` work."""
    lab = "polars pooch sklearn scipy mlxtend matplotlib typer rich jinja2 torchmetrics foolbox"
    lab += " cloudpickle"
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({lab.split()!r}))\n"
        "import torch\n"
        "from dither import *\n"
        "import dither\n"
        "net, x, y = torch.nn.Linear(3, 2), torch.randn(4, 3), torch.arange(4) % 2\n"
        "noise = dither.inject(net, dither.Additive(.1))\n"
        "assert dither.explicit(noise, x, y).R > 0\n"
        "dither.measures.trace(net.eval(), 'cross_entropy', (x, y))\n"
        "for name in ('compare', 'reproduce', 'sweep'):\n"
        "    try: getattr(dither, name)()\n"
        "    except dither.DitherError as e: assert \"pip install 'dither[lab]'\" in str(e), e\n"
        "    else: raise AssertionError(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["typer", "polars"])  # at once, and inside a command
def test_the_command_says_what_it_needs(package):
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['dither', 'list']; "
        "runpy.run_module('dither', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"dither: the command needs the package {package}: pip install 'dither[lab]'; "
        "the library works without it"
    )


def test_measures_are_there_when_asked_for():
    code = (
        "import dither; m = dither.measures\n"
        "assert m.trace is m.curvature.trace\n"
        "assert all(hasattr(m, name) for name in m.__all__)\n"
        "try: m.nothing\n"
        "except AttributeError as e: assert 'nothing' in str(e)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_too_long():
    wrong = {}
    for path in (p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        n = len(path.read_text(encoding="utf-8").splitlines())
        if n > LONGEST:
            wrong[str(path.relative_to(ROOT))] = n
    assert not wrong
