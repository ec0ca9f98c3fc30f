//! Which training images a low-shot score learns from: drawn, or named in files.

use crate::config::{LowShotList, LowShotSettings};
use crate::{Error, Result};
use occlude_data::Dataset;
use occlude_random::Streams;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Subsets of one size: the score is the mean over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowShotSplit {
    /// `5-shot`, or the name of the list.
    pub name: String,
    /// Images of each subset by index in the data set, ascending.
    pub subsets: Vec<Vec<usize>>,
}

/// The subsets `settings` ask for: those of its lists, or, where it has none, drawn ones.
///
/// # Errors
/// Nothing is labelled, a class has too few images, a file cannot be read, or a line of it names no image, several, one
/// without class, or one of another class than the text before its last underscore.
pub fn low_shot_splits(dataset: &dyn Dataset, settings: &LowShotSettings) -> Result<Vec<LowShotSplit>> {
    if settings.lists.is_empty() { drawn(dataset, settings) } else { listed(dataset, &settings.lists) }
}

/// As many images of every class as asked for, from the stream `lowshot/subset` of `settings.seed` (epoch: the subset,
/// index: the class). A smaller number is the beginning of a larger one.
fn drawn(dataset: &dyn Dataset, settings: &LowShotSettings) -> Result<Vec<LowShotSplit>> {
    let mut classes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for index in 0..dataset.len() {
        if let Some(label) = dataset.label(index) {
            classes.entry(label).or_default().push(index);
        }
    }
    if classes.is_empty() {
        return Err(Error::NoLabels { what: "low-shot" });
    }
    let needed = settings.shots.last().copied().unwrap_or(1);
    if let Some((label, images)) = classes.iter().find(|(_, images)| images.len() < needed) {
        let class = dataset.classes().get(*label as usize).cloned().unwrap_or_else(|| label.to_string());
        return Err(Error::FewOfClass { class, got: images.len(), needed });
    }
    let streams = Streams::new(settings.seed);
    let orders: Vec<Vec<Vec<usize>>> = (0..settings.subsets as u64)
        .map(|subset| {
            let order = |(label, images): (&u32, &Vec<usize>)| {
                let mut images = images.clone();
                let count = images.len();
                occlude_random::choose(
                    &mut streams.stream("lowshot/subset", subset, u64::from(*label)),
                    &mut images,
                    count,
                );
                images
            };
            classes.iter().map(order).collect()
        })
        .collect();
    let split = |&shots: &usize| LowShotSplit {
        name: format!("{shots}-shot"),
        subsets: orders
            .iter()
            .map(|classes| {
                let mut images: Vec<usize> = classes.iter().flat_map(|images| &images[..shots]).copied().collect();
                images.sort_unstable();
                images
            })
            .collect(),
    };
    Ok(settings.shots.iter().map(split).collect())
}

fn listed(dataset: &dyn Dataset, lists: &[LowShotList]) -> Result<Vec<LowShotSplit>> {
    let names: Vec<String> = (0..dataset.len()).map(|index| dataset.name(index)).collect();
    let mut by_stem: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        by_stem.entry(stem(file_name(name))).or_default().push(index);
    }
    let find = Find { dataset, names: &names, by_stem };
    let split = |list: &LowShotList| {
        let subsets = list.files.iter().map(|file| find.all(file)).collect::<Result<_>>()?;
        Ok(LowShotSplit { name: list.name.clone(), subsets })
    };
    lists.iter().map(split).collect()
}

/// Finds images by the names of a list.
struct Find<'a> {
    dataset: &'a dyn Dataset,
    names: &'a [String],
    by_stem: HashMap<&'a str, Vec<usize>>,
}

impl Find<'_> {
    /// The images a file names, ascending.
    fn all(&self, file: &Path) -> Result<Vec<usize>> {
        let refuse = |message: String| Error::List { path: file.to_owned(), message };
        let text = std::fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() {
                continue;
            }
            let index = self.one(line).map_err(|why| refuse(format!("line {number}: `{line}`: {why}")))?;
            if !seen.insert(index) {
                return Err(refuse(format!("line {number}: `{line}`: named twice")));
            }
            found.push(index);
        }
        if found.is_empty() {
            return Err(refuse("names no image".into()));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The image with this file name, or, where none has, with its stem; in the folder given, if one is.
    fn one(&self, line: &str) -> Result<usize, String> {
        let (file, folder) = (file_name(line), folder(line));
        let alike = self.by_stem.get(stem(file)).map_or(&[][..], Vec::as_slice);
        let exact: Vec<usize> = alike.iter().copied().filter(|index| file_name(&self.names[*index]) == file).collect();
        let mut candidates = if exact.is_empty() { alike.to_vec() } else { exact };
        if folder.is_some() {
            candidates.retain(|index| self::folder(&self.names[*index]) == folder);
        }
        let class = stem(file).rsplit_once('_').map(|(class, _)| class);
        if candidates.len() > 1 && class.is_some() {
            candidates.retain(|index| self.class(*index) == class);
        }
        let [index] = candidates[..] else {
            let several = candidates.len() > 1;
            let why =
                if several { "several images have this name; put their folder before it" } else { "no such image" };
            return Err(why.into());
        };
        let Some(own) = self.class(index) else { return Err("has no class in the data set".into()) };
        match class.filter(|class| *class != own && self.dataset.classes().iter().any(|known| known == class)) {
            Some(class) => Err(format!("is of class {own} in the data set, not {class}")),
            None => Ok(index),
        }
    }

    fn class(&self, index: usize) -> Option<&str> {
        self.dataset.classes().get(self.dataset.label(index)? as usize).map(String::as_str)
    }
}

/// Parts of a path, the last first; of an entry inside an archive (`archive.tar: entry`) those of the entry.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.rsplit(": ").next().unwrap_or(name).rsplit(['/', '\\'])
}

fn file_name(name: &str) -> &str {
    parts(name).next().unwrap_or(name)
}

/// The name of the folder around a file, where the name says.
fn folder(name: &str) -> Option<&str> {
    parts(name).nth(1)
}

fn stem(file: &str) -> &str {
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}
