//! What is on the disk? Files and directories, whole or not at all, even where a process is killed or a machine loses its power.
//!
//! What replaces something is filled under a name beside it, `.NAME.PID-N.WHAT`, written through to the disk and renamed. [`clear`]
//! removes what killed processes left under such names.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PARTIAL: &str = "partial";
const NEW: &str = "new";
const OLD: &str = "old";

/// A hidden name beside `path` that no other thread or process uses; `what` says what for.
#[must_use]
pub fn beside(path: &Path, what: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{count}.{what}", std::process::id()))
}

/// The name and the use of what [`beside`] called so.
fn parts(name: &str) -> Option<(&str, &str)> {
    let (rest, what) = name.strip_prefix('.')?.rsplit_once('.')?;
    let (whole, number) = rest.rsplit_once('.')?;
    let (pid, count) = number.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (!whole.is_empty() && is_number(pid) && is_number(count)).then_some((whole, what))
}

/// Whether `path` leads to something that is neither a file nor a directory: a device, a pipe.
#[must_use]
pub fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Writes a file so that a reader sees the old one or the whole new one: `fill` makes a neighbour, which takes its place. What a link
/// leads to is replaced, not the link; a device or a pipe is written to.
///
/// # Errors
/// When `fill` or the system fails; the neighbour is then removed.
pub fn write(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let real = fs::canonicalize(path).ok().filter(|_| path.is_symlink());
    let path = real.as_deref().unwrap_or(path);
    if is_special(path) {
        return fill(path);
    }
    let partial = beside(path, PARTIAL);
    let written = fill(&partial).and_then(|()| {
        File::options().append(true).open(&partial)?.sync_all()?;
        fs::rename(&partial, path)?;
        flush_parent(path)
    });
    // The first error is the one to report.
    written.inspect_err(|_| drop(fs::remove_file(&partial)))
}

/// Writes the names in a directory through to the disk. Windows neither needs nor allows it.
///
/// # Errors
/// When the system fails.
pub fn flush(dir: &Path) -> Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn flush_parent(path: &Path) -> Result<()> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), flush)
}

/// A directory that will take the place of another.
pub struct Replacement {
    new: PathBuf,
    dir: PathBuf,
}

impl Replacement {
    /// Makes an empty neighbour of `dir`, which must have a name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(dir: &Path) -> Result<Self> {
        if dir.file_name().is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, "it is no name for a directory"));
        }
        let new = beside(dir, NEW);
        // What a killed process of the same number left.
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        Ok(Self { new, dir: dir.into() })
    }

    /// Where it is to be filled.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.new
    }

    /// Puts it in its place: a reader sees the old directory or the whole new one, or for the blink between two renames none.
    ///
    /// # Errors
    /// When the system fails; what was there stays.
    pub fn publish(self) -> Result<()> {
        let Self { new, dir } = &self;
        if dir.exists() {
            let old = beside(dir, OLD);
            let _ = fs::remove_dir_all(&old);
            fs::rename(dir, &old)?;
            fs::rename(new, dir).inspect_err(|_| drop(fs::rename(&old, dir)))?;
            let _ = fs::remove_dir_all(old);
        } else {
            fs::rename(new, dir)?;
        }
        flush_parent(dir)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.new);
    }
}

/// Clears what killed processes were replacing in `dir`, where no other may be writing: half files and half directories go, an old
/// directory takes its name again where the new one had not. What cannot be cleared does no harm.
pub fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let left = entry.file_name().to_string_lossy().into_owned();
        let Some((name, what)) = parts(&left) else { continue };
        let whole = dir.join(name);
        let _ = match what {
            PARTIAL => fs::remove_file(entry.path()),
            OLD if !whole.exists() => fs::rename(entry.path(), whole),
            NEW | OLD => fs::remove_dir_all(entry.path()),
            _ => Ok(()),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    /// The count in a name of [`beside`].
    fn count_of(path: &Path) -> u64 {
        let name = path.to_str().unwrap();
        name[name.rfind('-').unwrap() + 1..].split('.').next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        write(&path, |file| fs::write(file, "old")).unwrap();
        let failed = write(&path, |file| fs::write(file, "half").and(Err(Error::other("full"))));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!((fs::read_to_string(&path).unwrap(), names(place.path())), ("old".into(), vec!["file".to_owned()]));
        assert!(write(&place.path().join("none/file"), |file| fs::write(file, "new")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_devices_are_written_to() {
        let place = tempfile::tempdir().unwrap();
        let (link, real) = (place.path().join("link"), place.path().join("real"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write(&link, |file| fs::write(file, "new")).unwrap();
        assert_eq!((link.is_symlink(), fs::read_to_string(real).unwrap()), (true, "new".into()));
        assert!(is_special(Path::new("/dev/null")) && !is_special(place.path()));
        write(Path::new("/dev/null"), |file| fs::write(file, "gone")).unwrap();
    }

    #[test]
    fn a_directory_is_replaced_whole_or_stays() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("model");
        for name in ["a", "b"] {
            let there = Replacement::begin(&dir).unwrap();
            fs::write(there.path().join(name), name).unwrap();
            there.publish().unwrap();
            assert_eq!((names(&dir), names(place.path())), (vec![name.to_owned()], vec!["model".to_owned()]));
        }
        // What a killed process of the same number left, under the name that comes next (other tests take some, too).
        let next = count_of(&beside(&dir, NEW)) + 1;
        for count in next..next + 64 {
            let left = place.path().join(format!(".model.{}-{count}.{NEW}", std::process::id()));
            fs::create_dir(&left).unwrap();
            fs::write(left.join("left"), "over").unwrap();
        }
        let there = Replacement::begin(&dir).unwrap();
        assert!(count_of(there.path()) < next + 64 && names(there.path()).is_empty());
        drop(there);
        clear(place.path());
        // Gone before it is put in its place.
        let lost = Replacement::begin(&dir).unwrap();
        fs::remove_dir(lost.path()).unwrap();
        assert!(lost.publish().is_err());
        assert_eq!((names(&dir), names(place.path())), (vec!["b".to_owned()], vec!["model".to_owned()]));
        assert!(Replacement::begin(&dir.join("..")).is_err());
    }

    #[test]
    fn what_killed_processes_left_is_cleared() {
        let place = tempfile::tempdir().unwrap();
        for name in ["model", ".model.12-0.old", ".model.12-0.new", ".v1.5.7-1.old", ".mine.x-1.new"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        for name in [".plan.json.7-3.partial", ".plan.json.7.partial", ".file.7-1.tmp"] {
            fs::write(place.path().join(name), "{").unwrap();
        }
        clear(place.path());
        assert_eq!(names(place.path()), [".file.7-1.tmp", ".mine.x-1.new", ".plan.json.7.partial", "model", "v1.5"]);
    }
}
