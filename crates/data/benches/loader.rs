//! Images per second of decoding, cropping and the whole loader, on the CIFAR-10 and Caltech packs where they are.
//! `cargo bench -p occlude-data`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints and may stop at a surprise")]

use occlude_data::{
    Augment, CropConfig, Dataset, Draws, Loader, LoaderConfig, NamedViews, SourceConfig, Split, ViewsConfig, open,
};
use occlude_random::Streams;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for each figure.
const SPAN: Duration = Duration::from_secs(2);

fn main() {
    for (pack, side) in [("cifar10", 32), ("caltech", 96)] {
        let Some(path) = occlude_golden::data(pack) else { continue };
        let path = path.to_string_lossy().into_owned();
        let opened = Instant::now();
        let source = SourceConfig { path, cache_mb: 0, ..SourceConfig::default() };
        let dataset = open(&source.check().unwrap(), Split::Train).unwrap();
        println!("{pack}: {} images, index read in {:.0?}", dataset.len(), opened.elapsed());
        stages(&dataset, side);
        let cached = SourceConfig { cache_mb: 1024, ..source };
        let cached = open(&cached.check().unwrap(), Split::Train).unwrap();
        (0..cached.len()).for_each(|index| drop(black_box(cached.read(index))));
        whole_loader(&dataset, side, "from disk");
        whole_loader(&cached, side, "from the cache");
    }
}

/// Runs `one` on successive numbers for the span; calls per second of this thread's own time, so that whatever else
/// the machine does is not counted. Where the system does not tell that time, the clock's.
fn rate_per_core(mut one: impl FnMut(usize)) -> f64 {
    let own_time = || -> Option<Duration> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    let (started, before) = (Instant::now(), own_time());
    let mut done = 0;
    while started.elapsed() < SPAN {
        one(done);
        done += 1;
    }
    let own = own_time().zip(before).map(|(after, before)| after - before);
    done as f64 / own.unwrap_or_else(|| started.elapsed()).as_secs_f64()
}

/// Runs `one` for the span; calls per second by the clock.
fn rate(mut one: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < SPAN {
        one();
        done += 1;
    }
    f64::from(done) / started.elapsed().as_secs_f64()
}

/// One thread: decoding alone, cropping alone.
fn stages(dataset: &Arc<dyn Dataset>, side: usize) {
    let decoding = rate_per_core(|index| drop(black_box(dataset.read(index * 7 % dataset.len()))));
    let crop = CropConfig { size: side, ..CropConfig::default() }.check().unwrap();
    let images: Vec<_> = (0..200).map(|index| dataset.read(index * 13 % dataset.len()).unwrap()).collect();
    let mut out = vec![0.0; 3 * side * side];
    let cropping = rate_per_core(|index| {
        let draws = Draws::new(Streams::new(0), 0, index as u64);
        crop.views(&images[index % images.len()], &draws, &mut [&mut out]);
        black_box(&out);
    });
    let crop = CropConfig { size: side, scale: [0.2, 1.0], ..CropConfig::default() }.check().unwrap();
    let moca = ViewsConfig::Named(NamedViews::Moca).check(Arc::new(crop)).unwrap();
    let mut second = out.clone();
    let viewing = rate_per_core(|index| {
        let draws = Draws::new(Streams::new(0), 0, index as u64);
        moca.views(&images[index % images.len()], &draws, &mut [&mut out, &mut second]);
        black_box((&out, &second));
    });
    println!(
        "  per core: decode {decoding:.0} images/s, crop to {side} px {cropping:.0} images/s, both views of MOCA {viewing:.0} images/s"
    );
}

fn whole_loader(dataset: &Arc<dyn Dataset>, side: usize, from: &str) {
    for workers in [0, 1, 2] {
        let crop = Arc::new(CropConfig { size: side, ..CropConfig::default() }.check().unwrap());
        let settings = LoaderConfig { workers, ..LoaderConfig::default() }.check(128).unwrap();
        let mut loader = Loader::start(Arc::clone(dataset), crop, settings, Streams::new(0), 0).unwrap();
        let mut next = || drop(black_box(loader.next().unwrap()));
        if workers == 0 {
            println!("  loader {from}, per core: {:.0} images/s", 128.0 * rate_per_core(|_| next()));
        } else {
            println!("  loader {from}, {workers} workers: {:.0} images/s by the clock", 128.0 * rate(next));
        }
    }
}
