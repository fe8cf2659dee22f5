"""The description of the REST API: complete, true whatever is sent (schemathesis), and drawn by a page of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
)
from tests.surfaces.http.conftest import OpenHttp, app_of, in_a_thread

from iris_kv.surfaces.http.problems import STATUSES

PREFIX = "/api/sandboxes"
CACHE_PATH = "/{sandbox}/kv-cache"
OPERATIONS = [
    ("get", ""),
    ("post", ""),
    ("get", f"{CACHE_PATH}/stats"),
    ("get", f"{CACHE_PATH}/keys"),
    ("post", f"{CACHE_PATH}/value"),
    ("get", f"{CACHE_PATH}/value"),
    ("head", f"{CACHE_PATH}/value"),
    ("delete", f"{CACHE_PATH}/value"),
    ("get", f"{CACHE_PATH}/history"),
    ("get", f"{CACHE_PATH}/deleted"),
    ("post", f"{CACHE_PATH}/restore"),
    ("post", f"{CACHE_PATH}/prune"),
    ("post", f"{CACHE_PATH}/seed-instructions"),
    ("delete", f"{CACHE_PATH}/clear-scope"),
    ("get", f"{CACHE_PATH}/instructions"),
    ("get", f"{CACHE_PATH}/rollout"),
]
EXAMPLES = 25


# Whatever is sent


@pytest.fixture(scope="module")
def described_api(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[schemathesis.BaseSchema, Mapping[str, str]]]:
    root = tmp_path_factory.mktemp("schemathesis")
    (root / "default").mkdir()
    app, headers = app_of(root, root=root)
    with in_a_thread(app) as address:
        description = httpx2.get(f"{address}/api/openapi.json").json()
        schema = schemathesis.openapi.from_dict(description)
        schema.config.update(base_url=address)
        yield schema, headers


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in OPERATIONS
        for mode in GenerationMode
        # Where there are no parameters nothing can be wrong with them.
        if mode.is_positive or not path.endswith(("/stats", "/instructions"))
    ],
)
def test_whatever_is_sent_is_answered_as_described(
    described_api: tuple[schemathesis.BaseSchema, Mapping[str, str]], method: str, path: str, mode: GenerationMode
) -> None:
    schema, headers = described_api
    operation = schema[PREFIX + path][method]
    # Any other sandbox is only ever absent, and absurd ones have tests of their own.
    sandbox = {"sandbox": "default"} if "{" in path else None

    @given(case=operation.as_strategy(mode, path_parameters=sandbox), is_there=booleans())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case, is_there: bool) -> None:
        if mode.is_positive and is_there and "key" in case.query:
            case.query |= {"scope": "task", "key": "there"}
        response = case.call(headers=dict(headers))
        # Valid by the description are keys that are too long in bytes, ETags of nothing, sandboxes that exist.
        excluded = [positive_data_acceptance]
        if any(isinstance(value, list) and len(value) < 2 for value in case.query.values()):
            # In a URL a list of one looks like its value, and one of none like no parameter: neither is wrong.
            excluded.append(negative_data_rejection)
        if response.status_code == 206:
            # A part of JSON has its type, and is none.
            excluded.append(response_schema_conformance)
        case.validate_response(response, headers=dict(headers), excluded_checks=excluded)

    check()


# What is described


async def description_of(open_http: OpenHttp) -> dict[str, Any]:
    async with open_http() as http:
        answer = await http.get("/api/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        return answer.json()


async def test_every_operation_is_described_with_its_problems(open_http: OpenHttp) -> None:
    description = await description_of(open_http)
    found = {(method, path): each for path, methods in description["paths"].items() for method, each in methods.items()}

    assert description["openapi"] == "3.1.0"
    assert set(found) == {(method, PREFIX + path) for method, path in OPERATIONS}
    assert description["security"] == [{"bearer": []}]
    for each in found.values():
        assert each["summary"]
        assert each["description"]
        assert {"401", "403", "404", "422", "429", "500", "503"} < set(each["responses"])
        for status, answer in each["responses"].items():
            if int(status) >= 400:
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    assert len({each["operationId"] for each in found.values()}) == len(OPERATIONS)
    assert set(found["post", f"{PREFIX}{CACHE_PATH}/value"]["responses"]) >= {
        "200",
        "201",
        "409",
        "412",
        "413",
        "415",
        "507",
    }


async def test_the_description_has_no_reference_that_leads_nowhere(open_http: OpenHttp) -> None:
    description = await description_of(open_http)
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(description)))

    assert references == {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    for schema in description["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_every_code_of_ours_is_described(open_http: OpenHttp) -> None:
    problems = (await description_of(open_http))["x-problems"]

    assert {code: each["status"] for code, each in problems.items() if code in STATUSES} == dict(STATUSES)


# The page


class Links(HTMLParser):
    """What a page loads and links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [given[name] or "" for name in ("src", "href", "action") if name in given]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


async def test_the_page_needs_nothing_from_outside(open_http: OpenHttp) -> None:
    async with open_http() as http:
        page = await http.get("/api/docs")
        links = Links(page.text)
        loaded = {each: await http.get(f"/api/{each}") for each in links.found}

    assert set(loaded) == {"docs/docs.css", "docs/docs.js", "openapi.json"}
    assert links.inline == []
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    for answer in (page, *loaded.values()):
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"""(https?:)?//(?!json-schema)[a-z0-9-]+\.[a-z]""", answer.text)
    assert "innerHTML" not in loaded["docs/docs.js"].text
