"""What is not there, or not for everybody; cards, search, settings; and another reader."""

import hashlib
import pathlib
import subprocess
import warnings

from huggingface_hub import DatasetCard, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from bench import HUB, ME, NOBODY, PLACE, READER, STRANGER, TOKENS, check, content, raises, weights

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
    for options, kind in (
        (("missing.txt", "main"), EntryNotFoundError),
        (("config.json", "missing"), RevisionNotFoundError),
    ):
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
