"""The command line without a service: usage, exit codes, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from penstock_cli.main import main
from penstock_operator.api import default_text


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = main(list(words))
    except SystemExit as ending:
        code = int(ending.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    for name in ("PENSTOCK_ADDRESS", "PENSTOCK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", ["plan", "simulate", "bench"])
def test_what_is_not_built_is_refused_by_name_whatever_its_flags(capsys, command) -> None:  # type: ignore[no-untyped-def]
    for words in ([command], [command, "--trace", "x", "-o", "json"], [command, "-h"]):
        assert run(capsys, *words) == (2, "", f"penstock: {command} is not built yet\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["generate"], "PROMPT"),
        (["generate", "p", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "p", "--max-tokens", "0"], "--max-tokens: 0"),
        (["generate", "p", "--address", "here"], "address: 'here' is not HOST:PORT"),
        (["up", "--http", "0.0.0.0:8000"], "--http: '0.0.0.0:8000' is not on loopback"),
        (["up", "--grpc", "127.0.0.1"], "--grpc: '127.0.0.1' is not HOST:PORT"),
        (["up", "-f", "/nothing.yaml"], "/nothing.yaml: No such file"),
        (["router"], "--config"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, words, told) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and told in err and err.count("\n") == 1 and err.startswith("penstock: ")


def test_help_and_every_commands_help_exit_0(capsys) -> None:  # type: ignore[no-untyped-def]
    for words in (["--help"], ["up", "--help"], ["generate", "--help"], ["status", "--help"], ["down", "--help"]):
        code, out, _ = run(capsys, *words)
        assert code == 0 and "usage: penstock" in out


def test_a_service_that_does_not_listen_is_exit_code_1_with_a_way_out(capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(capsys, "status", "--address", "127.0.0.1:1")
    assert code == 1 and out == "" and "127.0.0.1:1: unavailable" in err and "penstock up" in err


def test_a_good_manifest_is_valid_and_a_bad_one_names_its_field(capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(default_text())
    bad.write_text(default_text().replace("device: cpu", "device: tpu"))
    assert run(capsys, "validate", "-f", str(good)) == (0, f"{good}: LLMService tiny is valid\n", "")
    code, _, err = run(capsys, "validate", "-f", str(bad))
    assert code == 2 and err.startswith(f"penstock: {bad}: spec.engine.device: 'tpu'")


def test_up_refuses_by_field_what_is_not_built(capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "gpu.yaml"
    file.write_text(default_text().replace("device: cpu", "device: gpu") + "  paused: true\n")
    code, _, err = run(capsys, "up", "-f", str(file))
    assert code == 2 and "spec.engine.device: gpu is not built" in err and "(and 1 more)" in err


def test_down_with_nothing_running_is_fine_and_with_an_unknown_name_is_not(capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(capsys, "down") == (0, "", "penstock: nothing is running\n")
    code, _, err = run(capsys, "down", "chat")
    assert code == 1 and "chat: is not running here" in err


@pytest.mark.slow
def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from penstock_cli.main import parser; import penstock_cli.up; parser();"
        "heavy = {'ray', 'vllm', 'torch', 'grpc', 'aiohttp', 'transformers', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_crd_prints_the_definition_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "crd")
    assert (code, err) == (0, "") and out.startswith("# Generated") and "kind: CustomResourceDefinition" in out
