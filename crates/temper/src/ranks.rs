//! The ranks of a run, one process for each device: how they join, and how they end together.

use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use burn::tensor::{Device, Tensor};
use serde::Serialize;
use temper_engine::Sharing;
use temper_kernels::Nccl;
use temper_world::{Backend, Collectives, DistributedConfig, Error, Limits, Place, Shard, Verdict, World};

use crate::failure::{Context, Failure, Kind};
use crate::recipe::parse_duration;

/// How ranks share a run.
#[derive(Debug, Clone, Serialize)]
pub struct RanksPlan {
    /// How many there are.
    pub ranks: usize,
    /// What carries gradients and parameters between several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// What each keeps only its part of.
    pub shard: Shard,
    /// Why.
    pub why: &'static str,
}

impl RanksPlan {
    /// What `config` comes to for the ranks that a launcher started.
    pub fn new(config: &DistributedConfig, place: &Place, adapter: bool) -> Self {
        let ranks = place.size;
        let backend = if config.backend == Backend::Auto { place.backend() } else { config.backend };
        let (shard, why) = match config.shard {
            _ if ranks == 1 => (Shard::None, "one rank has everything"),
            Shard::Auto if adapter => {
                (Shard::None, "what an adapter trains is small beside the base, which each rank needs")
            }
            Shard::Auto => {
                (Shard::Optimizer, "the optimizer's state of all parameters is divided for the same bytes on the wire")
            }
            asked => (asked, "the recipe says so"),
        };
        Self { ranks, backend: (ranks > 1).then_some(backend), shard, why }
    }

    /// What the loop needs of it.
    pub fn sharing(&self, config: &DistributedConfig) -> Sharing {
        Sharing { shard: self.shard, bucket_bytes: config.bucket_mib << 20, check_every: config.check_every }
    }
}

/// Where the launcher, if there is one, has put this process.
///
/// # Errors
/// When its variables contradict each other.
pub fn place() -> Result<Place, Failure> {
    Place::read(|name| std::env::var(name).ok()).context(Kind::Recipe, "the launcher's environment is wrong")
}

/// Joins the ranks that the launcher started for the run of this name, or, without one, for whatever the others are to do.
///
/// # Errors
/// When there are several, and they cannot be joined.
pub fn join(run: &str) -> Result<World, Failure> {
    let place = place()?;
    let size = place.size;
    let joined = World::join(place, run, move |verdict| tell(verdict, size));
    let kind = match &joined {
        Err(Error::NotBuilt { .. } | Error::OtherWorld { .. } | Error::Refused { .. }) => Kind::Recipe,
        _ => Kind::World,
    };
    joined.context(kind, "the ranks did not come together")
}

/// The same rank, whose tensors go as the recipe says from the device that it opened.
///
/// # Errors
/// When the GPUs cannot be joined.
pub fn on_device(world: &World, config: &DistributedConfig, device: &Device) -> Result<World, Failure> {
    if world.is_single() || config.backend != Backend::Nccl {
        return Ok(world.clone());
    }
    let apart = "the ranks did not come together by NCCL";
    let drawn = if world.leads() { Nccl::invitation() } else { Ok(Vec::new()) };
    let invitation = world.from_lead(drawn).context(Kind::World, apart)?;
    let joined = invitation.and_then(|invitation| Nccl::join(device, world.rank(), world.size(), &invitation));
    let nccl = joined.map_err(|error| Failure::new(Kind::World, format!("{apart}: {error}")))?;
    Ok(world.wrapped(|others| Rc::new(OnGpus { nccl, others })))
}

/// Tensors by NCCL, the rest by what joined the ranks.
struct OnGpus {
    nccl: Nccl,
    others: Rc<dyn Collectives>,
}

impl Collectives for OnGpus {
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
        self.nccl.all_reduce(values).map_err(Error::collective("all_reduce"))
    }

    fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        self.nccl.reduce_scatter(values, parts).map_err(Error::collective("reduce_scatter"))
    }

    fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        self.nccl.all_gather(part, parts).map_err(Error::collective("all_gather"))
    }

    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.others.exchange(bytes)
    }

    fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.others.collect(bytes)
    }
}

/// What ends all ranks that this one has joined, from any thread: told the cause and the exit code.
pub type Ending = OnceLock<Box<dyn Fn(String, u8) + Send + Sync>>;

/// Ends the process at once, and with it the ranks that it has joined.
pub fn end_at_once(ending: &Ending) {
    let code = Kind::Interrupted as u8;
    if let Some(end) = ending.get() {
        end("was asked to stop at once".into(), code);
    }
    std::process::exit(i32::from(code));
}

/// Says why all ranks end.
fn tell(verdict: &Verdict, size: usize) {
    let Verdict { rank, step, cause, code } = verdict;
    let at = if *step == 0 { "before the first step".into() } else { format!("at step {step}") };
    let cause = cause.strip_prefix("error: ").unwrap_or(cause);
    if *code == Kind::Interrupted as u8 {
        return say!("all ranks end: rank {rank} of {size} {at} {cause}");
    }
    let message = format!("error: rank {rank} of {size} {at}: {cause}");
    if *code == temper_world::WORLD_FAILED {
        say!("{message}\n  = help: all ranks end; the same command goes on from the last checkpoint");
    } else {
        say!("{message}");
    }
}

/// After how long ranks are given up.
pub fn limits(config: &DistributedConfig) -> Limits {
    let default = Limits::default();
    let read = |text: &str, default: Duration| parse_duration(text).unwrap_or(default);
    Limits { silence: read(&config.silence, default.silence), patience: read(&config.patience, default.patience) }
}

/// Ends a run on this rank: in peace, or together with the others, of which one speaks.
pub fn end<T>(world: &World, result: Result<T, Failure>) -> Result<T, Failure> {
    let asked = |failure: &Failure| failure.kind == Kind::Interrupted;
    match &result {
        Err(failure) if !asked(failure) => world.fail(&failure.to_string(), failure.kind as u8),
        _ => world.goodbye(),
    }
    result.map_err(|failure| if world.leads() { failure } else { failure.unsaid() })
}
