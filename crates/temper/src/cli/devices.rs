//! `temper devices`.

use clap::Args;
use serde::Serialize;
use temper_device::{Api, DeviceName, Found, find, list};

use super::{print, writeln};
use crate::failure::{Context, Failure, Kind};
use crate::{memory, units};

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A device, or an interface without one.
#[derive(Debug, Default, Serialize)]
struct Row {
    /// What to call it in a recipe; an interface's own name where there is no device.
    device: String,
    /// What `auto` chooses.
    auto: bool,
    /// The hardware's name.
    hardware: Option<String>,
    /// Bytes: of the processor what can still be had, of a GPU all, where the driver says it.
    memory: Option<u64>,
    /// Types that it computes with.
    precisions: Vec<&'static str>,
    /// Whether it is the processor behind a GPU's interface.
    software: bool,
    /// Of NVIDIA's GPUs, whether their library of matrix products is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    cublaslt: Option<bool>,
    /// Why it cannot be used.
    problem: Option<String>,
}

impl DevicesArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let refused = |error: temper_device::Error| Failure::new(Kind::Other, format!("error: {error}"));
        let auto = find(DeviceName::Auto).map_err(refused)?.name;
        let processor = find(DeviceName::Cpu).map_err(refused)?;
        let mut rows = vec![Row { memory: memory::available(), ..row(&processor, auto) }];
        for api in Api::ALL {
            match list(api) {
                Ok(all) => rows.extend(all.iter().map(|found| row(found, auto))),
                Err(error) => {
                    let problem = Some(error.to_string());
                    rows.push(Row { device: api.name().into(), problem, ..Row::default() });
                }
            }
        }
        if self.json {
            return print(&serde_json::to_value(rows).context(Kind::Other, "failed to print the devices")?);
        }
        rows.iter().try_for_each(|row| writeln(&row.line()))
    }
}

/// What an open device says, or why it does not open.
fn row(found: &Found, auto: DeviceName) -> Row {
    let row = Row {
        device: found.name.to_string(),
        auto: found.name == auto,
        memory: found.memory,
        software: found.is_software(),
        cublaslt: matches!(found.name, DeviceName::Gpu(Api::Cuda, _)).then(temper_kernels::has_cublaslt),
        ..Row::default()
    };
    match found.refusal().map_or_else(|| found.open(), Err) {
        Ok(device) => {
            let facts = found.facts(&device);
            Row { hardware: Some(facts.hardware), precisions: facts.precisions, ..row }
        }
        Err(error) => Row { problem: Some(error.to_string()), ..row },
    }
}

impl Row {
    fn line(&self) -> String {
        if let Some(problem) = &self.problem {
            return format!("{:<9} {problem}", self.device);
        }
        let memory = self.memory.map_or_else(|| "memory not known".into(), units::bytes);
        let hardware = self.hardware.as_deref().unwrap_or_default();
        let mut line = format!("{:<9} {hardware}, {memory}, {}", self.device, self.precisions.join(" "));
        if self.software {
            line += "; a software rasterizer: `cpu` is faster";
        }
        if self.cublaslt == Some(false) {
            line += "; libcublasLt, without which products are slower, is missing: install `libcublas-…` of NVIDIA's \
                     repository";
        }
        if self.auto {
            line += "; what `auto` chooses";
        }
        line
    }
}
