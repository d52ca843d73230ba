"""Generation behind an OpenAI-compatible endpoint: a real HTTP server on loopback that fails now and then."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reclaim.alce.endpoint import EndpointGenerator
from reclaim.alce.generation import Sampling
from reclaim.errors import InputError


class Server(ThreadingHTTPServer):
    """Answers with the prompt's last word; `plan` gives the status of the next requests, 200 when it is used up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.seen, self.keys = [], [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        self.server.keys.append(self.headers.get("Authorization"))
        status = self.server.plan.pop(0) if self.server.plan else 200
        if status == "hang":
            self.rfile.read(1)  # until the client has gone
            return
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        words = f"{text.split()[-1]} [1]."
        choice = {"message": {"content": words}} if "messages" in body else {"text": words}
        content = b"<html>" if status == "garbage" else json.dumps({"choices": [choice]}).encode()
        self.send_response(200 if status == "garbage" else status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def generator(server, path, **options):
    options = {"pause": 0.01, "concurrency": 2, **options}
    sampling = options.pop("sampling", Sampling(temperature=0.5, top_p=1.0, max_new_tokens=20, max_length=100))
    return EndpointGenerator(server.url, "small", sampling, 1, path / "answers.jsonl", **options)


PROMPTS = [f"Question {number}" for number in range(6)]
KEYS = [f"k{number}" for number in range(6)]
EXPECTED = [f"{number} [1]." for number in range(6)]


@pytest.mark.parametrize("chat", [True, False])
def test_answers_come_back_in_order(server, tmp_path, chat):
    made = generator(server, tmp_path, chat=chat)
    assert made(PROMPTS, KEYS, ["\n"]) == EXPECTED
    path, body = server.seen[0]
    assert path == ("/v1/chat/completions" if chat else "/v1/completions")
    assert (body["max_tokens"], body["temperature"], body["stop"]) == (20, 0.5, ["\n"])
    assert (body.get("messages", [{}])[0].get("role") == "system") == chat
    assert len({body["seed"] for _, body in server.seen}) == 6


def test_what_fails_for_a_moment_is_asked_again(server, tmp_path):
    server.plan = [429, 503, "garbage", "hang", 500]
    made = generator(server, tmp_path, timeout=1.0)
    # More on a machine that is slow to answer at all.
    assert made(PROMPTS, KEYS) == EXPECTED and made.requests >= 11


def test_no_paid_answer_is_lost(server, tmp_path):
    server.plan = [200, 200, 200, 401]
    with pytest.raises(InputError, match="401"):
        generator(server, tmp_path, concurrency=1)(PROMPTS, KEYS)
    kept = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(kept) >= 3
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"key": "cut')  # the process died while it wrote
    again = generator(server, tmp_path)
    assert again(PROMPTS, KEYS) == EXPECTED and again.requests == 6 - len(kept)
    third = generator(server, tmp_path)
    assert third(PROMPTS, KEYS) == EXPECTED and third.requests == 0
    assert third([PROMPTS[0] + "0"], KEYS[:1]) == ["00 [1]."] and third.requests == 1


def test_a_server_that_stays_away_ends_in_one_message(server, tmp_path):
    server.plan = [503] * 20
    with pytest.raises(InputError, match="run again to go on"):
        generator(server, tmp_path, retries=2, concurrency=1)(PROMPTS[:1], KEYS[:1])
    assert len(server.seen) == 3


def test_keys_come_from_the_environment_and_are_written_nowhere(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="RECLAIM_TEST_KEY"):
        generator(server, tmp_path, api_key_variable="RECLAIM_TEST_KEY")
    monkeypatch.setenv("RECLAIM_TEST_KEY", "secret")
    generator(server, tmp_path, api_key_variable="RECLAIM_TEST_KEY")(PROMPTS[:1], KEYS[:1])
    assert server.keys == ["Bearer secret"] and "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_prompts_without_room_are_counted_or_refused(server, tmp_path):
    small = Sampling(max_new_tokens=20, max_length=3)
    made = generator(server, tmp_path, sampling=small)
    assert made(["one two three four", "one"], ["a", "b"]) == ["", "one [1]."] and made.room.empty == 1
    refusing = generator(server, tmp_path, sampling=Sampling(max_new_tokens=20, max_length=3, too_long="refuse"))
    with pytest.raises(InputError, match="4 tokens"):
        refusing(["one two three four"], ["a"])
