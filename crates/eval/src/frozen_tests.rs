//! What runs a frozen model over images, with a model whose features are known by hand.

use crate::{
    Error, FeatureRequest, PixelForm, Pooling, choose, cluster_gallery, features_of, neighbours, pca_maps,
    pixel_features,
};
use candle_core::{DType, Device, Tensor};
use occlude_data::{Dataset, EvalMode, EvalTransform, Image, Normalize, Split, Synthetic};
use occlude_masking::Grid;
use occlude_random::Streams;
use occlude_vit::{Extractor, Extras, Features};

/// Mean colour of each patch of 8 x 8 pixels; `global` is the mean colour of the image, doubled. With it go the rest:
/// before the norm everything is three times as large, and the class token of block `i` of four is the mean colour plus `i`.
struct MeanColour {
    global: bool,
}

const BLOCKS: usize = 4;

impl Extractor for MeanColour {
    fn features_with(&self, images: &Tensor, extras: Extras) -> occlude_kernels::Result<Features> {
        let (batch, _, height, width) = images.dims4()?;
        let grid = Grid::new(height / 8, width / 8);
        let patches = images.avg_pool2d(8)?.reshape((batch, 3, grid.count()))?.transpose(1, 2)?.contiguous()?;
        let global = if self.global { Some((patches.mean(1)? * 2.0)?) } else { None };
        let before_norm = if self.global && extras.before_norm { Some((&patches * 3.0)?) } else { None };
        let tokens = (BLOCKS - extras.class_blocks..BLOCKS).map(|block| patches.mean(1)? + block as f64);
        let tokens: Vec<Tensor> = tokens.collect::<Result<_, _>>()?;
        let class = if self.global && !tokens.is_empty() { Some(Tensor::stack(&tokens, 1)?) } else { None };
        Ok(Features { global, before_norm, class, ..Features::new(grid, patches) })
    }

    /// Cluster 7 where a patch is redder than green, else cluster 2.
    fn clusters(&self, patches: &Tensor) -> occlude_kernels::Result<Option<Tensor>> {
        let red = patches.narrow(2, 0, 1)?.gt(&patches.narrow(2, 1, 1)?)?.squeeze(2)?;
        Ok(Some(((red.to_dtype(DType::F32)? * 5.0)? + 2.0)?.to_dtype(DType::U32)?))
    }

    fn patch_size(&self) -> usize {
        8
    }
}

/// The drawn set with one image that cannot be read.
struct OneBroken {
    inner: Synthetic,
    broken: usize,
}

impl Dataset for OneBroken {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read(&self, index: usize) -> occlude_data::Result<Image> {
        if index == self.broken {
            let source = std::io::Error::other("truncated");
            return Err(occlude_data::Error::Io { path: self.name(index).into(), source });
        }
        self.inner.read(index)
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index)
    }
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }
    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }
}

fn images() -> Synthetic {
    Synthetic::new(1, Split::Test, 40)
}

fn transform() -> EvalTransform {
    EvalTransform::new(32, EvalMode::Squash, Normalize::new([0.0; 3], [1.0; 3]).unwrap()).unwrap()
}

/// Mean of one channel over a square of an image, 0 to 1.
fn mean(image: &Image, channel: usize, top: usize, left: usize, side: usize) -> f32 {
    let at = |y: usize, x: usize| f32::from(image.pixels[3 * (y * image.width + x) + channel]) / 255.0;
    let sum: f32 = (0..side * side).map(|i| at(top + i / side, left + i % side)).sum();
    sum / (side * side) as f32
}

#[test]
fn each_pooling_is_what_it_says_in_the_order_asked_for() {
    let request = FeatureRequest {
        batch: 3,
        poolings: vec![Pooling::Both, Pooling::Average, Pooling::Global],
        ..FeatureRequest::new(vec![9, 2, 30, 11])
    };
    let mut told = Vec::new();
    let model = MeanColour { global: true };
    let sets = features_of(&model, &images(), &transform(), &request, &mut |done, of| told.push((done, of))).unwrap();
    assert_eq!(told, [(3, 4), (4, 4)]);
    assert_eq!(sets.iter().map(|set| set.dim).collect::<Vec<_>>(), [6, 3, 3]);
    for (row, &index) in request.indices.iter().enumerate() {
        let image = images().read(index).unwrap();
        for channel in 0..3 {
            let expected = mean(&image, channel, 0, 0, 32);
            assert!((sets[1].row(row)[channel] - expected).abs() < 1e-5);
            assert!((sets[2].row(row)[channel] - 2.0 * expected).abs() < 1e-5);
        }
        assert_eq!(sets[0].row(row), [sets[2].row(row), sets[1].row(row)].concat());
    }
    assert_eq!(sets[1].indices, [9, 2, 30, 11]);
    assert_eq!(sets[1].labels, [Some(9), Some(2), Some(0), Some(1)]);
    assert_eq!(sets[1].names[0], "synthetic/test/000009");
    assert_eq!(sets[1].class_count(), 10);
}

#[test]
fn class_tokens_and_unnormed_patches_are_asked_for() {
    let request = FeatureRequest {
        poolings: vec![Pooling::Class, Pooling::ClassAverage, Pooling::BeforeNorm, Pooling::Average],
        class_blocks: 2,
        ..FeatureRequest::new(vec![3, 8])
    };
    let model = MeanColour { global: true };
    let sets = features_of(&model, &images(), &transform(), &request, &mut |_, _| ()).unwrap();
    assert_eq!(sets.iter().map(|set| set.dim).collect::<Vec<_>>(), [6, 9, 3, 3]);
    for row in 0..2 {
        let average = sets[3].row(row);
        let near = |got: &[f32], of: &dyn Fn(f32) -> f32| {
            assert!(got.iter().zip(average).all(|(got, mean)| (got - of(*mean)).abs() < 1e-5), "{got:?} {average:?}");
        };
        near(&sets[0].row(row)[..3], &|mean| mean + 2.0);
        near(&sets[0].row(row)[3..], &|mean| mean + 3.0);
        near(sets[2].row(row), &|mean| 3.0 * mean);
        assert_eq!(sets[1].row(row), [sets[0].row(row), average].concat());
    }
}

#[test]
fn the_size_of_a_batch_changes_nothing() {
    let run = |batch| {
        let request = FeatureRequest { batch, ..FeatureRequest::new(choose(40, Some(17), &Streams::new(0), "test")) };
        features_of(&MeanColour { global: false }, &images(), &transform(), &request, &mut |_, _| ()).unwrap()
    };
    assert_eq!(run(1), run(7));
    assert_eq!(run(7), run(64));
}

#[test]
fn an_unreadable_image_is_left_out() {
    let set = OneBroken { inner: images(), broken: 5 };
    let request = FeatureRequest { batch: 2, ..FeatureRequest::new(vec![4, 5, 6]) };
    let model = MeanColour { global: false };
    let features = features_of(&model, &set, &transform(), &request, &mut |_, _| ()).unwrap();
    assert_eq!(features[0].indices, [4, 6]);
    assert_eq!(features[0].labels, [Some(4), Some(6)]);
    let none = features_of(&model, &set, &transform(), &FeatureRequest::new(vec![5]), &mut |_, _| ()).unwrap_err();
    assert!(matches!(none, Error::NoneReadable { .. }), "{none}");
}

#[test]
fn a_pooling_the_model_lacks_is_refused() {
    let refused = |pooling| {
        let request = FeatureRequest { poolings: vec![pooling], ..FeatureRequest::new(vec![0]) };
        features_of(&MeanColour { global: false }, &images(), &transform(), &request, &mut |_, _| ()).unwrap_err()
    };
    assert!(matches!(refused(Pooling::Global), Error::NoGlobal));
    assert!(matches!(refused(Pooling::BeforeNorm), Error::NoBeforeNorm));
    let none = refused(Pooling::ClassAverage);
    assert_eq!(none.to_string(), "this model has no class token (`class_average`); use `average`");
}

#[test]
fn pixels_are_rows_whole_or_averaged() {
    let indices = [3, 17];
    let plain = pixel_features(&images(), &transform(), &indices, PixelForm::Plain).unwrap();
    let image = images().read(17).unwrap();
    assert_eq!(plain.dim, 3 * 32 * 32);
    // Channel first: the green value at row 2, column 5.
    assert!((plain.row(1)[32 * 32 + 2 * 32 + 5] - mean(&image, 1, 2, 5, 1)).abs() < 1e-6);
    let averaged = pixel_features(&images(), &transform(), &indices, PixelForm::Averaged { side: 8 }).unwrap();
    assert_eq!(averaged.dim, 3 * 8 * 8);
    assert!((averaged.row(1)[2 * 64 + 3 * 8 + 1] - mean(&image, 2, 12, 4, 4)).abs() < 1e-5);
    let refused = pixel_features(&images(), &transform(), &indices, PixelForm::Averaged { side: 7 });
    assert!(matches!(refused, Err(Error::Mismatch(_))));
}

#[test]
fn an_image_is_its_own_nearest_neighbour() {
    let request = FeatureRequest::new((0..40).collect());
    let model = MeanColour { global: false };
    let set = &features_of(&model, &images(), &transform(), &request, &mut |_, _| ()).unwrap()[0];
    let query = set.select(&[8, 31]);
    let rows = |skip| neighbours(set, &query, 3, skip).unwrap();
    assert_eq!(rows(false).iter().map(|list| list[0].row).collect::<Vec<_>>(), [8, 31]);
    assert!(rows(true).iter().zip([8, 31]).all(|(list, own)| list.len() == 3 && list.iter().all(|n| n.row != own)));
}

#[test]
fn maps_have_a_colour_for_every_patch() {
    let set = OneBroken { inner: images(), broken: 5 };
    let model = MeanColour { global: false };
    let made = pca_maps(&model, &set, &transform(), &[1, 5, 8, 9, 14, 20], &Device::Cpu).unwrap();
    assert_eq!(made.maps.iter().map(|map| map.index).collect::<Vec<_>>(), [1, 8, 9, 14, 20]);
    assert_eq!(made.patch_size, 8);
    for map in &made.maps {
        assert_eq!((map.rows, map.cols, map.own.len(), map.joint.len()), (4, 4, 48, 48));
        assert_eq!(map.picture, images().read(map.index).unwrap(), "the transform leaves this size alone");
        assert_ne!(map.own, map.joint);
    }
    // Joint colours are one map of features to colours: the same image twice gets the same colours.
    let twice = pca_maps(&model, &images(), &transform(), &[1, 8, 1], &Device::Cpu).unwrap();
    assert_eq!(twice.maps[0].joint, twice.maps[2].joint);
}

#[test]
fn a_gallery_shows_patches_of_their_cluster() {
    let indices: Vec<usize> = (0..21).collect();
    let model = MeanColour { global: false };
    let images = || OneBroken { inner: images(), broken: 20 };
    let made = cluster_gallery(&model, &images(), &transform(), &indices, (5, 4), &Device::Cpu).unwrap().unwrap();
    assert_eq!(made.patches, 20 * 16, "of the images that could be read");
    let made = made.clusters;
    assert_eq!(made.iter().map(|cluster| cluster.count).sum::<usize>(), 20 * 16);
    assert!(made.len() == 2 && made[0].count >= made[1].count);
    for cluster in &made {
        assert_eq!(cluster.examples.len(), 4);
        assert!(cluster.examples.windows(2).all(|pair| pair[0].index != pair[1].index), "one an image");
        for example in &cluster.examples {
            let redder = mean(&example.picture, 0, 0, 0, 8) > mean(&example.picture, 1, 0, 0, 8);
            assert_eq!(cluster.id, if redder { 7 } else { 2 });
            let image = images().read(example.index).unwrap();
            let corner = mean(&image, 2, 8 * example.row, 8 * example.col, 1);
            assert_eq!(mean(&example.picture, 2, 0, 0, 1), corner, "cut from where it says");
        }
    }
    let one = cluster_gallery(&model, &images(), &transform(), &indices, (1, 2), &Device::Cpu).unwrap().unwrap();
    assert_eq!((one.clusters.len(), one.clusters[0].examples.len()), (1, 2));
    assert_eq!(one.patches, 20 * 16, "of all clusters, not of those shown");
}
