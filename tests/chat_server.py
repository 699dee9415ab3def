"""A chat endpoint on this machine that says what a test wants: a real HTTP server."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from smartrag.config import Endpoint

DRIPPING = b" " * 50  # sent a byte at a time


def completion(text: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


class Server:
    """Answers as `reply(case, attempt)` says: (status, body). `attempt` counts the requests about one answer from 0."""

    def __init__(self, reply: Callable[[dict[str, Any], int], tuple[int, Any]]):
        self.reply, self.requests, self.busy, self.busiest = reply, [], 0, 0  # type: ignore[var-annotated]
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                    attempt = sum(body == earlier for earlier, _ in server.requests)
                    server.requests.append((body, dict(self.headers)))
                status, answer = server.reply(json.loads(body["messages"][1]["content"]), attempt)
                with server.lock:
                    server.busy -= 1
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(raw)))
                    self.send_header("retry-after-ms", "1")
                    self.end_headers()
                    for byte in raw if answer is DRIPPING else [raw]:
                        self.wfile.write(bytes([byte]) if answer is DRIPPING else raw)
                        time.sleep(0.1 if answer is DRIPPING else 0)
                except (BrokenPipeError, ConnectionResetError):  # a client that has given up waiting
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def settings(self, **changes: Any) -> Endpoint:
        port = self.http.server_address[1]
        values = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "wise", "key_variable": "TEST_KEY"}
        values |= {"timeout_s": 10.0, "attempts": 3, "concurrency": 8, "max_void_share": 1.0}
        return Endpoint(**values | changes)
