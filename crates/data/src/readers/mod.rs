//! One reader per kind of data set. Each gives random access and unpacks nothing to disk.

pub(crate) mod cifar;
pub(crate) mod folder;
pub(crate) mod idx;
pub(crate) mod tar;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Whether a file name ends like an image that can be decoded.
pub(crate) fn is_image_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg" | "webp" | "tif" | "tiff"))
}

/// Whether a path component is a file system's own (`.git`, `._photo.jpg`, `__MACOSX`).
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX"
}

/// Classes of a list of images, by the names found for each.
pub(crate) struct Labels {
    /// Sorted; by value where all are numbers.
    pub(crate) classes: Vec<String>,
    /// Of each image.
    pub(crate) labels: Vec<Option<u32>>,
}

impl Labels {
    /// Sorts the names into classes.
    pub(crate) fn from_names(names: &[Option<String>]) -> Self {
        let classes = sorted_classes(names.iter().flatten());
        let places: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let place = |name: &Option<String>| places.get(name.as_deref()?).copied();
        let labels = names.iter().map(place).collect();
        Self { labels, classes }
    }
}

/// Each name once: by value where all are numbers, else by letters.
pub(crate) fn sorted_classes<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let unique: BTreeSet<&String> = names.collect();
    let mut classes: Vec<String> = unique.into_iter().cloned().collect();
    let number = |name: &String| name.parse::<u64>().ok();
    if classes.iter().all(|name| number(name).is_some()) {
        classes.sort_by_key(number);
    }
    classes
}

/// What the first level of folders means, given the folders of every image (`None`: no folder above it).
pub(crate) enum FirstLevel {
    /// Class names.
    Classes,
    /// Pairs of `images/` and `labels/` for segmentation: only the images are images.
    Pairs,
}

impl FirstLevel {
    pub(crate) fn of<'a>(folders: impl Iterator<Item = Option<&'a str>>) -> Self {
        let names: BTreeSet<Option<&str>> = folders.collect();
        if names == BTreeSet::from([Some("images"), Some("labels")]) { Self::Pairs } else { Self::Classes }
    }

    /// Whether an image below `folder` belongs to the set.
    pub(crate) fn keeps(&self, folder: Option<&str>) -> bool {
        match self {
            Self::Classes => true,
            Self::Pairs => folder == Some("images"),
        }
    }
}

/// The file name of a path for messages and comparisons; not lossless for names that are not UTF-8.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{FirstLevel, Labels, is_image_name};

    fn names(list: &[&str]) -> Vec<Option<String>> {
        list.iter().map(|name| Some((*name).to_owned())).collect()
    }

    #[test]
    fn classes_are_sorted_by_value_where_they_are_numbers() {
        let numbers = Labels::from_names(&names(&["10", "9", "10"]));
        assert_eq!((numbers.classes, numbers.labels), (vec!["9".into(), "10".into()], vec![Some(1), Some(0), Some(1)]));
        let words = Labels::from_names(&names(&["b", "10", "9"]));
        assert_eq!(words.classes, ["10", "9", "b"]);
    }

    #[test]
    fn label_pictures_of_a_segmentation_set_are_not_images() {
        let pairs = FirstLevel::of([Some("images"), Some("labels")].into_iter());
        assert!(pairs.keeps(Some("images")) && !pairs.keeps(Some("labels")));
        let classes = FirstLevel::of([Some("images"), Some("labels"), Some("cats")].into_iter());
        assert!(classes.keeps(Some("labels")));
    }

    #[test]
    fn extensions_count_in_any_case() {
        assert!(
            is_image_name("a.JPeG") && is_image_name("b.c.TIF") && !is_image_name("jpg") && !is_image_name("a.txt")
        );
    }
}
