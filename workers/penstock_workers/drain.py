"""Drains one worker and waits until it is done: `python -m penstock_workers.drain [--address HOST:PORT] [--leave]`.

Promise: for a pod's preStop hook and for people; exits 0 when the worker holds and runs nothing any more, 1 where it could not
be asked. It imports neither Ray nor an engine.
"""

import argparse
import sys
from collections.abc import Sequence

import grpc

from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.worker_pb2 import DrainRequest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="penstock_workers.drain", description="Drain one worker.")
    parser.add_argument("--address", default="127.0.0.1:9100", metavar="HOST:PORT", help="default: 127.0.0.1:9100")
    parser.add_argument("--reason", default="asked to", help="for the worker's routers and logs")
    parser.add_argument("--leave", action="store_true", help="end the process afterwards; its owner starts another")
    parser.add_argument("--timeout", type=float, default=None, metavar="SECONDS", help="default: as long as the drain takes")
    args = parser.parse_args(argv)
    request = DrainRequest(reason=args.reason, leave=args.leave)
    with grpc.insecure_channel(args.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            done = worker_pb2_grpc.WorkerStub(channel).Drain(request, timeout=args.timeout)
        except grpc.RpcError as error:
            print(f"--address: {args.address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print(f"drained in {done.duration_s:.1f} s: {done.legs} legs, {done.cut} cut at the time limit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
