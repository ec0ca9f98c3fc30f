//! Pictures for the report: what was hidden, what patches look like to the model, neighbours, clusters.

use crate::log::one_line;
use crate::open::{Images, weights};
use anyhow::Result;
use candle_core::{Device, Tensor};
use occlude_config::Run;
use occlude_data::{Dataset, EvalMode, Image};
use occlude_eval::{FeatureRequest, PcaMaps, choose, cluster_gallery, features_of, neighbours, pca_maps};
use occlude_methods::{Method, Painted};
use occlude_random::Streams;
use occlude_report::{
    Cluster, MaskPicture, Neighbour, NeighbourRow, Part, PcaMap, PcaPicture, Picture, Reconstruction, ReportData, draw,
};

/// Pictures of each kind.
const SHOWN: usize = 8;
/// Neighbours of an image.
const NEIGHBOURS: usize = 8;
/// Images among which neighbours are looked for.
const BANK: usize = 2000;
/// Images whose patches are sorted into clusters.
const CLUSTERED: usize = 256;
/// Clusters shown, and patches of each.
const GALLERY: (usize, usize) = (24, 12);
/// Small pictures are enlarged to this side, so that a pixel is a square one can see.
const SIDE: usize = 96;

/// What pictures are made of.
pub(crate) struct Pictures<'a> {
    pub(crate) run: &'a Run,
    pub(crate) images: &'a Images,
    pub(crate) device: &'a Device,
    pub(crate) method: &'a dyn Method,
    /// The same model with random weights.
    pub(crate) random: &'a dyn Method,
}

impl Pictures<'_> {
    /// Fills the parts of the report that show images. A part that cannot be made says why; the rest of the page stands.
    pub(crate) fn fill(&self, data: &mut ReportData) {
        data.masks = made("masks", self.masks().map(Part::from));
        data.reconstructions = match self.reconstructions() {
            Ok(None) => None, // It predicts something else.
            Ok(Some(rows)) => Some(rows.into()),
            Err(error) => Some(made("predictions", Err(error))),
        };
        data.pca = made("feature maps", self.maps().map(Part::from));
        data.neighbours = made("neighbours", self.neighbours());
        data.clusters = made("clusters", self.clusters());
    }

    /// Held-out images where there are any.
    fn dataset(&self) -> &dyn Dataset {
        self.images.test.as_deref().unwrap_or(&*self.images.train)
    }

    fn some(&self, dataset: &dyn Dataset, count: usize, purpose: &str) -> Vec<usize> {
        choose(dataset.len(), Some(count), &Streams::new(0), purpose)
    }

    /// Masks as the student gets them, drawn for the picture (stream `report/mask`).
    fn masks(&self) -> Result<Vec<MaskPicture>> {
        let settings = &self.run.method;
        let (grid, streams) = (settings.grid(), Streams::new(self.run.seed));
        let chosen = self.some(&*self.images.train, SHOWN, "report/masked");
        let stream = |image: usize| streams.stream("report/mask", 0, image as u64);
        let masks = settings.masks(chosen.len(), stream)?;
        let mut pictures = Vec::new();
        for (mask, &index) in masks.into_iter().zip(&chosen) {
            let Ok(image) = self.images.train.read(index) else { continue };
            let image = picture(&self.images.transform.picture(&image))?;
            let (rows, cols) = (grid.rows, grid.cols);
            pictures.push(MaskPicture { image, rows, cols, hidden: mask.hidden, predicted: mask.predicted });
        }
        Ok(pictures)
    }

    /// The same training images as under the masks, beside what is predicted of them; `None` where pixels are not predicted.
    fn reconstructions(&self) -> Result<Option<Vec<Reconstruction>>> {
        let (transform, streams) = (&self.images.transform, Streams::new(self.run.seed));
        let (grid, size) = (self.run.method.grid(), transform.size());
        let chosen = self.some(&*self.images.train, SHOWN, "report/masked");
        let read = chosen.iter().filter_map(|&index| self.images.train.read(index).ok());
        let images: Vec<Image> = read.collect();
        let values: Vec<f32> = images.iter().flat_map(|image| transform.apply(image)).collect();
        let batch = Tensor::from_vec(values, (images.len(), 3, size, size), self.device)?;
        let mut stream = |image: usize| streams.stream("report/mask", 0, image as u64);
        let Some(Painted { ranks, images: predicted }) = self.method.paint(&batch, &mut stream)? else {
            return Ok(None);
        };
        let rows = images.iter().zip(ranks.chunks(grid.count())).enumerate().map(|(at, (image, ranks))| {
            let said: Vec<f32> = predicted.get(at)?.flatten_all()?.to_vec1()?;
            Ok(Reconstruction {
                image: picture(&transform.picture(image))?,
                ranks: draw::at_least(&draw::rank_map(ranks, grid.rows, grid.cols)?, SIDE)?,
                predicted: picture(&transform.normalize().picture(&said, size, size))?,
                note: self.run.method.says_of(ranks),
            })
        });
        rows.collect::<Result<_>>().map(Some)
    }

    fn maps(&self) -> Result<Vec<PcaPicture>> {
        let dataset = self.dataset();
        let indices = self.some(dataset, SHOWN, "report/maps");
        // As published: the whole image, whatever `data.eval` cuts out for scores.
        let squashed = self.run.crop.eval_transform(EvalMode::Squash)?;
        let maps = |method: &dyn Method| -> Result<PcaMaps> {
            let extractor = method.extractor(weights(self.run.eval.weights));
            Ok(pca_maps(&*extractor, dataset, &squashed, &indices, self.device)?)
        };
        let (trained, random) = (maps(self.method)?, maps(self.random)?);
        let shown = trained.maps.iter().zip(&random.maps).map(|(trained, random)| {
            let map = |name: &str, rows, cols, colours: &[u8]| -> Result<PcaMap> {
                let picture = draw::at_least(&Picture::new(cols, rows, colours.to_vec())?, SIDE)?;
                Ok(PcaMap { name: name.into(), picture })
            };
            let (rows, cols) = (trained.rows, trained.cols);
            let maps = vec![
                map("this image's own components", rows, cols, &trained.own)?,
                map("components shared by all images", rows, cols, &trained.joint)?,
                map("random weights", rows, cols, &random.own)?,
            ];
            Ok(PcaPicture { image: picture(&trained.picture)?, maps })
        });
        shown.collect()
    }

    fn neighbours(&self) -> Result<Part<NeighbourRow>> {
        let (bank_set, query_set) = (&*self.images.train, self.dataset());
        let extractor = self.method.extractor(weights(self.run.eval.weights));
        let features = |dataset: &dyn Dataset, count, purpose| {
            let indices = self.some(dataset, count, purpose);
            let request = FeatureRequest { device: self.device.clone(), ..FeatureRequest::new(indices) };
            features_of(&*extractor, dataset, &self.images.transform, &request, &mut |_, _| {})
        };
        let bank = features(bank_set, BANK, "report/bank")?.swap_remove(0);
        let queries = features(query_set, SHOWN, "report/queries")?.swap_remove(0);
        let same = self.images.test.is_none();
        let count = NEIGHBOURS.min(bank.len().saturating_sub(1));
        if count == 0 {
            return Ok(Part::absent("There are too few images for neighbours."));
        }
        let found = neighbours(&bank, &queries, count, same)?;
        let name = |set: &dyn Dataset, index| {
            let class = set.label(index).and_then(|label| set.classes().get(label as usize));
            class.cloned().unwrap_or_default()
        };
        let shown = |set: &dyn Dataset, index| picture(&self.images.transform.picture(&set.read(index)?));
        let rows = queries.indices.iter().zip(&found).map(|(&query, found)| {
            let neighbours = found.iter().map(|neighbour| {
                let index = bank.indices[neighbour.row];
                let (picture, label) = (shown(bank_set, index)?, name(bank_set, index));
                Ok(Neighbour { picture, label, similarity: f64::from(neighbour.similarity) })
            });
            let neighbours = neighbours.collect::<Result<_>>()?;
            Ok(NeighbourRow { query: shown(query_set, query)?, label: name(query_set, query), neighbours })
        });
        Ok(rows.collect::<Result<Vec<_>>>()?.into())
    }

    fn clusters(&self) -> Result<Part<Cluster>> {
        let dataset = self.dataset();
        let indices = self.some(dataset, CLUSTERED, "report/clusters");
        let extractor = self.method.extractor(weights(self.run.eval.weights));
        let found = cluster_gallery(&*extractor, dataset, &self.images.transform, &indices, GALLERY, self.device)?;
        let Some(found) = found else { return Ok(Part::absent("This method learns features, not clusters.")) };
        let patches = found.patches;
        let clusters = found.clusters.iter().map(|cluster| {
            let patches_shown = cluster.examples.iter().map(|example| picture(&example.picture));
            Ok(Cluster {
                name: format!("prototype {}", cluster.id),
                share: 100.0 * cluster.count as f64 / patches as f64,
                patches: patches_shown.collect::<Result<_>>()?,
            })
        });
        Ok(clusters.collect::<Result<Vec<_>>>()?.into())
    }
}

/// What was made, or why it was not.
fn made<T>(what: &str, part: Result<Part<T>>) -> Part<T> {
    part.unwrap_or_else(|error| {
        let why = one_line(&error);
        tracing::warn!("report: {what} left out: {why}");
        Part::absent(format!("Not made: {why}."))
    })
}

/// An image for the page.
fn picture(image: &Image) -> Result<Picture> {
    let picture = Picture::new(image.width, image.height, image.pixels.clone())?;
    Ok(draw::at_least(&picture, SIDE)?)
}
