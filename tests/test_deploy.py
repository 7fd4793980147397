"""What operators install: image, compose file, chart, rules and dashboard say what the code does.

Tools that are here are run (promtool, helm, hadolint, kubernetes-validate); what is not is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from service.local.embedded import EmbeddedValkey, free_port, valkey_binary
from service.settings import OTHER_VARIABLES, Settings, load_settings
from service.telemetry import Metrics as GatewayMetrics
from worker.serving.metrics import Metrics as WorkerMetrics

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "mirage-server"
RULES, RULES_TEST = DEPLOY / "prometheus" / "rules.yaml", DEPLOY / "prometheus" / "rules.test.yaml"
DASHBOARD = DEPLOY / "grafana" / "mirage.json"
MANUAL = ROOT / "docs" / "operations.md"
VALUES = [CHART / "values.yaml", *sorted((CHART / "ci").glob("*.yaml"))]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VARIABLE = re.compile(r"MIRAGE_[A-Z][A-Z_]*[A-Z]")
# set by templates, so not to be set under `settings`
OF_THE_CHART = {
    "redis_url", "data_dir", "store_url", "host", "port", "grpc_port", "grpc_tls_cert",
    "grpc_tls_key", "grpc_tls_client_ca", "worker_metrics_port", "require_keys", "insecure",
    "webhook_targets", "webhook_secret", "device", "torch_threads",
}  # fmt: skip
YAMLLINT = (
    "{extends: default, rules: {line-length: disable, document-start: disable, "
    "braces: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}, "
    "truthy: {check-keys: false}}}"
)


def run(tool: str, *arguments: str | Path) -> str:
    """What the tool prints; skips without it, fails with it."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed (docs/operations.md says where it comes from)")
    command = [found, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rendered(*values: Path) -> list[dict[str, Any]]:
    files = [word for path in values for word in ("--values", path)]
    documents = yaml.safe_load_all(run("helm", "template", "mirage", CHART, *files))
    return [one for one in documents if one]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in documents:
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield one["metadata"]["name"], one["spec"]["template"]


def substituted(value: str) -> str:
    """As compose does: ${NAME:-default} and ${NAME:?why}."""
    return re.sub(r"\$\{\w+:([-?])(.*?)\}", lambda m: m[2] if m[1] == "-" else "given", value)


# ---- settings, ports


def test_every_variable_named_is_a_setting() -> None:
    known = {f"MIRAGE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    for path in [ROOT / "Dockerfile", MANUAL, *files]:
        assert set(VARIABLE.findall(path.read_text())) <= known, path


def test_image_compose_and_chart_listen_where_the_settings_say() -> None:
    image = dict(re.findall(r"(MIRAGE_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    config = dict(
        re.findall(r"(MIRAGE_\w+): \"?([\w.]+)", (CHART / "templates/configmap.yaml").read_text())
    )
    for name in ("port", "grpc_port"):
        default = str(Settings.model_fields[name].default)
        assert image[f"MIRAGE_{name.upper()}"] == config[f"MIRAGE_{name.upper()}"] == default
    assert image["MIRAGE_WORKER_METRICS_PORT"] == config["MIRAGE_WORKER_METRICS_PORT"] == "9100"
    assert image["MIRAGE_REQUIRE_KEYS"] == "true"
    exposed = re.findall(r"^EXPOSE (.*)", (ROOT / "Dockerfile").read_text(), re.M)
    assert exposed == ["9100", "8000 8001"]
    service = loaded(CHART / "values.yaml")["gateway"]["service"]
    assert (service["port"], service["grpcPort"]) == (8000, 8001)


def test_the_images_get_what_they_need_and_nothing_else() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    gateway, worker = (next(one for one in stages if f"AS {name}-build" in one)
                       for name in ("gateway", "worker"))  # fmt: skip
    assert "COPY worker" not in gateway and "torch" not in gateway.replace("without torch", "")
    assert "COPY worker worker" in worker and "[worker]" in worker
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", "\n".join(stages), re.M)
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert {name for line in copied for name in line.split()} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_compose_runs_a_closed_service_with_settings_that_load() -> None:
    compose = loaded(DEPLOY / "compose.yaml")
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(substituted(port).startswith("127.0.0.1:") for port in service.get("ports", ()))
        sources = {one.partition(":")[0] for one in service["volumes"]}
        assert {one for one in sources if not one.startswith("./")} <= compose["volumes"].keys()
    for name in ("gateway", "worker"):
        given = compose["services"][name]["environment"]
        settings = load_settings({key: substituted(str(value)) for key, value in given.items()})
        assert settings.redis_url == "redis://:given@valkey:6379/0"
    assert compose["services"]["gateway"]["environment"]["MIRAGE_REQUIRE_KEYS"] == "true"


def answering(conf: Path, port: int) -> subprocess.Popen[bytes]:
    command = [str(valkey_binary()), str(conf), "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


async def test_valkey_is_set_up_as_the_embedded_one(tmp_path: Path) -> None:
    names = ("appendonly", "appendfsync", "save", "maxmemory-policy", "maxmemory")
    async with EmbeddedValkey(tmp_path / "own") as url, Redis.from_url(url) as redis:
        wanted = [await redis.config_get(name) for name in names]
    port, conf = free_port(), tmp_path / "valkey.conf"
    conf.write_text((DEPLOY / "valkey.conf").read_text().replace("dir /data", f"dir {tmp_path}"))
    process = answering(conf, port)
    try:
        retry = Retry(ConstantBackoff(0.05), 600)
        async with Redis(port=port, retry=retry) as redis:
            assert [await redis.config_get(name) for name in names] == wanted
    finally:
        process.terminate()
        process.wait()


# ---- the chart's values


def test_the_schema_knows_every_setting_as_the_code_does() -> None:
    properties = Settings.model_json_schema()["properties"]
    expected = {
        name: {key: value for key, value in one.items() if key not in ("title", "default")}
        for name, one in properties.items()
        if name not in OF_THE_CHART
    }
    assert SCHEMA["properties"]["settings"]["properties"] == expected
    assert properties.keys() >= OF_THE_CHART


def test_the_schema_and_the_documented_values_name_the_same() -> None:
    values = loaded(CHART / "values.yaml")

    def compare(where: str, schema: dict[str, Any], value: Any) -> None:
        schema = SCHEMA["$defs"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
        if "properties" not in schema or where == ".settings":
            return
        assert schema["additionalProperties"] is False, where
        assert schema["properties"].keys() - {"global"} == value.keys(), where
        for name, one in value.items():
            compare(f"{where}.{name}", schema["properties"][name], one)

    compare("", SCHEMA, values)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_good_values_are_taken(path: Path) -> None:
    jsonschema_rs.validator_for(SCHEMA).validate(loaded(path))


@pytest.mark.parametrize(
    "bad",
    [
        "{gateways: {replicas: 2}}",
        "{settings: {memory_point: 5}}",
        "{settings: {memory_points: many}}",
        "{settings: {image_quality: 101}}",
        "{settings: {port: 80}}",
        "{extraEnv: [{name: MIRAGE_PORT, value: '80'}]}",
        "{gateway: {replicas: 0}}",
        "{gateway: {readinessPath: /health}}",
        "{worker: {gpus: 2}}",
        "{worker: {terminationGracePeriodSeconds: 5}}",
        "{worker: {strategy: {maxSurge: 0, maxUnavailable: 0}}}",
        "{worker: {autoscaling: {prometheusUrl: prometheus}}}",
        "{valkey: {enabled: true}, redis: {url: 'redis://other'}}",
        "{valkey: {enabled: false}, redis: {url: 'http://other'}}",
        "{store: {url: 'file:///data'}}",
        "{store: {size: 100GB}}",
        "{image: {pullPolicy: Sometimes}}",
    ],
)
def test_bad_values_are_refused(bad: str) -> None:
    assert not jsonschema_rs.validator_for(SCHEMA).is_valid(yaml.safe_load(bad))


# ---- the chart as helm renders it


def test_helm_refuses_an_unknown_value() -> None:
    run("helm", "version")
    command = ["helm", "template", "mirage", str(CHART), "--set", "worker.replica=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and "replica" in done.stderr


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_the_chart_lints(path: Path) -> None:
    run("helm", "lint", "--strict", CHART, "--values", path)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_manifests_are_those_of_kubernetes(path: Path) -> None:
    documents = rendered(path)
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate

    unknown = []
    for one in documents:
        try:
            kubernetes_validate.validate(one, "1.34", strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.append(one["kind"])
    assert set(unknown) <= {"PodMonitor", "PrometheusRule", "ScaledObject"}  # of operators


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_pods_are_confined_probed_and_told_settings_that_load(path: Path) -> None:
    documents = rendered(path)
    named = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for name, pod in pods(documents):
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["enableServiceLinks"] is False, name  # they would be unknown MIRAGE_ variables
        assert spec["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        assert "memory" in container["resources"]["limits"], name
        assert {one["name"] for one in container["volumeMounts"]} <= {
            one["name"] for one in spec["volumes"]
        } | {"data"}
        if name.endswith(("gateway", "worker")):
            (config,) = (one["configMapRef"]["name"] for one in container["envFrom"])
            given = dict(named["ConfigMap", config]["data"])
            given |= {one["name"]: one.get("value", "") for one in container["env"]}
            if "MIRAGE_WEBHOOK_SECRET" in given:
                given["MIRAGE_WEBHOOK_SECRET"] = "x" * 24
            settings = load_settings(given)
            ports = {one["name"]: one["containerPort"] for one in container["ports"]}
            wanted = {"http": settings.port, "grpc": settings.grpc_port}
            worker = {"metrics": settings.worker_metrics_port}
            assert ports == (wanted if name.endswith("gateway") else worker)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_what_selects_pods_finds_them(path: Path) -> None:
    documents = rendered(path)
    labels = [pod["metadata"]["labels"] for _, pod in pods(documents)]
    selecting = ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    for one in (one for one in documents if one["kind"] in selecting):
        selector = one["spec"].get("podSelector") or one["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        found = [some for some in labels if selector.items() <= some.items()]
        assert len(found) == 1, one["metadata"]["name"]
    targets = [
        one["spec"]["scaleTargetRef"]["name"]
        for one in documents
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert set(targets) <= {name for name, _ in pods(documents)}


# ---- rules, dashboard, tools


def exported() -> set[str]:
    found = set()
    for metrics in (GatewayMetrics(), WorkerMetrics()):
        for one in metrics.registry.collect():
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            found |= {one.name + ending for ending in endings.get(one.type, ("",))}
    return found


def test_rules_dashboard_and_scaling_use_metrics_that_exist() -> None:
    recorded = {rule["record"] for group in loaded(RULES)["groups"] for rule in group["rules"]
                if "record" in rule}  # fmt: skip
    texts = [rule["expr"] for group in loaded(RULES)["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    texts += [target["expr"] for panel in panels for target in panel["targets"]]
    texts.append((CHART / "templates" / "worker.yaml").read_text())
    named = {name for text in texts for name in re.findall(r"\bmirage[_:][a-z0-9_:]+", text)}
    assert len(named) > 20 and named - exported() - recorded == set()


def test_each_alert_has_a_test_and_a_runbook() -> None:
    rules = [rule for group in loaded(RULES)["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    headings = set(re.findall(r"^#+ (\w+)$", MANUAL.read_text(), re.M))
    tested = set(re.findall(r"alertname: (\w+)", RULES_TEST.read_text()))
    assert alerts.keys() == tested and alerts.keys() <= headings
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    cells = [
        (panel["gridPos"]["x"] + i, panel["gridPos"]["y"] + j)
        for panel in dashboard["panels"]
        for i in range(panel["gridPos"]["w"])
        for j in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_prometheus_takes_the_rules() -> None:
    run("promtool", "check", "rules", RULES)
    run("promtool", "test", "rules", RULES_TEST)
    run("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yaml")


def test_yaml_is_tidy() -> None:
    files = [path for path in DEPLOY.rglob("*.yaml") if "templates" not in path.parts]
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", YAMLLINT, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert len(files) >= 7 and done.returncode == 0, done.stdout


def test_the_dockerfile_lints() -> None:
    run("hadolint", "Dockerfile")
