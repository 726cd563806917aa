//! Which rank a process is: what its launcher says.

use crate::{Address, Backend, Error};

/// Where a process stands among those of its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those on its machine.
    pub local_rank: usize,
    /// How many are on its machine.
    pub local_size: usize,
    /// Where they meet. Without, the launcher's MPI brings them together.
    pub meeting: Option<Address>,
    /// Who said so.
    pub launcher: &'static str,
}

/// The port at which ranks meet, unless `MASTER_PORT` says another: that of PyTorch.
const PORT: u16 = 29500;

/// The most ranks of a run.
const MOST: usize = 1 << 16;

/// The variables of a launcher: rank, size, rank on the machine, size on the machine.
const LAUNCHERS: [(&str, [&str; 4]); 4] = [
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    (
        "Open MPI",
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    ("PMI", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // Not SLURM_NTASKS, which a batch script that is alone has too.
    ("Slurm", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]),
];

impl Place {
    /// A process that nobody launched with others.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, local_size: 1, meeting: None, launcher: "nobody" }
    }

    /// What brings the ranks together, and carries whatever nothing else does.
    pub fn backend(&self) -> Backend {
        if self.meeting.is_some() { Backend::Tcp } else { Backend::Mpi }
    }

    /// What the environment says: that of torchrun (also of `temper launch` and `temper job k8s`), Open MPI, MPICH's PMI or
    /// Slurm, the first that is there; and `MASTER_ADDR` and `MASTER_PORT`, whoever it is.
    ///
    /// # Errors
    /// When variables of a launcher lack one, are no numbers, or contradict each other.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let is_set = |names: &[&str; 4]| match names {
            // Inside an allocation SLURM_PROCID is 0 where there is no step.
            ["SLURM_PROCID", size, ..] => var(size).is_some(),
            [rank, ..] => var(rank).is_some(),
        };
        let Some((launcher, names)) = LAUNCHERS.iter().find(|(_, names)| is_set(names)) else {
            return Ok(Self::alone());
        };
        let wrong = |what: String| Error::Environment(format!("{what} ({launcher})"));
        let number = |name: &str| -> Result<Option<usize>, Error> {
            let parse = |text: String| text.trim().parse().map_err(|_| wrong(format!("{name} is `{text}`, no number")));
            var(name).map(parse).transpose()
        };
        let [rank_name, size_name, local_rank_name, local_size_name] = *names;
        let missing = |name: &str| wrong(format!("{rank_name} is set, and {name} is not"));
        let rank = number(rank_name)?.ok_or_else(|| missing(rank_name))?;
        let size = number(size_name)?.ok_or_else(|| missing(size_name))?;
        let local_size = match *launcher {
            "Slurm" => var(local_size_name).and_then(|text| tasks_on(&text, number("SLURM_NODEID").ok()??)),
            _ => number(local_size_name)?,
        };
        // Who says nothing of machines has one process on each.
        let local_rank = number(local_rank_name)?.unwrap_or(0);
        let local_size = local_size.unwrap_or(local_rank + 1);
        if size > MOST {
            return Err(wrong(format!("{size_name} is {size}, and temper counts to {MOST}")));
        }
        if rank >= size {
            return Err(wrong(format!("{rank_name} is {rank}, and {size_name} is {size}")));
        }
        if local_rank >= local_size || local_size > size {
            return Err(wrong(format!(
                "{local_rank_name} is {local_rank} of {local_size} on its machine, of {size} in all"
            )));
        }
        // What one launcher left to be inherited must not make each of several ranks believe that it is alone.
        let several = LAUNCHERS.iter().filter(|(_, names)| size == 1 && is_set(names)).find_map(|(other, names)| {
            let size = var(names[1])?.trim().parse::<usize>().ok().filter(|size| *size > 1)?;
            Some(format!("{size_name} is 1, and {} is {size} ({other}); unset what is left over", names[1]))
        });
        match several {
            Some(what) => Err(wrong(what)),
            None => Ok(Self { rank, size, local_rank, local_size, meeting: meeting(&var)?, launcher }),
        }
    }
}

/// Where ranks meet, if anybody says.
fn meeting(var: impl Fn(&str) -> Option<String>) -> Result<Option<Address>, Error> {
    let Some(host) = var("MASTER_ADDR").filter(|host| !host.trim().is_empty()) else { return Ok(None) };
    let text = var("MASTER_PORT").unwrap_or_else(|| PORT.to_string());
    let port = text.trim().parse().ok().filter(|port| *port > 0);
    let port: u16 = port.ok_or_else(|| Error::Environment(format!("MASTER_PORT is `{text}`, no port")))?;
    // There torchrun itself listens.
    let taken = var("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
    let host = host.trim().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(Error::Environment(format!("MASTER_ADDR is `{host}`, no address")));
    }
    Ok(Some(Address { host, port: if taken { port.checked_add(1).unwrap_or(PORT) } else { port } }))
}

/// How many tasks a node has, of Slurm's `2(x3),1`.
fn tasks_on(text: &str, node: usize) -> Option<usize> {
    let mut first = 0;
    for run in text.split(',') {
        let (tasks, times) = run.split_once("(x").unwrap_or((run, "1)"));
        first += times.trim_end_matches(')').parse::<usize>().ok()?;
        if node < first {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Place, String> {
        let var = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Place::read(var).map_err(|error| error.to_string())
    }

    #[test]
    fn every_launcher_is_understood() {
        let place = |launcher, rank, size, local_rank, local_size| {
            Ok(Place { rank, size, local_rank, local_size, meeting: None, launcher })
        };
        assert_eq!(read(&[]), Ok(Place::alone()));
        assert_eq!(read(&[("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]), {
            place("torchrun", 3, 8, 1, 2)
        });
        assert_eq!(read(&[("RANK", "3"), ("WORLD_SIZE", "8")]), place("torchrun", 3, 8, 0, 1));
        let open_mpi = ["RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"].map(|end| format!("OMPI_COMM_WORLD_{end}"));
        let open_mpi: Vec<_> = open_mpi.iter().map(String::as_str).zip(["1", "4", "1", "4"]).collect();
        assert_eq!(read(&open_mpi), place("Open MPI", 1, 4, 1, 4));
        assert_eq!(read(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), place("PMI", 0, 2, 0, 1));
        let slurm = |node, rank, local| {
            read(&[
                ("SLURM_PROCID", rank),
                ("SLURM_STEP_NUM_TASKS", "5"),
                ("SLURM_LOCALID", local),
                ("SLURM_NODEID", node),
                ("SLURM_STEP_TASKS_PER_NODE", "2(x2),1"),
            ])
        };
        assert_eq!(slurm("1", "3", "1"), place("Slurm", 3, 5, 1, 2));
        assert_eq!(slurm("2", "4", "0"), place("Slurm", 4, 5, 0, 1));
        // A batch script without a step is alone.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), Ok(Place::alone()));
    }

    #[test]
    fn ranks_meet_where_they_are_told() {
        let meeting = |set: &[(&str, &str)]| -> Result<(Backend, Option<String>), String> {
            let place = read(&[&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")], set].concat())?;
            Ok((place.backend(), place.meeting.map(|meeting| meeting.to_string())))
        };
        let at = |address: &str| Ok((Backend::Tcp, Some(address.into())));
        assert_eq!(meeting(&[]), Ok((Backend::Mpi, None)));
        assert_eq!(meeting(&[("MASTER_PORT", "1234")]), Ok((Backend::Mpi, None)));
        assert_eq!(meeting(&[("MASTER_ADDR", "node7")]), at("node7:29500"));
        assert_eq!(meeting(&[("MASTER_ADDR", "node7"), ("MASTER_PORT", "1234")]), at("node7:1234"));
        assert_eq!(meeting(&[("MASTER_ADDR", "[fd00::7]"), ("MASTER_PORT", "1234")]), at("[fd00::7]:1234"));
        let torchrun = [("MASTER_ADDR", "a"), ("MASTER_PORT", "1234"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        assert_eq!(meeting(&torchrun), at("a:1235"));
        assert!(meeting(&[("MASTER_ADDR", "[]")]).unwrap_err().contains("MASTER_ADDR is ``, no address"));
        for port in ["http", "0", "65536"] {
            let error = meeting(&[("MASTER_ADDR", "a"), ("MASTER_PORT", port)]).unwrap_err();
            assert!(error.contains(&format!("MASTER_PORT is `{port}`, no port")), "{error}");
        }
    }

    #[test]
    fn half_an_environment_is_refused() {
        let error = |set: &[(&str, &str)]| read(set).unwrap_err();
        assert!(error(&[("RANK", "0")]).contains("RANK is set, and WORLD_SIZE is not (torchrun)"));
        assert!(error(&[("RANK", "two"), ("WORLD_SIZE", "2")]).contains("RANK is `two`, no number"));
        assert!(error(&[("RANK", "0"), ("WORLD_SIZE", "4000000000")]).contains("temper counts to 65536"));
        assert!(error(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("RANK is 2, and WORLD_SIZE is 2"));
        let local = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "2")];
        assert!(error(&local).contains("LOCAL_RANK is 3 of 2"));
        let inherited =
            [("RANK", "0"), ("WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        assert!(error(&inherited).contains("WORLD_SIZE is 1, and OMPI_COMM_WORLD_SIZE is 2 (Open MPI)"));
    }
}
