"""Settings: typed, frozen, and fatal when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.control import keys
from service.errors import ConfigurationError
from service.settings import Settings, load_settings


def test_defaults_need_no_variable() -> None:
    settings = load_settings({"PATH": "/bin"})
    assert settings == Settings()
    assert (settings.frame_width, settings.frame_height, settings.redis_url) == (320, 192, "")


def test_variables_are_parsed_and_flags_win() -> None:
    environ = {"MIRAGE_PORT": "81", "MIRAGE_DETERMINISTIC": "true", "MIRAGE_DATA_DIR": "/x"}
    settings = load_settings(environ, port=82)
    assert (settings.port, settings.deterministic, settings.data_dir) == (82, True, Path("/x"))
    assert settings.segments_url == "file:///x/segments"


def test_every_unknown_or_malformed_variable_is_named_with_what_was_seen() -> None:
    environ = {"MIRAGE_PROT": "81", "MIRAGE_PORT": "eighty", "MIRAGE_FRAME_WIDTH": "100"}
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    named = {field.field: field for field in caught.value.fields}
    assert named.keys() == set(environ)
    assert "no such setting" in named["MIRAGE_PROT"].allowed
    assert named["MIRAGE_PORT"].seen == "eighty"
    assert "multiple of 16" in named["MIRAGE_FRAME_WIDTH"].allowed


def test_an_empty_number_is_malformed_not_a_default() -> None:
    with pytest.raises(ConfigurationError):
        load_settings({"MIRAGE_PORT": ""})


def test_an_empty_folder_is_not_the_current_one() -> None:
    with pytest.raises(ConfigurationError, match="must name a folder"):
        load_settings({"MIRAGE_DATA_DIR": ""})
    assert load_settings({"MIRAGE_DATA_DIR": "."}).data_dir == Path()


def test_what_waits_is_never_more_than_what_is_remembered() -> None:
    """Else the oldest that wait could be neither followed nor cancelled."""
    assert load_settings({"MIRAGE_MAX_BACKLOG": "255"}).max_backlog == keys.REQUESTS_KEPT - 1
    with pytest.raises(ConfigurationError, match="less than 256"):
        load_settings({"MIRAGE_MAX_BACKLOG": "256"})


def test_the_fault_of_a_worker_is_no_setting() -> None:
    load_settings({"MIRAGE_FAULT": "after_put:1"})


def test_secrets_are_masked() -> None:
    settings = load_settings({"MIRAGE_REDIS_URL": "rediss://user:hunter2@host:6379/0"})
    assert settings.describe()["redis_url"] == "rediss://user:***@host:6379/0"
    odd = load_settings({"MIRAGE_REDIS_URL": "redis://:hun@ter2@host"})
    assert odd.describe()["redis_url"] == "redis://:***@host"
    for url, shown in (
        ("redis://h/0?password=hunter2", "redis://h/0?password=***"),
        (
            "unix:///x.sock?db=1&username=ann&password=hunter2&db=2",
            "unix:///x.sock?db=1&username=ann&password=***&db=2",
        ),
        ("redis://h:6379/0?password=hun@ter2&db=1", "redis://h:6379/0?password=***&db=1"),
        ("redis://h:6379?password=hun@ter2", "redis://h:6379?password=***"),
        ("redis://h/0?ssl_keyfile=/k.pem&db=1", "redis://h/0?ssl_keyfile=/k.pem&db=1"),
    ):
        assert load_settings({"MIRAGE_REDIS_URL": url}).describe()["redis_url"] == shown
    store = load_settings({"MIRAGE_STORE_URL": "az://c/p?x=1&sas_token=hunter2"})
    assert store.describe()["store_url"] == "az://c/p?x=1&sas_token=***"
    for name, value in (
        ("MIRAGE_PORT", "redis://u:hunter2@h"),
        ("MIRAGE_WEBHOOK_SECRETS", "hunter2"),
        ("MIRAGE_REDIS_PASSWORD", "hunter2"),
    ):
        with pytest.raises(ConfigurationError, match=name) as caught:
            load_settings({name: value})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("MIRAGE_MEMORY_TOKENS", "int4"), ("MIRAGE_REQUIRE_KEYS", "maybe")]
)
def test_what_is_no_secret_is_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='{value}': "):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (
            {"MIRAGE_GRPC_TLS_CERT": "a.pem"},
            "give MIRAGE_GRPC_TLS_CERT and MIRAGE_GRPC_TLS_KEY, or neither",
        ),
        (
            {"MIRAGE_GRPC_TLS_CLIENT_CA": "a.pem"},
            "MIRAGE_GRPC_TLS_CLIENT_CA needs MIRAGE_GRPC_TLS_CERT and MIRAGE_GRPC_TLS_KEY",
        ),
        (
            {"MIRAGE_FRAME_WIDTH": "100"},
            "MIRAGE_FRAME_WIDTH='100': must be a multiple of 16, 100 is not",
        ),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    assert str(caught.value) == f"settings can't be used: {words}"


@pytest.mark.parametrize("targets", ["hooks.example", "https://hooks.example, ftp://x"])
def test_webhook_targets_are_urls(targets: str) -> None:
    environ = {"MIRAGE_WEBHOOK_TARGETS": targets, "MIRAGE_WEBHOOK_SECRET": "s" * 24}
    with pytest.raises(ConfigurationError, match="http://"):
        load_settings(environ)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("MIRAGE_OTLP_ENDPOINT", "collector:4318", "http://"),
        ("MIRAGE_OTLP_ENDPOINT", "http://a, http://b", "a URL"),
        ("MIRAGE_CORS_ORIGINS", "foo", "https://a.example"),
        ("MIRAGE_CORS_ORIGINS", "*", "https://a.example"),
        ("MIRAGE_CORS_ORIGINS", "https://a.example, https://b.example/", "without a path"),
        ("MIRAGE_CORS_ORIGINS", "https://A.example", "lower case"),
        ("MIRAGE_WEBHOOK_SECRET", "short", "24 characters"),
    ],
)
def test_what_would_only_fail_later_is_refused_at_once(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        load_settings({name: value})
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIRAGE_OTLP_ENDPOINT", "http://[::1]:4318/v1"),
        ("MIRAGE_CORS_ORIGINS", "https://a.example, http://localhost:3000,tauri://localhost"),
        ("MIRAGE_WEBHOOK_SECRET", "s" * 24),
    ],
)
def test_what_can_be_used_is_taken(name: str, value: str) -> None:
    assert getattr(load_settings({name: value}), name.removeprefix("MIRAGE_").lower()) == value
    assert load_settings({name: ""}) == Settings()


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_a_device_that_nobody_has_is_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match="MIRAGE_DEVICE"):
        load_settings({"MIRAGE_DEVICE": device})
    assert load_settings({"MIRAGE_DEVICE": "cuda:1"}).device == "cuda:1"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
