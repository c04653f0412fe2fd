"""With sessions, programs without a cookie have no history: those of one address would share it."""

from __future__ import annotations

from pathlib import Path

from tests.unit.serving.served import serving


def test_without_a_cookie_nobody_reads_what_another_program_asked(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.bring()  # everybody's document
    with serving(tmp_path, has_sessions=True) as served:
        asking, other = served.program(), served.program()
        conversation = served.ask("what did I ask?", asking, by="text")["turn"][0]["conversation"]
        for client in (asking, other):
            for reply in (
                client.get("/api/history"),
                client.get(f"/api/history/{conversation}"),
                client.post("/api/ask", json={"question": "and?", "conversation": conversation}),
            ):
                assert reply.status_code == 403
                assert "open the server's page first" in reply.json()["error"]["message"]
        assert served.client.get("/api/history").json()["conversations"] == []
