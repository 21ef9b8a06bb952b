"""A real HTTP server that plays the judge, well or badly."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def reply(text, tokens=None, **choice):
    """A chat completion; `tokens` are the entries of logprobs.content."""
    logprobs = None if tokens is None else {"content": tokens}
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "logprobs": logprobs, **choice}]}).encode()


def token(text, odds=None, **logprobs):
    """One entry of logprobs.content with its alternatives."""
    logprobs = (odds or {}) | logprobs
    return {
        "token": text,
        "logprob": 0.0,
        "top_logprobs": [{"token": t, "logprob": p} for t, p in logprobs.items()],
    }


def shown(body):
    """The two texts a request shows, in order; both styles."""
    asked = body["messages"][-1]["content"]
    return tuple(
        re.findall(
            r"<output>\n(.*?)\n</output>|answer \w\]|assistant \w\]\n(.*?)\n\[End", asked, re.DOTALL
        )
    )


class Server:
    """`behave(body, n) -> (status, bytes, headers)` answers request number n; or raises
    Hang(seconds), Cut(bytes) or Raw(pieces)."""

    def __init__(self, behave):
        self.behave, self.lock = behave, threading.Lock()
        self.bodies, self.keys, self.now, self.most = [], [], 0, 0

    def answer(self, body, authorization):
        with self.lock:
            self.bodies.append(body)
            self.keys.append(authorization)
            n = len(self.bodies) - 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.behave(body, n)
        finally:
            with self.lock:
                self.now -= 1


class Hang(Exception):
    """Say nothing for so many seconds."""


class Cut(Exception):
    """Promise more than these bytes, and close."""


class Raw(Exception):
    """Send these bytes as they are, status line and all, and close; a number is a pause."""


@contextlib.contextmanager
def serving(behave):
    """(server, its base URL)"""
    server = Server(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, content, headers = server.answer(body, self.headers["Authorization"])
            except Hang as hang:
                time.sleep(hang.args[0])
                self.close_connection = True
                return
            except Cut as cut:
                self.send_response(200)
                self.send_header("Content-Length", str(len(cut.args[0]) + 100))
                self.end_headers()
                self.wfile.write(cut.args[0])
                self.close_connection = True
                return
            except Raw as raw:
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client had enough
                    for piece in raw.args[0]:
                        if isinstance(piece, bytes):
                            self.wfile.write(piece)
                        else:
                            time.sleep(piece)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
