"""The checks of judge.py, in the order in which they run. One process, one hub, one way of sending large files."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import traceback
import warnings

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    HfFileSystem,
    ModelCard,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

HUB = json.loads(os.environ["JUDGE_HUB"])
MODE = os.environ["JUDGE_MODE"]
PLACE = pathlib.Path(os.environ["JUDGE_PLACE"])
TOKENS = HUB["tokens"]
ME, READER, STRANGER = (HfApi(token=TOKENS[name]) for name in ("me", "me_read", "stranger"))
NOBODY = HfApi(token=False)
XET = MODE == "xet"

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@contextlib.contextmanager
def raises(kind, status=None):
    """The block must raise exactly this, with this status."""
    try:
        yield
    except kind as error:
        found = error.response.status_code if status else None
        assert found == status, f"status {found} instead of {status}"
    else:
        raise AssertionError(f"no {kind.__name__}")


def weights(seed, size=123_456):
    """Bytes that no compression shortens."""
    return random.Random(seed).randbytes(size)


def blob_id(content):
    """What `git hash-object` says."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def content(repo, path, **options):
    return pathlib.Path(hf_hub_download(repo, path, token=TOKENS["me"], **options)).read_bytes()


# Accounts.


@check
def whoami_and_roles():
    assert ME.whoami()["name"] == "me"
    assert ME.whoami()["auth"]["accessToken"]["role"] == "write"
    assert READER.whoami()["auth"]["accessToken"]["role"] == "read"
    assert [org["name"] for org in ME.whoami()["orgs"]] == ["lab"]


@check
def bad_and_expired_tokens():
    for token in ("hf_" + "x" * 34, TOKENS["expired"]):
        with raises(HfHubHTTPError, 401):
            HfApi(token=token).whoami()
        # A bad token is not a missing repository.
        try:
            HfApi(token=token).model_info("me/nothing")
        except RepositoryNotFoundError:
            raise AssertionError("RepositoryNotFoundError for a bad token")
        except HfHubHTTPError as error:
            assert error.response.status_code == 401


# Repositories.


@check
def create_repositories():
    assert str(ME.create_repo("me/main")) == HUB["endpoint"] + "/me/main"
    assert ME.create_repo("short").repo_id == "me/short"
    ME.create_repo("lab/data", repo_type="dataset")
    ME.create_repo("me/secret", private=True)
    assert ME.model_info("me/main").private is False and ME.model_info("me/secret").private is True
    with raises(HfHubHTTPError, 409):
        ME.create_repo("me/main")
    ME.create_repo("me/main", exist_ok=True)
    with raises(HfHubHTTPError, 403):
        ME.create_repo("stranger/mine")
    with raises(HfHubHTTPError, 403):
        READER.create_repo("me/other")
    with raises(HfHubHTTPError, 401):
        NOBODY.create_repo("me/other")


@check
def a_new_repository_has_one_commit():
    assert ME.list_repo_files("me/main") == [".gitattributes"]
    assert [commit.title for commit in ME.list_repo_commits("me/main")] == ["initial commit"]


# Files up.


@check
def the_mode_is_what_it_says():
    """Each mode must send large files in its own way, or it judges nothing."""
    info = UploadInfo.from_bytes(weights(0))
    offers = ["basic", "multipart", "xet"] if XET else ["basic", "multipart"]
    actions, _, transfer = post_lfs_batch_info([info], TOKENS["me"], "model", "me/main", "main", transfers=offers)
    assert transfer == {"multipart": "multipart", "xet": "xet"}.get(MODE, "basic")
    assert ("chunk_size" in actions[0]["actions"]["upload"].get("header", {})) == (MODE == "multipart")
    small = httpx2.head(hf_hub_url("me/main", ".gitattributes"))
    assert small.status_code == (307 if MODE == "redirects" else 200)


@check
def upload_small_and_large():
    for path, bytes_ in {"config.json": b'{"model_type": "bert"}', "model.safetensors": weights(1)}.items():
        made = ME.upload_file(path_or_fileobj=bytes_, path_in_repo=path, repo_id="me/main")
        assert made.oid == ME.model_info("me/main").sha
        assert content("me/main", path) == bytes_
    info = {file.rfilename: file for file in ME.model_info("me/main", files_metadata=True).siblings}
    assert info["config.json"].blob_id == blob_id(b'{"model_type": "bert"}') and info["config.json"].lfs is None
    lfs = info["model.safetensors"].lfs
    assert lfs.sha256 == hashlib.sha256(weights(1)).hexdigest() and lfs.size == 123_456 == info["model.safetensors"].size


@check
def upload_from_path_and_stream():
    path = PLACE / "from_path.bin"
    path.write_bytes(weights(2))
    ME.upload_file(path_or_fileobj=str(path), path_in_repo="deep/er/from_path.bin", repo_id="me/main")
    ME.upload_file(path_or_fileobj=io.BytesIO(weights(3)), path_in_repo="deep/stream.bin", repo_id="me/main")
    assert content("me/main", "deep/er/from_path.bin") == weights(2)
    assert content("me/main", "deep/stream.bin") == weights(3)


@check
def empty_and_odd_files():
    odd = {"empty.txt": b"", "empty.bin": b"", "with space & [brackets].txt": b"x", "ünï.txt": b"y", "no newline": b"\r\n\n"}
    ME.create_commit("me/main", [CommitOperationAdd(*item) for item in odd.items()], commit_message="odd")
    for path, bytes_ in odd.items():
        assert content("me/main", path) == bytes_, path


@check
def upload_again_makes_no_new_objects():
    before = ME.model_info("me/main").sha
    ME.upload_file(path_or_fileobj=weights(1), path_in_repo="model.safetensors", repo_id="me/main")
    assert ME.model_info("me/main").sha == before, "an unchanged file made a commit"


@check
def upload_folder():
    folder = PLACE / "folder"
    (folder / "sub").mkdir(parents=True)
    files = {"a.txt": b"a", "sub/b.txt": b"b", "sub/c.safetensors": weights(4), "skip.log": b"no", ".gitignore": b"*.ignored\n"}
    for path, bytes_ in files.items():
        (folder / path).write_bytes(bytes_)
    (folder / "x.ignored").write_bytes(b"no")
    ME.upload_folder(folder_path=folder, repo_id="me/main", path_in_repo="up", ignore_patterns=["*.log"])
    here = ME.list_repo_files("me/main")
    assert {"up/a.txt", "up/sub/b.txt", "up/sub/c.safetensors"} <= set(here) and "up/skip.log" not in here
    assert content("me/main", "up/sub/c.safetensors") == weights(4)
    (folder / "a.txt").write_bytes(b"new")
    ME.upload_folder(folder_path=folder, repo_id="me/main", path_in_repo="up", allow_patterns=["a.txt"], delete_patterns=["sub/*"])
    here = ME.list_repo_files("me/main")
    assert "up/sub/b.txt" not in here and content("me/main", "up/a.txt") == b"new"


@check
def gitignore_is_obeyed():
    ME.create_repo("me/ignoring")
    folder = PLACE / "ignoring"
    folder.mkdir()
    for path in (".gitignore", "kept.txt", "x.ignored"):
        (folder / path).write_text("*.ignored\n")
    ME.upload_folder(folder_path=folder, repo_id="me/ignoring")
    assert sorted(ME.list_repo_files("me/ignoring")) == [".gitattributes", ".gitignore", "kept.txt"]


@check
def dataset_upload():
    ME.upload_file(path_or_fileobj=weights(5), path_in_repo="data/train.parquet", repo_id="lab/data", repo_type="dataset")
    assert content("lab/data", "data/train.parquet", repo_type="dataset") == weights(5)
    assert ME.dataset_info("lab/data").id == "lab/data"


# Commits.


@check
def commit_with_deletes_and_copy():
    head = ME.model_info("me/main").sha
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationAdd("new.bin", weights(6)),
        CommitOperationDelete("deep/stream.bin"),
        CommitOperationDelete("up/", is_folder=True),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
    ]
    made = ME.create_commit("me/main", operations, commit_message="many", commit_description="why", parent_commit=head)
    assert made.commit_url.endswith(made.oid)
    here = ME.list_repo_files("me/main")
    assert {"new.txt", "new.bin", "copy.safetensors"} <= set(here)
    assert "deep/stream.bin" not in here and not any(path.startswith("up/") for path in here)
    assert content("me/main", "copy.safetensors") == weights(1)
    last = ME.list_repo_commits("me/main")[0]
    assert (last.title, last.message, last.authors) == ("many", "why", ["me"])


@check
def a_stale_parent_is_refused():
    head = ME.model_info("me/main").sha
    old = ME.list_repo_commits("me/main")[1].commit_id
    add = [CommitOperationAdd("late.txt", b"late")]
    with raises(HfHubHTTPError, 412):
        ME.create_commit("me/main", add, commit_message="late", parent_commit=old)
    assert ME.model_info("me/main").sha == head


@check
def deletes():
    ME.upload_file(path_or_fileobj=b"x", path_in_repo="gone/x.txt", repo_id="me/main")
    ME.delete_file("gone/x.txt", "me/main")
    assert not ME.file_exists("me/main", "gone/x.txt")
    ME.upload_file(path_or_fileobj=b"x", path_in_repo="gone/x.txt", repo_id="me/main")
    ME.delete_folder("gone", "me/main")
    assert not ME.file_exists("me/main", "gone/x.txt")
    with raises(EntryNotFoundError, 404):
        ME.delete_file("never.txt", "me/main")


@check
def writing_takes_the_right_to():
    for api, status in ((READER, 403), (STRANGER, 403)):
        with raises(HfHubHTTPError, status):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/main")
    with raises(HfHubHTTPError, 401):
        NOBODY.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/main")


# Pull requests and discussions.


@check
def pull_requests():
    head = ME.model_info("me/main").sha
    add = [CommitOperationAdd("pr.txt", b"pr"), CommitOperationAdd("pr.bin", weights(7))]
    made = STRANGER.create_commit("me/main", add, commit_message="a request", create_pr=True)
    assert made.pr_num == 1 and made.pr_revision == "refs/pr/1"
    assert ME.model_info("me/main").sha == head, "main moved"
    assert content("me/main", "pr.bin", revision="refs/pr/1") == weights(7)
    STRANGER.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id="me/main", revision="refs/pr/1")
    pulls = ME.list_repo_refs("me/main", include_pull_requests=True).pull_requests
    assert [pull.ref for pull in pulls] == ["refs/pr/1"]
    assert [found.title for found in ME.get_repo_discussions("me/main")] == ["a request"]
    assert ME.get_discussion_details("me/main", 1).is_pull_request
    with raises(HfHubHTTPError, 403):
        STRANGER.merge_pull_request("me/main", 1)


@check
def merging():
    opened = ME.upload_file(path_or_fileobj=b"m", path_in_repo="merged.txt", repo_id="me/main", create_pr=True)
    assert not ME.file_exists("me/main", "merged.txt")
    ME.merge_pull_request("me/main", opened.pr_num)
    assert content("me/main", "merged.txt") == b"m"
    assert ME.get_discussion_details("me/main", opened.pr_num).status == "merged"


@check
def discussions():
    opened = STRANGER.create_discussion("me/main", "a question", description="why?")
    assert not opened.is_pull_request
    ME.comment_discussion("me/main", opened.num, "because")
    details = ME.get_discussion_details("me/main", opened.num)
    assert [event.content for event in details.events] == ["why?", "because"]
    assert ME.rename_discussion("me/main", opened.num, "an answer").new_title == "an answer"
    assert STRANGER.change_discussion_status("me/main", opened.num, "closed").new_status == "closed"
    assert "an answer" not in [found.title for found in ME.get_repo_discussions("me/main", discussion_status="open")]


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
    local = pathlib.Path(snapshot_download("me/main", local_dir=PLACE / "local", allow_patterns=["*.json"], token=TOKENS["me"]))
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
    found = {info.path: info for info in ME.get_paths_info("me/main", ["config.json", "deep", "missing", "model.safetensors"])}
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


# What is not there, or not for everybody.


@check
def what_is_missing():
    for api, status in ((ME, 404), (NOBODY, 401)):
        with raises(RepositoryNotFoundError, status):
            api.model_info("me/missing")
    with raises(RepositoryNotFoundError, 404):
        ME.dataset_info("me/main")
    with raises(RevisionNotFoundError, 404):
        ME.model_info("me/main", revision="missing")
    for options, kind in ((("missing.txt", "main"), EntryNotFoundError), (("config.json", "missing"), RevisionNotFoundError)):
        with raises(kind, 404):
            content("me/main", options[0], revision=options[1])
    with raises(RevisionNotFoundError, 404):
        ME.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/main", revision="missing")
    assert not ME.repo_exists("me/missing") and ME.repo_exists("me/main")


@check
def private_repositories():
    ME.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/secret")
    with raises(RepositoryNotFoundError, 401):
        NOBODY.model_info("me/secret")
    with raises(RepositoryNotFoundError, 404):
        STRANGER.model_info("me/secret")
    with raises(RepositoryNotFoundError, 404):
        hf_hub_download("me/secret", "config.json", token=TOKENS["stranger"])
    assert READER.model_info("me/secret").private and content("me/secret", "config.json") == b"{}"


@check
def gated_repositories():
    ME.create_repo("lab/gated")
    ME.upload_file(path_or_fileobj=weights(10), path_in_repo="model.safetensors", repo_id="lab/gated")
    ME.update_repo_settings("lab/gated", gated="manual")
    for token, status in ((TOKENS["stranger"], 403), (False, 401)):
        assert HfApi(token=token).model_info("lab/gated").gated == "manual"
        with raises(GatedRepoError, status):
            hf_hub_download("lab/gated", "model.safetensors", token=token)
        with raises(GatedRepoError, status):
            HfApi(token=token).auth_check("lab/gated")
    assert content("lab/gated", "model.safetensors") == weights(10)
    ME.auth_check("lab/gated", write=True)
    ME.update_repo_settings("lab/gated", gated=False)
    assert hf_hub_download("lab/gated", "model.safetensors", token=TOKENS["stranger"])


# Cards, search, settings.


@check
def cards():
    text = "---\nlicense: mit\nlibrary_name: peft\nbase_model: me/main\ntags:\n- lora\n---\n# Card\n"
    ModelCard(text).push_to_hub("me/short", token=TOKENS["me"])
    card = ModelCard.load("me/short", token=TOKENS["me"])
    assert (card.data.license, card.data.base_model, card.data.tags) == ("mit", "me/main", ["lora"])
    info = ME.model_info("me/short")
    assert info.library_name == "peft" and {"lora", "license:mit", "base_model:me/main"} <= set(info.tags)
    assert info.card_data.license == "mit"
    DatasetCard("---\nlicense: cc0-1.0\n---\n").push_to_hub("lab/data", token=TOKENS["me"], repo_type="dataset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with raises(ValueError):
            ME.upload_file(path_or_fileobj=b"---\ntags: [a\n---\n", path_in_repo="README.md", repo_id="me/short")


@check
def search():
    assert [model.id for model in ME.list_models(author="me", search="short")] == ["me/short"]
    assert [model.id for model in ME.list_models(filter=["lora", "license:mit"])] == ["me/short"]
    assert "me/secret" in {model.id for model in ME.list_models(author="me")}
    assert "me/secret" not in {model.id for model in NOBODY.list_models(author="me")}
    assert len(list(ME.list_models(limit=2))) == 2
    assert [data.id for data in ME.list_datasets(search="data")] == ["lab/data"]


@check
def settings_and_moving():
    ME.update_repo_settings("me/ignoring", private=True)
    assert ME.model_info("me/ignoring").private
    ME.move_repo("me/ignoring", "lab/moved")
    assert ME.model_info("lab/moved").private and ME.repo_exists("me/ignoring")
    assert ME.model_info("me/ignoring").id == "lab/moved", "the old name must lead to the new one"


@check
def squashing():
    files = ME.list_repo_files("me/short")
    ME.super_squash_history("me/short", commit_message="one")
    assert [commit.title for commit in ME.list_repo_commits("me/short")] == ["one"]
    assert ME.list_repo_files("me/short") == files


# An independent reader, at the end, when there is a history.


@check
def git_reads_the_repositories():
    def git(*arguments):
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bare = pathlib.Path(HUB["repositories"]) / "models/me/main.git"
    clone = PLACE / "clone"
    git("clone", "--quiet", "-c", "filter.lfs.smudge=", "-c", "filter.lfs.required=false", str(bare), str(clone))
    git("-C", str(bare), "fsck", "--strict")
    log = git("-C", str(clone), "log", "--format=%H").split()
    assert log == [commit.commit_id for commit in ME.list_repo_commits("me/main")]
    assert (clone / "config.json").read_bytes() == b'{"model_type": "bert"}'
    pointer = (clone / "model.safetensors").read_text().splitlines()
    sha256 = hashlib.sha256(weights(1)).hexdigest()
    assert pointer == ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}", "size 123456"]
    tracked = git("-C", str(clone), "check-attr", "filter", "model.safetensors", "config.json").splitlines()
    assert tracked == ["model.safetensors: filter: lfs", "config.json: filter: unspecified"]


@check
def deleted_repositories_are_gone():
    ME.delete_repo("me/main")
    assert not ME.repo_exists("me/main")
    ME.delete_repo("me/main", missing_ok=True)
    with raises(RepositoryNotFoundError, 404):
        ME.delete_repo("me/main")


def main():
    passed, failed = 0, []
    for function in CHECKS:
        try:
            function()
            passed += 1
        except Exception:
            print(f"--- {MODE}: {function.__name__}", file=sys.stderr)
            traceback.print_exc(limit=8)
            failed.append(function.__name__)
    print(json.dumps({"passed": passed, "failed": failed}))


if __name__ == "__main__":
    main()
