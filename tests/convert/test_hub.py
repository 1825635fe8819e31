"""Repositories of the Hugging Face hub, in place of which a server on this machine answers."""

import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from convert.checkpoints import contents, digest, new_model
from convert.hub_cases import BAD, GOOD, OFFLINE_BAD, PREPARE, repositories
from convert.hub_server import Hub, serve
from helpers import run_python

from eqxbert.convert import save

# Carries out each call in a process of its own and tells what became of it.
CALLS = """
import json, os, sys, time
sys.path.append(os.environ["TESTS"])
from convert.checkpoints import digest
import eqxbert

time.sleep = lambda seconds: None  # huggingface_hub waits half a minute before it gives up
outcomes = []
for call in json.loads(os.environ["CALLS"]):
    try:
        outcomes.append(digest(eqxbert.BertModel.from_pretrained(**call)))
    except Exception as error:
        outcomes.append([type(error).__name__, str(error)])
print(json.dumps(outcomes))
"""


def outcomes(calls: Mapping[str, Any], tmp: Path, url: str, **env: str) -> dict[str, Any]:
    """What becomes of each call: a model's digest, or an error's type and text."""
    settings = {
        "CALLS": json.dumps(list(calls.values())).replace("{tmp}", str(tmp)),
        "TESTS": str(Path(__file__).parents[1]),
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
    }
    result = run_python(CALLS, env=settings | env)
    assert result.returncode == 0, result.stderr
    return dict(zip(calls, json.loads(result.stdout), strict=True))


def in_cache(tmp: Path, repository: str, pattern: str) -> list[Path]:
    folder = tmp / "home" / "hub" / f"models--{repository.replace('/', '--')}"
    found = list(folder.glob(pattern))
    assert found, f"{pattern} is not in the cache, which has {list(contents(folder))}"
    return found


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(tmp: Path) -> Iterator[Hub]:
    with serve(repositories(tmp / "repositories")) as server:
        yield server


@pytest.fixture(scope="module")
def online(tmp: Path, hub: Hub) -> dict[str, Any]:
    """What becomes of everything with an empty cache; it leaves a cache for the next."""
    calls = {name: entry[0] for name, entry in (GOOD | BAD).items()} | PREPARE
    found = outcomes(calls, tmp, hub.url)
    # As if nobody had asked for more, or as snapshot_download leaves it.
    for path in [
        *in_cache(tmp, "friend/partial", "snapshots/*/model.safetensors"),
        *in_cache(tmp, "friend/partial-shards", "snapshots/*/model-00002-of-00003.safetensors"),
    ]:
        path.unlink()
    for path in in_cache(tmp, "friend/snapshot", ".no_exist"):
        shutil.rmtree(path)
    return found


@pytest.fixture(scope="module")
def offline(tmp: Path, hub: Hub, online: dict[str, Any]) -> dict[str, Any]:
    before = len(hub.requests)
    calls = {name: entry[0] for name, entry in (GOOD | OFFLINE_BAD).items()}
    found = outcomes(calls, tmp, hub.url, HF_HUB_OFFLINE="1")
    return found | {"requests": len(hub.requests) - before}


@pytest.fixture(scope="module")
def unreachable(tmp: Path, online: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    calls = {name: entry[0] for name, entry in (GOOD | OFFLINE_BAD).items()}
    return outcomes(calls, tmp, nobody)


def assert_refused(outcome: Any, kind: str, parts: list[str]) -> None:
    assert isinstance(outcome, list), "it was loaded"
    assert outcome[0] == kind, outcome
    for part in parts:
        assert part in outcome[1]


@pytest.mark.parametrize("name", GOOD)
def test_what_the_hub_has_is_loaded(online: dict[str, Any], name: str) -> None:
    assert online[name] == digest(new_model(GOOD[name][1]))


@pytest.mark.parametrize("name", GOOD)
def test_offline_it_comes_from_the_cache(offline: dict[str, Any], name: str) -> None:
    assert offline[name] == digest(new_model(GOOD[name][1]))


@pytest.mark.parametrize("name", GOOD)
def test_with_the_hub_out_of_reach_it_comes_from_the_cache(
    unreachable: dict[str, Any], name: str
) -> None:
    assert unreachable[name] == digest(new_model(GOOD[name][1]))


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(online: dict[str, Any], name: str) -> None:
    assert_refused(online[name], *BAD[name][1:])


@pytest.mark.parametrize("name", OFFLINE_BAD)
def test_offline_the_error_says_that_it_is_not_in_the_cache(
    offline: dict[str, Any], name: str
) -> None:
    assert_refused(offline[name], *OFFLINE_BAD[name][1:])


@pytest.mark.parametrize("name", OFFLINE_BAD)
def test_with_the_hub_out_of_reach_the_error_says_so(
    unreachable: dict[str, Any], name: str
) -> None:
    assert_refused(unreachable[name], *OFFLINE_BAD[name][1:])


def test_offline_nothing_is_asked_for(offline: dict[str, Any]) -> None:
    assert offline["requests"] == 0


def test_only_what_is_needed_is_downloaded_and_only_once(hub: Hub, online: dict[str, Any]) -> None:
    def downloads(repository: str) -> list[str]:
        start = f"GET /{repository}/resolve/main/"
        return sorted(r.removeprefix(start) for r in hub.requests if r.startswith(start))

    assert downloads("friend/single") == ["config.json", "model.safetensors"]
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    index = "model.safetensors.index.json"
    assert downloads("friend/sharded") == ["config.json", *shards, index]


def test_the_cache_is_where_it_was_asked_for(tmp: Path, online: dict[str, Any]) -> None:
    assert (tmp / "elsewhere" / "models--friend--elsewhere").is_dir()
    assert not (tmp / "home" / "hub" / "models--friend--elsewhere").exists()


def test_without_huggingface_hub_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    save(new_model(), tmp_path / "model")
    result = run_python(
        f"""
import sys
sys.modules["huggingface_hub"] = None
import eqxbert
eqxbert.BertModel.from_pretrained({str(tmp_path / "model")!r})
try:
    eqxbert.BertModel.from_pretrained("friend/single")
except ModuleNotFoundError as error:
    print(error)
"""
    )
    assert result.returncode == 0, result.stderr
    assert "no folder 'friend/single' here" in result.stdout
    assert "pip install 'eqxbert[text]'" in result.stdout
