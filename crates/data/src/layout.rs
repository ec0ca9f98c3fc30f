//! What kind of data set lies at a path, and whether it comes with a test split.
//!
//! A file is judged by its name, a folder by what is directly inside, in this order: CIFAR or IDX files (there, or in
//! the one folder that the published archives unpack to: `cifar-10-batches-bin`, `cifar-100-binary`, `raw`), a `train`
//! folder beside a `test`, `val`, `validation` or `valid` folder (in any case), tar archives, and else a folder of
//! images. Archives beside images are refused: either could be meant.

use crate::readers::{cifar, folder, idx, tar};
use crate::readers::{file_name, is_hidden};
use crate::{Dataset, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names of a held-out split; the first that is there is taken, what has another is left out.
const TEST_NAMES: [&str; 4] = ["test", "val", "validation", "valid"];

/// The folders that the published archives of CIFAR and MNIST unpack to.
const UNPACKED: [&str; 3] = ["cifar-10-batches-bin", "cifar-100-binary", "raw"];

/// One split, found but not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A folder of images.
    Folder(PathBuf),
    /// Archives.
    Shards(Vec<PathBuf>),
    /// Binary records.
    Cifar(cifar::Kind, Vec<PathBuf>),
    /// Arrays: the image file.
    Idx(PathBuf),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(root) => write!(f, "image folder {}", root.display()),
            Self::Shards(paths) => write!(f, "{} tar archives from {} on", paths.len(), paths[0].display()),
            Self::Cifar(_, paths) => write!(f, "{} CIFAR files from {} on", paths.len(), paths[0].display()),
            Self::Idx(images) => write!(f, "IDX file {}", images.display()),
        }
    }
}

impl Found {
    pub(crate) fn open(&self) -> Result<Arc<dyn Dataset>> {
        tracing::debug!("opening {self}");
        Ok(match self {
            Self::Folder(root) => Arc::new(folder::Folder::open(root)?),
            Self::Shards(paths) => Arc::new(tar::Shards::open(paths)?),
            Self::Cifar(kind, paths) => Arc::new(cifar::Cifar::open(*kind, paths)?),
            Self::Idx(images) => Arc::new(idx::Idx::open(images, idx::labels_beside(images).as_deref())?),
        })
    }
}

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The training split, or all there is.
    pub(crate) train: Found,
    /// A test split that lies beside it.
    pub(crate) test: Option<Found>,
}

impl Layout {
    fn single(train: Found) -> Self {
        Self { train, test: None }
    }

    /// Looks at `path`: a file, a folder, or a glob of archives.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        if path.is_file() {
            return of_file(path).map(Self::single);
        }
        let text = path.to_string_lossy();
        if text.contains(['*', '?', '[']) {
            return of_glob(path, &text).map(Self::single);
        }
        Err(Error::Missing { path: path.to_owned() })
    }

    fn of_folder(root: &Path) -> Result<Self> {
        let inside = Inside::of(root)?;
        if let Some(layout) = Self::binary(&inside) {
            return Ok(layout);
        }
        if let [only] = &inside.folders[..]
            && UNPACKED.contains(&file_name(only).as_str())
            && let Some(layout) = Self::binary(&Inside::of(only)?)
        {
            return Ok(layout);
        }
        if let (Some(train), Some(test)) = (inside.folder("train"), inside.first_folder(&TEST_NAMES)) {
            let (train, test) = (Self::of_folder(train)?, Self::of_folder(test)?);
            return Ok(Self { train: train.train, test: Some(test.train) });
        }
        let archives = inside.archives();
        let Some(archive) = archives.first() else { return Ok(Self::single(Found::Folder(root.to_owned()))) };
        if let Some(image) = folder::first_image(root) {
            return Err(Error::Mixed { path: root.to_owned(), archive: archive.clone(), image });
        }
        Ok(Self::of_archives(archives))
    }

    /// Files of binary records or arrays.
    fn binary(inside: &Inside) -> Option<Self> {
        Self::cifar(inside).or_else(|| Self::idx(inside))
    }

    fn cifar(inside: &Inside) -> Option<Self> {
        let of = |kind, test: bool| -> Vec<PathBuf> {
            let wanted = |path: &&PathBuf| cifar::Kind::of_file(path) == Some(kind) && is_test(path) == test;
            inside.files.iter().filter(wanted).cloned().collect()
        };
        for kind in [cifar::Kind::Ten, cifar::Kind::Hundred] {
            let splits = [of(kind, false), of(kind, true)];
            if let Some(layout) = Self::of_splits(splits, |paths| Found::Cifar(kind, paths)) {
                return Some(layout);
            }
        }
        None
    }

    fn idx(inside: &Inside) -> Option<Self> {
        let mut images: Vec<&PathBuf> =
            inside.files.iter().filter(|path| idx::is_images_name(&file_name(path))).collect();
        // Packed and unpacked side by side are the same set: the unpacked file sorts first and is kept.
        images.dedup_by(|later, first| file_name(later) == format!("{}.gz", file_name(first)));
        let (test, train): (Vec<&PathBuf>, Vec<&PathBuf>) = images.into_iter().partition(|path| is_test(path));
        let splits = [train, test].map(|paths| paths.first().map(|&path| vec![path.clone()]).unwrap_or_default());
        Self::of_splits(splits, |mut paths| Found::Idx(paths.remove(0)))
    }

    /// Archives by their names: of several held-out splits the first of [`TEST_NAMES`] is the test split.
    fn of_archives(archives: Vec<PathBuf>) -> Self {
        let rank = |path: &PathBuf| test_rank(path);
        let Some(first) = archives.iter().filter_map(rank).min() else { return Self::single(Found::Shards(archives)) };
        let (held_out, train): (Vec<PathBuf>, Vec<PathBuf>) = archives.into_iter().partition(|path| is_test(path));
        if train.is_empty() {
            return Self::single(Found::Shards(held_out));
        }
        let (test, others): (Vec<PathBuf>, Vec<PathBuf>) =
            held_out.into_iter().partition(|path| rank(path) == Some(first));
        if let Some(other) = others.first() {
            tracing::warn!("{}: left out, {} is the test split", other.display(), test[0].display());
        }
        Self { train: Found::Shards(train), test: Some(Found::Shards(test)) }
    }

    /// A layout of the files of both splits; a test split alone is all there is.
    fn of_splits([train, test]: [Vec<PathBuf>; 2], found: impl Fn(Vec<PathBuf>) -> Found) -> Option<Self> {
        match (train.is_empty(), test.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Self::single(found(test))),
            (false, true) => Some(Self::single(found(train))),
            (false, false) => Some(Self { train: found(train), test: Some(found(test)) }),
        }
    }
}

/// Whether a word of the file name announces a held-out split: `test.tar`, `Birds-Val-003.tar`, `t10k-images...`.
fn is_test(path: &Path) -> bool {
    test_rank(path).is_some()
}

/// The place in [`TEST_NAMES`] of the first such name among the words of the file name.
fn test_rank(path: &Path) -> Option<usize> {
    let name = file_name(path).to_ascii_lowercase();
    let words: Vec<&str> = name.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    if words.contains(&"t10k") {
        return Some(0);
    }
    let plain = |word: &&str| word.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_owned();
    TEST_NAMES.iter().position(|&wanted| words.iter().any(|word| plain(word) == wanted))
}

fn of_file(path: &Path) -> Result<Found> {
    let name = file_name(path);
    if name.ends_with(".tar") {
        return Ok(Found::Shards(vec![path.to_owned()]));
    }
    if let Some(kind) = cifar::Kind::of_file(path) {
        return Ok(Found::Cifar(kind, vec![path.to_owned()]));
    }
    if idx::is_images_name(&name) {
        return Ok(Found::Idx(path.to_owned()));
    }
    let reason = if [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".zip"].iter().any(|end| name.ends_with(end)) {
        "a compressed archive has no random access; unpack it to a folder or to a plain .tar"
    } else {
        "not a data set; a folder of images, a .tar, a CIFAR .bin or an IDX image file is read"
    };
    Err(Error::Unrecognised { path: path.to_owned(), reason: reason.into() })
}

fn of_glob(path: &Path, pattern: &str) -> Result<Found> {
    let unusable = |reason: String| Error::Unrecognised { path: path.to_owned(), reason };
    let found = glob::glob(pattern).map_err(|error| unusable(format!("not a usable pattern: {error}")))?;
    let mut archives = Vec::new();
    for entry in found {
        let entry = entry.map_err(|error| Error::Io { path: error.path().to_owned(), source: error.into() })?;
        if !file_name(&entry).ends_with(".tar") {
            return Err(unusable(format!(
                "the pattern meets {}, but only .tar archives can be joined",
                entry.display()
            )));
        }
        archives.push(entry);
    }
    if archives.is_empty() { Err(Error::Missing { path: path.to_owned() }) } else { Ok(Found::Shards(archives)) }
}

/// What is directly inside a folder, sorted.
struct Inside {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Inside {
    fn of(root: &Path) -> Result<Self> {
        let mut inside = Self { files: Vec::new(), folders: Vec::new() };
        for entry in std::fs::read_dir(root).map_err(Error::io(root))? {
            let path = entry.map_err(Error::io(root))?.path();
            if is_hidden(&file_name(&path)) {
            } else if path.is_dir() {
                inside.folders.push(path);
            } else {
                inside.files.push(path);
            }
        }
        inside.files.sort();
        inside.folders.sort();
        Ok(inside)
    }

    fn archives(&self) -> Vec<PathBuf> {
        self.files.iter().filter(|path| file_name(path).ends_with(".tar")).cloned().collect()
    }

    /// The folder of this name in any case: many published sets have `Train` and `Test`.
    fn folder(&self, name: &str) -> Option<&Path> {
        self.folders.iter().find(|path| file_name(path).eq_ignore_ascii_case(name)).map(PathBuf::as_path)
    }

    fn first_folder(&self, names: &[&str]) -> Option<&Path> {
        names.iter().find_map(|name| self.folder(name))
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Layout, is_test};
    use crate::Error;
    use std::path::Path;

    #[test]
    fn words_of_a_name_tell_the_split() {
        for name in [
            "test.tar",
            "val-003.tar",
            "birds_validation_1.tar",
            "test_batch.bin",
            "t10k-images-idx3-ubyte.gz",
            "Test2015.tar",
        ] {
            assert!(is_test(Path::new(name)), "{name}");
        }
        for name in ["train-000.tar", "contest.tar", "valley.tar", "data_batch_1.bin", "train-images-idx3-ubyte"] {
            assert!(!is_test(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn split_folders_come_before_stray_archives_and_a_lone_split_is_all() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["both/train", "both/val", "lone"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("both/tools.tar"), b"").unwrap();
        std::fs::write(root.path().join("lone/test.tar"), b"").unwrap();
        let both = Layout::find(&root.path().join("both")).unwrap();
        let folder = |name: &str| Found::Folder(root.path().join(name));
        assert_eq!(both, Layout { train: folder("both/train"), test: Some(folder("both/val")) });
        let lone = Layout::find(&root.path().join("lone")).unwrap();
        assert_eq!(lone, Layout { train: Found::Shards(vec![root.path().join("lone/test.tar")]), test: None });
    }

    /// A folder with these empty files, and what is found there; paths relative to it.
    fn found(files: &[&str]) -> Result<[String; 2], Error> {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        let place = format!("{}", root.path().display());
        let text = |found: Option<Found>| format!("{found:?}").replace(&format!("{place}/"), "").replace(&place, ".");
        Layout::find(root.path()).map(|layout| [text(Some(layout.train)), text(layout.test)])
    }

    #[test]
    fn only_a_binary_set_is_looked_for_in_a_folder_named_raw() {
        let photos = found(&["1.jpg", "2.jpg", "raw/1.CR2", "raw/1.jpg"]).unwrap();
        assert_eq!(photos, ["Some(Folder(\".\"))", "None"]);
        let [train, test] = found(&["raw/train-images-idx3-ubyte", "raw/t10k-images-idx3-ubyte"]).unwrap();
        assert!(train.contains("raw/train-images") && test.contains("raw/t10k-images"), "{train} {test}");
    }

    #[test]
    fn names_of_splits_count_in_any_case() {
        let [train, test] = found(&["Train/cat/1.jpg", "Test/cat/1.jpg"]).unwrap();
        assert_eq!([train, test], ["Some(Folder(\"Train\"))", "Some(Folder(\"Test\"))"]);
        let [train, test] = found(&["Train.tar", "VAL.tar"]).unwrap();
        assert_eq!([train, test], ["Some(Shards([\"Train.tar\"]))", "Some(Shards([\"VAL.tar\"]))"]);
    }

    #[test]
    fn of_two_held_out_splits_the_first_is_taken() {
        let [train, test] = found(&["train-0.tar", "val-0.tar", "test-0.tar", "test-1.tar"]).unwrap();
        assert_eq!(train, "Some(Shards([\"train-0.tar\"]))");
        assert_eq!(test, "Some(Shards([\"test-0.tar\", \"test-1.tar\"]))");
        let [all, test] = found(&["val.tar", "test.tar"]).unwrap();
        assert_eq!([all, test], ["Some(Shards([\"test.tar\", \"val.tar\"]))".to_owned(), "None".to_owned()]);
    }

    #[test]
    fn archives_beside_images_are_refused() {
        for files in [["1.jpg", "backup.tar"], ["train/cat/1.jpg", "test.tar"]] {
            let refused = found(&files).unwrap_err().to_string();
            assert!(refused.contains(files[0]) && refused.contains(files[1]), "{refused}");
            assert!(refused.contains("give the path of one or the other") && !refused.contains('\n'), "{refused}");
        }
        found(&["notes/readme.md", "shards.tar"]).unwrap();
    }
}
