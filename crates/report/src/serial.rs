//! Pictures of the order in which parts of an image are predicted, as SVG.

use crate::{ReportError, Result};
use std::fmt::Write;

/// Side of a picture, and room for what is written under it, in units of the drawing.
const SIDE: f64 = 240.0;
const CAPTION: f64 = 28.0;
const GAP: f64 = 16.0;
/// Radius of the disc that holds the place of a part.
const DISC: f64 = 8.0;
/// From first to last: dark to bright, told apart in grey and by the colour-blind.
const RAMP: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

/// Cells of a grid with the place of each in an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderPicture {
    /// What is written under it.
    pub title: String,
    /// Cells from top to bottom.
    pub rows: usize,
    /// Cells from left to right.
    pub cols: usize,
    /// Place of each cell, row-major; cells of one part share it.
    pub ranks: Vec<u32>,
    /// Group of each cell: a hue each. Empty: colours go by rank alone.
    pub groups: Vec<u32>,
    /// Whether arrows lead from part to part.
    pub arrows: bool,
}

/// Which token sees which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SightPicture {
    /// What is written under it.
    pub title: String,
    /// Rank of each token: rows are those that look, columns those that are looked at.
    pub ranks: Vec<u32>,
    /// `ranks.len()` squared, row by row.
    pub seen: Vec<bool>,
}

/// One SVG of all pictures, side by side.
///
/// # Errors
/// Ranks or groups that do not fill a grid.
pub fn orders(pictures: &[OrderPicture]) -> Result<String> {
    side_by_side(pictures.len(), |at, svg| {
        let picture = &pictures[at];
        let OrderPicture { rows, cols, .. } = *picture;
        let fills = |cells: usize| rows * cols > 0 && cells == rows * cols;
        if !fills(picture.ranks.len()) || !(picture.groups.is_empty() || fills(picture.groups.len())) {
            let message = format!("{} ranks, {} groups", picture.ranks.len(), picture.groups.len());
            return Err(ReportError::Mask { rows, cols, message });
        }
        let cell = SIDE / rows.max(cols) as f64;
        for (index, _) in picture.ranks.iter().enumerate() {
            square(svg, (index % cols, index / cols), cell, &picture.colour(index));
        }
        if picture.arrows {
            picture.path(cell, svg);
        }
        Ok(picture.title.clone())
    })
}

/// One SVG of all tables, side by side: a dark square where the row's token sees the column's.
///
/// # Errors
/// Tables that are not square.
pub fn sights(pictures: &[SightPicture]) -> Result<String> {
    side_by_side(pictures.len(), |at, svg| {
        let SightPicture { title, ranks, seen } = &pictures[at];
        let count = ranks.len();
        if count == 0 || seen.len() != count * count {
            let message = format!("{} flags", seen.len());
            return Err(ReportError::Mask { rows: count, cols: count, message });
        }
        // A strip of ranks above and to the left.
        let (cell, last) = (SIDE / (count + 1) as f64, ranks.iter().max().copied().unwrap_or_default());
        for (at, rank) in ranks.iter().enumerate() {
            let colour = ramp(share(*rank, last));
            square(svg, (at + 1, 0), cell, &colour);
            square(svg, (0, at + 1), cell, &colour);
        }
        for (index, seen) in seen.iter().enumerate() {
            square(svg, (index % count + 1, index / count + 1), cell, if *seen { "#30363d" } else { "#eef0f2" });
        }
        Ok(title.clone())
    })
}

/// The frame of several pictures; `draw` adds one at the origin and gives its title.
fn side_by_side(count: usize, draw: impl Fn(usize, &mut String) -> Result<String>) -> Result<String> {
    let (width, height) = (count as f64 * (SIDE + GAP) + GAP, SIDE + CAPTION + 2.0 * GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    for at in 0..count {
        let mut inside = String::new();
        let title = draw(at, &mut inside)?;
        let left = GAP + at as f64 * (SIDE + GAP);
        let caption = SIDE + 0.7 * CAPTION;
        add(&mut svg, format_args!("<g transform=\"translate({left} {GAP})\">\n{inside}"));
        let title = crate::markup::Markup::text(title);
        add(&mut svg, format_args!("<text x=\"{}\" y=\"{caption}\" text-anchor=\"middle\">", SIDE / 2.0));
        add(&mut svg, format_args!("{}</text>\n</g>\n", title.as_str()));
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Writing to a string does not fail.
fn add(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text);
}

fn square(svg: &mut String, (col, row): (usize, usize), cell: f64, colour: &str) {
    let (x, y, seam) = (col as f64 * cell, row as f64 * cell, if cell > 12.0 { 1.0 } else { 0.0 });
    let side = cell - seam;
    add(
        svg,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill=\"{colour}\" shape-rendering=\"crispEdges\"/>\n"
        ),
    );
}

/// `rank` of 0 to `last`, as a share.
fn share(rank: u32, last: u32) -> f64 {
    f64::from(rank) / f64::from(last.max(1))
}

fn ramp(share: f64) -> String {
    let place = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let below = (place as usize).min(RAMP.len() - 2);
    let part = place - below as f64;
    let channel = |at: usize| (RAMP[below][at] * (1.0 - part) + RAMP[below + 1][at] * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2))
}

impl OrderPicture {
    fn colour(&self, index: usize) -> String {
        let rank = self.ranks[index];
        let Some(group) = self.groups.get(index) else {
            return ramp(share(rank, self.ranks.iter().max().copied().unwrap_or_default()));
        };
        // A hue a group, a shade a part of it.
        let inside: Vec<u32> =
            self.ranks.iter().zip(&self.groups).filter(|(_, g)| *g == group).map(|(r, _)| *r).collect();
        let (first, last) =
            (inside.iter().min().copied().unwrap_or_default(), inside.iter().max().copied().unwrap_or_default());
        let groups = self.groups.iter().max().map_or(1, |last| last + 1);
        let (hue, light) =
            (360.0 * f64::from(*group) / f64::from(groups), 40.0 + 35.0 * share(rank - first, last - first));
        format!("hsl({hue:.0} 65% {light:.0}%)")
    }

    /// Arrows from the middle of each part to that of the next, and their places.
    fn path(&self, cell: f64, svg: &mut String) {
        let last = self.ranks.iter().max().copied().unwrap_or_default();
        let middle = |rank: u32| {
            let cells: Vec<usize> = (0..self.ranks.len()).filter(|index| self.ranks[*index] == rank).collect();
            let mean = |of: &dyn Fn(usize) -> usize| {
                cell * (0.5 + cells.iter().map(|index| of(*index) as f64).sum::<f64>() / cells.len().max(1) as f64)
            };
            (mean(&|index| index % self.cols), mean(&|index| index / self.cols))
        };
        let middles: Vec<(f64, f64)> = (0..=last).map(middle).collect();
        for pair in middles.windows(2) {
            let ((x1, y1), (x2, y2)) = (pair[0], pair[1]);
            // Up to the edge of the next disc.
            let whole = (x2 - x1).hypot(y2 - y1).max(DISC);
            let (x2, y2) = (x2 - (x2 - x1) * DISC / whole, y2 - (y2 - y1) * DISC / whole);
            add(
                svg,
                format_args!(
                    "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#000000\" stroke-width=\"1.6\" marker-end=\"url(#head)\"/>\n"
                ),
            );
        }
        for (rank, (x, y)) in middles.iter().enumerate() {
            add(
                svg,
                format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DISC}\" fill=\"#ffffff\" stroke=\"#000000\"/>\n"
                ),
            );
            add(
                svg,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>\n",
                    y + 3.5,
                    rank + 1
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OrderPicture, SightPicture, orders, sights};

    fn picture() -> OrderPicture {
        let title = "a <b>".into();
        OrderPicture { title, rows: 1, cols: 3, ranks: vec![1, 0, 1], groups: Vec::new(), arrows: false }
    }

    #[test]
    fn cells_of_one_rank_have_one_colour_and_titles_are_escaped() {
        let svg = orders(&[picture()]).unwrap();
        assert!(svg.contains("a &lt;b&gt;") && svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!((svg.matches("#fde725").count(), svg.matches("#440154").count()), (2, 1), "{svg}");
        assert!(!svg.contains("<line"));
    }

    #[test]
    fn groups_have_hues_and_arrows_lead_on() {
        let svg =
            orders(&[OrderPicture { groups: vec![0, 0, 1], ranks: vec![1, 0, 2], arrows: true, ..picture() }]).unwrap();
        assert_eq!((svg.matches("hsl(0 ").count(), svg.matches("hsl(180 ").count()), (2, 1), "{svg}");
        assert_eq!((svg.matches("<line").count(), svg.matches("<circle").count()), (2, 3));
    }

    #[test]
    fn a_table_shows_who_sees_whom() {
        let table = SightPicture { title: "t".into(), ranks: vec![0, 1], seen: vec![true, false, true, true] };
        let svg = sights(std::slice::from_ref(&table)).unwrap();
        assert_eq!((svg.matches("#30363d").count(), svg.matches("#eef0f2").count()), (3, 1));
        assert!(sights(&[SightPicture { seen: vec![true], ..table }]).is_err());
    }

    #[test]
    fn a_grid_that_is_not_filled_is_refused() {
        assert!(orders(&[OrderPicture { cols: 4, ..picture() }]).is_err());
        assert!(orders(&[OrderPicture { groups: vec![0], ..picture() }]).is_err());
        assert!(orders(&[OrderPicture::default()]).is_err());
    }
}
