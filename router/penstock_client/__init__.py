"""Penstock's SDK: `Client` and `AsyncClient` for the gRPC service `penstock.v1.Inference`.

from penstock_client import Client
with Client("127.0.0.1:9000") as client:
    print(client.generate("Once upon a time", max_tokens=32).text)
"""

from penstock_client.aclient import AsyncClient, AsyncStream
from penstock_client.answer import Answer, Choice, Delta, LegPlacement, Placement, TokenLogprob, Usage
from penstock_client.client import Client, Stream
from penstock_client.errors import (
    Aborted,
    AlreadyExists,
    Broken,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PenstockError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from penstock_client.request import Options
from penstock_client.service import Model, ServiceStatus, SloStatus, WorkerStatus

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Broken",
    "Cancelled",
    "Choice",
    "Client",
    "DeadlineExceeded",
    "Delta",
    "Internal",
    "InvalidArgument",
    "LegPlacement",
    "Model",
    "NotFound",
    "Options",
    "PenstockError",
    "PermissionDenied",
    "Placement",
    "ResourceExhausted",
    "ServiceStatus",
    "SloStatus",
    "Stream",
    "TokenLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "WorkerStatus",
]
