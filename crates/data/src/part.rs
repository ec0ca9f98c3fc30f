//! A part of a data set under a shared list of classes.

use crate::fingerprint::Fingerprint;
use crate::{Dataset, Image, Result};
use std::sync::Arc;

/// Some images of a data set, their labels given by the places of their classes in `classes`.
pub(crate) struct Part {
    inner: Arc<dyn Dataset>,
    /// `None`: all, in order.
    indices: Option<Vec<u32>>,
    classes: Vec<String>,
    /// Place in `classes` of each class of `inner`.
    places: Vec<Option<u32>>,
}

impl Part {
    /// The images `indices` of `inner` under `classes`; an image whose class is not
    /// among them has no label.
    pub(crate) fn new(inner: Arc<dyn Dataset>, indices: Option<Vec<u32>>, classes: Vec<String>) -> Self {
        let place = |name: &String| classes.iter().position(|class| class == name).map(|place| place as u32);
        let places = inner.classes().iter().map(place).collect();
        Self { inner, indices, classes, places }
    }

    fn index(&self, index: usize) -> usize {
        self.indices.as_ref().map_or(index, |indices| indices[index] as usize)
    }
}

impl Dataset for Part {
    fn len(&self) -> usize {
        self.indices.as_ref().map_or_else(|| self.inner.len(), Vec::len)
    }

    fn read(&self, index: usize) -> Result<Image> {
        self.inner.read(self.index(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        let label = self.inner.label(self.index(index))?;
        self.places.get(label as usize).copied().flatten()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(self.index(index))
    }

    fn fingerprint(&self) -> u64 {
        let Some(indices) = &self.indices else { return self.inner.fingerprint() };
        let mut mark = Fingerprint::new("part", indices.len());
        mark.number(self.inner.fingerprint());
        indices.iter().for_each(|&index| mark.number(index.into()));
        mark.value()
    }
}
