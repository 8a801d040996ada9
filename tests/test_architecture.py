"""The rooms of the house and the one direction of imports between them."""

import ast
import configparser
import pathlib
import re
import tomllib

import pytest

import tfkd

ROOT = pathlib.Path(__file__).parent.parent

# A module may import those that stand before it in a line.
LINES = (
    ("transport", "losses", "matches", "methods"),
    ("trace", "teachers", "matches", "training", "distiller"),
    ("trace", "teachers", "matches", "training", "transferer"),
    ("trace", "models"),
    ("checks", "training"),
    ("strategies", "training"),
    ("trace", "teachers", "matches", "caching", "training"),
    ("trace", "transport", "analysis"),
    ("copies", "models"),
    ("copies", "transferer"),
    ("copies", "trace", "artefacts", "export", "callbacks"),
    ("strategies", "callbacks"),
)


def _imports(path):
    """Names of tfkd's rooms that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfkd":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            rooms |= {parts[1]} if parts[0] == "tfkd" else set()
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                rooms |= {parts[1]} if parts[0] == "tfkd" else set()
    return rooms


def _room(path):
    return path.relative_to(ROOT / "tfkd").parts[0].removesuffix(".py")


def _files():
    files = (ROOT / "tfkd").rglob("*.py")
    return [path for path in files if _room(path) != "__init__"]


@pytest.mark.parametrize("path", _files(), ids=str)
def test_imports_point_one_way(path):
    room = _room(path)
    allowed = {room, "precision", "arguments", "records"} | (
        {"trace"} if room == "methods" else set()
    )
    for line in LINES:
        if room in line:
            allowed |= {*line[: line.index(room)]}
    if "matches" in allowed:  # and what stands before it in both lines
        allowed |= {"transport", "losses", "trace", "teachers"}
    assert _imports(path) <= allowed


def test_only_data_reads_tensorflow_datasets():
    for path in _files():
        if _room(path) != "data":
            assert "tensorflow_datasets" not in path.read_text()


def test_the_configuration_names_what_issue_and_readme_promise():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    runtime = config["options"]["install_requires"]
    for name in (
        "tensorflow>=2.21",
        "keras>=3.15",
        "numpy",
        "tensorflow-datasets",
        "importlib_resources",
        "scikit-learn",
        "matplotlib",
    ):
        assert re.search(rf"^{name}$", runtime, re.MULTILINE)
    assert set(config["options.extras_require"]) == {
        "cuda",
        "exact",
        "litert",
        "onnx",
        "tensorboard",
        "test",
    }
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert list(build) == ["build-system"]


def test_every_public_name_is_there():
    for name in tfkd.__all__:
        assert getattr(tfkd, name) is not None
