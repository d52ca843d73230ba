"""The official prompt files: of one commit of a repository behind a loopback server, or of a local copy."""

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reclaim import sources
from reclaim.alce.prompts import load_prompts
from reclaim.errors import InputError
from reclaim.io import read_json


def prompt_file(instruction):
    return json.dumps(
        {
            "instruction": instruction,
            "demo_sep": "\n\n",
            "demo_prompt": "{INST} {Q} {D} {A}",
            "doc_prompt": "[{ID}] {T}: {P}\n",
            "demos": [],
        },
        indent=2,
    )


def git(folder, *arguments):
    settings = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *arguments], check=True, env=environment, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


class Backend(BaseHTTPRequestHandler):
    """Serves the repositories of a folder by Git's own program for web servers."""

    def do_GET(self):
        if self.server.broken:
            self.send_error(self.server.broken)
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests += 1
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def repository(tmp_path):
    """Two commits of prompts behind a loopback server: spec of the first one, server and folder."""
    folder = tmp_path / "hosted" / "ALCE"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    files = {
        "prompts/asqa_default.json": prompt_file("First."),
        "prompts/qampari_closedbook.json": prompt_file("List."),
    }
    first = commit(folder, {**files, "prompts/notes.json": "{}", "configs/asqa.yaml": "x: 1\n"})
    commit(folder, {"prompts/asqa_default.json": prompt_file("Second.")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.root, server.broken, server.requests = folder.parent, None, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/ALCE/.git"
    yield {"kind": "prompt_files", "source": "git", "url": url, "revision": first, "folder": "prompts"}, server, folder
    server.shutdown()
    server.server_close()


def test_the_files_are_those_of_the_pinned_commit(repository, tmp_path, monkeypatch):
    spec, server, folder = repository
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))  # as a hook has it
    sources.materialize(spec, tmp_path / "data")
    names = {"asqa_default.json", "qampari_closedbook.json"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == names | {"dataset.json"}
    assert (tmp_path / "data" / "asqa_default.json").read_text() == prompt_file("First.")
    info = read_json(tmp_path / "data" / "dataset.json")
    assert set(info["sha256"]) == names and info["source"]["spec"]["revision"] == spec["revision"]
    assert load_prompts("asqa", "default", tmp_path / "data").instruction == "First."
    with pytest.raises(InputError, match="eli5_default.json"):
        load_prompts("eli5", "default", tmp_path / "data")
    assert server.requests and not (tmp_path / "another").exists()


def test_a_fetch_that_failed_leaves_nothing_and_can_be_repeated(repository, tmp_path):
    spec, server, _ = repository
    server.broken = 503
    with pytest.raises(InputError, match="data.prompts.*git fetch.*503"):
        sources.materialize(spec, tmp_path / "prompts")
    assert not (tmp_path / "prompts").exists()
    server.broken = None
    sources.materialize(spec, tmp_path / "prompts")
    assert load_prompts("qampari", "closedbook", tmp_path / "prompts").instruction == "List."


def test_what_is_not_of_the_pinned_commit_is_refused(repository, tmp_path):
    spec, _, folder = repository
    with pytest.raises(InputError, match="git fetch"):
        sources.materialize({**spec, "revision": "0123456789" * 4}, tmp_path / "data")
    with pytest.raises(InputError, match="data.data.folder"):
        sources.materialize({**spec, "folder": "absent"}, tmp_path / "data")
    with pytest.raises(InputError, match="no prompt file in 'configs'"):
        sources.materialize({**spec, "folder": "configs"}, tmp_path / "data")
    # Another text under the name of the first: the server would have to send it as the object that the commit names.
    blob = git(folder, "rev-parse", f"{spec['revision']}:prompts/asqa_default.json")
    other = git(folder, "rev-parse", "HEAD:prompts/asqa_default.json")
    stored = folder / ".git" / "objects"
    target, replacement = (stored / name[:2] / name[2:] for name in (blob, other))
    target.chmod(0o644)
    target.write_bytes(replacement.read_bytes())
    with pytest.raises(InputError, match="git fetch"):
        sources.materialize(spec, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_local_copy_is_checked_file_by_file(tmp_path):
    copy = tmp_path / "copy"
    spec = {"kind": "prompt_files", "source": "local", "path": str(copy)}
    with pytest.raises(InputError, match="config: data.prompts.path.*no folder"):
        sources.source_files(spec, "config: data.prompts")
    copy.mkdir()
    with pytest.raises(InputError, match="no prompt file"):
        sources.source_files(spec, "config: data.prompts")
    path = copy / "asqa_default.json"
    path.write_text(prompt_file("Mine."))
    assert sources.source_files(spec, "config: data.prompts") == [str(path)]
    sources.materialize(spec, tmp_path / "data")
    assert load_prompts("asqa", "default", tmp_path / "data").instruction == "Mine."
    for content, found in (
        ("{", "no JSON"),
        ("[]", "no instruction"),
        (json.dumps({"instruction": ""}), "no demo_sep"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"asqa_default.json.*{found}"):
            sources.materialize(spec, tmp_path / "data")
    assert load_prompts("asqa", "default", tmp_path / "data").instruction == "Mine."


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"source": "hub"}, "source"),
        ({"revision": "main"}, "revision"),
        ({"path": "x"}, "path"),
        ({"folder": 3}, "folder"),
        ({"url": ""}, "url"),
    ],
)
def test_a_wrong_entry_names_its_key(change, place):
    spec = {"kind": "prompt_files", "source": "git", "url": "x", "revision": "0" * 40, "folder": "prompts"}
    sources.check_spec(spec, "config: data.prompts")
    with pytest.raises(InputError, match=f"data.prompts.{place}"):
        sources.check_spec({**spec, **change}, "config: data.prompts")


def test_without_git_a_copy_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    spec = {"kind": "prompt_files", "source": "git", "url": "x", "revision": "0" * 40, "folder": "prompts"}
    with pytest.raises(InputError, match="no program.*source: local"):
        sources.materialize(spec, tmp_path / "data")
