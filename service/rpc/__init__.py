"""gRPC, beside REST and with its answers.

How: grpc's core reads and writes the server's sockets on threads of an event engine, each message
handed from one to the next; without it the thread that waits for events does both, which halves the
context switches of a frame. Must be said before the core starts, hence here; whoever sets
GRPC_EXPERIMENTS has the last word. Trade-off: a future core may not know the name; it logs that,
and is as it was.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
