//! `occlude draw`: pictures of how RandSAC takes an image apart.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use occlude_checkpoint::write_whole;
use occlude_masking::{Grid, SegmenterConfig, Segments, SegmentsKind, sees_content, sees_memory};
use occlude_random::Streams;
use occlude_report::{OrderPicture, SightPicture, orders, sights};
use std::path::PathBuf;

/// Stream of the pictures: keyed by the picture.
const STREAM: &str = "draw";

/// Draw segments of an image, the order in which they are predicted, and who sees whom, as SVG.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude draw serialisations --out serialisations.svg        five ways, first dark, last bright
  occlude draw hierarchy --blobs 11,7,3 --out hierarchy.svg   a hue a group, arrows in order
  occlude draw masks --out masks.svg                          four tokens in three segments")]
pub(crate) struct Draw {
    /// What to draw.
    what: What,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// Seed of what is drawn at random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Patches along a side.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=64))]
    grid: u16,
    /// Blobs, and the groups of each level above them, of `hierarchy`.
    #[arg(long, value_delimiter = ',', default_values_t = [7, 3])]
    blobs: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Pixels and patches in raster order, patches at random, squares, blobs.
    Serialisations,
    /// Blobs in groups.
    Hierarchy,
    /// Which tokens the encoder and the decoder see.
    Masks,
}

impl Draw {
    pub(crate) fn run(self) -> Result<()> {
        let svg = match self.what {
            What::Serialisations => orders(&self.serialisations()?)?,
            What::Hierarchy => orders(&[self.hierarchy()?])?,
            What::Masks => sights(&masks())?,
        };
        write_whole(&self.out, svg.as_bytes()).with_context(|| self.out.display().to_string())?;
        println!("{}", self.out.display());
        Ok(())
    }

    fn serialisations(&self) -> Result<Vec<OrderPicture>> {
        let side = usize::from(self.grid);
        let of = |kind| SegmenterConfig { kind, ..SegmenterConfig::default() };
        let blobs = SegmenterConfig { blobs: vec![5], ..of(SegmentsKind::Blob) };
        let all = [
            ("raster pixel", 4 * side, of(SegmentsKind::Raster)),
            ("raster patch", side, of(SegmentsKind::Raster)),
            ("random patch", side, of(SegmentsKind::Random)),
            ("square, M = 2", side, of(SegmentsKind::Square)),
            ("blob, K = 5", side, blobs),
        ];
        let picture = |(at, (title, side, config)): (usize, (&str, usize, SegmenterConfig))| {
            let (segments, grid) = self.segments(&config, side, at as u64)?;
            let OrderPicture { rows, cols, .. } = frame(grid);
            Ok(OrderPicture { title: title.into(), rows, cols, ranks: segments.ranks(), ..OrderPicture::default() })
        };
        all.into_iter().enumerate().map(picture).collect()
    }

    fn hierarchy(&self) -> Result<OrderPicture> {
        let config = SegmenterConfig { blobs: self.blobs.clone(), ..SegmenterConfig::default() };
        let (segments, grid) = self.segments(&config, usize::from(self.grid), 0)?;
        let title = self.blobs.iter().map(usize::to_string).collect::<Vec<_>>().join(" -> ");
        let groups = match segments.levels.is_empty() {
            true => Vec::new(),
            false => {
                let group = |cell: &u32| segments.levels.iter().fold(*cell, |node, level| level[node as usize]);
                segments.cells.iter().map(group).collect()
            }
        };
        Ok(OrderPicture { title, ranks: segments.ranks(), groups, arrows: true, ..frame(grid) })
    }

    fn segments(&self, config: &SegmenterConfig, side: usize, key: u64) -> Result<(Segments, Grid)> {
        let grid = Grid::new(side, side);
        let mut stream = Streams::new(self.seed).stream(STREAM, 0, key);
        Ok((config.check(grid)?.draw(&mut stream), grid))
    }
}

fn frame(grid: Grid) -> OrderPicture {
    OrderPicture { rows: grid.rows, cols: grid.cols, ..OrderPicture::default() }
}

/// Four tokens in three segments.
fn masks() -> [SightPicture; 2] {
    let ranks = [0, 1, 1, 2];
    let picture = |title: &str, rule: fn(u32, u32) -> bool| {
        let seen = ranks.iter().flat_map(|query| ranks.iter().map(move |key| rule(*query, *key))).collect();
        SightPicture { title: title.into(), ranks: ranks.to_vec(), seen }
    };
    [picture("source: own segment and before", sees_content), picture("memory: before; the first itself", sees_memory)]
}
