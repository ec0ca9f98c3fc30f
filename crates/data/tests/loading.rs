//! The loader: same batches for any number of workers and from any step, corrupt images, a bounded queue, a quick end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

mod common;

use common::{Counting, png, write};
use occlude_data::{
    Augment, Batch, CropConfig, Dataset, Draws, Error, Image, Loader, LoaderConfig, NamedViews, Result, Split,
    ViewsConfig, open,
};
use occlude_random::Streams;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// A fixed size for what a test does not look at.
const SIDE: usize = 2;

fn crop() -> Arc<dyn Augment> {
    Arc::new(CropConfig { size: SIDE, ..CropConfig::default() }.check().unwrap())
}

fn start(dataset: Arc<dyn Dataset>, batch: usize, config: &LoaderConfig, seed: u64, first_step: u64) -> Loader {
    Loader::start(dataset, crop(), config.check(batch).unwrap(), Streams::new(seed), first_step).unwrap()
}

fn workers(workers: usize) -> LoaderConfig {
    LoaderConfig { workers, ..LoaderConfig::default() }
}

fn batches(dataset: &Arc<Counting>, config: &LoaderConfig, seed: u64, steps: std::ops::Range<u64>) -> Vec<Batch> {
    let mut loader = start(dataset.clone(), 7, config, seed, steps.start);
    steps.map(|_| loader.next().unwrap()).collect()
}

#[test]
fn batches_depend_on_seed_and_step_alone() {
    // Batches of 7 from 23 images span epochs; image 5 and 11 cannot be read.
    let dataset = Counting::with_broken(23, |index| index == 5 || index == 11);
    let config = |count| LoaderConfig { max_corrupt_share: 0.2, ..workers(count) };
    let straight = batches(&dataset, &config(0), 3, 0..20);
    assert!(straight.iter().any(|batch| !batch.corrupt.is_empty()), "the replacement should be part of the test");
    for count in [1, 3] {
        assert_eq!(batches(&dataset, &config(count), 3, 0..20), straight, "{count} workers");
        assert_eq!(batches(&dataset, &config(count), 3, 9..20), straight[9..], "{count} workers, from step 9");
    }
    assert_ne!(batches(&dataset, &config(0), 4, 0..1), straight[..1]);
}

#[test]
fn two_views_come_from_one_image_and_from_any_step() {
    let dataset = Counting::with_broken(23, |index| index == 5);
    let views = ViewsConfig::Named(NamedViews::Moca);
    let crop = CropConfig { size: 6, scale: [0.2, 1.0], ..CropConfig::default() }.check().unwrap();
    let views: Arc<dyn Augment> = Arc::new(views.check(Arc::new(crop)).unwrap());
    let batches = |count, steps: std::ops::Range<u64>| -> Vec<Batch> {
        let config = LoaderConfig { max_corrupt_share: 0.2, ..workers(count) }.check(7).unwrap();
        let mut loader = Loader::start(dataset.clone(), views.clone(), config, Streams::new(3), steps.start).unwrap();
        steps.map(|_| loader.next().unwrap()).collect()
    };
    let straight = batches(0, 0..12);
    assert!(straight.iter().all(|batch| batch.views.len() == 2 && batch.views[0] != batch.views[1]));
    for count in [1, 3] {
        assert_eq!(batches(count, 0..12), straight, "{count} workers");
        assert_eq!(batches(count, 7..12), straight[7..], "{count} workers, from step 7");
    }
}

#[test]
fn an_epoch_holds_each_image_once_and_the_next_is_in_another_order() {
    let dataset = Counting::new(21);
    let all = batches(&dataset, &workers(2), 1, 0..6);
    let ids: Vec<u64> = all.iter().flat_map(|batch| batch.ids.clone()).collect();
    let (first, second) = ids.split_at(21);
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 21);
    assert_eq!(second.iter().collect::<HashSet<_>>().len(), 21);
    assert_ne!(first, second);
    assert!(all.iter().enumerate().all(|(step, batch)| batch.step == step as u64));
    assert_eq!((all[0].shape, all[0].views.len(), all[0].views[0].len()), ([7, 3, SIDE, SIDE], 1, 7 * 12));
}

#[test]
fn augmentations_change_from_epoch_to_epoch() {
    let dataset = Counting::new(1);
    let mut loader = start(dataset, 1, &workers(0), 0, 0);
    let seen: HashSet<Vec<u32>> =
        (0..30).map(|_| loader.next().unwrap().views[0].iter().map(|value| value.to_bits()).collect()).collect();
    assert!(seen.len() > 1, "thirty epochs of one image were all flipped and cut alike");
}

#[test]
fn corrupt_images_are_counted_once_named_and_replaced() {
    let dataset = Counting::with_broken(50, |index| index == 17);
    let mut loader = start(dataset, 10, &workers(1), 0, 0);
    let mut named = Vec::new();
    for _ in 0..15 {
        let batch = loader.next().unwrap();
        assert!(!batch.ids.contains(&17));
        assert_eq!(batch.ids.len(), 10);
        named.extend(batch.corrupt);
    }
    // Three epochs meet the image three times (and perhaps as a replacement of itself); it is one corrupt image.
    assert!(named.len() >= 3 && named.iter().all(|message| message == "image 17: broken on purpose"));
}

#[test]
fn too_many_corrupt_images_stop_the_run() {
    let dataset = Counting::with_broken(50, |index| index % 10 == 3);
    for count in [0, 2] {
        let config = LoaderConfig { max_corrupt_share: 0.06, ..workers(count) };
        let mut loader = start(dataset.clone(), 10, &config, 0, 0);
        let error = (0..20).find_map(|_| loader.next().err()).expect("an epoch passes all five");
        let Error::TooManyCorrupt { count: 4, of: 50, first, .. } = &error else { panic!("{error}") };
        assert!(first.contains("broken on purpose"));
        assert!(common::one_line(&error).contains("raise max_corrupt_share"));
        // It has ended: nothing is repeated or passed over in silence.
        assert!(matches!(loader.next(), Err(Error::Ended { .. })));
    }
}

#[test]
fn a_set_without_a_readable_image_ends_at_once() {
    let dataset = Counting::with_broken(5000, |_| true);
    let config = LoaderConfig { max_corrupt_share: 1.0, ..workers(2) };
    let refused = start(dataset, 4, &config, 0, 0).next().unwrap_err();
    assert!(matches!(refused, Error::NoneReadable { tries: 33, .. }), "{refused}");
    assert!(common::one_line(&refused).contains("broken on purpose"));
}

#[test]
fn a_truncated_photo_among_others_is_left_out() {
    let root = tempdir().unwrap();
    for index in 0..30 {
        write(root.path(), &format!("{index:02}.png"), &png(4, 4, [index, 0, 0]));
    }
    write(root.path(), "half.png", &png(64, 64, [1, 2, 3])[..60]);
    let dataset = open(
        &occlude_data::SourceConfig { holdout: 0.0, ..common::config(root.path()) }.check().unwrap(),
        Split::Train,
    );
    let mut loader = start(dataset.unwrap(), 31, &workers(2), 0, 0);
    let batch = loader.next().unwrap();
    assert_eq!(batch.corrupt.len(), 1);
    assert!(batch.corrupt[0].contains("half.png"), "{:?}", batch.corrupt);
}

#[test]
fn the_queue_bounds_what_is_made_ahead() {
    let dataset = Counting::new(1000);
    let config = LoaderConfig { workers: 3, queue: 2, ..LoaderConfig::default() };
    let mut loader = start(dataset.clone(), 5, &config, 0, 0);
    for taken in 1..=10 {
        loader.next().unwrap();
        // The batches taken, and no more than two beyond.
        let expected = (taken + 2) * 5;
        assert_eq!(settled(&dataset.reads, expected), expected);
    }
}

/// The counter once it has reached `expected` (or ten seconds have passed) and had time to pass it.
fn settled(counter: &AtomicUsize, expected: usize) -> usize {
    let patience = Instant::now() + Duration::from_secs(10);
    while counter.load(Ordering::SeqCst) < expected && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(30));
    counter.load(Ordering::SeqCst)
}

#[test]
fn dropping_the_loader_joins_its_threads() {
    let dataset = Counting::new(100);
    let mut loader = start(dataset.clone(), 50, &LoaderConfig { queue: 50, ..workers(3) }, 0, 0);
    loader.next().unwrap();
    drop(loader);
    // Every thread held a share of the data set; one that lives on would keep it.
    assert_eq!(Arc::strong_count(&dataset), 1);
}

/// Fails the way a defect in a reader does.
struct Panicking;

impl Dataset for Panicking {
    fn len(&self) -> usize {
        100
    }
    fn read(&self, index: usize) -> Result<Image> {
        assert!(index != 42, "a defect in a reader");
        Ok(Image { width: 1, height: 1, pixels: vec![0; 3] })
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }
}

/// Fails in the augmentation, which no file can cause.
struct Defect;

impl Augment for Defect {
    fn count(&self) -> usize {
        1
    }
    fn shape(&self) -> [usize; 3] {
        [3, 1, 1]
    }
    fn views(&self, _: &Image, _: &Draws, _: &mut [&mut [f32]]) {
        panic!("a defect in an augmentation");
    }
}

#[test]
fn a_reader_that_panics_costs_one_image() {
    let mut loader = start(Arc::new(Panicking), 100, &workers(1), 0, 0);
    assert_eq!(loader.next().unwrap().corrupt, ["image 42: reading it failed"]);
}

#[test]
fn a_lost_worker_is_an_error_and_not_a_hang() {
    let settings = workers(2).check(2).unwrap();
    let mut loader = Loader::start(Counting::new(9), Arc::new(Defect), settings, Streams::new(0), 0).unwrap();
    assert!(matches!(loader.next(), Err(Error::Ended { .. })));
}

#[test]
fn an_empty_set_is_refused() {
    let settings = workers(0).check(2).unwrap();
    assert!(Loader::start(Counting::new(0), crop(), settings, Streams::new(0), 0).is_err());
}

#[test]
fn cached_images_give_the_same_batches() {
    let Some(folder) = occlude_golden::data("cifar10") else { return };
    let limited = |cache_mb| {
        let config = occlude_data::SourceConfig { train_limit: Some(64), cache_mb, ..common::config(&folder) };
        open(&config.check().unwrap(), Split::Train).unwrap()
    };
    let batches = |dataset| {
        let mut loader = start(dataset, 48, &workers(2), 5, 0);
        (0..4).map(|_| loader.next().unwrap()).collect::<Vec<Batch>>()
    };
    assert_eq!(batches(limited(0)), batches(limited(16)));
}
