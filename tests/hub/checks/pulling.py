"""What comes down: files and listings."""

import hashlib
import json
import pathlib

import httpx2
from huggingface_hub import HfFileSystem, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError

from bench import HUB, ME, PLACE, TOKENS, XET, blob_id, check, content, raises, weights

# Files down.


@check
def metadata_of_files():
    head = ME.model_info("me/main").sha
    small = get_hf_file_metadata(hf_hub_url("me/main", "config.json"), token=TOKENS["me"])
    assert (small.commit_hash, small.etag) == (head, blob_id(b'{"model_type": "bert"}'))
    large = get_hf_file_metadata(hf_hub_url("me/main", "model.safetensors"), token=TOKENS["me"])
    assert (large.commit_hash, large.size) == (head, 123_456)
    assert large.etag == hashlib.sha256(weights(1)).hexdigest()
    assert large.location.startswith(HUB["storage"]), "large files must lie on another host"
    assert (large.xet_file_data is not None) == XET


@check
def snapshots():
    head = ME.model_info("me/main").sha
    folder = pathlib.Path(snapshot_download("me/main", token=TOKENS["me"]))
    here = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert folder.name == head and here == sorted(ME.list_repo_files("me/main"))
    assert (folder / "model.safetensors").read_bytes() == weights(1)
    local = pathlib.Path(
        snapshot_download("me/main", local_dir=PLACE / "local", allow_patterns=["*.json"], token=TOKENS["me"])
    )
    assert (local / "config.json").exists() and not (local / "model.safetensors").exists()
    again = snapshot_download("me/main", local_files_only=True)
    assert again == str(folder)


@check
def old_revisions_stay():
    ME.upload_file(path_or_fileobj=weights(8), path_in_repo="versions.bin", repo_id="me/main")
    old = ME.model_info("me/main").sha
    ME.upload_file(path_or_fileobj=weights(9), path_in_repo="versions.bin", repo_id="me/main")
    assert content("me/main", "versions.bin", revision=old) == weights(8)
    assert content("me/main", "versions.bin") == weights(9)
    assert ME.model_info("me/main", revision=old).sha == old


@check
def plain_download_of_large_files():
    """Without the client: redirects, ranges, and no token at the storage."""
    headers = {"Authorization": f"Bearer {TOKENS['me']}"}
    answer = httpx2.get(hf_hub_url("me/main", "model.safetensors"), headers=headers)
    assert answer.status_code == 302 and len(answer.headers["X-Repo-Commit"]) == 40
    location = answer.headers["Location"]
    assert httpx2.get(location).content == weights(1)
    part = httpx2.get(location, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == weights(1)[10:20]
    assert httpx2.get(location, headers=headers).status_code == 400
    assert httpx2.get(location.split("?")[0]).status_code == 403


@check
def conditional_requests():
    etag = httpx2.head(hf_hub_url("me/main", "config.json"), follow_redirects=True).headers["ETag"]
    url = hf_hub_url("me/main", "config.json")
    assert httpx2.get(url, headers={"If-None-Match": etag}, follow_redirects=True).status_code == 304


@check
def the_file_system():
    files = HfFileSystem(token=TOKENS["me"])
    assert "me/main/config.json" in files.ls("me/main", detail=False)
    with files.open("me/main/model.safetensors", "rb") as file:
        file.seek(1000)
        assert file.read(50) == weights(1)[1000:1050]
    with files.open("me/main/written.txt", "w") as file:
        file.write("by the file system")
    assert content("me/main", "written.txt") == b"by the file system"


@check
def safetensors_metadata():
    header = json.dumps({"w": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}}).encode()
    bytes_ = len(header).to_bytes(8, "little") + header + bytes(60)
    ME.upload_file(path_or_fileobj=bytes_, path_in_repo="model.safetensors", repo_id="me/short")
    assert ME.get_safetensors_metadata("me/short").parameter_count == {"F32": 15}
    assert ME.model_info("me/short").safetensors.total == 15


# Listings.


@check
def trees():
    top = {entry.path for entry in ME.list_repo_tree("me/main")}
    assert {"config.json", "deep"} <= top and not any("/" in path for path in top)
    assert [entry.path for entry in ME.list_repo_tree("me/main", "deep/er")] == ["deep/er/from_path.bin"]
    entries = {entry.path: entry for entry in ME.list_repo_tree("me/main", recursive=True, expand=True)}
    assert entries["config.json"].last_commit.title.startswith("Upload config.json")
    assert entries["model.safetensors"].lfs.sha256 == hashlib.sha256(weights(1)).hexdigest()
    assert (entries["model.safetensors"].xet_hash is not None) == XET
    with raises(EntryNotFoundError, 404):
        list(ME.list_repo_tree("me/main", "nowhere"))


@check
def infos_of_paths():
    found = {
        info.path: info
        for info in ME.get_paths_info("me/main", ["config.json", "deep", "missing", "model.safetensors"])
    }
    assert set(found) == {"config.json", "deep", "model.safetensors"}
    assert found["config.json"].blob_id == blob_id(b'{"model_type": "bert"}')
    assert found["model.safetensors"].size == 123_456
    expanded = ME.get_paths_info("me/main", "config.json", expand=True)
    assert expanded[0].last_commit is not None


@check
def commits():
    listed = ME.list_repo_commits("me/main", formatted=True)
    assert listed[-1].title == "initial commit" and listed[0].commit_id == ME.model_info("me/main").sha
    assert len(listed) == len({commit.commit_id for commit in listed}) > 10


@check
def branches_and_tags():
    head = ME.model_info("me/main").sha
    ME.create_branch("me/main", branch="ckpt/one")
    ME.create_branch("me/main", branch="ckpt/one", exist_ok=True)
    with raises(HfHubHTTPError, 409):
        ME.create_branch("me/main", branch="ckpt/one")
    with raises(BadRequestError, 400):
        ME.create_branch("me/main", branch="refs/pr/9")
    ME.upload_file(path_or_fileobj=b"on a branch", path_in_repo="branch.txt", repo_id="me/main", revision="ckpt/one")
    assert content("me/main", "branch.txt", revision="ckpt/one") == b"on a branch"
    assert not ME.file_exists("me/main", "branch.txt")
    old = ME.list_repo_commits("me/main")[3].commit_id
    ME.create_branch("me/main", branch="from-old", revision=old)
    ME.create_tag("me/main", tag="v1", tag_message="the first")
    ME.create_tag("me/main", tag="v0", revision=old)
    with raises(HfHubHTTPError, 409):
        ME.create_tag("me/main", tag="v1")
    refs = ME.list_repo_refs("me/main")
    assert {branch.name: branch.target_commit for branch in refs.branches}["from-old"] == old
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v0": old, "v1": head}
    assert ME.model_info("me/main", revision="v1").sha == head
    ME.delete_branch("me/main", branch="ckpt/one")
    ME.delete_tag("me/main", tag="v1")
    assert not ME.revision_exists("me/main", "ckpt/one") and not ME.revision_exists("me/main", "v1")
    with raises(HfHubHTTPError, 403):
        ME.delete_branch("me/main", branch="main")
