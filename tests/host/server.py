"""A ComfyUI server in a process of its own, and what a test asks of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .hosts import Host
from .prompt import NodeRef, Prompt

PACK = Path(__file__).parents[2]
PROBES = Path(__file__).parent / "probes"
PACK_NAME = "context-diffusion"


class PromptRejected(RuntimeError):
    """The server refused the graph before running it; `answer` is its JSON."""

    def __init__(self, answer: dict) -> None:
        super().__init__(json.dumps(answer)[:4000])
        self.answer = answer


class NodeError(RuntimeError):
    """A node raised; `node_type`, `exception_type`, `message` and `traceback` are the server's words."""

    def __init__(self, report: dict) -> None:
        self.node_id, self.node_type = report["node_id"], report["node_type"]
        self.exception_type, self.message = report["exception_type"], report["exception_message"].strip()
        self.traceback = "".join(report.get("traceback", []))
        super().__init__(f"{self.node_type}: {self.exception_type}: {self.message}\n{self.traceback}")


class History:
    """What the server tells of a prompt that ran.

    Attributes:
        outputs: node id -> what its interface part returned (images, text ...).
        executed: ids of the nodes that ran now, cached ones left out.
    """

    def __init__(self, entry: dict, prompt: Prompt) -> None:
        self.entry, self.outputs = entry, entry["outputs"]
        messages = dict(entry["status"]["messages"])
        cached = messages.get("execution_cached", {}).get("nodes", [])
        self.executed = {node for node in prompt.nodes if node not in cached}


class Server:
    """A running server with the pack and the probe nodes in it.

    Args:
        host: which ComfyUI.
        base: an empty folder for its models, inputs, outputs and custom nodes.
        flags: more command-line flags.
        packs: other packs to link into its custom nodes, folder name -> folder.
        models: more files to link under models, relative name -> file.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        flags: tuple[str, ...] = (),
        packs: dict[str, Path] | None = None,
        models: dict[str, Path] | None = None,
    ) -> None:
        self.host, self.base = host, base
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in {PACK_NAME: PACK, f"{PACK_NAME}-probes": PROBES, **(packs or {})}.items():
            (base / "custom_nodes" / name).symlink_to(folder)
        for name, file in (models or {}).items():
            target = base / "models" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_file = base / "server.log"
        command = [
            str(host.python), "main.py", "--cpu", "--disable-api-nodes", "--base-directory", str(base), "--port",
            str(self.port), "--database-url", "sqlite:///:memory:", "--dont-print-server", *flags,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=host.path, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._wait_until_up()
        # What it said while it started: later on tests make nodes raise.
        self.start_log = self.log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything that the server has printed."""
        return self.log_file.read_text(errors="replace")

    def _wait_until_up(self, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server left with {self.process.returncode}:\n{self.log[-6000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"the server did not answer in {seconds:.0f} s:\n{self.log[-6000:]}")

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def request(self, path: str, body: object = None) -> bytes:
        """GET, or POST of a JSON body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, body: object) -> Any:
        answer = self.request(path, body)
        return json.loads(answer) if answer.strip() else None

    def queue(self, prompt: Prompt) -> str:
        """Queue a prompt and return its id.

        Raises:
            PromptRejected: the server's validation refused it, as a whole or one of its nodes.
        """
        prompt_id = str(uuid.uuid4())
        try:
            answer = self.post("/prompt", {"prompt": prompt.nodes, "prompt_id": prompt_id})
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.loads(error.read())) from error
        if answer.get("node_errors"):
            raise PromptRejected(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, prompt: Prompt, seconds: float = 600) -> History:
        """Wait for a queued prompt to end.

        Raises:
            NodeError: a node of it raised.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"].get("completed"):
                return History(entry, prompt)
            if entry:
                messages = dict(entry["status"]["messages"])
                if "execution_error" in messages:
                    raise NodeError(messages["execution_error"])
                if "execution_interrupted" in messages:
                    return History(entry, prompt)
            if self.process.poll() is not None:
                raise RuntimeError(f"the server died:\n{self.log[-6000:]}")
            time.sleep(0.1)
        raise TimeoutError(f"the prompt did not end in {seconds:.0f} s:\n{self.log[-3000:]}")

    def run(self, prompt: Prompt, seconds: float = 600) -> History:
        """Queue a prompt and wait for it."""
        return self.wait(self.queue(prompt), prompt, seconds)

    def tensors(self, history: History, node: NodeRef) -> dict[str, Any]:
        """What a `ProbeSave` node of the prompt wrote: name -> tensor."""
        return load_file(self.base / "output" / history.outputs[node.id]["file"][0])

    def free(self) -> None:
        """Unload all models and drop all cached results, as the button of the interface does."""
        self.post("/free", {"unload_models": True, "free_memory": True})
