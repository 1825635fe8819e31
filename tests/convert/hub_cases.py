"""Repositories for the stand-in hub, and what must become of an attempt to load each."""

from pathlib import Path
from typing import Any

from convert.checkpoints import as_numpy, contents, new_model, torch_bert, write_sharded
from convert.hub_server import Repository

from eqxbert.convert import save

TOKEN = "hf_of_a_friend"


def call(repository: str, **options: Any) -> dict[str, Any]:
    return {"path_or_id": repository, **options}


# What can be loaded, and the seed of the model that must come of it.
GOOD = {
    "single": (call("friend/single"), 1),
    "again": (call("friend/single"), 1),
    "sharded": (call("friend/sharded"), 2),
    "sharded, all of it fetched": (call("friend/snapshot"), 2),
    "without an owner": (call("old-name"), 3),
    "revision": (call("friend/single", revision="v2"), 4),
    "subfolder": (call("friend/nested", subfolder="a/b"), 5),
    "private": (call("friend/private", token=TOKEN), 6),
    "cache_dir": (call("friend/elsewhere", cache_dir="{tmp}/elsewhere"), 7),
    "local_files_only": (call("friend/single", local_files_only=True), 1),
    "local_files_only, sharded": (call("friend/sharded", local_files_only=True), 2),
}

# What cannot be, the type of the error, and what must be in its message.
BAD = {
    "no such repository": (
        call("friend/nothing"),
        "FileNotFoundError",
        ["no folder 'friend/nothing' here", "no repository of that name", "pass token="],
    ),
    "private without token": (
        call("friend/private", revision="v2"),
        "FileNotFoundError",
        ["no repository of that name that it would show you", "pass token="],
    ),
    "expired token": (
        call("friend/other", token="hf_expired"),
        "PermissionError",
        ["token"],
    ),
    "no such revision": (
        call("friend/single", revision="v3"),
        "FileNotFoundError",
        ["friend/single has no revision 'v3'"],
    ),
    "no such subfolder": (
        call("friend/nested", subfolder="c"),
        "FileNotFoundError",
        ["friend/nested/c has no config.json"],
    ),
    "gated": (call("friend/gated"), "PermissionError", ["gated", "pass token="]),
    "gated for the token": (
        call("friend/gated", token=TOKEN),
        "PermissionError",
        ["friend/gated is gated: ask for access"],
    ),
    "no weights": (
        call("friend/empty"),
        "FileNotFoundError",
        ["friend/empty has no model.safetensors, nor pytorch_model.bin"],
    ),
    "a shard is missing": (
        call("friend/incomplete"),
        "FileNotFoundError",
        ["friend/incomplete", "model-00001-of-00003.safetensors", "not there"],
    ),
    "damaged": (
        call("friend/damaged"),
        "ValueError",
        ["model.safetensors", "is not a valid safetensors file"],
    ),
    "a server that fails": (
        call("friend/broken"),
        "ConnectionError",
        ["config.json of friend/broken", "cannot be reached"],
    ),
    "a download that is cut off": (
        call("friend/cut"),
        "ConnectionError",
        ["model.safetensors of friend/cut"],
    ),
    "local_files_only without cache": (
        call("friend/other", local_files_only=True),
        "ConnectionError",
        ["config.json of friend/other is not in the local cache", "local_files_only"],
    ),
}

# What cannot be once the hub is out of reach.
OFFLINE_BAD = {
    "nothing in the cache": (
        call("friend/other"),
        "ConnectionError",
        ["config.json of friend/other is not in the local cache", "HF_HUB_OFFLINE"],
    ),
    "another revision in the cache": (
        call("friend/elsewhere", cache_dir="{tmp}/elsewhere", revision="v2"),
        "ConnectionError",
        ["config.json of friend/elsewhere is not in the local cache"],
    ),
    "only the configuration in the cache": (
        call("friend/partial"),
        "ConnectionError",
        ["friend/partial", "not in the local cache"],
    ),
    "not all shards in the cache": (
        call("friend/partial-shards"),
        "ConnectionError",
        ["model-00002-of-00003.safetensors", "not in the local cache"],
    ),
}

# What must be in the cache before the last two.
PREPARE = {"partial": call("friend/partial"), "shards": call("friend/partial-shards")}


def repositories(folder: Path) -> dict[str, Repository]:
    def saved(seed: int) -> dict[str, bytes]:
        save(new_model(seed), folder / str(seed))
        return contents(folder / str(seed))

    state = as_numpy(torch_bert(seed=2))
    sharded = contents(write_sharded(folder / "2", state, shards=3))
    first = "model-00001-of-00003.safetensors"
    incomplete = {name: content for name, content in sharded.items() if name != first}
    single = saved(1)
    half = single["model.safetensors"][: len(single["model.safetensors"]) // 2]
    return {
        "friend/single": Repository({"main": single, "v2": saved(4)}),
        "friend/sharded": Repository({"main": sharded}),
        "friend/snapshot": Repository({"main": sharded}),
        "old-name": Repository({"main": saved(3)}),
        "friend/nested": Repository({"main": {f"a/b/{n}": c for n, c in saved(5).items()}}),
        "friend/private": Repository({"main": saved(6), "v2": single}, token=TOKEN),
        "friend/elsewhere": Repository({"main": saved(7)}),
        "friend/partial": Repository({"main": single}),
        "friend/partial-shards": Repository({"main": sharded}),
        "friend/gated": Repository({"main": single}, gated=True),
        "friend/empty": Repository({"main": {"config.json": single["config.json"]}}),
        "friend/incomplete": Repository({"main": incomplete}),
        "friend/damaged": Repository({"main": single | {"model.safetensors": half}}),
        "friend/broken": Repository({"main": single}, broken=True),
        "friend/cut": Repository({"main": single}, cut=True),
        "friend/other": Repository({"main": single}),
    }
