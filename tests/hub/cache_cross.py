"""Our client and the official Python client on one cache and one hub: each reads what the other wrote.

    cargo build --release -p temper-testhub -p temper-hub --bin testhub --example hub
    python -m pip install -r tests/hub/requirements.txt
    python tests/hub/cache_cross.py [target/release]

Exits with 1 if a check fails or the two programs are not there.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

FILES = {"README.md": b"# x\n", "config.json": b"{}", "sub/notes.txt": "été".encode(), "model.safetensors": os.urandom(6_000_000)}


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "target/release")
    hub, ours = build / "testhub", build / "examples/hub"
    for program in (hub, ours):
        if not program.exists():
            sys.exit(f"{program} does not exist: see the head of this file")
    for mode in ("lfs", "xet"):
        with tempfile.TemporaryDirectory() as place:
            server = subprocess.Popen([hub, *(["--xet"] if mode == "xet" else [])], stdout=subprocess.PIPE, text=True)
            try:
                started = json.loads(server.stdout.readline())
                child = subprocess.run([sys.executable, __file__, "--checks", mode, str(ours), place],
                                       env=environment(started, place, mode), timeout=300)
            finally:
                server.kill()
                server.wait()
            if child.returncode:
                sys.exit(1)


def environment(started, place, mode):
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return keep | {
        "HF_ENDPOINT": started["endpoint"], "HF_TOKEN": started["tokens"]["me"], "HF_HOME": f"{place}/home",
        "HF_XET_CACHE": f"{place}/xet", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    } | ({} if mode == "xet" else {"HF_HUB_DISABLE_XET": "1"})


def checks(mode, ours, place):
    """Runs in a process of its own: the Python client reads its settings once."""
    from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache

    def rust(*arguments, **variables):
        done = subprocess.run([ours, *arguments], env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    def same(directory, files=FILES):
        for name, content in files.items():
            assert (pathlib.Path(directory) / name).read_bytes() == content, name

    api = HfApi()
    folder = pathlib.Path(place) / "folder"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in ("me/first", "me/second"):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)

    # Ours fills the cache, Python reads it without the hub.
    cache = f"{place}/rust"
    pulled = rust("pull", "me/first", HF_HUB_CACHE=cache)
    same(pulled["dir"])
    offline = dict(cache_dir=cache, local_files_only=True)
    assert snapshot_download("me/first", **offline) == pulled["dir"]
    same(snapshot_download("me/first", revision=pulled["commit"], **offline))
    assert pathlib.Path(hf_hub_download("me/first", "sub/notes.txt", **offline)).read_bytes() == FILES["sub/notes.txt"]
    assert try_to_load_from_cache("me/first", "config.json", cache_dir=cache) is not None
    scanned = scan_cache_dir(cache)
    assert not scanned.warnings, scanned.warnings
    [repo] = scanned.repos
    assert repo.nb_files == len(FILES) + 1 and "main" in repo.refs, repo  # and .gitattributes
    # Python goes on in our cache, online, and fetches nothing anew.
    blob = (pathlib.Path(pulled["dir"]) / "model.safetensors").resolve()
    before = blob.stat().st_mtime_ns
    same(snapshot_download("me/first", cache_dir=cache))
    assert blob.stat().st_mtime_ns == before

    # Python fills the cache, ours reads it without the hub.
    cache = f"{place}/python"
    directory = snapshot_download("me/first", cache_dir=cache)
    read = rust("pull", "me/first", HF_HUB_CACHE=cache, HF_HUB_OFFLINE="1")
    assert (read["dir"], read["fetched"]) == (directory, 0), read
    same(read["dir"])
    # The same content in another repository: with Xet it lies in Python's shared store already.
    second = rust("pull", "me/second", HF_HUB_CACHE=cache)
    same(second["dir"])
    shared = (pathlib.Path(cache) / "blobs/.huggingface-shared-blobs").exists()
    assert shared == (mode == "xet"), "Python's shared store is not where it was"
    large = len(FILES["model.safetensors"])
    assert second["fetched"] < large if shared else second["fetched"] >= large, second
    assert not scan_cache_dir(cache).warnings
    same(snapshot_download("me/second", cache_dir=cache, local_files_only=True))

    # Ours pushes, Python reads; again, nothing is sent.
    flat = {name: content for name, content in FILES.items() if "/" not in name}
    pushed = rust("push", "me/third", str(folder))
    same(snapshot_download("me/third", cache_dir=f"{place}/third"), flat)
    assert api.repo_info("me/third").private and api.repo_info("me/third").sha == pushed["commit"]
    again = rust("push", "me/third", str(folder))
    assert (again["sent"], again["commit"]) == (0, pushed["commit"]), again
    titles = [commit.title for commit in api.list_repo_commits("me/third")]
    assert titles[0] == "End of training" and titles.count("End of training") == 1, titles
    print(f"{mode}: each client read what the other wrote", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--checks"]:
        checks(*sys.argv[2:])
    else:
        main()
