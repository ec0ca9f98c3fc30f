//! CIFAR-10 and CIFAR-100 in their binary form: records of one or two label bytes and 3 x 32 x 32 planar pixels.

use super::file_name;
use crate::files::SharedFile;
use crate::fingerprint::Fingerprint;
use crate::{Dataset, Error, Image, Result};
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PIXELS: usize = 3 * PLANE;

/// Which of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One label byte, ten classes.
    Ten,
    /// A coarse and a fine label byte; the fine one is used, a hundred classes.
    Hundred,
}

impl Kind {
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    fn record(self) -> u64 {
        (self.label_bytes() + PIXELS) as u64
    }

    fn class_count(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// The kind of a file by its name, where that is one of the published ones.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let name = file_name(path);
        let stem = name.strip_suffix(".bin")?;
        match stem {
            "train" | "test" => Some(Self::Hundred),
            "test_batch" => Some(Self::Ten),
            _ => stem.starts_with("data_batch").then_some(Self::Ten),
        }
    }
}

/// Records of one or more files.
#[derive(Debug)]
pub(crate) struct Cifar {
    kind: Kind,
    files: Vec<SharedFile>,
    /// Records before each file, and in all.
    starts: Vec<usize>,
    labels: Vec<u8>,
    classes: Vec<String>,
}

impl Cifar {
    /// Checks the lengths and reads the labels.
    pub(crate) fn open(kind: Kind, paths: &[PathBuf]) -> Result<Self> {
        let mut set = Self { kind, files: Vec::new(), starts: vec![0], labels: Vec::new(), classes: Vec::new() };
        set.classes = class_names(kind, paths)?;
        for path in paths {
            set.add(SharedFile::open(path, true)?)?;
        }
        Ok(set)
    }

    fn add(&mut self, file: SharedFile) -> Result<()> {
        let (found, record) = (file.length(), self.kind.record());
        if found == 0 || found % record != 0 {
            return Err(Error::WrongLength { path: file.path().to_owned(), found, record });
        }
        for number in 0..found / record {
            let mut label = [0_u8];
            file.read_at(&mut label, number * record + self.kind.label_bytes() as u64 - 1)?;
            if usize::from(label[0]) >= self.classes.len() {
                let reason =
                    format!("record {number} has label {}, but there are {} classes", label[0], self.classes.len());
                return Err(Error::Malformed { path: file.path().to_owned(), reason });
            }
            self.labels.push(label[0]);
        }
        self.starts.push(self.labels.len());
        self.files.push(file);
        Ok(())
    }

    /// The file of a record and its number inside.
    fn place(&self, index: usize) -> (&SharedFile, usize) {
        let file = self.starts.partition_point(|&start| start <= index) - 1;
        (&self.files[file], index - self.starts[file])
    }
}

/// Names from the text file beside the records, else the numbers.
fn class_names(kind: Kind, paths: &[PathBuf]) -> Result<Vec<String>> {
    let list = match kind {
        Kind::Ten => "batches.meta.txt",
        Kind::Hundred => "fine_label_names.txt",
    };
    let count = kind.class_count();
    let list = paths.first().and_then(|path| path.parent()).map(|folder| folder.join(list));
    let Some(list) = list.filter(|list| list.is_file()) else {
        return Ok((0..count).map(|class| class.to_string()).collect());
    };
    let text = std::fs::read_to_string(&list).map_err(Error::io(&list))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() != count {
        let reason = format!("{} class names, {count} expected", names.len());
        return Err(Error::Malformed { path: list, reason });
    }
    Ok(names)
}

impl Dataset for Cifar {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn read(&self, index: usize) -> Result<Image> {
        let (file, number) = self.place(index);
        let mut planes = [0_u8; PIXELS];
        file.read_at(&mut planes, number as u64 * self.kind.record() + self.kind.label_bytes() as u64)?;
        let pixels = (0..PLANE).flat_map(|pixel| [planes[pixel], planes[PLANE + pixel], planes[2 * PLANE + pixel]]);
        Ok(Image { width: SIDE, height: SIDE, pixels: pixels.collect() })
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some(u32::from(self.labels[index]))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        let (file, number) = self.place(index);
        format!("{}: record {number}", file.path().display())
    }

    /// Of the labels in order: the records have no names.
    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("cifar", self.len());
        mark.number(self.kind.class_count() as u64);
        mark.bytes(&self.labels);
        mark.value()
    }
}
