//! How fast views of an image are made, alone or beside torchvision and Pillow.
//!
//! Both sides make the views of MOCA (two of each image, cut to one size) of the same decoded images, on one core each and
//! turn by turn. What comes out of either side is drawn at random, so the sides are compared by the mean and the
//! deviation of all values; they differ by chance only.

use crate::protocol::{Losses, Reply, Request};
use crate::server::Server;
use crate::{Machine, cpu_seconds, load_average, median};
use anyhow::{Context, Result, bail};
use occlude_data::{
    Augment, CropConfig, Draws, Image, Interpolation, NamedViews, SourceConfig, Split, Views, ViewsConfig, open,
};
use occlude_random::Streams;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// The program of the other side, and what it shares with those of `bench-step`.
const PROGRAM: &str = include_str!("../peer/views.py");
const SERVING: &str = include_str!("../peer/serving.py");
/// By how much the mean and the deviation of normalised values may differ, over the root of the number of images: draws
/// differ, and a view's mean changes by about 0.8 from draw to draw.
const CHANCE: f64 = 3.0;

/// What is measured.
#[derive(Clone, Debug)]
pub struct ViewsBench {
    /// Where the images come from, as in `data.source.path`.
    pub data: String,
    /// How many of them, at most.
    pub images: usize,
    /// Side of a view in pixels.
    pub size: usize,
    /// How often all images are gone through; medians are reported.
    pub turns: usize,
    /// A Python with torch, torchvision and Pillow, for a comparison.
    pub python: Option<PathBuf>,
}

/// Images per second of one core, two views each.
#[derive(Clone, Debug)]
pub struct ViewsReport {
    bench: ViewsBench,
    /// How many there were.
    images: usize,
    machine: Machine,
    load: [Option<[f64; 3]>; 2],
    ours: Rates,
    /// Name and version, and what it reached.
    peer: Option<(String, Rates)>,
}

/// One side's passes over all images.
#[derive(Clone, Debug, Default)]
struct Rates {
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
}

impl Rates {
    fn add(&mut self, reply: Reply) {
        self.seconds.extend(reply.seconds);
        self.cpu_seconds.extend(reply.cpu_seconds);
    }

    /// Images per second of CPU time; by the clock where the system does not tell.
    fn per_core(&self, images: usize) -> f64 {
        let seconds = median(&self.cpu_seconds).filter(|seconds| *seconds > 0.0).or_else(|| median(&self.seconds));
        images as f64 / seconds.unwrap_or(f64::NAN)
    }
}

impl ViewsBench {
    /// Measures.
    ///
    /// # Errors
    /// Images that cannot be read, a Python that cannot be started or lacks a package, sides whose views differ by more
    /// than chance.
    pub fn run(&self) -> Result<ViewsReport> {
        let load_before = load_average();
        let mut ours = Ours::new(self)?;
        let folder = tempfile::tempdir().context("a folder for what both sides read")?;
        let mut peer = match &self.python {
            Some(python) => Some(self.peer(python, folder.path(), &ours.images)?),
            None => None,
        };
        ours.pass()?;
        if let Some(peer) = &mut peer {
            peer.ask(&Request::Warmup(1))?;
            agree(&ours.moments(), &peer.ask(&Request::Loss)?.losses, ours.images.len())?;
        }
        let (mut mine, mut theirs) = (Rates::default(), Rates::default());
        for _ in 0..self.turns {
            mine.add(ours.pass()?);
            if let Some(peer) = &mut peer {
                theirs.add(peer.ask(&Request::Step(1))?);
            }
        }
        let version = |server: Server| server.hello().version.clone().unwrap_or_else(|| "torchvision".into());
        Ok(ViewsReport {
            bench: self.clone(),
            images: ours.images.len(),
            machine: Machine::this(),
            load: [load_before, load_average()],
            ours: mine,
            peer: peer.map(|server| (version(server), theirs)),
        })
    }

    /// Writes what the program reads, and starts it.
    fn peer(&self, python: &Path, folder: &Path, images: &[Image]) -> Result<Server> {
        let write = |name: String, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| path.display().to_string())
        };
        write("views.py".into(), PROGRAM.as_bytes())?;
        write("serving.py".into(), SERVING.as_bytes())?;
        write("size.txt".into(), self.size.to_string().as_bytes())?;
        for (index, image) in images.iter().enumerate() {
            let mut bytes = format!("P6\n{} {}\n255\n", image.width, image.height).into_bytes();
            bytes.extend_from_slice(&image.pixels);
            write(format!("{index:05}.ppm"), &bytes)?;
        }
        let mut command = Command::new(python);
        command.arg(folder.join("views.py")).arg(folder).args(["--threads", "1"]);
        command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1");
        Server::start("torchvision", command).with_context(|| {
            let python = python.display();
            format!(
                "{python}, which must have torch, torchvision and pillow (`cargo xtask bench views --peer` sees to it)"
            )
        })
    }
}

/// Our side, in this process and on this thread.
struct Ours {
    images: Vec<Image>,
    views: Views,
    /// Of the last pass: two views of every image.
    made: Vec<[Vec<f32>; 2]>,
    passes: u64,
}

impl Ours {
    fn new(bench: &ViewsBench) -> Result<Self> {
        let source = SourceConfig { path: bench.data.clone(), cache_mb: 0, ..SourceConfig::default() };
        let dataset = open(&source.check()?, Split::Train)?;
        let step = (dataset.len() / bench.images.max(1)).max(1);
        let chosen = (0..dataset.len()).step_by(step).take(bench.images);
        let images = chosen.map(|index| Ok(dataset.read(index)?)).collect::<Result<Vec<_>>>()?;
        let interpolation = Interpolation::Bilinear;
        let crop =
            CropConfig { size: bench.size, scale: [0.2, 1.0], flip: 0.5, interpolation, ..CropConfig::default() };
        let views = ViewsConfig::Named(NamedViews::Moca).check(Arc::new(crop.check()?))?;
        let values = views.shape().iter().product();
        let made = images.iter().map(|_| [vec![0.0; values], vec![0.0; values]]).collect();
        Ok(Self { images, views, made, passes: 0 })
    }

    /// All images once.
    fn pass(&mut self) -> Result<Reply> {
        let (cpu, started) = (cpu_seconds(), Instant::now());
        for (index, (image, [first, second])) in self.images.iter().zip(&mut self.made).enumerate() {
            self.views.views(image, &Draws::new(Streams::new(0), self.passes, index as u64), &mut [first, second]);
        }
        self.passes += 1;
        let seconds = vec![started.elapsed().as_secs_f64()];
        let cpu_seconds = cpu_seconds().zip(cpu).map(|(end, start)| end - start).into_iter().collect();
        Ok(Reply { seconds, cpu_seconds, ..Reply::default() })
    }

    /// Mean and deviation of all values, by view.
    fn moments(&self) -> Losses {
        let of = |view: usize| {
            let values = || self.made.iter().flat_map(move |made| &made[view]).map(|value| f64::from(*value));
            let count = values().count().max(1) as f64;
            let mean = values().sum::<f64>() / count;
            let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            [(format!("mean_{view}"), mean), (format!("deviation_{view}"), variance.sqrt())]
        };
        (0..2).flat_map(of).collect()
    }
}

fn agree(ours: &Losses, theirs: &Losses, images: usize) -> Result<()> {
    let chance = CHANCE / (images as f64).sqrt();
    if !ours.keys().eq(theirs.keys()) {
        bail!("our views have {:?}, torchvision's {:?}", ours.keys(), theirs.keys());
    }
    for ((name, ours), theirs) in ours.iter().zip(theirs.values()) {
        let near = (ours - theirs).abs() <= chance;
        if !near {
            bail!("{name} of our views is {ours:.3}, of torchvision's {theirs:.3}: these are not the same views");
        }
    }
    Ok(())
}

impl fmt::Display for ViewsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ViewsBench { data, size, turns, .. }, images) = (&self.bench, self.images);
        let Machine { cpu, features } = &self.machine;
        let pixels = format!("{size} x {size}");
        writeln!(f, "two views of {pixels} of {images} images of {data}, decoded, on {cpu} ({})", features.join(", "))?;
        let load = |at: usize| self.load[at].map_or_else(|| "unknown".into(), |load| format!("{:.2}", load[0]));
        writeln!(f, "one core, medians of {turns} turns; load {} before, {} after", load(0), load(1))?;
        let ours = self.ours.per_core(images);
        writeln!(f, "Occlude: {ours:.0} images/s")?;
        if let Some((name, rates)) = &self.peer {
            let theirs = rates.per_core(images);
            writeln!(f, "{name}: {theirs:.0} images/s")?;
            writeln!(f, "Occlude / torchvision: {:.2} times as many", ours / theirs)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Ours, ViewsBench, agree};

    fn bench(data: &str) -> ViewsBench {
        ViewsBench { data: data.into(), images: 40, size: 16, turns: 1, python: None }
    }

    #[test]
    fn views_are_made_and_differ_from_pass_to_pass() {
        let report = bench("synthetic").run().unwrap().to_string();
        assert!(report.contains("40 images of synthetic") && report.contains("images/s"), "{report}");
        let more = ViewsBench { images: 1 << 20, size: 1, ..bench("synthetic") };
        let all = Ours::new(&more).unwrap().images.len();
        assert!(all < 1 << 20 && more.run().unwrap().to_string().contains(&format!("of {all} images of")));
        let mut ours = Ours::new(&bench("synthetic")).unwrap();
        ours.pass().unwrap();
        let first = (ours.moments(), ours.made.clone());
        ours.pass().unwrap();
        assert_ne!(first.1, ours.made);
        agree(&first.0, &ours.moments(), 40).unwrap();
        let other = first.0.iter().map(|(name, value)| (name.clone(), value + 1.0)).collect();
        assert!(agree(&first.0, &other, 40).unwrap_err().to_string().contains("not the same views"));
        assert!(bench("no/such/folder").run().is_err());
    }
}
