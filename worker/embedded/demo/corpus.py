"""
Real documents that every machine with Python has: the documentation in its standard library.

Read from the sources with `ast`; nothing is imported or run. A module's docstrings with their
signatures form one document where together they exceed 4 KB, the others are documents of
their own; each topic of the language reference is one too. Where the sources are absent, a
small corpus that comes with the package takes their place.
"""

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from inspect import cleandoc
from pathlib import Path

MODULE_BYTES = 4096
SHORTEST_CHARACTERS = 30
"""A docstring shorter than a sentence is no document of its own."""
MOST_DOCUMENTS = 1800
LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "idle_test",
        "site-packages",
        "lib2to3",
        "turtledemo",
        "ensurepip",
    }
)

MODULES, OBJECTS, LANGUAGE = "modules", "objects", "language"
TENANTS = (MODULES, OBJECTS, LANGUAGE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text to publish, and whose it is."""

    tenant: str
    id: str
    text: str


def read_corpus(library: Path | None = None) -> list[Document]:
    """Return the corpus of this machine, at most some 1,800 documents, in a fixed order."""
    library = library or Path(sysconfig.get_path("stdlib"))
    long_ones: list[Document] = []
    short_ones: list[Document] = []
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            documents = list(_module(path, _name(path.relative_to(library))))
            (long_ones if _is_one(documents) else short_ones).extend(documents)
    fixed = [*long_ones, *_topics(library / "pydoc_data" / "topics.py")]
    return _bundled() if not fixed else fixed + short_ones[: MOST_DOCUMENTS - len(fixed)]


def _is_one(documents: list[Document]) -> bool:
    return len(documents) == 1 and documents[0].tenant == MODULES


def _name(relative: Path) -> str:
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def _module(path: Path, name: str) -> Iterator[Document]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    parts = list(_docstrings(tree, name))
    whole = "\n\n".join(f"## {title}\n\n{text}" for _, title, text in parts)
    if len(whole.encode()) > MODULE_BYTES:
        yield Document(MODULES, name, f"# {name}\n\n{whole}")
        return
    # A property's getter and setter have one name: the last one's text stands.
    of_their_own = {
        identity: Document(OBJECTS, identity, f"# {title}\n\n{text}")
        for identity, title, text in parts
        if len(text) >= SHORTEST_CHARACTERS
    }
    yield from of_their_own.values()


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, signature, docstring) of a module, class or function and of all in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield name, name + _signature(node), text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")


def _signature(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"({ast.unparse(node.args)})"
    return ""


def _topics(path: Path) -> Iterator[Document]:
    if not path.exists():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in ast.literal_eval(node.value).items():
                yield Document(LANGUAGE, key, f"# {key}\n\n{cleandoc(value)}")


def _bundled() -> list[Document]:
    text = resources.files(__package__).joinpath("small_corpus.md").read_text(encoding="utf-8")
    sections = text.split("\n# ")[1:]
    return [
        Document(TENANTS[number % len(TENANTS)], section.splitlines()[0], f"# {section}")
        for number, section in enumerate(sections)
    ]
