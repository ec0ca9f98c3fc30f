//! Pictures made of pictures and of numbers: masks over images, maps of an order.

use crate::colour::of_rank;
use crate::{Picture, ReportError, Result};

/// Colour of a hidden patch: neither black nor white, so that it is seen on any page.
const HIDDEN: [u8; 3] = [128, 133, 141];
/// Lines between hidden patches.
const SEAM: [u8; 3] = [146, 151, 159];
/// Frame of a marked patch.
const MARK: [u8; 3] = [255, 176, 32];
/// Shortest side of a picture that is drawn upon: seams and frames need pixels.
const LEAST_SIDE: usize = 192;

/// Enlarges by a whole factor until the shorter side has at least `side` pixels.
///
/// # Errors
/// The result would be too large.
pub fn at_least(picture: &Picture, side: usize) -> Result<Picture> {
    picture.enlarged(side.div_ceil(picture.width().min(picture.height())))
}

/// What a student sees: `image` with the hidden patches covered and the `marked` ones (patches to predict) framed.
/// `hidden` has one flag a cell, row-major; small images are enlarged by a whole factor first.
///
/// # Errors
/// The flags do not fill the grid, a marked cell lies outside, or the image has fewer pixels than the grid cells.
pub fn mask_overlay(image: &Picture, rows: usize, cols: usize, hidden: &[bool], marked: &[usize]) -> Result<Picture> {
    let refuse = |message: String| Err(ReportError::Mask { rows, cols, message });
    if rows == 0 || cols == 0 || hidden.len() != rows * cols {
        return refuse(format!("{} flags", hidden.len()));
    }
    if let Some(cell) = marked.iter().find(|cell| **cell >= hidden.len()) {
        return refuse(format!("cell {cell} is marked"));
    }
    if image.width() < cols || image.height() < rows {
        return refuse(format!("over an image of {} x {} pixels", image.width(), image.height()));
    }
    let base = at_least(image, LEAST_SIDE)?;
    let mut frames = vec![false; hidden.len()];
    marked.iter().for_each(|cell| frames[*cell] = true);
    let (width, height) = (base.width(), base.height());
    let frame = (width.min(height) / 96).max(1);
    Picture::from_fn(width, height, |x, y| {
        let (col, row) = (x * cols / width, y * rows / height);
        let cell = row * cols + col;
        let (left, right) = edges(x, col, cols, width);
        let (top, bottom) = edges(y, row, rows, height);
        if frames[cell] && left.min(right).min(top).min(bottom) < frame {
            MARK
        } else if !hidden[cell] {
            base.at(x, y)
        } else if left.min(top) == 0 {
            SEAM
        } else {
            HIDDEN
        }
    })
}

/// The place of each cell in an order, row-major, in the colours of [`orders`](crate::orders): dark first, bright last.
/// A pixel a cell; [`at_least`] enlarges it.
///
/// # Errors
/// The ranks do not fill the grid.
pub fn rank_map(ranks: &[u32], rows: usize, cols: usize) -> Result<Picture> {
    if ranks.is_empty() || rows.checked_mul(cols) != Some(ranks.len()) {
        return Err(ReportError::Mask { rows, cols, message: format!("{} ranks", ranks.len()) });
    }
    let last = ranks.iter().max().copied().unwrap_or_default();
    Picture::new(cols, rows, ranks.iter().flat_map(|rank| of_rank(*rank, last)).collect())
}

/// Distance of pixel `at` from the first and the last pixel of its cell.
fn edges(at: usize, cell: usize, cells: usize, side: usize) -> (usize, usize) {
    let start = (cell * side).div_ceil(cells);
    let end = ((cell + 1) * side).div_ceil(cells);
    (at - start, end - 1 - at)
}

#[cfg(test)]
mod tests {
    use super::{HIDDEN, MARK, mask_overlay, rank_map};
    use crate::{Picture, ReportError};

    const RED: [u8; 3] = [200, 10, 20];

    fn plain(width: usize, height: usize) -> Picture {
        Picture::from_fn(width, height, |_, _| RED).unwrap()
    }

    #[test]
    fn a_png_reads_back() {
        let picture = Picture::from_fn(5, 3, |x, y| [x as u8 * 40, y as u8 * 80, 7]).unwrap();
        let read = image::load_from_memory(&picture.png().unwrap()).unwrap().to_rgb8();
        assert_eq!((read.width(), read.height(), read.as_raw().as_slice()), (5, 3, picture.pixels()));
    }

    #[test]
    fn pictures_that_do_not_fill_their_sides_are_refused() {
        for (width, height, bytes) in [(2, 2, 11), (0, 4, 0), (usize::MAX, 2, 6)] {
            let refused = Picture::new(width, height, vec![0; bytes]);
            assert!(matches!(refused, Err(ReportError::Picture { .. })));
        }
    }

    #[test]
    fn hidden_patches_are_covered_and_only_they() {
        // Not square, and the side is no multiple of the cells.
        let (rows, cols) = (3, 5);
        let hidden: Vec<bool> = (0..rows * cols).map(|cell| cell % 2 == 1).collect();
        let overlay = mask_overlay(&plain(233, 199), rows, cols, &hidden, &[3]).unwrap();
        for (cell, is_hidden) in hidden.iter().enumerate() {
            let x = (2 * (cell % cols) + 1) * overlay.width() / (2 * cols);
            let y = (2 * (cell / cols) + 1) * overlay.height() / (2 * rows);
            assert_eq!(overlay.at(x, y), if *is_hidden { HIDDEN } else { RED }, "cell {cell}");
        }
        let framed: Vec<usize> = (0..overlay.width() * overlay.height())
            .filter(|at| overlay.at(at % overlay.width(), at / overlay.width()) == MARK)
            .map(|at| at % overlay.width() * cols / overlay.width())
            .collect();
        assert!(!framed.is_empty() && framed.iter().all(|col| *col == 3), "only cell 3 is framed");
    }

    #[test]
    fn a_small_image_is_enlarged_by_a_whole_factor() {
        let overlay = mask_overlay(&plain(32, 32), 8, 8, &[false; 64], &[]).unwrap();
        assert_eq!((overlay.width(), overlay.height()), (192, 192));
    }

    #[test]
    fn a_rank_map_has_the_colours_of_orders() {
        let map = rank_map(&[0, 2, 1, 2, 0, 1], 2, 3).unwrap();
        assert_eq!((map.width(), map.height()), (3, 2));
        assert_eq!([map.at(0, 0), map.at(2, 0), map.at(0, 1)], [[68, 1, 84], [33, 145, 140], [253, 231, 37]]);
        assert_eq!(rank_map(&[0], 1, 1).unwrap().at(0, 0), [68, 1, 84]);
        assert!(rank_map(&[0, u32::MAX], 1, 2).is_ok());
    }

    #[test]
    fn ranks_that_do_not_fit_are_refused() {
        for (rows, cols, count) in [(2, 2, 3), (0, 4, 0), (0, 0, 0), (usize::MAX, 2, 6)] {
            let refused = rank_map(&vec![0; count], rows, cols);
            assert!(matches!(refused, Err(ReportError::Mask { .. })), "{rows} x {cols}");
        }
    }

    #[test]
    fn masks_that_do_not_fit_are_refused() {
        let image = plain(16, 16);
        assert!(mask_overlay(&image, 4, 4, &[true; 15], &[]).is_err());
        assert!(mask_overlay(&image, 4, 4, &[true; 16], &[16]).is_err());
        assert!(mask_overlay(&image, 0, 0, &[], &[]).is_err());
        assert!(mask_overlay(&plain(3, 3), 4, 4, &[true; 16], &[]).is_err());
    }
}
