"""Thousands of requests that are generated from the OpenAPI document, alone and in sequences: no server errors."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.pipelines.serving.test_app import complete_app

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

NUM_CASES = int(os.environ.get("URECA_SCHEMA_CASES", "2000"))
TIMEOUT_S = 600
NUM_STEPS = 5
NUM_SEQUENCES = max(1, NUM_CASES // 4 // NUM_STEPS)
"""A quarter of the cases are steps of sequences."""

schema = schemathesis.openapi.from_asgi("/openapi.json", complete_app())
NUM_OPERATIONS = len(list(schema.get_all_operations()))
sent: Counter[str] = Counter()


def validate(case: schemathesis.Case, response: Any) -> None:
    """Run the checks that the document can express, see ``tests/pipelines/serving/test_app.py``."""
    is_unchecked = case.media_type == "multipart/form-data" or response.status_code == 413
    excluded = [positive_data_acceptance, *([negative_data_rejection] if is_unchecked else [])]
    case.validate_response(response, excluded_checks=excluded)


@pytest.fixture(scope="module", autouse=True)
def count() -> Iterator[None]:
    yield
    print(f"{sent.total()} requests: {dict(sent)}")


@schema.parametrize()
@settings(
    max_examples=max(1, NUM_CASES * 3 // 4 // NUM_OPERATIONS),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_requests_of_the_openapi_schema_never_fail(case: schemathesis.Case) -> None:
    sent["alone"] += 1
    validate(case, case.call(timeout=TIMEOUT_S))


class Sequences(schema.as_state_machine()):  # type: ignore[misc]
    """Sequences of requests that use the responses before them."""

    def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
        return {"timeout": TIMEOUT_S}

    def validate_response(self, response: Any, case: schemathesis.Case, **options: Any) -> None:
        sent["in sequences"] += 1
        validate(case, response)


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=NUM_SEQUENCES,
    stateful_step_count=NUM_STEPS,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
