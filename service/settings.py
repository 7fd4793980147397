"""One frozen object of settings for gateway and worker, read from `MIRAGE_*` variables.

Unknown or malformed variables are fatal: a typo must never run with a default. Each process logs
all of them when it starts, secrets masked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from service.control.keys import REQUESTS_KEPT
from service.errors import ConfigurationError, FieldProblem

PREFIX = "MIRAGE_"
# read by workers (to die at a named point in tests of survival), and by clients
OTHER_VARIABLES = frozenset({"MIRAGE_FAULT", "MIRAGE_API_KEY"})
PASSWORD = re.compile(r"(?<=://)([^/:]*):([^/]*)@")
# Of a query: redis-py takes a password there, other services a key or a signature
QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:password|secret|token|key|sig|signature)=)[^&\s]*")
SECRETS = frozenset({"webhook_secret"})
SECRET = re.compile("SECRET|PASSWORD|TOKEN|KEY")  # in the name of a variable that we don't know
MIN_SECRET_CHARS = 24
MIN_FRAME_SIDE, MAX_FRAME_SIDE, SIDE_STEP = 32, 4096, 16  # pixels
WEB_URL = re.compile(r"https?://[^\s,/][^\s,]*")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")  # as browsers send it


class Settings(BaseModel):
    """Every setting. Sizes are bytes, times seconds, lengths pixels, unless the name says
    otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # where things are
    redis_url: str = ""  # empty: `mirage up` starts an embedded Valkey in data_dir
    data_dir: Path = Path(".mirage")
    store_url: str = ""  # file://, s3://, gs://, az://; empty: data_dir/segments
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: int = Field(8001, ge=0, le=65535)  # 0: no gRPC
    grpc_tls_cert: str = ""  # PEM file; with its key: TLS
    grpc_tls_key: str = ""
    grpc_tls_client_ca: str = ""  # only clients with a certificate of this authority
    worker_metrics_port: int = Field(0, ge=0, le=65535)  # 0: a free one, named in the log
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str = ""  # base URL of an OpenTelemetry collector (OTLP over HTTP); empty: none

    # who may come in
    require_keys: bool = False  # else everybody who reaches the port may do everything
    insecure: bool = False  # allow a public address without keys
    cors_origins: str = ""  # of pages that may call us, "https://a.example, ..."; empty: only ours

    # who is told of finished generations
    webhook_targets: str = ""  # URLs at or under which a client may name one, separated by commas
    webhook_secret: str = ""  # signs them

    # the model
    backbone: str = "mini"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    deterministic: bool = False
    torch_threads: int = Field(0, ge=0)  # 0: as torch decides
    frame_width: int = Field(320, ge=MIN_FRAME_SIDE, le=MAX_FRAME_SIDE)
    frame_height: int = Field(192, ge=MIN_FRAME_SIDE, le=MAX_FRAME_SIDE)
    chunk_frames: int = Field(4, ge=1, le=64)
    max_batch: int = Field(8, ge=1, le=1024)  # sessions in one step
    resident_bytes: int = Field(
        2 << 30, ge=1 << 20
    )  # memories kept by a worker; the rest is restored

    # what one world may remember, `latent` and `rgb`; the same for all workers of a service
    memory_tokens: Literal["bfloat16", "int8"] = "bfloat16"
    memory_points: int = Field(200_000, ge=1)
    memory_bytes: int = Field(0, ge=0)  # 0: memory_points alone is the cap

    # time
    lease_s: float = Field(5.0, ge=0.2, le=300)
    linger_s: float = Field(10.0, ge=0)  # an idle session's lease is kept this long
    session_idle_s: float = Field(86_400.0, ge=1)
    collect_grace_s: float = Field(3600.0, ge=0)  # objects that nothing refers to are kept as long

    # caps
    frames_kept: int = Field(256, ge=1)  # in Redis, per session; older ones come from segments
    max_sessions: int = Field(10_000, ge=1)
    max_sessions_per_key: int = Field(1_000, ge=1)
    max_streams_per_key: int = Field(256, ge=1)  # of one owner, at one gateway
    max_backlog: int = Field(64, ge=1, lt=REQUESTS_KEPT)  # requests waiting in one session
    max_path_poses: int = Field(1024, ge=1)
    max_upload_bytes: int = Field(20 << 20, ge=1024)
    max_import_bytes: int = Field(4 << 30, ge=1 << 20)
    max_image_pixels: int = Field(50_000_000, ge=1024)

    # frames as the worker encodes them, once
    image_format: Literal["webp", "jpeg"] = "webp"
    image_quality: int = Field(85, ge=1, le=100)

    @field_validator("frame_width", "frame_height")
    @classmethod
    def _multiple_of_16(cls, value: int) -> int:
        if value % SIDE_STEP:
            raise ValueError(f"must be a multiple of {SIDE_STEP}, {value} is not")
        return value

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("must name a folder (. is this one); unset it for .mirage")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _web_url(cls, value: str) -> str:
        if value and not WEB_URL.fullmatch(value):
            raise ValueError("must be a URL with http:// or https://")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        if not all(ORIGIN.fullmatch(origin) for origin in _parts(value)):
            raise ValueError(
                "must be origins as browsers send them, separated by commas: in lower case, "
                "without a path, as https://a.example or http://localhost:3000"
            )
        return value

    @field_validator("webhook_targets")
    @classmethod
    def _web_urls(cls, value: str) -> str:
        if not all(one.startswith(("http://", "https://")) for one in _parts(value)):
            raise ValueError("must be URLs with http:// or https://, separated by commas")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and len(value) < MIN_SECRET_CHARS:
            raise ValueError(f"must have {MIN_SECRET_CHARS} characters or more")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if bool(self.grpc_tls_cert) != bool(self.grpc_tls_key):
            raise ValueError("give MIRAGE_GRPC_TLS_CERT and MIRAGE_GRPC_TLS_KEY, or neither")
        if self.grpc_tls_client_ca and not self.grpc_tls_cert:
            raise ValueError(
                "MIRAGE_GRPC_TLS_CLIENT_CA needs MIRAGE_GRPC_TLS_CERT and MIRAGE_GRPC_TLS_KEY"
            )
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_targets and not self.webhook_secret:
            raise ValueError(
                "MIRAGE_WEBHOOK_TARGETS needs a MIRAGE_WEBHOOK_SECRET of "
                f"{MIN_SECRET_CHARS} characters or more"
            )
        return self

    @property
    def allowed_origins(self) -> frozenset[str]:
        return frozenset(_parts(self.cors_origins))

    @property
    def allowed_webhooks(self) -> tuple[str, ...]:
        return tuple(_parts(self.webhook_targets))

    @property
    def segments_url(self) -> str:
        return self.store_url or f"{self.data_dir.absolute().as_uri()}/segments"

    def describe(self) -> dict[str, str]:
        """Every setting as text, secrets and passwords in URLs masked."""
        shown = {name: masked(str(value)) for name, value in self}
        return shown | {name: "***" for name in SECRETS if shown[name]}


def masked(text: str) -> str:
    """Without the passwords of URLs in it, be they behind a user's name or a `?`."""
    in_query = QUERY_SECRET.sub(r"\1***", text)  # first: an `@` in it would look like a host's
    return PASSWORD.sub(r"\1:***@", in_query)


def _parts(listed: str) -> list[str]:
    return [part.strip() for part in listed.split(",") if part.strip()]


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from `environ` (default: this process's), overridden by keyword (flags of the CLI).

    Raises ConfigurationError that names each variable that is unknown or malformed.
    """
    environ = os.environ if environ is None else environ
    given = {name for name in environ if name.startswith(PREFIX)} - OTHER_VARIABLES
    values = {
        name.removeprefix(PREFIX).lower(): environ[name] for name in sorted(given)
    } | overrides
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _configuration_error(error) from None


def _configuration_error(error: ValidationError) -> ConfigurationError:
    found = error.errors()
    fields = tuple(_problem(str(item["loc"][0]), item) for item in found if item["loc"])
    lines = [f"{field.field}={field.seen!r}: {field.allowed}" for field in fields]
    lines += [_plain(item) for item in found if not item["loc"]]  # of several settings
    return ConfigurationError(f"settings can't be used: {'; '.join(lines)}", fields=fields)


def _problem(name: str, item: ErrorDetails) -> FieldProblem:
    variable, allowed = PREFIX + name.upper(), _plain(item)
    is_secret = name in SECRETS
    if name not in Settings.model_fields:
        known = ", ".join(PREFIX + one.upper() for one in Settings.model_fields)
        allowed = f"no such setting; known are {known}"
        is_secret = SECRET.search(variable) is not None
    seen = "***" if is_secret else masked(str(item["input"]))
    return FieldProblem(variable, seen, allowed)


def _plain(item: ErrorDetails) -> str:
    """What is allowed, without the validator's own words around ours."""
    return item["msg"].removeprefix("Value error, ")
