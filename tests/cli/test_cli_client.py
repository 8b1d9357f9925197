"""generate and status against a scripted service."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))
from inference_fake import Fault, ThreadedFake, last, token

from penstock_cli.main import main
from penstock_proto.v1 import inference_pb2


async def script(request, context, attempt):  # type: ignore[no-untyped-def]
    if request.service_class == "gold":
        yield Fault(grpc.StatusCode.INVALID_ARGUMENT, "service_class: 'gold' is none of interactive, batch")
    yield token("Once ", 1, request_id="r-1")
    message = last("upon", 2)
    if request.explain:
        leg = inference_pb2.LegPlacement(kind="prefill", worker="prefill-0", pool="prefill", computed_tokens=4, outcome="ok")
        message.placement.CopyFrom(
            inference_pb2.Placement(
                kind="disaggregated", reason="fastest", predicted_ttft_s=0.01, ttft_s=0.02, legs=[leg], candidates=3
            )
        )
    yield message


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedFake]:
    made = ThreadedFake(script)
    yield made
    made.close()


def test_generate_streams_the_text(service, capsys) -> None:  # type: ignore[no-untyped-def]
    code = main(["generate", "hi", "--max-tokens", "2", "--temperature", "0", "--address", service.address])
    assert code == 0 and capsys.readouterr().out == "Once upon\n"
    request = service.fake.requests[-1]
    assert request.prompt == "hi" and request.sampling.max_tokens == 2 and request.sampling.temperature == 0


def test_generate_sends_a_chat_message_and_reads_stdin(service, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin"))
    assert main(["generate", "-", "--chat", "--address", service.address]) == 0
    assert service.fake.requests[-1].chat.messages[0].content == "from stdin"


def test_generate_as_json_is_one_document(service, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["generate", "hi", "--explain", "-o", "json", "--address", service.address]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "Once upon" and document["finish_reason"] == "stop" and document["request_id"] == "r-1"
    assert document["usage"]["transferred_tokens"] == 3 and document["placement"]["legs"][0]["worker"] == "prefill-0"
    assert document["ttft_s"] >= 0 and document["tpot_s"] >= 0


def test_explain_shows_predictions_beside_what_happened(service, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["generate", "hi", "--explain", "--address", service.address]) == 0
    out = capsys.readouterr().out
    assert "placement  disaggregated, of 3 considered" in out and "10.0 ms" in out and "20.0 ms" in out
    assert "prefill-0" in out


def test_the_services_refusal_is_one_line(service, capsys) -> None:  # type: ignore[no-untyped-def]
    code = main(["generate", "hi", "--service-class", "gold", "--address", service.address])
    out, err = capsys.readouterr()
    assert code == 2 and err == "penstock: service_class: 'gold' is none of interactive, batch\n" and out == ""


def test_status_is_a_table_or_a_document(service, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PENSTOCK_ADDRESS", service.address)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "w0" in out and "prefill" in out and "75.0%" in out and service.address in out
    assert main(["status", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pools"] == {"prefill": {"workers": 1, "ready": 1, "running": 2, "waiting": 0}}
    assert document["slo"][0]["attainment"] == 0.75 and document["models"][0]["name"] == "tiny"
