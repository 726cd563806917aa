//! Logging in and out: the token file that Python's client reads too.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use crate::{Account, Error, Hub, Origin, Result, Settings, Token, settings::Setting};

/// Asks the hub whose the token is, and writes it to the token file, for the owner's eyes only (mode 0600).
///
/// # Errors
/// When the hub does not accept the token, or the file cannot be written. Then nothing is changed.
pub fn login(settings: &Settings, token: Token) -> Result<Account> {
    let asked = Settings { token: Setting { value: Some(token.clone()), origin: Origin::Given }, ..settings.clone() };
    let account = Hub::new(asked)?.whoami()?;
    let path = &settings.token_file.value;
    write_secret(path, token.secret()).map_err(Error::io("write the token file", path))?;
    Ok(account)
}

/// Removes the token file; says whether there was one. A token in a variable stays in force.
///
/// # Errors
/// When the file cannot be removed.
pub fn logout(settings: &Settings) -> Result<bool> {
    let path = &settings.token_file.value;
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("delete the token file", path)(error)),
    }
}

/// Never readable by others, not even for a moment: created with its mode, beside its place, then renamed.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    temper_files::write(path, |file| {
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(file)?.write_all(text.as_bytes())
    })
}
