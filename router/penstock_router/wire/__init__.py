"""gRPC over HTTP/2 on asyncio, in one thread: the router's own transport.

Promise: everything below works on bytes and callbacks, writes of one loop turn leave in one system call, and a peer
can make this process hold no more than the bounds named in `limits`.

Why not grpc.aio: it hands each message through a poller thread, a socket pair and a task. With the router pinned to
one slow core that costs about 70 us per streamed message and 500 us per call, before any work of ours (measured with
grpcio 1.85.1: a third of it is thread switches). Peers keep their own gRPC library: only the wire is shared.
"""
