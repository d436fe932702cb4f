"""The layers of the package: what may import what, imports inside functions included."""

import ast
import pathlib

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parent.parent
# A room imports only rooms of the layers above it in this list.
LAYERS = (
    ("errors",),
    ("config_fields", "programs"),
    ("__init__",),
    ("sites",),
    ("randomness", "components", "validity", "blocks"),
    ("runtime", "masked"),
    ("attribution", "data"),
    ("objective",),
    ("training",),
    ("evaluation",),
    ("plotting",),
    ("report",),
    ("decomposition",),
    ("studies",),
    ("run",),
    ("main", "sweep", "api"),
)
FLOORS = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
MATHEMATICS = ("sites", "components", "masked", "attribution", "objective", "errors")
MATHEMATICS += ("config_fields", "programs", "randomness", "validity", "blocks")
FORBIDDEN = ("matplotlib", "ml_collections", "jinja2", "orbax", "absl", "tqdm")


def imports(tree, modules):
    """Full names of everything that is imported, and whether only type checkers see it."""
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in names]
        else:
            continue
        yield from ((name, node in for_types) for name in names)


def read(root):
    """`{module: {imported module: only for type checkers}}`, imports of other packages included."""
    paths = {".".join(p.relative_to(root).with_suffix("").parts): p for p in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__") or "apd_jax": path for name, path in paths.items()}
    modules = {f"apd_jax.{name}" for name in paths}
    return {
        name: {
            "__init__" if found == "apd_jax" else found.removeprefix("apd_jax."): types
            for found, types in imports(ast.parse(path.read_text()), modules)
        }
        for name, path in paths.items()
    }


def circles(graph):
    """Modules that reach themselves, each with its circle."""
    found = {}

    def visit(module, path):
        if module in path:
            circle = path[path.index(module) :]
            found.setdefault(frozenset(circle), circle)
            return
        if module in done:
            return
        for other in graph.get(module, ()):
            visit(other, [*path, module])
        done.add(module)

    done = set()
    for module in graph:
        visit(module, [])
    return sorted(found.values())


class RoomsTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.graph = read(ROOT / "apd_jax")

    def test_every_room_has_a_floor(self):
        rooms = {module.partition(".")[0] for module in self.graph}
        self.assertEqual(rooms, set(FLOORS))

    def test_no_import_goes_up(self):
        for module, imported in self.graph.items():
            room = module.partition(".")[0]
            for other, types in imported.items():
                other_room = other.partition(".")[0]
                if other_room in FLOORS and other_room != room and not types:
                    with self.subTest(f"{module} imports {other}"):
                        self.assertLess(FLOORS[other_room], FLOORS[room])

    def test_no_circle(self):
        own = {
            module: [
                other for other, types in imported.items() if other in self.graph and not types
            ]
            for module, imported in self.graph.items()
        }
        self.assertEmpty(circles(own))

    def test_a_circle_is_found(self):
        graph = {"a": ["b"], "b": ["c", "d"], "c": ["b"], "d": []}
        self.assertEqual(circles(graph), [["b", "c"]])

    @parameterized.parameters(*MATHEMATICS)
    def test_mathematics_knows_nothing_of_files_and_figures(self, room):
        modules = [m for m in self.graph if m.partition(".")[0] == room]
        self.assertNotEmpty(modules)
        for module in modules:
            for other in self.graph[module]:
                with self.subTest(f"{module} imports {other}"):
                    self.assertNotIn(other.partition(".")[0], FORBIDDEN)


if __name__ == "__main__":
    absltest.main()
