"""Who may ask: names of the server, other sites, tokens, cookies; what every reply says to a browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.serving.access import AccessRules
from recipes.serving.refusals import PathHider
from tests.unit.serving.served import TOKEN, Served, serving

PATHS = [
    "/",
    "/assets/app.js",
    "/health",
    "/api/documents",
    "/api/history",
    "/v1/models",
    "/nothing",
    "/api/pages/x.png",
]
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
CALLS = [
    ("POST", "/api/ask"),
    ("POST", "/api/documents"),
    ("DELETE", "/api/documents?name=a.pdf"),
    ("DELETE", "/api/history/x"),
    ("POST", "/api/login"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/search"),
    ("GET", "/v1/models"),
    ("GET", "/api/documents"),
    ("POST", "/mcp"),
    ("POST", "/"),
]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without documents, for tests that change nothing."""
    with serving(tmp_path_factory.mktemp("quiet")) as found:
        yield found


@pytest.mark.parametrize("path", PATHS)
def test_every_reply_keeps_the_browser_from_doing_more_than_the_page_needs(quiet: Served, path: str) -> None:
    headers = quiet.client.get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'" and "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers and "cache-control" in headers


def test_the_page_has_no_inline_script_or_style_and_names_no_other_place(quiet: Served) -> None:
    page = quiet.client.get("/").text
    assert "<script>" not in page and "<style" not in page and "style=" not in page and " on" + "click" not in page
    for path in ("/", "/assets/app.js", "/assets/page.css", "/assets/dom.js", "/assets/answer.js"):
        text = quiet.client.get(path).text
        assert "https://" not in text and "innerHTML" not in text


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: "-".join(headers.values()))
def test_a_page_of_another_site_can_do_nothing(quiet: Served, headers: dict[str, str]) -> None:
    for method, path in CALLS:
        reply = quiet.client.request(method, path, headers=headers, content=b"{}")
        assert reply.status_code == 403 and "another site" in reply.json()["error"]["message"], path


def test_a_form_of_another_site_in_an_old_browser_can_do_nothing(served: Served) -> None:
    # neither Origin nor Sec-Fetch-Site, but then neither X-Rsgrpo nor application/json
    client = served.client
    del client.headers["X-Rsgrpo"]
    plain = {"Content-Type": "text/plain"}
    for path in ("/api/ask", "/api/documents", "/api/login"):
        assert client.post(path, headers=plain, content=b"{}").status_code == 403
    for path in ("/v1/chat/completions", "/v1/search"):
        assert client.post(path, headers=plain, content=b"{}").status_code == 415
    assert client.post("/mcp", headers=plain, content=b"{}").status_code >= 400


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "10.0.0.7"]
)
def test_a_name_that_was_made_to_point_here_is_turned_away(quiet: Served, host: str) -> None:
    reply = quiet.client.get("/", headers={"Host": host})
    assert reply.status_code == 421 and "the server is not" in reply.json()["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1:8750", "localhost:8750", "[::1]:8750", "127.0.0.1"])
def test_names_of_the_loopback_are_the_servers(quiet: Served, host: str) -> None:
    assert quiet.client.get("/health", headers={"Host": host}).json()["status"] == "ok"


def test_with_a_token_nothing_but_the_empty_page_is_shown_without_it(tmp_path: Path) -> None:
    with serving(tmp_path, token=TOKEN) as served:
        client = served.client
        assert client.get("/").status_code == 200 and client.get("/health").status_code == 200
        assert not client.cookies
        for path in ("/api/documents", "/api/history", "/v1/models", "/api/pages/x.png"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
            assert client.get(path, headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.post("/api/login", json={"token": "wrong"}).status_code == 401
        reply = client.post("/api/login", json={"token": TOKEN})
        assert "HttpOnly" in reply.headers["set-cookie"] and "SameSite=Strict" in reply.headers["set-cookie"]
        assert client.get("/api/documents").status_code == 200


def test_a_cookie_is_of_no_use_once_the_token_or_the_secret_has_changed() -> None:
    rules = AccessRules(secret=b"1" * 32, token=TOKEN)
    cookie = rules.new_cookie()
    name = rules.visitor_of(cookie)
    assert name is not None and rules.visitor_of(cookie) == name and rules.visitor_of(rules.new_cookie()) != name
    for other in (dataclasses.replace(rules, token="another-token-1234"), dataclasses.replace(rules, secret=b"2" * 32)):
        assert other.visitor_of(cookie) is None
    for forged in ("", ".", cookie[:-1], cookie + "0", f"x{cookie}", cookie.partition(".")[0]):
        assert rules.visitor_of(forged) is None


def test_without_a_token_nobody_can_log_in_with_an_empty_one() -> None:
    assert not AccessRules(secret=b"1" * 32).is_token("")


BAD = [
    ("POST", "/api/ask", b"not json", 400),
    ("POST", "/api/ask", b"[1]", 400),
    ("POST", "/api/ask", b"[" * 100_000, 400),
    ("POST", "/api/ask", b'{"question": 7}', 400),
    ("POST", "/api/ask", b'{"question": NaN}', 400),
    ("POST", "/api/ask", b'{"question": "a", "num_pages": true}', 400),
    ("POST", "/api/ask", b'{"question": "a", "num_pages": 0}', 400),
    ("POST", "/api/ask", b'{"question": "a", "by": "magic"}', 400),
    ("POST", "/api/ask", b'{"question": "a", "pgaes": []}', 400),
    ("POST", "/api/ask", b'{"question": " "}', 400),
    ("POST", "/api/ask", b'{"question": "a", "conversation": "none"}', 404),
    ("POST", "/api/ask", b'{"question": "a"}', 409),
    ("POST", "/api/ask", b'{"question": "' + b"a" * 2_000_000 + b'"}', 413),
    ("POST", "/v1/search", b"{}", 400),
    ("GET", "/api/pages/~~~.png", b"", 404),
    ("GET", "/api/pages/..%2f..%2fetc%2fpasswd.png", b"", 404),
    ("GET", "/assets/../access.py", b"", 404),
    ("GET", "/assets/%2e%2e/access.py", b"", 404),
    ("GET", "/api/history/none", b"", 404),
    ("GET", "/api/documents/none/progress", b"", 404),
    ("PUT", "/api/documents", b"", 405),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD, ids=[f"bad-{number}" for number in range(len(BAD))])
def test_a_bad_request_gets_a_sentence(quiet: Served, method: str, path: str, body: bytes, status: int) -> None:
    reply = quiet.client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == status == error["code"], reply.text
    assert len(error["message"]) > 15 and str(quiet.index.parent) not in reply.text and "Traceback" not in reply.text


def test_no_path_of_the_server_stands_in_a_message(tmp_path: Path) -> None:
    hide = PathHider([tmp_path / "my files" / "a.index"])
    assert hide(f"no store in {tmp_path}/my files/a.index/pages; add one") == "no store in a.index/pages; add one"
    assert hide("see /home/ada/secret/model.bin, or https://host/v1/x and a/b.pdf#3") == (
        "see model.bin, or https://host/v1/x and a/b.pdf#3"
    )
    assert hide("error:/etc/passwd, file:///etc/hosts") == "error:passwd, hosts"
    told = "GET /api/documents lists them; the address ends in /v1"
    assert hide(told) == told


def test_the_cookie_is_found_behind_those_of_other_programs(quiet: Served) -> None:
    # Browsers do not tell ports apart: any program of this machine may set a cookie that no parser of RFC 6265 takes.
    quiet.client.get("/")
    ((name, value),) = quiet.client.cookies.items()
    quiet.client.cookies.clear()
    for odd in ('prefs={"a":1}', 'a=x"y', "=", "plain"):
        reply = quiet.client.get("/", headers={"Cookie": f"{odd}; {name}={value}"})
        assert "set-cookie" not in reply.headers, odd


def test_an_origin_that_is_no_address_is_another_site(quiet: Served) -> None:
    reply = quiet.client.get("/api/documents", headers={"Origin": "http://["})
    assert reply.status_code == 403
    assert "another site" in reply.json()["error"]["message"]


def test_what_fails_in_the_engine_is_told_without_a_path(served: Served, tmp_path: Path) -> None:
    served.bring()

    served.asker.failure = f"the image {tmp_path}/my.index/pages/images/ab.png cannot be read"
    (problem,) = served.ask("why?")["problem"]
    assert problem["error"]["message"] == "the image my.index/pages/images/ab.png cannot be read"
    (turn,) = served.client.get("/api/history").json()["conversations"]
    assert turn["title"] == "why?"
