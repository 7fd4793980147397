"""What REST answers has a place in protobuf: the same fields, under the same names."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from service import schemas
from service.wire import world_pb2 as pb

# deliberately only in REST: a picture's address, what webhooks need
REST_ONLY = {"FrameOut": {"image"}, "SessionOut": set(), "GenerationOut": set()}


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
    ],
)
def test_fields_are_the_same(model: type[BaseModel], message: type) -> None:
    fields = set(message.DESCRIPTOR.fields_by_name)
    assert set(model.model_fields) - fields - REST_ONLY.get(model.__name__, set()) == set()
