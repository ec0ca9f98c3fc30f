//! A scratch folder with what a test puts there.

use crate::{Run, speckles};
use std::path::{Path, PathBuf};

/// A scratch folder, removed at the end, in which the program runs.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
}

/// Settings that train in a second or two: eight steps of a toy model on the built-in pictures.
const TINY: &str = include_str!("../tiny.toml");

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// An empty laboratory with the config `tiny.toml`.
    ///
    /// # Panics
    /// There is no place for scratch files.
    #[must_use]
    pub fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().expect("a scratch folder") };
        lab.write("tiny.toml", TINY);
        lab
    }

    /// Adds `images/{a,b}/<n>.png`, `count` pictures in two classes.
    #[must_use]
    pub fn images(self, count: u32) -> Self {
        for n in 0..count {
            let class = ["a", "b"][n as usize % 2];
            speckles(&self.path(&format!("images/{class}/{n}.png")), 24, n);
        }
        self
    }

    /// The full path of something in the laboratory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The laboratory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Reads a file.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{}", self.tree()))
    }

    /// Reads a text file.
    ///
    /// # Panics
    /// It cannot be read or is not text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// The program with these arguments (split at spaces), not yet started.
    #[must_use]
    pub fn occlude(&self, arguments: &str) -> Run<'_> {
        Run::new(self, arguments)
    }

    /// Names of the checkpoints of a run, oldest first.
    ///
    /// # Panics
    /// The run has no folder of checkpoints.
    #[must_use]
    pub fn checkpoints(&self, run: &str) -> Vec<String> {
        let folder = self.path(run).join("checkpoints");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{run}: {error}\n{}", self.tree()));
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
        names.sort();
        names
    }

    /// The tensor files of the newest checkpoint of a run, by name: weights, averages, prototypes, moments. (Its JSON
    /// state also holds the seconds spent, which are never equal.)
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn weights(&self, run: &str) -> Vec<(String, Vec<u8>)> {
        let newest = self.checkpoints(run).pop().unwrap_or_else(|| panic!("{run} has no checkpoint\n{}", self.tree()));
        let folder = self.path(run).join("checkpoints").join(newest);
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<(String, Vec<u8>)> = files
            .filter(|file| file.path().extension().is_some_and(|ending| ending == "safetensors"))
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    /// All files with their sizes, for messages.
    #[must_use]
    pub fn tree(&self) -> String {
        let mut lines = Vec::new();
        list(self.root(), self.root(), &mut lines);
        lines.sort();
        lines.join("\n")
    }
}

fn list(root: &Path, folder: &Path, lines: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(root, &path, lines);
        } else {
            let size = entry.metadata().map_or(0, |metadata| metadata.len());
            lines.push(format!("  {} ({size} bytes)", path.strip_prefix(root).unwrap_or(&path).display()));
        }
    }
}
