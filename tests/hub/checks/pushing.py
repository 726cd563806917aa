"""What goes up: accounts, repositories, files, commits, pull requests."""

import hashlib
import io

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

from bench import HUB, ME, MODE, NOBODY, PLACE, READER, STRANGER, TOKENS, XET, blob_id, check, content, raises, weights

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
    assert (
        lfs.sha256 == hashlib.sha256(weights(1)).hexdigest() and lfs.size == 123_456 == info["model.safetensors"].size
    )


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
    odd = {
        "empty.txt": b"",
        "empty.bin": b"",
        "with space & [brackets].txt": b"x",
        "ünï.txt": b"y",
        "no newline": b"\r\n\n",
    }
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
    files = {
        "a.txt": b"a",
        "sub/b.txt": b"b",
        "sub/c.safetensors": weights(4),
        "skip.log": b"no",
        ".gitignore": b"*.ignored\n",
    }
    for path, bytes_ in files.items():
        (folder / path).write_bytes(bytes_)
    (folder / "x.ignored").write_bytes(b"no")
    ME.upload_folder(folder_path=folder, repo_id="me/main", path_in_repo="up", ignore_patterns=["*.log"])
    here = ME.list_repo_files("me/main")
    assert {"up/a.txt", "up/sub/b.txt", "up/sub/c.safetensors"} <= set(here) and "up/skip.log" not in here
    assert content("me/main", "up/sub/c.safetensors") == weights(4)
    (folder / "a.txt").write_bytes(b"new")
    ME.upload_folder(
        folder_path=folder, repo_id="me/main", path_in_repo="up", allow_patterns=["a.txt"], delete_patterns=["sub/*"]
    )
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
    ME.upload_file(
        path_or_fileobj=weights(5), path_in_repo="data/train.parquet", repo_id="lab/data", repo_type="dataset"
    )
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
