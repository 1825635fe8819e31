"""A stand-in for the Hugging Face hub, on this machine: repositories served under its addresses."""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclasses.dataclass
class Repository:
    """A repository: its files by name for each revision, and who may see them.

    - `token`: if given, the repository is shown only to those who send it.
    - `gated`: whether its files are withheld from those to whom it is shown.
    - `broken`: whether the server fails at every request for it.
    - `cut`: whether every download of its weights ends halfway.
    """

    revisions: Mapping[str, Mapping[str, bytes]]
    token: str | None = None
    gated: bool = False
    broken: bool = False
    cut: bool = False

    def commit(self, revision: str) -> str:
        """The commit that a branch stands for."""
        return hashlib.sha1(revision.encode()).hexdigest()


@dataclasses.dataclass
class Hub:
    """The server's address, and what was asked of it: `method /path` for each request."""

    url: str
    requests: list[str]


@contextlib.contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """Serves repositories until the block ends."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            requests.append(f"{self.command} {self.path}")
            repository_name, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            repository = repositories.get(repository_name)
            sent = self.headers.get("Authorization")
            if sent == "Bearer hf_expired":
                return self.refuse(401, message="Invalid credentials in Authorization header")
            if repository is None or (repository.token and sent != f"Bearer {repository.token}"):
                return self.refuse(401, "RepoNotFound")
            if repository.broken:
                return self.refuse(500)
            files = repository.revisions.get(revision)
            if files is None:
                return self.refuse(404, "RevisionNotFound")
            if repository.gated:
                return self.refuse(401 if sent is None else 403, "GatedRepo")
            commit = repository.commit(revision)
            if name not in files:
                return self.refuse(404, "EntryNotFound", commit=commit)
            cut = repository.cut and name.endswith(".safetensors")
            return self.send(files[name], commit, cut=cut)

        def refuse(
            self, status: int, code: str = "", *, message: str = "", commit: str = ""
        ) -> None:
            self.send_response(status)
            headers = {"Error-Code": code, "Error-Message": message, "Repo-Commit": commit}
            for name, value in headers.items():
                if value:
                    self.send_header(f"X-{name}", value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, content: bytes, commit: str, *, cut: bool) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Hub(f"http://127.0.0.1:{server.server_port}", requests)
        finally:
            server.shutdown()
            thread.join()
