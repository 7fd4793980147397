"""The floor: servers that answer a pose with a head and a picture of the same size, and do no more.

`python -m bench.echo --port 9000 --grpc-port 9001`: a bare FastAPI WebSocket under the gateway's
own uvicorn settings (JSON text for text, protobuf for binary) and a bare grpc.aio servicer of the
same Stream call, in one process like the gateway. What the gateway takes beyond these is ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from grpc import aio

from service.rpc.calls import SERVICE
from service.wire import world_pb2 as pb

HEAD_BYTES, IMAGE_BYTES = 560, 640  # of a small frame as the gateway sends it
IMAGE = bytes(IMAGE_BYTES)
MATRIX = [0.0] * 16


def answer(number: int, asked: pb.ClientMessage) -> pb.ServerMessage:
    frame = pb.Frame(frame=number, sequence=asked.sequence, matrix=MATRIX, image=IMAGE)
    return pb.ServerMessage(sequence=number, frame=frame)


async def echo(
    asked: AsyncIterator[pb.ClientMessage], context: object
) -> AsyncIterator[pb.ServerMessage]:
    number = 0
    async for message in asked:
        yield answer(number, message)
        number += 1


def create_app(grpc_port: int) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = aio.server()
        stream = grpc.stream_stream_rpc_method_handler(
            echo,
            request_deserializer=pb.ClientMessage.FromString,
            response_serializer=pb.ServerMessage.SerializeToString,
        )
        world = grpc.method_handlers_generic_handler(SERVICE.full_name, {"Stream": stream})
        server.add_generic_rpc_handlers((world,))
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        await server.start()
        yield
        await server.stop(None)

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        offered = websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=offered[0] if offered else None)
        number = 0
        while (received := await websocket.receive())["type"] == "websocket.receive":
            if received.get("bytes") is not None:
                asked = pb.ClientMessage.FromString(received["bytes"])
                await websocket.send_bytes(answer(number, asked).SerializeToString())
            else:
                sequence = json.loads(received["text"])["sequence"]
                head = {"type": "frame", "frame": number, "sequence": sequence}
                await websocket.send_text(json.dumps(head | {"filling": "x" * HEAD_BYTES}))
                await websocket.send_bytes(IMAGE)
            number += 1

    @app.get("/item")
    async def item() -> dict[str, str]:
        return {"filling": "x" * HEAD_BYTES}

    @app.post("/item", status_code=201)
    async def create(request: Request) -> dict[str, int]:
        return {"received": len(await request.body())}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.echo", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(
        create_app(args.grpc_port),
        port=args.port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
