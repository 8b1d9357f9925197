"""Guards of the tree: what would break silently, or break only elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [p for top in ("operator", "router", "workers", "proto") for p in (ROOT / top).glob("penstock_*")]
SOURCES = [f for p in PACKAGES for f in p.rglob("*.py") if not re.search(r"_pb2(_grpc)?\.py$", f.name)]


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("folder", ["operator", "router", "workers", "proto"])
def test_a_top_level_folder_is_no_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py would shadow or capture imports"


@pytest.mark.parametrize("folder", ["tests", "e2e", "bench"])
def test_test_folders_hold_no_packages(folder: str) -> None:
    assert list((ROOT / folder).rglob("__init__.py")) == []


def test_test_files_have_names_of_their_own() -> None:
    names = [f.name for folder in ("tests", "e2e") for f in (ROOT / folder).rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_package_says_it_is_typed() -> None:
    packages = [p for p in PACKAGES if (p / "__init__.py").exists()]
    assert [p.name for p in packages if not (p / "py.typed").exists()] == []


def test_every_module_states_its_promise() -> None:
    silent = [f for f in SOURCES if f.stat().st_size and not re.match(r'\s*(#[^\n]*\n)*\s*r?"""', f.read_text())]
    assert [str(f.relative_to(ROOT)) for f in silent] == []


def test_no_pickle_crosses_a_boundary() -> None:
    users = [f for f in SOURCES if re.search(r"^\s*(import|from) (pickle|cloudpickle|dill)\b", f.read_text(), re.M)]
    assert [str(f.relative_to(ROOT)) for f in users] == []


def test_no_file_names_a_registry_host() -> None:
    hosts = re.compile(
        "|".join(("py" + "pi\\.org", "pythonh" + "osted", "crates" + "\\.io", "npm" + "js\\.org", "proxy\\.gol" + "ang"))
    )
    named = [f for f in _tracked() if f.suffix not in {".safetensors"} and hosts.search(f.read_text(errors="ignore"))]
    assert [str(f.relative_to(ROOT)) for f in named] == []


def test_generated_protocol_code_is_current(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto/penstock_proto/v1").glob("*.proto"))
    names = [str(p.relative_to(ROOT / "proto")) for p in protos]
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outs, *names], cwd=ROOT, check=True)
    made = sorted(tmp_path.rglob("*_pb2*"))
    assert made
    stale = [f.name for f in made if f.read_text() != (ROOT / "proto" / f.relative_to(tmp_path)).read_text()]
    assert stale == [], "make gen"


def test_every_proto_field_and_message_carries_its_unit_or_is_plain() -> None:
    text = "".join(p.read_text() for p in (ROOT / "proto/penstock_proto/v1").glob("*.proto"))
    fields = re.findall(r"^  (?:optional |repeated )?(?:double) (\w+) = \d+;", text, re.M)
    dimensionless = {
        "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logprob", "kv_usage", "error_p50", "error_p90",
    }  # fmt: skip
    assert [f for f in fields if not f.endswith("_s") and f not in dimensionless] == []
