//! Cells of a grid, coloured by their place in an order.

use super::{SIDE, add, side_by_side, square};
use crate::colour::{hex, of_rank, share};
use crate::{Picture, ReportError, Result};
use std::collections::BTreeMap;

/// Radius of the disc that holds the place of a part.
const DISC: f64 = 8.0;
/// How much cells cover of the image under them.
const COVER: f64 = 0.6;

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
    /// The image that is taken apart: it fills the grid and shows through the cells.
    pub image: Option<Picture>,
}

/// One SVG of all pictures, side by side.
///
/// # Errors
/// No picture, ranks or groups that do not fill a grid, or an image that cannot be encoded.
pub fn orders(pictures: &[OrderPicture]) -> Result<String> {
    side_by_side(pictures.len(), "", |at, svg| {
        let drawn = Drawn::new(&pictures[at])?;
        drawn.image(svg, &pictures[..at])?;
        drawn.over(svg, |svg| (0..drawn.colours.len()).for_each(|index| drawn.cell(svg, index)));
        if pictures[at].arrows {
            (1..drawn.parts.len()).for_each(|place| drawn.arrow(svg, place));
            (0..drawn.parts.len()).for_each(|place| drawn.disc(svg, place));
        }
        Ok(pictures[at].title.clone())
    })
}

/// A picture that fills its grid, and what is drawn of it.
pub(super) struct Drawn<'a> {
    picture: &'a OrderPicture,
    /// Side of a cell.
    side: f64,
    /// Of each cell.
    colours: Vec<String>,
    /// Cells of each part, the first part first.
    pub(super) parts: Vec<Vec<usize>>,
}

impl<'a> Drawn<'a> {
    pub(super) fn new(picture: &'a OrderPicture) -> Result<Self> {
        let OrderPicture { rows, cols, ref ranks, ref groups, .. } = *picture;
        let fills = |cells: usize| cells > 0 && rows.checked_mul(cols) == Some(cells);
        if !fills(ranks.len()) || !(groups.is_empty() || fills(groups.len())) {
            let message = format!("{} ranks, {} groups", ranks.len(), groups.len());
            return Err(ReportError::Mask { rows, cols, message });
        }
        let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        ranks.iter().enumerate().for_each(|(index, rank)| parts.entry(*rank).or_default().push(index));
        let side = SIDE / rows.max(cols) as f64;
        Ok(Self { picture, side, colours: colours(ranks, groups), parts: parts.into_values().collect() })
    }

    /// The image under the cells, which is not written again where one of the pictures `before` has it.
    pub(super) fn image(&self, svg: &mut String, before: &[OrderPicture]) -> Result<()> {
        let OrderPicture { rows, cols, image: Some(ref image), .. } = *self.picture else { return Ok(()) };
        let same = |other: &OrderPicture| {
            other.image.as_ref() == Some(image) && other.rows as f64 * cols as f64 == other.cols as f64 * rows as f64
        };
        if let Some(first) = before.iter().position(same) {
            add(svg, format_args!("<use href=\"#image{first}\"/>\n"));
            return Ok(());
        }
        let (at, width, height) = (before.len(), cols as f64 * self.side, rows as f64 * self.side);
        let rendering = if image.has_hard_edges() { "pixelated" } else { "auto" };
        add(
            svg,
            format_args!(
                "<image id=\"image{at}\" width=\"{width:.1}\" height=\"{height:.1}\" preserveAspectRatio=\"none\" \
                 image-rendering=\"{rendering}\" href=\"{}\"/>\n",
                image.data_uri()?
            ),
        );
        Ok(())
    }

    /// Cells that let an image under them show through.
    pub(super) fn over(&self, svg: &mut String, cells: impl Fn(&mut String)) {
        if self.picture.image.is_none() {
            return cells(svg);
        }
        add(svg, format_args!("<g fill-opacity=\"{COVER}\">\n"));
        cells(svg);
        svg.push_str("</g>\n");
    }

    pub(super) fn cell(&self, svg: &mut String, index: usize) {
        self.cell_in(svg, index, &self.colours[index]);
    }

    pub(super) fn cell_in(&self, svg: &mut String, index: usize, colour: &str) {
        square(svg, (index % self.picture.cols, index / self.picture.cols), self.side, colour);
    }

    /// The middle of a part.
    fn middle(&self, place: usize) -> (f64, f64) {
        let cells = &self.parts[place];
        let mean = |of: &dyn Fn(usize) -> usize| {
            self.side * (0.5 + cells.iter().map(|index| of(*index) as f64).sum::<f64>() / cells.len().max(1) as f64)
        };
        (mean(&|index| index % self.picture.cols), mean(&|index| index / self.picture.cols))
    }

    /// An arrow to a part from the one before it, up to the edge of its disc.
    pub(super) fn arrow(&self, svg: &mut String, place: usize) {
        let ((x1, y1), (x2, y2)) = (self.middle(place - 1), self.middle(place));
        let whole = (x2 - x1).hypot(y2 - y1).max(DISC);
        let (x2, y2) = (x2 - (x2 - x1) * DISC / whole, y2 - (y2 - y1) * DISC / whole);
        add(
            svg,
            format_args!(
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#000000\" stroke-width=\"1.6\" marker-end=\"url(#head)\"/>\n"
            ),
        );
    }

    /// A disc in the middle of a part, with its place.
    pub(super) fn disc(&self, svg: &mut String, place: usize) {
        let (x, y) = self.middle(place);
        add(
            svg,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DISC}\" fill=\"#ffffff\" stroke=\"#000000\"/>\n"),
        );
        add(
            svg,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>\n",
                y + 3.5,
                place + 1
            ),
        );
    }
}

/// Of each cell, by its rank; where there are groups a hue a group and a shade a part of it.
fn colours(ranks: &[u32], groups: &[u32]) -> Vec<String> {
    if groups.is_empty() {
        let last = ranks.iter().max().copied().unwrap_or_default();
        return ranks.iter().map(|rank| hex(of_rank(*rank, last))).collect();
    }
    let count = 1.0 + groups.iter().max().map_or(0.0, |last| f64::from(*last));
    let mut spans: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for (group, rank) in groups.iter().zip(ranks) {
        let (first, last) = spans.entry(*group).or_insert((*rank, *rank));
        (*first, *last) = ((*first).min(*rank), (*last).max(*rank));
    }
    let colour = |(group, rank): (&u32, &u32)| {
        let (first, last) = spans.get(group).copied().unwrap_or((*rank, *rank));
        let (hue, light) = (360.0 * f64::from(*group) / count, 40.0 + 35.0 * share(rank - first, last - first));
        format!("hsl({hue:.0} 65% {light:.0}%)")
    };
    groups.iter().zip(ranks).map(colour).collect()
}

#[cfg(test)]
mod tests {
    use super::{OrderPicture, orders};
    use crate::{Picture, ReportError};

    fn picture() -> OrderPicture {
        OrderPicture { title: "a <b>".into(), rows: 1, cols: 3, ranks: vec![1, 0, 1], ..OrderPicture::default() }
    }

    #[test]
    fn cells_of_one_rank_have_one_colour_and_titles_are_escaped() {
        let svg = orders(&[picture()]).unwrap();
        assert!(svg.contains("a &lt;b&gt;") && svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!((svg.matches("#fde725").count(), svg.matches("#440154").count()), (2, 1), "{svg}");
        assert!(!svg.contains("<line") && !svg.contains("<image"));
    }

    #[test]
    fn groups_have_hues_and_arrows_lead_on() {
        let svg =
            orders(&[OrderPicture { groups: vec![0, 0, 1], ranks: vec![1, 0, 2], arrows: true, ..picture() }]).unwrap();
        assert_eq!((svg.matches("hsl(0 ").count(), svg.matches("hsl(180 ").count()), (2, 1), "{svg}");
        assert_eq!((svg.matches("<line").count(), svg.matches("<circle").count()), (2, 3));
    }

    #[test]
    fn ranks_and_groups_may_have_gaps() {
        let (ranks, groups) = (vec![9, 0, u32::MAX], vec![0, u32::MAX, 7]);
        let svg = orders(&[OrderPicture { ranks, groups, arrows: true, ..picture() }]).unwrap();
        assert_eq!((svg.matches("<line").count(), svg.matches("<circle").count()), (2, 3));
        assert!(svg.contains(">3</text>") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn an_image_lies_under_the_cells_and_is_written_once() {
        let image = |tint: u8| Picture::from_fn(6, 2, |x, y| [x as u8 * 40, y as u8 * 80, tint]).ok();
        let with = |tint| OrderPicture { image: image(tint), ..picture() };
        let doubled = OrderPicture { rows: 2, cols: 6, ranks: vec![0; 12], ..with(1) };
        let svg = orders(&[with(1), doubled, with(2), OrderPicture { cols: 1, rows: 3, ..with(2) }]).unwrap();
        assert_eq!((svg.matches("<image").count(), svg.matches("<use href=\"#image0\"/>").count()), (3, 1), "{svg}");
        assert_eq!(svg.matches("fill-opacity").count(), 4);
        assert!(svg.find("<image") < svg.find("#440154"), "the image comes first");
        assert!(svg.contains("width=\"240.0\" height=\"80.0\"") && svg.contains("width=\"80.0\" height=\"240.0\""));
    }

    #[test]
    fn a_grid_that_is_not_filled_is_refused() {
        assert!(orders(&[OrderPicture { cols: 4, ..picture() }]).is_err());
        assert!(orders(&[OrderPicture { groups: vec![0], ..picture() }]).is_err());
        assert!(orders(&[OrderPicture { rows: usize::MAX, ..picture() }]).is_err());
        assert!(matches!(orders(&[OrderPicture::default()]), Err(ReportError::Mask { rows: 0, cols: 0, .. })));
        assert!(matches!(orders(&[]), Err(ReportError::NoPicture)));
    }
}
