"""schemathesis: valid and invalid requests generated from the OpenAPI document, and answers checked against it."""

import json

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks as openapi

from conftest import ADMIN_SECRET, KEY, ROOT, serving

#: Requests generated for each operation, besides those for every boundary in the document.
EXAMPLES = 20

DOCUMENT = ROOT / "docs" / "openapi.json"

load_all_checks()
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_path(DOCUMENT).get_all_operations()]


@pytest.fixture(scope="module")
def fuzzed(provider):
    """A separate gateway: generated requests change and delete whatever they hit."""
    provider.always(text="fine", usage={"prompt": 3, "completion": 2})
    with serving(provider) as running:
        yield running


def never_at_fault(_ctx, response, case):
    """No 5xx, except where the gateway reports, as documented, a failed upstream: providers are generated too."""
    if response.status_code < 500:
        return
    said = response.json()
    upstream = (
        said.get("code") == "upstream_failed"
        or said.get("success") is False
        or (isinstance(said.get("error"), dict) and said["error"].get("code") == "all_providers_failed")
        or not case.path.startswith("/api/")
    )
    assert response.status_code in (502, 504) and upstream, f"{case.method} {case.path}: {response.status_code}"


CHECKS = [
    never_at_fault,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.allow_header_conformance,
]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_operation(fuzzed, operation, mode):
    """Requests that the document allows, and requests that it does not."""
    secret = ADMIN_SECRET if operation.path.startswith("/api/") else KEY

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case):
        case.call_and_validate(
            base_url=fuzzed.url, headers={"Authorization": f"Bearer {secret}"}, checks=CHECKS, timeout=60
        )

    try:
        holds()
    except Unsatisfiable:
        # This operation has no invalid requests: it takes no parameters.
        assert mode is schemathesis.GenerationMode.NEGATIVE


def test_the_document_is_the_one_that_is_served(fuzzed):
    served = requests.get(f"{fuzzed.url}/api/openapi.json", timeout=10)
    assert served.json() == json.loads(DOCUMENT.read_text())
