"""An Inference service that plays scripts and writes down what it saw."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from penstock_proto.v1 import common_pb2, inference_pb2, inference_pb2_grpc

Script = Callable[[inference_pb2.GenerateRequest, grpc.aio.ServicerContext, int], AsyncIterator[object]]


def token(text: str, token_id: int, index: int = 0, **more: object) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(index=index, text=text, token_ids=[token_id], **more)  # type: ignore[arg-type]


def last(text: str, token_id: int, index: int = 0, completion: int = 2) -> inference_pb2.GenerateResponse:
    usage = inference_pb2.Usage(prompt_tokens=5, cached_tokens=1, transferred_tokens=3, computed_tokens=1)
    usage.completion_tokens = completion
    return token(text, token_id, index, finish_reason=common_pb2.STOP, usage=usage)


def details_bin(code: grpc.StatusCode, message: str, *details: object) -> tuple[str, bytes]:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)  # type: ignore[arg-type]
        status.details.append(packed)
    return ("grpc-status-details-bin", status.SerializeToString())


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


@dataclass
class Fault(Exception):
    code: grpc.StatusCode
    message: str = "said the fake"
    metadata: tuple[tuple[str, str | bytes], ...] = ()


@dataclass
class FakeInference(inference_pb2_grpc.InferenceServicer):
    """`script(request, context, attempt)` yields messages; a yielded Fault ends the call with it."""

    script: Script
    requests: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    cancelled: int = 0
    ended: int = 0
    cancel_seen: threading.Event = field(default_factory=threading.Event)

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            async for message in self.script(request, context, len(self.requests)):
                if isinstance(message, Fault):
                    await context.abort(message.code, message.message, message.metadata)
                yield message
            self.ended += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            self.cancel_seen.set()
            raise

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        card = inference_pb2.ModelCard(name="tiny", max_model_len=4096, created_s=7)
        return inference_pb2.ListModelsResponse(models=[card])

    async def Status(self, request, context):  # type: ignore[no-untyped-def]
        worker = inference_pb2.WorkerStatus(worker_id="w0", pool="prefill", role="prefill", state="ready", running=2)
        slo = inference_pb2.SloStatus(service_class="interactive", objective="ttft", judged=4, attained=3)
        return inference_pb2.StatusResponse(router_id="r0", uptime_s=1.5, workers=[worker], slo=[slo])


async def serve(script: Script) -> tuple[grpc.aio.Server, str, FakeInference]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    fake = FakeInference(script)
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}", fake


class ThreadedFake:
    """The same service on a loop of its own thread, for the blocking client."""

    def __init__(self, script: Script) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        made = asyncio.run_coroutine_threadsafe(serve(script), self._loop).result(10)
        self._server, self.address, self.fake = made

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
