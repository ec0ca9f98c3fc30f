//! Tar archives, read in place: the headers are read once, every image by its position afterwards.
//!
//! Two layouts: WebDataset pairs, `key.jpg` with `key.cls` (a number or a name), where more than half of the images of
//! all archives have their `.cls`; else an image folder in an archive (class = first-level folder). What does not fit
//! is named in the log. An archive that does not end with the end mark is refused: it was cut.

use super::{FirstLevel, Labels, is_hidden, is_image_name};
use crate::files::SharedFile;
use crate::fingerprint::Fingerprint;
use crate::{Dataset, Error, Image, Result, decode, limits};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Headers, and contents padded to it, are whole numbers of these bytes.
const BLOCK: u64 = 512;

/// Images of one or more archives, in the order of the archives and of their entries.
#[derive(Debug)]
pub(crate) struct Shards {
    files: Vec<SharedFile>,
    images: Vec<Entry>,
    labels: Vec<Option<u32>>,
    classes: Vec<String>,
}

/// Where a file lies.
#[derive(Debug)]
struct Entry {
    shard: u32,
    offset: u64,
    size: u64,
    name: String,
}

impl Shards {
    /// Reads the headers of all archives.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut index = Index::default();
        let mut files = Vec::with_capacity(paths.len());
        for (shard, path) in paths.iter().enumerate() {
            let file = SharedFile::open(path, shard < limits::OPEN_ARCHIVES)?;
            index.scan(shard as u32, &file)?;
            files.push(file);
        }
        let (images, names) = if index.is_pairs() { index.pairs(&files)? } else { index.folders() };
        if images.is_empty() {
            return Err(Error::Empty { path: paths.first().cloned().unwrap_or_default() });
        }
        let Labels { classes, labels } = Labels::from_names(&names);
        Ok(Self { files, images, labels, classes })
    }
}

/// What the headers list.
#[derive(Default)]
struct Index {
    images: Vec<Entry>,
    /// `.cls` entries.
    classes: Vec<Entry>,
}

impl Index {
    fn scan(&mut self, shard: u32, file: &SharedFile) -> Result<()> {
        let path = file.path();
        let not_tar = |error: std::io::Error| Error::Malformed {
            path: path.to_owned(),
            reason: format!("not a readable tar archive ({error}); unpack a compressed one first"),
        };
        let mut end = 0;
        let mut archive = tar::Archive::new(File::open(path).map_err(Error::io(path))?);
        for entry in archive.entries_with_seek().map_err(not_tar)? {
            let entry = entry.map_err(|error| cut_header(file, &error).unwrap_or_else(|| not_tar(error)))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let is_file = entry.header().entry_type().is_file();
            // Of a file with holes the header states what is stored, the entry what that stands for.
            let size = if is_file { entry.size() } else { entry.header().entry_size().unwrap_or(0) };
            let found = Entry { shard, offset: entry.raw_file_position(), size, name };
            found.lies_inside(file)?;
            end = end.max(found.end().next_multiple_of(BLOCK));
            if is_file {
                self.add(found);
            }
        }
        // A reader takes the end of the file for the end of the archive, wherever it was cut between two entries.
        has_inside(file, end + BLOCK, || "the end mark".into())
    }

    /// Whether more than half of the images have a class of their own.
    fn is_pairs(&self) -> bool {
        let keys: HashSet<(u32, &str)> = self.classes.iter().map(Entry::sample).collect();
        let images = || self.images.iter().filter(|entry| entry.is_plain());
        let paired = images().filter(|entry| keys.contains(&entry.sample())).count();
        let pairs = 2 * paired > images().count();
        if pairs && paired < images().count() {
            tracing::warn!("{} images have no .cls entry beside them and so no class", images().count() - paired);
        } else if !pairs && !self.classes.is_empty() {
            tracing::warn!("{} .cls entries are left out: most images have none", self.classes.len());
        }
        pairs
    }

    fn add(&mut self, entry: Entry) {
        if entry.name.split('/').any(is_hidden) {
        } else if is_image_name(&entry.name) {
            self.images.push(entry);
        } else if entry.name.ends_with(".cls") {
            self.classes.push(entry);
        }
    }

    /// A folder in an archive: the first level are the classes.
    fn folders(self) -> (Vec<Entry>, Vec<Option<String>>) {
        let first_level = FirstLevel::of(self.images.iter().map(Entry::first_folder));
        let kept: Vec<Entry> =
            self.images.into_iter().filter(|entry| first_level.keeps(entry.first_folder())).collect();
        let names = kept.iter().map(|entry| entry.first_folder().map(str::to_owned)).collect();
        (kept, names)
    }

    /// `WebDataset`: what is named `key.<image extension>` is an image, its class stands in `key.cls`.
    fn pairs(self, files: &[SharedFile]) -> Result<(Vec<Entry>, Vec<Option<String>>)> {
        let mut classes = HashMap::new();
        for entry in &self.classes {
            let class = entry.bytes(files, limits::CLASS_BYTES)?;
            let class = String::from_utf8_lossy(&class).trim().to_owned();
            classes.insert(entry.sample(), class);
        }
        let kept: Vec<Entry> = self.images.into_iter().filter(Entry::is_plain).collect();
        let names = kept.iter().map(|entry| classes.get(&entry.sample()).cloned()).collect();
        Ok((kept, names))
    }
}

/// The error for a header block that is incomplete because the archive ends inside it.
fn cut_header(file: &SharedFile, error: &std::io::Error) -> Option<Error> {
    let rest = file.length() % BLOCK;
    (rest != 0 && error.to_string().contains("entire block")).then(|| Error::Truncated {
        path: file.path().to_owned(),
        what: "the last header".into(),
        expected: file.length() - rest + BLOCK,
        found: file.length(),
    })
}

/// Refuses a file that is shorter than `expected`.
fn has_inside(file: &SharedFile, expected: u64, what: impl FnOnce() -> String) -> Result<()> {
    if expected <= file.length() {
        return Ok(());
    }
    Err(Error::Truncated { path: file.path().to_owned(), what: what(), expected, found: file.length() })
}

impl Entry {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    fn lies_inside(&self, file: &SharedFile) -> Result<()> {
        has_inside(file, self.end(), || format!("entry {}", self.name))
    }

    /// What an image shares with its class.
    fn sample(&self) -> (u32, &str) {
        (self.shard, self.key().0)
    }

    /// Whether it is the image of its sample, not another picture beside it (`key.mask.png`).
    fn is_plain(&self) -> bool {
        !self.key().1.contains('.')
    }

    fn first_folder(&self) -> Option<&str> {
        self.name.split_once('/').map(|(first, _)| first)
    }

    /// The `WebDataset` key (up to the first dot of the file name) and what follows it.
    fn key(&self) -> (&str, &str) {
        let start = self.name.rfind('/').map_or(0, |slash| slash + 1);
        match self.name[start..].find('.') {
            Some(dot) => (&self.name[..start + dot], &self.name[start + dot + 1..]),
            None => (&self.name, ""),
        }
    }

    fn title(&self, files: &[SharedFile]) -> String {
        let path: &Path = files[self.shard as usize].path();
        format!("{}: {}", path.display(), self.name)
    }

    fn bytes(&self, files: &[SharedFile], limit: u64) -> Result<Vec<u8>> {
        limits::at_most(&self.title(files), "bytes of entry", self.size, limit)?;
        let mut bytes = vec![0; self.size as usize];
        files[self.shard as usize].read_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

impl Dataset for Shards {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn read(&self, index: usize) -> Result<Image> {
        let entry = &self.images[index];
        decode(&entry.bytes(&self.files, limits::ENCODED_BYTES)?, &entry.title(&self.files))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels[index]
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.images[index].title(&self.files)
    }

    /// Of the names and sizes of the entries, whatever the archives are called.
    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("archives", self.len());
        for image in &self.images {
            mark.bytes(image.name.as_bytes());
            mark.number(image.size);
        }
        mark.value()
    }
}
