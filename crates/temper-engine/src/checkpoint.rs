//! Checkpoints: what a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-000123/` holds `trainable.safetensors` (the trainable parameters by path), `optimizer.safetensors`
//! (`<path>.<slot>`) and `state.json` (the rest, and a checksum of the two files). A checkpoint is written beside its
//! place, flushed to the disk and then renamed: whatever happens, a directory of that name is whole, or damaged by
//! something else, which the checksums show. It resumes training; it is not what one ships.

mod tensors;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use temper_world::World;

use crate::error::Error;
use crate::event::Event;
use crate::optim::Optimizer;
use crate::plan::{Scores, Site};
use crate::scale::LossScale;
use crate::shared::Shared;
use crate::weights::{self, Held};
pub(crate) use tensors::{Outline, Outlines, checksum};
use tensors::{Reader, Sum, Writer, sum};

/// How long a rank waits to see what rank 0 has written.
const VISIBLE: Duration = Duration::from_secs(30);
const FORMAT: u64 = 3;
const TRAINABLE: &str = "trainable.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done.
    pub step: u64,
    /// The best evaluation: after which step, and what it measured.
    pub best: Option<(u64, Scores)>,
    /// The last evaluation.
    pub last: Option<Scores>,
    /// Evaluations since the metric last improved by more than `min_delta`.
    pub stale: u32,
    /// What it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bar: Option<f64>,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens seen.
    pub tokens: u64,
    /// The steps since the last report.
    pub window: Window,
    /// The scale of the loss, in a run that scales it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<LossScale>,
}

/// What the steps since the last report came to: a report after a resume covers those before it too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Sum of the losses of their targets.
    pub loss: f64,
    /// Their targets.
    pub targets: f64,
    /// Their tokens.
    pub tokens: u64,
    /// How many they are.
    pub steps: u32,
    /// Seconds that they took, evaluations and checkpoints not counted.
    pub seconds: f64,
    /// Seconds of them in which ranks exchanged numbers.
    #[serde(default)]
    pub communication: f64,
    /// Bytes that they exchanged.
    #[serde(default)]
    pub bytes: u64,
    /// How many ranks there were.
    #[serde(default)]
    pub ranks: usize,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u64,
    fingerprint: String,
    progress: Progress,
    files: BTreeMap<String, Sum>,
    /// Of all that stands above.
    checksum: String,
}

impl State {
    fn sum(&self) -> serde_json::Result<String> {
        let Self { format, fingerprint, progress, files, checksum: _ } = self;
        let text = serde_json::to_vec(&(format, fingerprint, progress, files))?;
        Ok(sum(&mut text.as_slice()).map_err(serde_json::Error::io)?.checksum)
    }
}

/// The checkpoints of one run.
pub(crate) struct Store {
    root: PathBuf,
    fingerprint: String,
    keep_last: usize,
    world: World,
}

impl Store {
    /// Opens `checkpoints/` of the site; rank 0 removes what an interrupted write left there.
    pub fn open(site: &Site<'_>, fingerprint: &str, keep_last: usize) -> Result<Self, Error> {
        let (root, world) = (site.dir.join("checkpoints"), site.world.clone());
        let tidy = || -> Result<(), Error> {
            fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
            for name in names(&root)?.iter().filter(|name| name.starts_with(".tmp-")) {
                let path = root.join(name);
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io("remove", &path))?;
            }
            Ok(())
        };
        world.lead_alone(tidy)?.transpose()?;
        let store = Self { root, fingerprint: fingerprint.into(), keep_last: keep_last.max(1), world };
        store.see(&store.root)?;
        Ok(store)
    }

    /// Waits until this rank sees what rank 0 has written: a network's filesystem may take some seconds.
    fn see(&self, path: &Path) -> Result<(), Error> {
        let started = Instant::now();
        while !path.exists() {
            if started.elapsed() > VISIBLE {
                return Err(Error::NotShared { rank: self.world.rank(), path: path.into() });
            }
            // Listing a directory makes a network's filesystem look again.
            let _ = path.parent().map(names);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Restores the newest usable checkpoint into the model and the optimizer, of which each rank has its part. Damaged newer
    /// ones are set aside, with an event.
    pub fn resume<M: Module>(
        &self,
        model: M,
        optimizer: &mut Optimizer,
        shared: &Shared,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<(M, Progress), Error> {
        let held = &shared.parameters;
        let steps = self.steps()?;
        let mut damaged = Vec::new();
        for &step in steps.iter().rev() {
            let path = self.path(step);
            let (state, trainable, mut slots) = match self.read(&path) {
                Err(Error::Damaged { reason, .. }) => {
                    damaged.push((path, reason));
                    continue;
                }
                read => read?,
            };
            let mismatch = |reason| Error::Mismatch { path: path.clone(), reason };
            let trainable = part(trainable, &path, shared)?;
            let known = |name: &str| held.contains_key(parameter_of(name));
            if let Some((name, _)) = slots.outlines().find(|(name, _)| !known(name)) {
                return Err(mismatch(format!("optimizer state `{name}` is of no trainable parameter")));
            }
            let slots =
                slots.read(|name| shared.owns(parameter_of(name))).map_err(Error::io("read", &path.join(OPTIMIZER)))?;
            optimizer.write(slots, held).map_err(mismatch)?;
            self.world.barrier()?;
            // Whoever else reads has read.
            for (path, reason) in damaged.into_iter().filter(|_| self.world.leads()) {
                let path = self.set_aside(&path)?;
                observe(&Event::Refused { path, reason });
            }
            observe(&Event::Resumed { step, path: path.clone() });
            return Ok((weights::write(model, trainable), state.progress));
        }
        match damaged.into_iter().next() {
            Some((_, reason)) => Err(Error::NoneUsable { path: self.root.clone(), count: steps.len(), reason }),
            None => Ok((model, Progress::default())),
        }
    }

    /// Puts the trainable parameters of the checkpoint after `step` into `model`, of which each rank has its part.
    pub fn weights_of<M: Module>(&self, step: u64, model: M, shared: &Shared) -> Result<M, Error> {
        let path = self.path(step);
        let trainable = open(&path, TRAINABLE, &self.read_state(&path)?)?;
        Ok(weights::write(model, part(trainable, &path, shared)?))
    }

    /// Writes a checkpoint, then removes those that need not be kept. On failure the older ones are as they were.
    ///
    /// Rank 0 writes what all hand it, the others look whether they see it.
    pub fn save<M: Module>(
        &self,
        progress: &Progress,
        model: &M,
        optimizer: &Optimizer,
        shared: &Shared,
    ) -> Result<PathBuf, Error> {
        let path = self.path(progress.step);
        let temporary = self.root.join(format!(".tmp-step-{:06}", progress.step));
        let written = self.write(&temporary, progress.step, model, optimizer, shared);
        let published = written
            .and_then(|files| self.world.lead_alone(|| self.publish(&temporary, &path, progress, files))?.transpose());
        if let Err(error) = published {
            // The error says more than one of cleaning up would.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        self.see(&path)?;
        if !self.world.leads() {
            self.read_state(&path)?;
        }
        Ok(path)
    }

    /// Writes the tensors of a checkpoint into `dir`; what became of the files, on rank 0.
    fn write<M: Module>(
        &self,
        dir: &Path,
        step: u64,
        model: &M,
        optimizer: &Optimizer,
        shared: &Shared,
    ) -> Result<BTreeMap<String, Sum>, Error> {
        let device = |failed| Error::Device { step, failed };
        if self.world.leads() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let here = weights::tensors(model);
        let parameters = shared.parameters.iter().map(|(path, held)| (path.clone(), held.outline())).collect();
        let keeper = |path: &str| if shared.lent(path) { shared.owner(path) } else { 0 };
        let read = |path: &str| {
            let data = temper_device::read(here[path].clone()).map_err(device)?;
            let (dtype, shape) = (data.dtype(), shared.parameters[path].shape.clone());
            let values = data.as_slice::<f32>();
            if values.is_ok_and(|values| values.iter().any(|value| !value.is_finite())) {
                return Err(Error::Ruined { step, what: format!("`{path}`") });
            }
            Ok(TensorData::from_bytes(data.into_bytes(), shape, dtype))
        };
        let trainable = self.write_file(&dir.join(TRAINABLE), shared, parameters, keeper, read)?;
        let keeper = |name: &str| shared.owner(parameter_of(name));
        let read = |name: &str| optimizer.read(name).map_err(device);
        let optimizer = self.write_file(&dir.join(OPTIMIZER), shared, shared.outlines(optimizer)?, keeper, read)?;
        let files = [(TRAINABLE, trainable), (OPTIMIZER, optimizer)].into_iter();
        Ok(files.filter_map(|(name, sum)| Some((name.to_owned(), sum?))).collect())
    }

    /// Writes a file on rank 0 of tensors that all ranks hand it, see [`Shared::each`].
    fn write_file(
        &self,
        path: &Path,
        shared: &Shared,
        tensors: Outlines,
        keeper: impl Fn(&str) -> usize,
        read: impl Fn(&str) -> Result<TensorData, Error>,
    ) -> Result<Option<Sum>, Error> {
        let failed = |error| Error::io("write", path)(error);
        let mut writer = if self.world.leads() { Some(Writer::create(path, &tensors)) } else { None };
        shared.each(&tensors, keeper, read, |name, data| match &mut writer {
            Some(Ok(writer)) => writer.put(name, &data).map_err(failed),
            _ => Ok(()),
        })?;
        let finish = || writer.map(|writer| writer.and_then(Writer::finish).map_err(failed));
        self.world.lead_alone(finish)?.flatten().transpose()
    }

    /// Gives a checkpoint whose tensors are in `dir` its state and its place.
    fn publish(&self, dir: &Path, path: &Path, progress: &Progress, files: BTreeMap<String, Sum>) -> Result<(), Error> {
        let (file, fingerprint, checksum) = (dir.join(STATE), self.fingerprint.clone(), String::new());
        let mut state = State { format: FORMAT, fingerprint, progress: progress.clone(), files, checksum };
        let failed = |error: serde_json::Error| Error::io("write", &file)(error.into());
        state.checksum = state.sum().map_err(failed)?;
        let json = serde_json::to_vec_pretty(&state).map_err(failed)?;
        let write = || {
            let mut file = File::create(&file)?;
            file.write_all(&json)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &file))?;
        temper_files::flush(dir).map_err(Error::io("flush", dir))?;
        if path.exists() {
            self.remove(path)?;
        }
        fs::rename(dir, path).map_err(Error::io("write", path))?;
        temper_files::flush(&self.root).map_err(Error::io("flush", &self.root))?;

        let best = progress.best.as_ref().map(|(step, _)| *step);
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(self.keep_last)];
        for &step in old.iter().filter(|step| Some(**step) != best) {
            if let Err(error) = self.remove(&self.path(step)) {
                tracing::warn!("{error}");
            }
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<(State, Reader, Reader), Error> {
        let state = self.read_state(path)?;
        let (trainable, slots) = (open(path, TRAINABLE, &state)?, open(path, OPTIMIZER, &state)?);
        Ok((state, trainable, slots))
    }

    fn read_state(&self, dir: &Path) -> Result<State, Error> {
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let bytes = read_file(dir, STATE)?;
        let bad = |error: serde_json::Error| damaged(dir, format!("{STATE}: {error}"));
        let Version { format } = serde_json::from_slice(&bytes).map_err(bad)?;
        if format != FORMAT {
            return Err(Error::Format { path: dir.into(), found: format, wanted: FORMAT });
        }
        let state: State = serde_json::from_slice(&bytes).map_err(bad)?;
        if state.sum().map_err(bad)? != state.checksum {
            return Err(damaged(dir, format!("{STATE} is not what was written")));
        }
        if self.path(state.progress.step) != dir {
            return Err(damaged(dir, format!("{STATE} is that of step {}", state.progress.step)));
        }
        if state.fingerprint != self.fingerprint {
            let (found, wanted) = (state.fingerprint, self.fingerprint.clone());
            return Err(Error::OtherPlan { path: dir.into(), found, wanted });
        }
        Ok(state)
    }

    /// Where the checkpoint after `step` is.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step:06}"))
    }

    /// The steps that have a checkpoint, ascending.
    fn steps(&self) -> Result<Vec<u64>, Error> {
        let names = names(&self.root)?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        // Others may write here, too.
        steps.retain(|step| self.path(*step).is_dir());
        steps.sort_unstable();
        Ok(steps)
    }

    /// Takes a checkpoint out of the way before deleting it, so that a half deleted one never bears the name of a whole
    /// one.
    fn remove(&self, path: &Path) -> Result<(), Error> {
        let temporary = self.root.join(format!(".tmp-old-{}", name_of(path)));
        fs::rename(path, &temporary).map_err(Error::io("remove", path))?;
        fs::remove_dir_all(&temporary).map_err(Error::io("remove", &temporary))
    }

    /// Renames a damaged checkpoint to a name that is never read.
    fn set_aside(&self, path: &Path) -> Result<PathBuf, Error> {
        let aside = self.root.join(format!("damaged-{}", name_of(path)));
        if aside.exists() {
            self.remove(&aside)?;
        }
        fs::rename(path, &aside).map_err(Error::io("rename", path))?;
        Ok(aside)
    }
}

/// The trained parameters of the checkpoint in `dir`, by path.
///
/// # Errors
/// When it is not whole.
pub fn read_trained(dir: &Path) -> Result<BTreeMap<String, TensorData>, Error> {
    let bytes = read_file(dir, STATE)?;
    let state: State = serde_json::from_slice(&bytes).map_err(|error| damaged(dir, format!("{STATE}: {error}")))?;
    open(dir, TRAINABLE, &state)?.read(|_| true).map_err(Error::io("read", &dir.join(TRAINABLE)))
}

/// The parameter that a slot of the optimizer is of.
fn parameter_of(slot: &str) -> &str {
    slot.rsplit_once('.').map_or("", |(path, _)| path)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(Error::io("list", dir))?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn damaged(dir: &Path, reason: String) -> Error {
    Error::Damaged { path: dir.into(), reason }
}

/// Of the trainable parameters in the file of the checkpoint `dir`, which must be those of the model, what this rank keeps.
fn part(mut file: Reader, dir: &Path, shared: &Shared) -> Result<BTreeMap<String, TensorData>, Error> {
    fits(&file, &shared.parameters).map_err(|reason| Error::Mismatch { path: dir.into(), reason })?;
    file.read(|path| shared.keeps(path)).map_err(Error::io("read", &dir.join(TRAINABLE)))
}

/// Whether a file holds the trainable parameters, all of them and no others.
fn fits(file: &Reader, held: &BTreeMap<String, Held>) -> Result<(), String> {
    let found: BTreeMap<&str, &Outline> = file.outlines().collect();
    if let Some(path) = held.keys().find(|path| !found.contains_key(path.as_str())) {
        return Err(format!("it lacks the trainable parameter `{path}`"));
    }
    for (path, found) in found {
        match held.get(path).map(Held::outline) {
            None => return Err(format!("it has `{path}`, which is no trainable parameter of the model")),
            Some(wanted) if wanted != *found => {
                return Err(format!("`{path}` is {found}, and the model's is {wanted}"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Opens a file of tensors that is as it was written.
fn open(dir: &Path, name: &str, state: &State) -> Result<Reader, Error> {
    let path = dir.join(name);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => damaged(dir, format!("{name} is missing")),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged(dir, format!("{name}: {error}")),
        _ => Error::io("read", &path)(error),
    };
    let found = File::open(&path).and_then(|mut file| sum(&mut file)).map_err(failed)?;
    match state.files.get(name) {
        Some(wanted) if wanted.bytes != found.bytes => {
            Err(damaged(dir, format!("{name} has {} bytes of {}", found.bytes, wanted.bytes)))
        }
        Some(wanted) if *wanted == found => Reader::open(&path).map_err(failed),
        _ => Err(damaged(dir, format!("{name} is not what was written: its checksum differs"))),
    }
}

fn read_file(dir: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = dir.join(name);
    fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(dir, format!("{name} is missing")),
        _ => Error::io("read", &path)(error),
    })
}
