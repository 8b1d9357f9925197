"""Stand-ins for the router and the Ray host: `python -m local_programs` with what to be in PLAY.

They read the real programs' configuration and answer what the supervisor asks, with no Ray.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc.aio

from penstock_proto.v1 import inference_pb2, inference_pb2_grpc


class Inference(inference_pb2_grpc.InferenceServicer):
    async def Status(self, request, context):  # type: ignore[no-untyped-def]
        ready = "ready" in os.listdir(os.environ["PLAY_DIR"])
        workers = [inference_pb2.WorkerStatus(worker_id=f"{pool}-0", pool=pool, state="ready") for pool in ("prefill", "decode")]
        return inference_pb2.StatusResponse(router_id="r", workers=workers if ready else [])


def leave(name: str) -> None:
    Path(os.environ["PLAY_DIR"], name).touch()


async def router(config: dict[str, str]) -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Inference(), server)
    server.add_insecure_port(config["grpc_listen"])
    await server.start()
    leave(f"router-{os.getpid()}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


def ray_host() -> None:
    """Starts a stubborn child in a session of its own, as Ray's gcs_server is, and waits for SIGTERM."""
    stubborn = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-S", "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    for event in ({"event": "ray"}, {"event": "deployed"}):
        print(json.dumps(event), flush=True)
    leave("ready")
    signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [] if "--config" in sys.argv else [signal.SIGTERM])
    if "--config" in sys.argv:
        asyncio.run(router(json.loads(Path(sys.argv[-1]).read_text())))
    else:
        ray_host()
