"""What the checks share: the hub, clients of three users, and what they expect."""

import contextlib
import hashlib
import json
import os
import pathlib
import random

from huggingface_hub import HfApi, hf_hub_download

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
