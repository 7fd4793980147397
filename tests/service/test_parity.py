"""What REST answers has a place in protobuf: the same fields, under the same names."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from service import schemas
from service.app import create_app
from service.rest import access, generations, videos
from service.rpc.calls import ROUTES
from service.settings import Settings
from service.wire import world_pb2 as pb

# deliberately only in REST: a picture's address, what webhooks need
REST_ONLY = {"FrameOut": {"image"}, "VideoOut": {"object"}, "VideoList": {"object"}}
ON_HTTP_ALONE = {  # what operators and browsers ask
    ("get", "/livez"), ("get", "/readyz"), ("get", "/metrics"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (schemas.SessionOut, pb.Session),
        (schemas.SessionList, pb.ListSessionsResponse),
        (schemas.GenerationOut, pb.Generation),
        (schemas.GenerationList, pb.ListGenerationsResponse),
        (schemas.FrameOut, pb.Frame),
        (schemas.FrameList, pb.ListFramesResponse),
        (schemas.MemoryOut, pb.Memory),
        (schemas.SampleOut, pb.Sample),
        (schemas.UploadOut, pb.UploadReport),
        (schemas.SnapshotOut, pb.SnapshotInfo),
        (schemas.ProblemOut, pb.Problem),
        (schemas.PathIn, pb.Path),
        (schemas.PoseIn, pb.Pose),
        (schemas.ActionIn, pb.Action),
        (generations.GenerationIn, pb.CreateGenerationRequest),
        (access.NewShareOut, pb.Share),
        (access.ShareIn, pb.CreateShareRequest),
        (access.ShareList, pb.ListSharesResponse),
        (access.TicketOut, pb.Ticket),
        (access.WebhookSecretOut, pb.WebhookSecret),
        (videos.VideoForm, pb.CreateVideoRequest),
        (videos.VideoOut, pb.Video),
        (videos.VideoProblem, pb.VideoProblem),
        (videos.VideoList, pb.ListVideosResponse),
    ],
)
def test_fields_are_the_same(model: type[BaseModel], message: type) -> None:
    fields = set(message.DESCRIPTOR.fields_by_name)
    if "path" in fields:
        fields |= set(pb.Path.DESCRIPTOR.fields_by_name)
    assert set(model.model_fields) - fields - REST_ONLY.get(model.__name__, set()) == set()


def test_every_endpoint_has_its_call(settings: Settings) -> None:
    def unnamed(path: str) -> str:
        return re.sub(r"{\w+}", "{}", path)

    calls = {(route.method.lower(), unnamed(route.path)) for route in ROUTES.values()}
    paths = create_app(settings).openapi()["paths"]
    endpoints = {(method, unnamed(path)) for path, methods in paths.items() for method in methods}
    assert len(endpoints) > 30
    assert endpoints - calls == ON_HTTP_ALONE
    assert calls - endpoints == set()
