//! `groundling credentials`: makes the account and the token of a Label Studio that is started beside groundling.
//!
//! Label Studio reads the variables in the file `.env` of its data folder when it starts, and creates the account then.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use ring::rand::{SecureRandom, SystemRandom};

use super::print_result;
use crate::config::CredentialsArgs;

/// The user of the account. Label Studio's users are e-mail addresses.
const USER: &str = "admin@localhost";
/// Label Studio's file of variables in its data folder.
const LABEL_STUDIO_FILE: &str = ".env";
/// Label Studio's database in its data folder. If it exists, Label Studio has accounts already.
const LABEL_STUDIO_DATABASE: &str = "label_studio.sqlite3";
/// Characters of passwords, without those that look alike.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const PASSWORD_LENGTH: usize = 20;
/// The length of Label Studio's own tokens, in bytes.
const TOKEN_BYTES: usize = 20;

/// Makes the credentials that are missing, and writes them to Label Studio's data folder; or shows them.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(args: &CredentialsArgs) -> anyhow::Result<()> {
    if args.show {
        let read = |name: &str| {
            let path = args.folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        print_result(format_args!("user:     {USER}"));
        print_result(format_args!("password: {}", read("password")?.trim()));
        print_result(format_args!("token:    {}", read("token")?.trim()));
        return Ok(());
    }
    fs::create_dir_all(&args.folder)
        .with_context(|| format!("cannot create the folder {}", args.folder.display()))?;
    let password = kept_or_new(&args.folder.join("password"), password)?;
    let token = kept_or_new(&args.folder.join("token"), token)?;
    if let Some(data) = &args.label_studio_data {
        if data.join(LABEL_STUDIO_DATABASE).exists() {
            print_result(
                "Label Studio has data, so no account is added; to connect it with a token of an existing account, set LABEL_STUDIO_ACCESS_TOKEN",
            );
        } else {
            let variables = [
                ("LABEL_STUDIO_USERNAME", USER),
                ("LABEL_STUDIO_PASSWORD", &password),
                ("LABEL_STUDIO_USER_TOKEN", &token),
            ];
            add_variables(&data.join(LABEL_STUDIO_FILE), &variables)?;
            print_result(format_args!(
                "Label Studio creates the account {USER} when it starts"
            ));
        }
    }
    print_result(format_args!(
        "the credentials are in {}; --show prints them",
        args.folder.display()
    ));
    Ok(())
}

/// The text of a file; if there is none, a new one is made and written, readable by its owner only.
fn kept_or_new(path: &Path, make: fn() -> anyhow::Result<String>) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    }
    let text = make()?;
    append(path, &text)?;
    Ok(text)
}

/// Adds the variables that a file does not set yet.
fn add_variables(path: &Path, variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let existing = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let is_set = |name: &str| {
        let names = existing.lines().filter_map(|line| line.split_once('='));
        names.into_iter().any(|(set, _)| set.trim() == name)
    };
    let missing: String = variables
        .iter()
        .filter(|(name, _)| !is_set(name))
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let separator = match existing.is_empty() || existing.ends_with('\n') {
        true => "",
        false => "\n",
    };
    append(path, &format!("{separator}{missing}"))
}

/// Appends to a file, which is created readable by its owner only.
fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn password() -> anyhow::Result<String> {
    let bytes: [u8; PASSWORD_LENGTH] = random()?;
    // 32 characters divide 256, so all are equally likely
    let letters = bytes
        .iter()
        .map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()]);
    Ok(letters.map(char::from).collect())
}

fn token() -> anyhow::Result<String> {
    let bytes: [u8; TOKEN_BYTES] = random()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow!("the system's random numbers cannot be read"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path) -> CredentialsArgs {
        CredentialsArgs {
            folder: folder.join("secrets"),
            label_studio_data: Some(folder.to_owned()),
            show: false,
        }
    }

    #[test]
    fn credentials_are_made_once_and_what_label_studio_stored_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(LABEL_STUDIO_FILE);
        fs::write(&file, "SECRET_KEY=abc").unwrap();
        run(&args(folder.path())).unwrap();
        let first = fs::read_to_string(&file).unwrap();
        let token = fs::read_to_string(folder.path().join("secrets/token")).unwrap();
        let password = fs::read_to_string(folder.path().join("secrets/password")).unwrap();
        assert_eq!((token.len(), password.len()), (40, PASSWORD_LENGTH));
        let lines: Vec<&str> = first.lines().collect();
        assert_eq!(
            lines,
            [
                "SECRET_KEY=abc",
                "LABEL_STUDIO_USERNAME=admin@localhost",
                &format!("LABEL_STUDIO_PASSWORD={password}"),
                &format!("LABEL_STUDIO_USER_TOKEN={token}"),
            ]
        );
        run(&args(folder.path())).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), first);
        // other machines have other credentials
        let other = tempfile::tempdir().unwrap();
        run(&args(other.path())).unwrap();
        let other = fs::read_to_string(other.path().join("secrets/token")).unwrap();
        assert_ne!(other, token);
    }

    #[test]
    fn a_label_studio_with_data_gets_no_account() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LABEL_STUDIO_DATABASE), "").unwrap();
        run(&args(folder.path())).unwrap();
        assert!(!folder.path().join(LABEL_STUDIO_FILE).exists());
        assert!(folder.path().join("secrets/token").exists());
    }

    #[cfg(unix)]
    #[test]
    fn only_their_owner_can_read_credentials() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        for name in ["secrets/token", "secrets/password", LABEL_STUDIO_FILE] {
            let metadata = fs::metadata(folder.path().join(name)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
}
