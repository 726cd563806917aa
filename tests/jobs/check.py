"""The manifests that `temper job k8s` writes, read as YAML and held against the schema of Kubernetes.

    cargo build --release --workspace --bin temper
    python -m pip install -r tests/jobs/requirements.txt
    python tests/jobs/check.py [target/release/temper]

Exits with 1 if a check fails. What the API server refuses beside what its schema does is checked too.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
# As users write it: below the current directory.
RECIPE = pathlib.Path("tests/recipes/short.toml")
# The oldest in which all that is asked for is on by default, of one pod and of several, and the newest that the schemas know.
OLDEST = {1: "1.29", 3: "1.31"}
NEWEST = kubernetes_validate.latest_version()
EVERYTHING = ["--gpus=1", "--cpus=500m", "--memory=16Gi", "--namespace=teams", "--name=mine", "--token-secret=hub", "--grace=30",
              "--restarts=7", "--mount=/data/here"]
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def main():
    temper = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/temper")
    if not temper.exists():
        sys.exit(f"{temper} does not exist: see the head of this file")
    checks = (least, everything, ranks, odd_names, odd_recipes, strict)
    failed = 0
    for check in checks:
        try:
            check(temper)
            print(f"ok      {check.__name__}", flush=True)
        except AssertionError as error:
            print(f"failed  {check.__name__}: {error}", flush=True)
            failed += 1
    print(f"check: {len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def manifest(temper, *arguments, recipe=RECIPE, pods=1):
    """The ConfigMap, the Service of several pods, and the Job, all valid."""
    arguments += (f"--nodes={pods}",)
    command = [temper.resolve(), "job", "k8s", "--recipe", recipe, "--image", "temper:1", "--pvc", "work", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    kinds = ["ConfigMap", *["Service"] * (pods > 1), "Job"]
    assert [document["kind"] for document in documents] == kinds, documents
    for document in documents:
        valid(document, OLDEST[pods])
    agree(documents[0], documents[-1])
    return documents


def valid(document, oldest=OLDEST[1]):
    for version in (oldest, NEWEST):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{document['kind']} in {version}: {error.message} at {list(error.absolute_path)}") from error


def agree(config_map, job):
    """What refers to each other, and what the API server refuses beside what its schema does."""
    for document in (config_map, job):
        assert LABEL.fullmatch(document["metadata"]["name"].removesuffix("-recipe")), document["metadata"]
    assert config_map["metadata"].get("namespace") == job["metadata"].get("namespace")
    spec = job["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    container, = spec["containers"]
    assert volumes["recipe"]["configMap"]["name"] == config_map["metadata"]["name"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["recipe"]["subPath"] in config_map["data"]
    recipe, = [argument.removeprefix("--recipe=") for argument in container["args"] if argument.startswith("--recipe=")]
    assert mounts["recipe"]["mountPath"] == f"{container['workingDir']}/{recipe}"
    # A podFailurePolicy needs restartPolicy Never, and with it a podReplacementPolicy may only be Failed.
    assert spec["restartPolicy"] == "Never" and job["spec"]["podReplacementPolicy"] == "Failed"
    actions = {}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule), rule
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"]
            assert codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
            actions |= {code: rule["action"] for code in codes["values"]}
    assert actions == {2: "FailJob", 3: "FailJob", 4: "FailJob", 6: "FailJob", 5: "Ignore"}, actions


def least(temper):
    config_map, job = manifest(temper)
    assert job["metadata"]["name"] == "short"
    assert config_map["data"]["recipe.toml"] == (ROOT / RECIPE).read_text()
    container, = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] + container["args"] == [
        "temper", "--log-format", "json", "train", "--recipe=tests/recipes/short.toml"], container
    assert "resources" not in container


def everything(temper):
    _, job = manifest(temper, *EVERYTHING)
    spec = job["spec"]["template"]["spec"]
    container, = spec["containers"]
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["args"][-2:] == ["--set", "device.use=cuda"]
    assert job["metadata"]["namespace"] == "teams" and job["metadata"]["name"] == "mine"
    assert spec["terminationGracePeriodSeconds"] == 30 and job["spec"]["backoffLimit"] == 7
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["HF_HOME"]["value"] == "/data/here/.cache/huggingface"
    assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "HF_TOKEN"}


def ranks(temper):
    """Pods that find each other: by names that the service gives them, and that the job numbers."""
    _, service, job = manifest(temper, "--restarts=2", "--name=" + "n" * 61, pods=3)
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"] == name and service["spec"]["clusterIP"] == "None"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert (spec["completions"], spec["parallelism"], spec["completionMode"], spec["backoffLimit"]) == (3, 3, "Indexed", 6)
    container, = pod["containers"]
    environment = {variable["name"]: variable for variable in container["env"]}
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert environment["RANK"]["valueFrom"]["fieldRef"]["fieldPath"] == index
    assert environment["WORLD_SIZE"]["value"] == "3"
    # The first pod's name.
    assert environment["MASTER_ADDR"]["value"] == f"{name}-0.{name}" and LABEL.fullmatch(f"{name}-2")
    assert service["spec"]["ports"][0]["port"] == int(environment["MASTER_PORT"]["value"])
    one, = manifest(temper)[1:]
    assert not {"completions", "completionMode", "successPolicy"} & one["spec"].keys()


def odd_names(temper):
    """Names of runs become names of jobs, and what a user sets arrives as it was written."""
    for name in ("Mine_And.Yours", "no", "1e3", "on: off # -", "x" * 90, "a\\tb'", "$(HOME)"):
        setting = f'run.name="{name}"'
        _, job = manifest(temper, "--set", setting)
        container, = job["spec"]["template"]["spec"]["containers"]
        # Kubernetes reads `$$` as `$` and would put a variable for `$(HOME)`.
        assert container["args"][-1] == setting.replace("$", "$$"), container["args"]


def odd_recipes(temper):
    """A recipe arrives to the letter, however it is written."""
    text = (ROOT / RECIPE).read_text().replace("../../", f"{ROOT}/")
    for odd in (text, text.rstrip("\n"), text + "\n\n", "\n  " + text, "# é 日本 \U0001f600\n" + text, "#\ttab: - # {}\n" + text,
                text.replace("\n", "\r\n"), "# trailing  \n" + text, "# a\u2028b\u0085c\n" + text):
        with tempfile.TemporaryDirectory() as place:
            path = pathlib.Path(place) / "odd recipe #1.toml"
            path.write_bytes(odd.encode())
            config_map, _ = manifest(temper, "--set", 'run.dir="runs/odd"', recipe=path)
            assert config_map["data"]["recipe.toml"] == odd, repr(odd[:40])


def strict(temper):
    """The schema is one that refuses: a check that cannot fail is none."""
    _, job = manifest(temper)
    job["spec"]["podFailurePolicy"]["rules"][0]["actions"] = "FailJob"
    try:
        valid(job)
    except AssertionError:
        return
    raise AssertionError("a key that Kubernetes does not know was accepted")


if __name__ == "__main__":
    main()
