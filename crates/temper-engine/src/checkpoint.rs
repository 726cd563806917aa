//! Checkpoints: what a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-000123/` holds `trainable.safetensors` (the trainable parameters by path), `optimizer.safetensors`
//! (`<path>.<slot>`) and `state.json` (the rest, and a checksum of the two files). A checkpoint is written beside its
//! place, flushed to the disk and then renamed: whatever happens, a directory of that name is whole, or damaged by
//! something else, which the checksums show. It resumes training; it is not what one ships.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde::{Deserialize, Serialize};
use temper_world::World;

use crate::error::Error;
use crate::event::Event;
use crate::optim::Optimizer;
use crate::plan::{Scores, Site};
use crate::scale::LossScale;
use crate::shared::Shared;
use crate::weights::{self, Held};

/// How long a rank waits to see what rank 0 has written.
const VISIBLE: Duration = Duration::from_secs(30);
const FORMAT: u64 = 2;
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
    /// Evaluations since the metric last improved.
    pub stale: u32,
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
}

/// Length and checksum of a file, against accidents and not against attackers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sum {
    bytes: u64,
    checksum: String,
}

pub(crate) type Values = BTreeMap<String, TensorData>;

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
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
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

    /// Restores the newest usable checkpoint into the model and the optimizer. Damaged newer ones are set aside, with
    /// an event.
    pub fn resume<M: Module>(
        &self,
        model: M,
        optimizer: &mut Optimizer,
        shared: &Shared,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<(M, Progress), Error> {
        let held = weights::held(&model)?;
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
            fits(&trainable, &held).map_err(mismatch)?;
            shared.keep_own(&mut slots);
            optimizer.write(slots, &held).map_err(mismatch)?;
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

    /// Puts the trainable parameters of the checkpoint after `step` into `model`.
    pub fn weights_of<M: Module>(&self, step: u64, model: M) -> Result<M, Error> {
        let path = self.path(step);
        let state = self.read_state(&path)?;
        let trainable = read_tensors(&path, TRAINABLE, &state)?;
        fits(&trainable, &weights::held(&model)?).map_err(|reason| Error::Mismatch { path, reason })?;
        Ok(weights::write(model, trainable))
    }

    /// Writes a checkpoint, then removes those that need not be kept. On failure the older ones are as they were.
    ///
    /// Rank 0 writes, the others look whether they see it.
    pub fn save<M: Module>(
        &self,
        progress: &Progress,
        model: &M,
        optimizer: &Optimizer,
        shared: &Shared,
    ) -> Result<PathBuf, Error> {
        let state = shared.collect(optimizer, progress.step)?;
        self.world.lead_alone(|| self.save_alone(progress, model, state))?.transpose()?;
        let path = self.path(progress.step);
        self.see(&path)?;
        if !self.world.leads() {
            self.read_state(&path)?;
        }
        Ok(path)
    }

    fn save_alone<M: Module>(
        &self,
        progress: &Progress,
        model: &M,
        optimizer: Vec<(String, TensorData)>,
    ) -> Result<(), Error> {
        let path = self.path(progress.step);
        let temporary = self.root.join(format!(".tmp-step-{:06}", progress.step));
        let written = self.write(&temporary, progress, model, optimizer).and_then(|()| {
            if path.exists() {
                self.remove(&path)?;
            }
            fs::rename(&temporary, &path).map_err(Error::io("write", &path))
        });
        if let Err(error) = written {
            // The error above says more than one of cleaning up would.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        flush_dir(&self.root)?;

        let best = progress.best.as_ref().map(|(step, _)| *step);
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(self.keep_last)];
        for &step in old.iter().filter(|step| Some(**step) != best) {
            self.remove(&self.path(step))?;
        }
        Ok(())
    }

    fn write<M: Module>(
        &self,
        dir: &Path,
        progress: &Progress,
        model: &M,
        optimizer: Vec<(String, TensorData)>,
    ) -> Result<(), Error> {
        let device = |reason| Error::Device { step: progress.step, reason };
        let weights = weights::read(model).map_err(device)?;
        let bad = |values: &TensorData| values.as_slice::<f32>().is_ok_and(|x| x.iter().any(|x| !x.is_finite()));
        if let Some((name, _)) = weights.iter().find(|(_, values)| bad(values)) {
            return Err(Error::Ruined { step: progress.step, what: format!("`{name}`") });
        }
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let files = BTreeMap::from([
            (TRAINABLE.into(), write_tensors(&dir.join(TRAINABLE), weights)?),
            (OPTIMIZER.into(), write_tensors(&dir.join(OPTIMIZER), optimizer)?),
        ]);
        let state = State { format: FORMAT, fingerprint: self.fingerprint.clone(), progress: progress.clone(), files };
        let path = dir.join(STATE);
        let json = serde_json::to_vec_pretty(&state).map_err(|error| Error::io("write", &path)(error.into()))?;
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&json)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))?;
        flush_dir(dir)
    }

    fn read(&self, path: &Path) -> Result<(State, Values, Values), Error> {
        let state = self.read_state(path)?;
        let (trainable, slots) = (read_tensors(path, TRAINABLE, &state)?, read_tensors(path, OPTIMIZER, &state)?);
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
        if state.fingerprint != self.fingerprint {
            let (found, wanted) = (state.fingerprint, self.fingerprint.clone());
            return Err(Error::OtherPlan { path: dir.into(), found, wanted });
        }
        Ok(state)
    }

    fn path(&self, step: u64) -> PathBuf {
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
    read_tensors(dir, TRAINABLE, &state)
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

/// Whether the values are those of the trainable parameters, all of them and no others.
fn fits(values: &Values, held: &BTreeMap<String, Held>) -> Result<(), String> {
    if let Some(path) = held.keys().find(|path| !values.contains_key(*path)) {
        return Err(format!("it lacks the trainable parameter `{path}`"));
    }
    for (path, data) in values {
        let text = |shape: &[usize], dtype| format!("{dtype:?} of shape {shape:?}");
        let found = text(data.shape().as_slice(), data.dtype());
        match held.get(path).map(|held| text(&held.shape, held.dtype)) {
            None => return Err(format!("it has `{path}`, which is no trainable parameter of the model")),
            Some(wanted) if wanted != found => return Err(format!("`{path}` is {found}, and the model's is {wanted}")),
            Some(_) => {}
        }
    }
    Ok(())
}

const DTYPES: [(DType, Dtype); 5] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
];

fn write_tensors(path: &Path, tensors: Vec<(String, TensorData)>) -> Result<Sum, Error> {
    let write = || -> io::Result<Sum> {
        let views = tensors.iter().map(|(name, data)| Ok((name, view(name, data)?))).collect::<io::Result<Vec<_>>>()?;
        serialize_to_file(views, None::<HashMap<String, String>>, path).map_err(io::Error::other)?;
        File::open(path)?.sync_all()?;
        sum(&mut File::open(path)?)
    };
    write().map_err(Error::io("write", path))
}

fn view<'a>(name: &str, data: &'a TensorData) -> io::Result<TensorView<'a>> {
    let dtype = DTYPES.iter().find(|(burn, _)| *burn == data.dtype()).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| io::Error::other(format!("`{name}` is {:?}", data.dtype())))?;
    TensorView::new(dtype, data.shape().to_vec(), data.as_bytes()).map_err(io::Error::other)
}

fn read_tensors(dir: &Path, name: &str, state: &State) -> Result<Values, Error> {
    let bytes = read_file(dir, name)?;
    let found = sum(&mut bytes.as_slice()).map_err(Error::io("read", dir))?;
    match state.files.get(name) {
        Some(wanted) if wanted.bytes != found.bytes => {
            return Err(damaged(dir, format!("{name} has {} bytes of {}", found.bytes, wanted.bytes)));
        }
        Some(wanted) if *wanted == found => {}
        _ => return Err(damaged(dir, format!("{name} is not what was written: its checksum differs"))),
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(dir, format!("{name}: {error}")))?;
    let value = |(path, view): (&str, TensorView)| {
        let dtype = DTYPES.iter().find(|(_, dtype)| *dtype == view.dtype()).map(|(burn, _)| *burn);
        let dtype = dtype.ok_or_else(|| damaged(dir, format!("{name}: `{path}` is {:?}", view.dtype())))?;
        Ok((path.to_owned(), TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)))
    };
    file.iter().map(value).collect()
}

fn read_file(dir: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = dir.join(name);
    fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(dir, format!("{name} is missing")),
        _ => Error::io("read", &path)(error),
    })
}

/// The checksum of tensors, of their names and every bit.
pub(crate) fn checksum(tensors: &[(String, TensorData)]) -> String {
    let mut state = START;
    for (name, data) in tensors {
        state = [name.as_bytes(), data.as_bytes()].into_iter().fold(state, mix);
    }
    format!("{state:016x}")
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(state: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(state, |state, word| {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        (state ^ u64::from_le_bytes(padded)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Length and checksum of what can be read: words of 8 bytes, each xored into the state, which is then multiplied and
/// rotated.
fn sum(reader: &mut impl Read) -> io::Result<Sum> {
    let (mut bytes, mut state, mut buffer) = (0, START, vec![0; 1 << 20]);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        state = mix(state, &buffer[..filled]);
        bytes += filled as u64;
        if filled < buffer.len() {
            return Ok(Sum { bytes, checksum: format!("{state:016x}") });
        }
    }
}

/// Makes names in a directory durable. Windows neither needs nor allows it.
fn flush_dir(dir: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", dir))?;
    }
    Ok(())
}
