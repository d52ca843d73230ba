"""Generating answers behind an OpenAI-compatible endpoint (vLLM, llama.cpp, a provider), so that no paid answer is lost.

POST BASE/completions or BASE/chat/completions with one prompt a request, some at a time. What fails for a moment (connection,
timeout, 408, 409, 429, 5xx) is asked again, after the time the server names or twice as long as before; anything else ends the
run with the server's words. Every answer is appended to a file and flushed before the next is counted: a run that was
stopped, or that ended in an error, finds them again and asks for the rest only. Keys of answers hold everything that shapes
them (prompt, model, sampling, sample), so a changed prompt is asked anew.

The key for the endpoint is read from the environment variable that the spec names, and is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any

from reclaim.alce.generation import Sampling
from reclaim.alce.prompts import Room, own_templates
from reclaim.errors import InputError
from reclaim.seeding import derive

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0


class EndpointGenerator:
    """A generator (`reclaim.alce.generation.TextGenerator`) behind an endpoint.

    `url`: up to and without `/completions`; `chat`: the chat form, with a system message; `api_key_variable`: environment
    variable with the key, none where the server wants none; `answers`: the file of answers; `count`: tokens of a prompt,
    words by default (the server has the tokenizer); `timeout` of a request and first `pause` before another try, in seconds.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sampling: Sampling,
        seed: int,
        answers: str | Path,
        *,
        chat: bool = True,
        system: str | None = None,
        api_key_variable: str = "",
        concurrency: int = 4,
        retries: int = 6,
        timeout: float = 300.0,
        pause: float = 1.0,
        count: Callable[[str], int] = lambda text: len(text.split()),
        progress: Callable[[Sequence[Any]], Any] = iter,
    ):
        if not url.startswith(("http://", "https://")):
            raise InputError("endpoint url", repr(url), "http:// or https://")
        self.url = f"{url.rstrip('/')}/{'chat/completions' if chat else 'completions'}"
        self.model, self.sampling, self.seed, self.chat = model, sampling, seed, chat
        self.system = own_templates()["chat"].strip() if system is None else system
        self.headers = {"Content-Type": "application/json"} | _authorization(api_key_variable)
        self.concurrency, self.retries, self.timeout, self.pause = concurrency, retries, timeout, pause
        self.room = Room(sampling.max_length, sampling.max_new_tokens, count)
        self.progress = progress
        self.path, self._lock, self.requests = Path(answers), Lock(), 0
        self._known = self._read()

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], stop: Sequence[str] = ()) -> list[str]:
        """Texts of prompts; those that the file of answers has are not asked for."""
        bodies = [self._body(prompt, self.room(prompt), key, stop) for prompt, key in zip(prompts, keys, strict=True)]
        names = [None if body is None else _name(body, key) for body, key in zip(bodies, keys, strict=True)]
        missing = {name: body for name, body in zip(names, bodies, strict=True) if name and body is not None}
        missing = {name: body for name, body in missing.items() if name not in self._known}
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            tasks = [pool.submit(self._ask_and_keep, name, body) for name, body in missing.items()]
            try:
                for task in self.progress(tasks) if tasks else ():
                    task.result()
            finally:
                # After an error nothing new is asked for; what is under way is waited for and kept.
                for task in tasks:
                    task.cancel()
                wait(tasks, return_when=FIRST_EXCEPTION)
        return ["" if name is None else self._known[name] for name in names]

    def _body(self, prompt: str, room: int, key: str, stop: Sequence[str]) -> dict[str, Any] | None:
        if room <= 0:
            if self.sampling.too_long == "refuse":
                raise InputError(
                    "prompt", f"{self.room.prompts[-1]} tokens ({key})", f"fewer than {self.room.max_length}"
                )
            return None
        messages = [{"role": "system", "content": self.system}] if self.system else []
        text = {"messages": [*messages, {"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        body = {"model": self.model, **text, "max_tokens": room, "temperature": self.sampling.temperature}
        body |= {"top_p": self.sampling.top_p, "seed": derive(self.seed, key) % 2**31}
        stops = [*stop, *(["\n"] if self.sampling.stop_at_newline and not stop else [])]
        return body | ({"stop": stops} if stops else {})

    def _ask_and_keep(self, name: str, body: dict[str, Any]) -> None:
        text = self._ask(body)
        with self._lock:
            self._known[name] = text
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": name, "text": text}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _ask(self, body: dict[str, Any]) -> str:
        """One answer, with retries; raises InputError where the server refuses or stays away."""
        import requests

        pause = self.pause
        for attempt in range(self.retries + 1):
            named = 0.0
            try:
                with self._lock:
                    self.requests += 1
                response = requests.post(self.url, json=body, headers=self.headers, timeout=self.timeout)
                if response.ok:
                    return _text(response.json(), self.chat)
                problem = f"status {response.status_code}: {response.text.strip()[:200]}"
                if response.status_code not in RETRIED:
                    raise InputError(self.url, problem, "an answer", "Check url, model and key.")
                named = _seconds(response.headers.get("Retry-After"))
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                problem = f"an answer that is none ({type(error).__name__}: {error})"
            if attempt < self.retries:
                time.sleep(min(LONGEST_WAIT, max(named, pause)))
                pause *= 2
        raise InputError(
            self.url,
            f"{problem}, {self.retries + 1} times",
            "an answer",
            "Answers so far are kept; run again to go on.",
        )

    def _read(self) -> dict[str, str]:
        """The answers of the file; a last line that was cut off is removed."""
        known: dict[str, str] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.decode("utf-8").splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["text"]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return known


def _authorization(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    if not os.environ.get(variable):
        raise InputError(
            "endpoint key", f"no environment variable {variable}", "the key in it", f"export {variable}=..."
        )
    return {"Authorization": f"Bearer {os.environ[variable]}"}


def _name(body: dict[str, Any], key: str) -> str:
    text = json.dumps([key, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _text(content: dict[str, Any], chat: bool) -> str:
    choice = content["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    return text or ""


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # a date
