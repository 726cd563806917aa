//! A manifest for Kubernetes: a Job of one pod, or of several that are ranks of one run, with the recipe in a ConfigMap.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use temper_hub::yaml::quoted;
use temper_world::Backend;

use super::values::{LABEL, cores, label, line, memory, mount, object, to_label, word};
use super::{Work, comment};
use crate::failure::{Context, Failure, Kind};
use crate::recipe::plain;

/// Bytes of a ConfigMap, of which the API server takes a megabyte with all that is around them.
const LARGEST: usize = 900 << 10;

/// Where ranks meet, on the first pod.
const PORT: u16 = 29500;

/// The uid and gid of the container file.
const USER: u32 = 1000;

/// What a manifest asks of Kubernetes.
#[derive(Debug, Args)]
pub struct Kubernetes {
    /// The image, with `temper` on its path: see the container file.
    #[arg(long, value_name = "IMAGE", value_parser = word)]
    image: String,
    /// A PersistentVolumeClaim that exists: the run directory is there, and what the recipe reads. What is left of a run must
    /// outlive its job, so none is made.
    #[arg(long, value_name = "CLAIM", value_parser = object)]
    pvc: String,
    /// Where the claim is mounted. Relative paths, the recipe's and the run directory's, begin there.
    #[arg(long, default_value = "/work", value_name = "DIR", value_parser = mount)]
    mount: String,
    /// Pods, each a rank of one run. Several must all see the claim.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// GPUs of a pod. A process uses one at most.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1))]
    gpus: u32,
    /// Cores of a pod, such as `4` or `500m`. Default: no limit.
    #[arg(long, value_name = "AMOUNT", value_parser = cores)]
    cpus: Option<String>,
    /// Memory of a pod, such as `16Gi`. Default: no limit.
    #[arg(long, value_name = "AMOUNT", value_parser = memory)]
    memory: Option<String>,
    /// Namespace. Default: that of `kubectl`.
    #[arg(long, value_name = "NAME", value_parser = label)]
    namespace: Option<String>,
    /// Name of the job. Default: made from the name of the run.
    #[arg(long, value_name = "NAME", value_parser = label)]
    name: Option<String>,
    /// Seconds between the signal to stop and the end of a pod. Raise it where a step and a checkpoint take longer.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    grace: u16,
    /// Starts after a process died, hung or was killed. Those after an eviction are not counted.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    restarts: u32,
    /// A Secret whose key HF_TOKEN is a token of the hub.
    #[arg(long, value_name = "SECRET", value_parser = object)]
    token_secret: Option<String>,
}

impl Kubernetes {
    /// The manifest that trains `work`.
    ///
    /// # Errors
    /// When what is asked for cannot be, or contradicts the recipe.
    pub fn manifest(&self, work: &Work<'_>) -> Result<String, Failure> {
        if self.is_several() {
            work.meets_by(Backend::Tcp)?;
        }
        let (name, recipe) = (self.name(work)?, inside(work)?);
        let run = work.recipe.run_dir();
        let outside = plain(&run).starts_with("..") || run.is_absolute() && !plain(&run).starts_with(&self.mount);
        if outside {
            let help = "write one that begins at --mount, with `--set run.dir=...`";
            return Err(refused(format!("the run directory {} is not on the claim\n  = help: {help}", run.display())));
        }
        let outside = |file: &&String| {
            Path::new(file).starts_with("..")
                || Path::new(file).is_absolute() && !Path::new(file).starts_with(&self.mount)
        };
        if let Some(file) = work.files(&recipe).iter().find(outside) {
            let help = "write the job where both the recipe and what it reads are below the current directory";
            return Err(refused(format!("{file} is not on the claim, which begins here\n  = help: {help}")));
        }
        let job = self.job(&name) + &indent(&self.pod(work, &name, &recipe)?, 6);
        let documents = [
            Some(self.head(work, &name, &recipe)?),
            Some(self.config_map(work, &name)?),
            self.service(&name),
            Some(job),
        ];
        Ok(documents.into_iter().flatten().collect::<Vec<_>>().join("---\n"))
    }

    fn is_several(&self) -> bool {
        self.nodes > 1
    }

    fn name(&self, work: &Work<'_>) -> Result<String, Failure> {
        let run = work.recipe.name();
        let nameless = || refused(format!("the run is called {run:?}, from which no name can be made: write --name"));
        // Each of several pods is called by the name and its number.
        let longest = if self.is_several() { LABEL - format!("-{}", self.nodes - 1).len() } else { LABEL };
        match &self.name {
            Some(name) if name.len() > longest => {
                Err(refused(format!("the name of a job of {} pods has at most {longest} characters", self.nodes)))
            }
            Some(name) => Ok(name.clone()),
            None => to_label(&run, longest).ok_or_else(nameless),
        }
    }

    fn head(&self, work: &Work<'_>, name: &str, recipe: &str) -> Result<String, Failure> {
        let mut head = format!(
            "# Trains {}. Written by `temper job k8s`, to be read and edited.\n#\n\
             #     kubectl apply -f THIS-FILE     # start\n\
             #     kubectl logs -f --prefix -l app.kubernetes.io/instance={name}     # JSON, a line for each event\n\
             #     kubectl delete -f THIS-FILE    # end, with a checkpoint; the claim stays\n#\n\
             # Deleted and applied again it goes on where it stopped; while it runs, a second job of the same run is refused.\n\
             # The claim {} must exist. It is mounted at {} and keeps {}.\n",
            comment(work.path()?),
            comment(&self.pvc),
            comment(&self.mount),
            comment(&work.recipe.run_dir().display().to_string()),
        );
        if self.is_several() {
            let _ = writeln!(
                head,
                "# {} pods are the ranks of one run, and all write to it: on several nodes it must be one of ReadWriteMany.\n\
                 # They meet by TCP at the first. Kubernetes 1.31 or newer.",
                self.nodes
            );
        }
        let files = work.files(recipe);
        if !files.is_empty() {
            head.push_str("# The recipe reads from there:\n");
        }
        files.iter().for_each(|file| {
            let _ = writeln!(head, "#   {}", comment(file));
        });
        Ok(head)
    }

    fn metadata(&self, name: &str, instance: &str) -> String {
        let namespace = self.namespace.as_ref().map(|space| format!("  namespace: {}\n", quoted(space)));
        format!(
            "metadata:\n  name: {}\n{}{}",
            quoted(name),
            namespace.unwrap_or_default(),
            indent(&labels(instance), 2)
        )
    }

    fn config_map(&self, work: &Work<'_>, name: &str) -> Result<String, Failure> {
        let text = std::fs::read_to_string(work.path).context(Kind::Recipe, "failed to read the recipe")?;
        if text.len() > LARGEST {
            return Err(refused("the recipe is larger than a ConfigMap may be".into()));
        }
        let metadata = self.metadata(&format!("{name}-recipe"), name);
        Ok(format!("apiVersion: v1\nkind: ConfigMap\n{metadata}data:\n  recipe.toml: {}", text_block(&text, 4)))
    }

    /// What gives each of several pods a name that the others know.
    fn service(&self, name: &str) -> Option<String> {
        let spec = format!(
            "spec:\n  clusterIP: None\n  # Ranks meet before they are ready for anything.\n  publishNotReadyAddresses: true\n  \
             selector:\n    app.kubernetes.io/name: temper\n    app.kubernetes.io/instance: {}\n  ports:\n    - name: meeting\n      \
             port: {PORT}\n",
            quoted(name)
        );
        self.is_several().then(|| format!("apiVersion: v1\nkind: Service\n{}{spec}", self.metadata(name, name)))
    }

    /// A Job up to its pod.
    fn job(&self, name: &str) -> String {
        let pods = format!(
            "  # A rank each, numbered. The first writes what all have learned: with it the job is done.\n  completions: {0}\n  \
             parallelism: {0}\n  completionMode: Indexed\n  successPolicy:\n    rules:\n      - succeededIndexes: \"0\"\n",
            self.nodes
        );
        let limit = "  # Starts after a failure";
        let limit = if self.is_several() {
            format!("{pods}{limit}, in which every pod fails.\n")
        } else {
            format!("{limit}.\n")
        };
        format!(
            "apiVersion: batch/v1\nkind: Job\n{}spec:\n{limit}  backoffLimit: {}\n{}  template:\n    {}",
            self.metadata(name, name),
            self.restarts * self.nodes,
            indent(POLICY, 2),
            indent(&format!("metadata:\n{}spec:\n", indent(&labels(name), 2)), 4).trim_start()
        )
    }

    /// The specification of its pod.
    fn pod(&self, work: &Work<'_>, name: &str, recipe: &str) -> Result<String, Failure> {
        let mut arguments = work.arguments(recipe, self.gpus > 0)?.concat();
        arguments.splice(0..0, ["--log-format", "json"].map(str::to_owned));
        let arguments: String = arguments.iter().map(|text| format!("      - {}\n", expanded(text))).collect();
        let mut pod = format!(
            "restartPolicy: Never\n{}\
             # SIGTERM asks for a checkpoint; this many seconds later the pod is killed.\n\
             terminationGracePeriodSeconds: {}\n\
             securityContext:\n  runAsNonRoot: true\n  runAsUser: {USER}\n  runAsGroup: {USER}\n  fsGroup: {USER}\n  \
             fsGroupChangePolicy: OnRootMismatch\n  seccompProfile:\n    type: RuntimeDefault\n\
             containers:\n  - name: temper\n    image: {}\n    command: [\"temper\"]\n    args:\n{arguments}    \
             workingDir: {}\n    env:\n{}",
            if self.is_several() { format!("subdomain: {}\n", quoted(name)) } else { String::new() },
            self.grace,
            quoted(&self.image),
            quoted(&self.mount),
            indent(&self.environment(name), 6),
        );
        pod.push_str("    securityContext:\n      allowPrivilegeEscalation: false\n      capabilities:\n        drop: [\"ALL\"]\n");
        let gpus = (self.gpus > 0).then(|| self.gpus.to_string());
        let limits = [("cpu", &self.cpus), ("memory", &self.memory), ("nvidia.com/gpu", &gpus)];
        let limits = limits.into_iter().filter_map(|(what, amount)| Some((what, amount.as_ref()?)));
        let limits: String = limits.map(|(what, amount)| format!("        {what}: {}\n", quoted(amount))).collect();
        if !limits.is_empty() {
            let _ = write!(pod, "    resources:\n      limits:\n{limits}");
        }
        let _ = write!(
            pod,
            "    volumeMounts:\n      - name: work\n        mountPath: {}\n      - name: recipe\n        mountPath: {}\n        \
             subPath: recipe.toml\n        readOnly: true\nvolumes:\n  - name: work\n    persistentVolumeClaim:\n      \
             claimName: {}\n  - name: recipe\n    configMap:\n      name: {}\n",
            quoted(&self.mount),
            quoted(&format!("{}/{recipe}", self.mount)),
            quoted(&self.pvc),
            quoted(&format!("{name}-recipe")),
        );
        Ok(pod)
    }

    /// What the process reads: where downloads are kept, the token of the hub, and which rank it is.
    fn environment(&self, name: &str) -> String {
        let cache = format!("{}/.cache/huggingface", self.mount);
        let mut lines = format!("# Downloads outlive the pod.\n- name: HF_HOME\n  value: {}\n", expanded(&cache));
        if let Some(secret) = &self.token_secret {
            let reference = format!("    secretKeyRef:\n      name: {}\n      key: HF_TOKEN\n", quoted(secret));
            let _ = write!(lines, "- name: HF_TOKEN\n  valueFrom:\n{reference}");
        }
        if self.is_several() {
            let _ = write!(
                lines,
                "- name: RANK\n  valueFrom:\n    fieldRef:\n      \
                 fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']\n\
                 - name: WORLD_SIZE\n  value: \"{}\"\n- name: MASTER_ADDR\n  value: {}\n- name: MASTER_PORT\n  value: \"{PORT}\"\n",
                self.nodes,
                quoted(&format!("{name}-0.{name}")),
            );
        }
        lines
    }
}

/// What becomes of a pod by its exit code.
const POLICY: &str = "\
# A pod that is asked to stop still writes its checkpoint, and has the run directory: the next begins when it is gone.
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    # The same each time: 2 recipe, 3 data, 4 memory, 6 diverged.
    - action: FailJob
      onExitCodes:
        containerName: temper
        operator: In
        values: [2, 3, 4, 6]
    # Interrupted, with a checkpoint: again, and not counted as a failure.
    - action: Ignore
      onExitCodes:
        containerName: temper
        operator: In
        values: [5]
    # Evicted, preempted, or its node is gone.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: \"True\"
    # The others are counted by backoffLimit: 1, 7, 8, or 137 when the pod was killed.
";

fn refused(message: String) -> Failure {
    Failure::new(Kind::Recipe, format!("error: {message}"))
}

/// Where the recipe lies below the mount: as it lies here below the current directory, so that what it calls `../data` is
/// found; one from elsewhere lies at the top.
fn inside(work: &Work<'_>) -> Result<String, Failure> {
    let path =
        plain(Path::new(line(work.path()?).map_err(|why| refused(format!("the path of the recipe: {why}")))?.as_str()));
    let elsewhere = path.is_absolute() || path.starts_with("..");
    let path = if elsewhere { path.file_name().map(PathBuf::from).unwrap_or_default() } else { path };
    match path.to_str() {
        // Kubernetes takes no colon in a mount.
        Some(path) if path.contains(':') => {
            Err(refused(format!("{path} has a colon, which no mount may have: rename it")))
        }
        path => Ok(path.unwrap_or_default().into()),
    }
}

fn labels(instance: &str) -> String {
    format!("labels:\n  app.kubernetes.io/name: temper\n  app.kubernetes.io/instance: {}\n", quoted(instance))
}

/// A string in which Kubernetes would put variables, `$(NAME)`, quoted so that it stays what it is.
fn expanded(text: &str) -> String {
    quoted(&text.replace('$', "$$"))
}

fn indent(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines().map(|line| if line.is_empty() { "\n".into() } else { format!("{pad}{line}\n") }).collect()
}

/// A text as a block of lines `by` deep under a key two less, or in quotes where a block would not keep it to the letter.
fn text_block(text: &str, by: usize) -> String {
    let odd =
        |c: char| c.is_control() && c != '\n' && c != '\t' || "\u{2028}\u{2029}\u{feff}\u{fffe}\u{ffff}".contains(c);
    if text.trim().is_empty() || text.contains(odd) {
        return format!("{}\n", quoted(text));
    }
    let depth = if text.starts_with(char::is_whitespace) { "2" } else { "" };
    let end = match text.len() - text.trim_end_matches('\n').len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    format!("|{depth}{end}\n{}", indent(text, by))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_how_it_begins_and_ends() {
        assert_eq!(text_block("a = 1\n\n[b]\n", 4), "|\n    a = 1\n\n    [b]\n");
        assert_eq!(text_block("a", 4), "|-\n    a\n");
        assert_eq!(text_block(" a\n\n", 4), "|2+\n     a\n\n");
        assert_eq!(text_block("a\r\nb", 4), "\"a\\u000d\\nb\"\n");
        assert_eq!(text_block("\n", 4), "\"\\n\"\n");
    }

    #[test]
    fn kubernetes_expands_nothing() {
        assert_eq!(expanded("a=$(HOME)$$x"), "\"a=$$(HOME)$$$$x\"");
    }
}
