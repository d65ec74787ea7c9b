"""The admin API, as used by the reference system's clients, operator and scripts."""

import concurrent.futures
import time
import urllib.parse

import pytest
import requests

from conftest import ADMIN_SECRET


class Admin:
    def __init__(self, gateway):
        self.base = f"{gateway.url}/api/admin"
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {ADMIN_SECRET}"

    def __call__(self, method, path, body=None, expect=200, **params):
        answer = self.session.request(method, f"{self.base}{path}", json=body, params=params, timeout=30)
        # The body may hold a key, so only the status and the sentence of an error are shown.
        assert answer.status_code == expect, f"{method} {path.split('/')[1]}: {answer.status_code} {error_of(answer)}"
        return answer.json()


def error_of(answer):
    return answer.json().get("error") if answer.status_code >= 400 else ""


@pytest.fixture
def admin(own_gateway):
    return Admin(own_gateway)


def chat(gateway, key, model):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {key}"}
    return requests.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def test_the_secret_is_checked(own_gateway, admin):
    assert admin("GET", "/") is True
    assert "version" in admin("GET", "/rev")
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        assert requests.get(f"{own_gateway.url}/api/admin/", headers=headers, timeout=10).status_code == 401


def test_the_life_of_a_key(own_gateway, admin):
    own_gateway.provider.always(text="fine")
    made = admin("POST", "/apiKey", {"comment": "script", "rpmLimit": 100, "tpmLimit": 100000})
    key = made["key"]
    assert key.startswith("sk-") and (made["rpmLimit"], made["tpmLimit"]) == (100, 100000)
    defaults = admin("POST", "/apiKey", {"comment": "defaults", "expiresAt": "2199-12-31T00:00:00.000Z"})
    assert (defaults["rpmLimit"], defaults["tpmLimit"]) == (50, 50000)
    assert chat(own_gateway, key, "via-chat").status_code == 200

    shown = admin("GET", f"/apiKey/{key}")
    names = {"id", "key", "comment", "createdAt", "updatedAt", "expiresAt", "lastSeen", "revoked", "rpmLimit", "tpmLimit", "externalId", "source"}
    assert names <= set(shown)
    assert (shown["key"], shown["comment"], shown["revoked"], shown["source"]) == (key, "script", False, "manual")
    assert shown["id"] in [listed["id"] for listed in admin("GET", "/apiKey")]

    changed = admin("PUT", f"/apiKey/{key}/ratelimit", {"rpmLimit": 7, "tpmLimit": 7000})
    assert (changed["key"], changed["rpmLimit"], changed["tpmLimit"]) == (key, 7, 7000)
    usage = admin("GET", f"/apiKey/{key}/usage")
    assert usage["key"] == key
    assert usage["limits"] == {"rpm": 7, "tpm": 7000}
    for name, limit in usage["limits"].items():
        bucket = usage["usage"][name]
        assert set(bucket) == {"current", "limit", "remaining"} and bucket["limit"] == limit

    assert admin("DELETE", f"/apiKey/{key}")["revoked"] is True
    assert chat(own_gateway, key, "via-chat").status_code == 401
    assert shown["id"] not in [listed["id"] for listed in admin("GET", "/apiKey")]
    assert shown["id"] in [listed["id"] for listed in admin("GET", "/apiKey", includeRevoked="true")]
    admin("GET", "/apiKey/sk-nobody-has-this", expect=404)
    admin("DELETE", "/apiKey/sk-nobody-has-this", expect=404)


def test_the_operator(own_gateway, admin):
    """The operator's calls for an application: ensure, look up, revoke, ensure again."""
    own_gateway.provider.always(text="fine")
    path = "/apiKey/by-external-id/" + urllib.parse.quote("k8s/cluster/namespace/app", safe="")
    admin("GET", path, expect=404)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: Admin(own_gateway)("PUT", path, {"comment": "app"}), range(50)))
    assert len({answer["key"] for answer in answers}) == 1
    assert sum(answer["created"] for answer in answers) == 1
    first = answers[0]
    assert first["externalId"] == "k8s/cluster/namespace/app" and isinstance(first["id"], int)
    assert admin("GET", path)["key"] == first["key"]
    assert chat(own_gateway, first["key"], "via-chat").status_code == 200
    assert [key["externalId"] for key in admin("GET", "/apiKey/managed")] == [first["externalId"]]

    admin("DELETE", f"/apiKey/{first['key']}")
    assert admin("GET", path)["revoked"] is True
    again = admin("PUT", path, {"comment": "app"})
    assert (again["key"], again["created"]) == (first["key"], False)
    assert chat(own_gateway, first["key"], "via-chat").status_code == 200


def test_providers_and_models(own_gateway, admin):
    own_gateway.provider.always(text="fine")
    body = {"name": "reference", "type": "openai", "baseUrl": f"{own_gateway.provider.root}/v1", "apiKey": "sk-upstream-0123456789", "comment": "x"}
    provider = admin("POST", "/providers", body)
    assert {"id", "name", "type", "baseUrl", "apiVersion", "comment", "createdAt", "updatedAt"} <= set(provider)
    admin("POST", "/providers", body, expect=409)
    changed = admin("PUT", f"/providers/{provider['id']}", {"comment": "y"})
    assert (changed["comment"], changed["name"]) == ("y", "reference")
    tested = admin("POST", f"/providers/{provider['id']}/test")
    assert tested["success"] is True and {"id", "owned_by"} <= set(tested["models"][0])
    remote = admin("GET", f"/providers/{provider['id']}/remote-models")
    assert {"id", "owned_by", "created"} <= set(remote["models"][0])

    body = {"providerId": provider["id"], "systemName": "reference-model", "remoteId": "remote", "modelType": "chat",
            "contextLength": 128000, "inputPrice": 2.5, "outputPrice": 10, "weight": 2}
    model = admin("POST", "/models", body)
    assert {name: model[name] for name in body} == body
    admin("POST", "/models", body, expect=409)
    admin("POST", "/models", {**body, "providerId": 999999}, expect=404)
    assert "reference-model" in admin("GET", "/models/system-names", modelType="chat")
    assert model["id"] in [listed["id"] for listed in admin("GET", "/models")]
    assert [listed["id"] for listed in admin("GET", f"/providers/{provider['id']}/models")] == [model["id"]]
    offers = admin("PUT", "/models/by-system-name/reference-model/weights", {"weights": [{"modelId": model["id"], "weight": 5}]})
    assert [(offer["model"]["weight"], offer["provider"]["id"]) for offer in offers] == [(5, provider["id"])]
    assert admin("PUT", f"/models/{model['id']}", {"inputPrice": 3})["inputPrice"] == 3

    assert admin("DELETE", f"/models/{model['id']}") == {"success": True}
    assert admin("DELETE", f"/providers/{provider['id']}") == {"success": True}
    for path in (f"/models/{model['id']}", f"/providers/{provider['id']}"):
        assert isinstance(admin("GET", path, expect=404)["error"], str)
        admin("DELETE", path, expect=404)


def test_history_and_statistics(own_gateway, admin):
    own_gateway.provider.always(text="fine", usage={"prompt": 11, "completion": 5})
    made = admin("POST", "/apiKey", {"comment": "history"})
    assert chat(own_gateway, made["key"], "via-chat").status_code == 200
    # Finished requests reach the database in batches.
    deadline = time.monotonic() + 30
    while not (page := admin("GET", "/completions", offset=0, limit=10, apiKeyId=made["id"]))["data"]:
        assert time.monotonic() < deadline, "the request is never in the log"
        time.sleep(0.02)
    assert (page["total"], page["from"], len(page["data"])) == (1, 0, 1)
    row = page["data"][0]
    assert {"id", "apiKeyId", "model", "promptTokens", "completionTokens", "status", "ttft", "duration", "createdAt", "apiFormat"} <= set(row)
    assert (row["promptTokens"], row["completionTokens"], row["status"]) == (11, 5, "completed")
    assert admin("GET", f"/completions/{row['id']}")["id"] == row["id"]
    usage = admin("GET", "/usage", apiKey=made["key"])
    assert (usage["total_prompt_tokens"], usage["total_completion_tokens"]) == (11, 5)
    overview = admin("GET", "/stats/overview", range="5m")
    assert {"totalRequests", "completionsCount", "embeddingsCount", "completionsSuccessRate", "embeddingsSuccessRate", "avgDuration", "avgTTFT"} <= set(overview["summary"])
    assert {"promptTokens", "completionTokens", "embeddingTokens", "totalTokens"} <= set(overview["tokenUsage"])
    assert {"model": "via-chat", "type": "chat"}.items() <= overview["modelDistribution"][0].items()
    assert {"timestamp", "completionsCount", "embeddingsCount", "completionsFailed", "embeddingsFailed", "avgDuration", "avgTTFT"} <= set(overview["timeSeries"][0])
    admin("DELETE", f"/completions/{row['id']}")
    admin("GET", f"/completions/{row['id']}", expect=404)
    assert {"data", "total", "from"} <= set(admin("GET", "/embeddings"))
