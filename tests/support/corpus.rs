//! The messages that tests are fed with: this project's own, and those of RFC 4475 and RFC 5118 where they are at hand.

use std::path::{Path, PathBuf};

/// The folder of this project's own messages. The crate of fuzz targets lies two folders below the project's own.
pub fn own() -> PathBuf {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("tests/data/own"));
    folders.into_iter().find(|folder| folder.is_dir()).expect("the project's messages")
}

/// The folder called `name` of the corpus of other people's messages: below what `VIAHOP_CORPUS` names, or in a folder
/// `corpus` beside the checkout. Says so where there is none.
pub fn foreign(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("VIAHOP_CORPUS").map(PathBuf::from);
    let beside = || {
        let around = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let folders = std::fs::read_dir(around).ok()?.flatten().map(|entry| entry.path().join("corpus"));
        folders.into_iter().find(|folder| folder.join(name).is_dir())
    };
    let folder = named.or_else(beside)?.join(name);
    folder.is_dir().then_some(folder)
}

/// All messages there are, with the names of their files, in the order of these.
pub fn messages() -> Vec<(String, Vec<u8>)> {
    let folders = [Some(own()), foreign("rfc4475"), foreign("rfc5118")];
    let files = folders.into_iter().flatten().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let mut messages: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| ["sip", "bin", "dat"].iter().any(|known| end == *known)))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    messages.sort();
    assert!(messages.len() >= 178, "{}", messages.len());
    messages
}
