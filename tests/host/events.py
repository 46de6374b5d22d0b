"""What a server tells a browser over its websocket: progress, previews, interruptions."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import uuid

from .prompt import NodeRef, Prompt
from .server import Server

_ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Events:
    """A websocket to a server (RFC 6455, reading only).

    Attributes:
        client_id: to be sent with a prompt whose events are wanted.
    """

    def __init__(self, server: Server, seconds: float = 120) -> None:
        self.server, self.client_id = server, uuid.uuid4().hex
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=seconds)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={self.client_id} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        if b"101" not in status:
            raise ConnectionError(f"the server answered {status!r}")
        while self._stream.readline().strip():
            pass

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def queue(self, prompt: Prompt) -> str:
        """Queue a prompt whose events come here; its id."""
        return self.server.post("/prompt", {"prompt": prompt.nodes, "client_id": self.client_id})["prompt_id"]

    def next(self) -> dict | bytes:
        """The next event: a message (`type`, `data`), or the bytes of a preview."""
        message, opcode = b"", 0
        while True:
            first, second = self._stream.read(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack(">H", self._stream.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._stream.read(8))
            payload = self._stream.read(length)
            if first & 15 > 7:  # ping, pong, close
                continue
            opcode = first & 15 or opcode
            message += payload
            if first & 128:
                return json.loads(message) if opcode == 1 else message

    def until_progress(self, node: NodeRef, value: int) -> None:
        """Read on until a node says that it is as far as this."""
        while True:
            event = self.next()
            if isinstance(event, dict):
                assert event["type"] not in ("execution_error", "execution_success"), event
                data = event["data"]
                if event["type"] == "progress" and data["node"] == node.id and data["value"] >= value:
                    return

    def until_end(self, prompt_id: str) -> list[dict | bytes]:
        """All events until a prompt ends, in whatever way."""
        events = []
        while True:
            event = self.next()
            events.append(event)
            ended = isinstance(event, dict) and event["type"] in _ENDS
            if ended and event["data"].get("prompt_id") == prompt_id:
                return events
