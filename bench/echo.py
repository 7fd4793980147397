"""The floor: servers that answer a pose with a head and a picture of the same size, and do no more.

`python -m bench.echo websocket|grpc --port 9000`: a bare FastAPI WebSocket under the gateway's own
uvicorn settings, and a bare grpc.aio stream of bytes. What the gateway takes beyond these is ours.
"""

from __future__ import annotations

import argparse
import json

import uvicorn
from fastapi import FastAPI, Request, WebSocket

HEAD_BYTES, IMAGE_BYTES = 480, 640  # of a small frame as the gateway sends it


def create_app(head_bytes: int, image_bytes: int) -> FastAPI:
    app = FastAPI()
    image = bytes(image_bytes)

    @app.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            sequence = json.loads(text)["sequence"]
            head = json.dumps({"type": "frame", "sequence": sequence, "filling": ""})
            await websocket.send_text(head[:-2] + "x" * (head_bytes - len(head)) + '"}')
            await websocket.send_bytes(image)

    @app.get("/item")
    async def item() -> dict[str, str]:
        return {"filling": "x" * head_bytes}

    @app.post("/item", status_code=201)
    async def create(request: Request) -> dict[str, int]:
        return {"received": len(await request.body())}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.echo", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--head-bytes", type=int, default=HEAD_BYTES)
    parser.add_argument("--image-bytes", type=int, default=IMAGE_BYTES)
    args = parser.parse_args()
    uvicorn.run(
        create_app(args.head_bytes, args.image_bytes),
        port=args.port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
