"""From the control plane's records to the API's answers."""

from __future__ import annotations

from datetime import UTC, datetime

from service.control.branches import SnapshotInfo
from service.control.frames import Frame
from service.control.requests import Progress
from service.control.sessions import Session
from service.schemas import (
    FrameOut,
    GenerationOut,
    Intrinsics,
    SessionOut,
    SnapshotOut,
    UploadOut,
)


def session_out(session: Session, upload: UploadOut | None = None) -> SessionOut:
    lens = session.intrinsics
    return SessionOut(
        id=session.id,
        state=session.state,
        version=session.version,
        memory=session.memory,
        seed=session.seed,
        width=lens.width,
        height=lens.height,
        fov_deg=round(lens.fov_deg, 6),
        intrinsics=Intrinsics(fx=lens.fx, fy=lens.fy, cx=lens.cx, cy=lens.cy),
        num_frames=session.next_frame,
        num_points=session.num_points,
        num_bytes=session.num_bytes,
        coverage=session.coverage,
        weights=session.weights or None,
        error=session.error,
        branch=session.branch,
        branch_first_frame=session.branch_first_frame,
        origin=session.origin or None,
        created_at=_moment(session.created_s),
        expires_at=_moment(session.expires_s),
        init_request=session.init_request,
        upload=upload,
    )


def generation_out(progress: Progress) -> GenerationOut:
    fields = progress.model_dump(mode="json", exclude={"created_s"})
    return GenerationOut(**fields, created_at=_moment(progress.created_s))


def frame_out(frame: Frame, session_id: str) -> FrameOut:
    return FrameOut(
        frame=frame.frame,
        matrix=frame.pose,
        coverage=frame.coverage,
        timings_ms=frame.timings_ms,
        request_id=frame.request_id,
        kind=frame.kind,
        sequence=frame.sequence,
        client_time_ms=frame.client_time_ms,
        created_at=_moment(frame.created_s),
        media_type=frame.media_type,
        camera=frame.camera,
        branch=frame.branch,
        image=f"/v1/sessions/{session_id}/frames/{frame.frame}",
    )


def snapshot_out(snapshot: SnapshotInfo) -> SnapshotOut:
    fields = snapshot.model_dump(exclude={"created_s"})
    return SnapshotOut(**fields, created_at=_moment(snapshot.created_s))


def etag(session: SessionOut) -> str:
    return f'"{session.version}"'


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
