//! `occlude draw`: pictures of how RandSAC takes an image apart.

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use occlude_checkpoint::write_whole;
use occlude_data::{EvalMode, EvalTransform, Normalize};
use occlude_masking::{Grid, SegmenterConfig, Segments, SegmentsKind, sees_content, sees_memory};
use occlude_random::Streams;
use occlude_report::{OrderPicture, Picture, SightPicture, animation, orders, sights};
use std::path::PathBuf;

/// Stream of the pictures: keyed by the picture.
const STREAM: &str = "draw";
/// The longest side of an image under the cells: as large as it is shown.
const LONGEST: usize = 240;

/// Draw segments of an image, the order in which they are predicted, and who sees whom, as SVG.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude draw serialisations --out serialisations.svg        five ways, first dark, last bright
  occlude draw hierarchy --blobs 11,7,3 --out hierarchy.svg   a hue a group, arrows in order
  occlude draw masks --out masks.svg                          four tokens in three segments
  occlude draw schemes --out schemes.svg                      BERT's way, GPT's way, segment by segment
  occlude draw animation --seconds 8 --out animation.svg      cells light up as they are predicted, for browsers
  occlude draw serialisations --image photo.png --out photo.svg   the same over a photo")]
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
    /// Blobs, and the groups of each level above them, of `hierarchy` and `animation`.
    #[arg(long, value_delimiter = ',', default_values_t = [7, 3])]
    blobs: Vec<usize>,
    /// How long a cycle of `animation` takes, between 1 and 600.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// PNG, JPEG, WebP or TIFF whose middle shows through the cells. Not of `masks` and `schemes`.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Pixels and patches in raster order, patches at random, squares, blobs.
    Serialisations,
    /// Blobs in groups.
    Hierarchy,
    /// Which tokens the encoder and the decoder see.
    Masks,
    /// What patches are predicted from: BERT-style, GPT-style, segment-wise.
    Schemes,
    /// Cells of several ways that light up in order.
    Animation,
}

impl Draw {
    pub(crate) fn run(self) -> Result<()> {
        let has_cells = !matches!(self.what, What::Masks | What::Schemes);
        ensure!(has_cells || self.image.is_none(), "--image: tables of who sees whom have no image");
        let svg = match self.what {
            What::Serialisations => orders(&self.over_image(self.serialisations()?)?)?,
            What::Hierarchy => orders(&self.over_image(vec![self.hierarchy()?])?)?,
            What::Animation => animation(&self.over_image(self.unfolding()?)?, self.seconds)?,
            What::Masks => sights(&masks())?,
            What::Schemes => sights(&schemes())?,
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

    /// What moves: all but the pixels, which are too many to follow, and the hierarchy.
    fn unfolding(&self) -> Result<Vec<OrderPicture>> {
        let mut pictures = self.serialisations()?.split_off(1);
        let hierarchy = self.hierarchy()?;
        pictures.push(OrderPicture { title: format!("hierarchy, {}", hierarchy.title), ..hierarchy });
        Ok(pictures)
    }

    /// The same pictures over the middle square of the image that was named, if one was.
    fn over_image(&self, mut pictures: Vec<OrderPicture>) -> Result<Vec<OrderPicture>> {
        let Some(path) = &self.image else { return Ok(pictures) };
        let name = path.display().to_string();
        let image = occlude_data::decode(&std::fs::read(path).with_context(|| name.clone())?, &name)?;
        let side = image.width.min(image.height).min(LONGEST);
        let unchanged = Normalize::new([0.0; 3], [1.0; 3])?;
        let square = EvalTransform::new(side, EvalMode::ShortSide { resize: side }, unchanged)?.picture(&image);
        let square = Picture::new(square.width, square.height, square.pixels)?;
        pictures.iter_mut().for_each(|picture| picture.image = Some(square.clone()));
        Ok(pictures)
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
fn masks() -> Vec<SightPicture> {
    let ranks = [0, 1, 1, 2];
    vec![
        sight("source: own segment and before", &ranks, sees_content),
        memory("memory: before; the first itself", &ranks),
    ]
}

/// Nine patches, 3 x 3, by the one rule of three styles: a patch is predicted from what comes before it.
fn schemes() -> Vec<SightPicture> {
    vec![
        memory("BERT-style: the hidden at once", &[0, 1, 1, 0, 1, 0, 1, 1, 0]),
        memory("GPT-style: one by one", &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        memory("segment by segment", &[1, 1, 0, 1, 2, 0, 2, 2, 0]),
    ]
}

fn memory(title: &str, ranks: &[u32]) -> SightPicture {
    sight(title, ranks, sees_memory)
}

fn sight(title: &str, ranks: &[u32], rule: fn(u32, u32) -> bool) -> SightPicture {
    let seen = ranks.iter().flat_map(|query| ranks.iter().map(move |key| rule(*query, *key))).collect();
    SightPicture { title: title.into(), ranks: ranks.to_vec(), seen }
}
