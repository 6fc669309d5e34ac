"""Greets whoever asks, over HTTP."""

import getpass
import http.server
import json
import os
import sys


def greeting() -> bytes:
    answer = {"greeting": os.environ.get("GREETING", "hi"), "user": getpass.getuser()}
    return (json.dumps(answer) + "\n").encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = greeting()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if "--once" in sys.argv[1:]:
    sys.stdout.write(greeting().decode())
else:
    http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
