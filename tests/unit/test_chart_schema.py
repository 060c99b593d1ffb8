"""The chart's values: what the types of our programs refuse, `helm install` refuses first."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "llmsafespace"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("values_schema", DEPLOY / "helm" / "schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = json.loads((CHART / "values.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.fixture
def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def merged(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """With one value set, as `--set path=value` does."""
    found = copy.deepcopy(values)
    *folders, last = path.split("/")
    place = found
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return found


def test_the_schema_is_what_the_types_make(maker: ModuleType) -> None:
    assert maker.FILE.read_text() == maker.text(), "run `make crds`"


def test_what_the_chart_comes_with_is_taken(validator: Draft7Validator, values: dict[str, Any]) -> None:
    assert not list(validator.iter_errors(values))
    production = yaml.safe_load((DEPLOY / "examples" / "values-production.yaml").read_text())
    assert not list(validator.iter_errors(production))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gateway/config/rate_limt", 50),
        ("gateway/config/rate_limit", "fast"),
        ("gateway/config/rate_limit", -1),
        ("gateway/config/rate_burst", 1.5),
        ("gateway/config/strict_runtimes", "yes"),
        ("gateway/config/log_level", "LOUD"),
        ("gateway/config/port", 9000),
        ("gateway/config/quotas", {"sandboxs": 3}),
        ("gateway/config/quotas", {"sandboxes": "many"}),
        ("gateway/config/GatewayApp", {"rate_limit": 50}),
        ("warmPools/python/spec/minsize", 2),
        ("warmPools/python/spec/minSize", "two"),
        ("warmPools/python/spec/minSize", -1),
        ("warmPools/python/spec/resources", {"cpu": "lots"}),
        ("warmPools/python/spec/resources", {"mem": "1Gi"}),
        ("warmPools/python/spec/securityLevel", "extreme"),
        ("warmPools/python/spec/autoScaling", {"enabled": True, "targetUtilisation": 80}),
        ("warmPools/python/spec/updateStrategy", "Rolling"),
        ("gateway/resources/limits", {"memory": "lots"}),
        ("operator/resources/requests", {"cpu": "0"}),
        ("egress/resources/limits", {"memmory": "1Gi"}),
        ("gateway/persistence/size", "lots"),
        ("profiles/high/runtimeClass", "gvisor"),
        ("profiles/high/resourceDefaults", {"cpu": "many"}),
        ("runtimes/bash/langauge", "bash"),
        ("runtimes/bash", {"version": "5.2"}),
        ("operator/scheduleTimeout", "soon"),
        ("operator/nodeSelector", ["a"]),
        ("gateway/tolerations", [{"effekt": "NoSchedule"}]),
        ("gateway/affinity", {"nodeAffinty": {}}),
        ("gateway/podLabels", {"a": 1}),
        ("gateway/service/annotations", {"a": True}),
        ("gateway/trustedProxies", ["everybody"]),
        ("gateway/drainTimeout", "10s"),
        ("sandboxes/priorityClasses/warm", -10),
    ],
)
def test_what_is_wrong_is_refused(
    validator: Draft7Validator, values: dict[str, Any], path: str, value: Any
) -> None:
    assert list(validator.iter_errors(merged(values, path, value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gateway/config", {"rate_limit": 50, "quotas": {"sandboxes": 3, "user": {"cpu": 2}}}),
        ("warmPools/python/spec/resources", {"cpu": 1, "memory": "512Mi"}),
        ("gateway/resources/limits", {"cpu": 1.5, "memory": "1Gi"}),
        ("gateway/service/annotations", {"service.beta.kubernetes.io/aws-load-balancer-type": "nlb"}),
        ("gateway/trustedProxies", ["10.0.0.0/8", "fd00::/8", "10.1.2.3"]),
        ("egress/affinity", {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
        ("runtimes/r", {"language": "r", "version": "4", "image": "registry/r:4"}),
    ],
)
def test_what_is_right_is_taken(
    validator: Draft7Validator, values: dict[str, Any], path: str, value: Any
) -> None:
    assert not list(validator.iter_errors(merged(values, path, value)))
