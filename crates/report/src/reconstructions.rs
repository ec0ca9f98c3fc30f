//! Images beside what was predicted of them, and in which order.

use crate::markup::{Markup, element, optional};
use crate::page::column;
use crate::{Picture, Reconstruction, ReportError, Result};

/// What the section shows, and how to read it.
pub(crate) const LEAD: &str = "Left an image, then the order in which its segments are predicted (dark first, bright last) \
                               or, where there is no order, which patches were hidden (bright), right the predictions, \
                               pasted patch by patch. With an order a patch is predicted from the segments before its \
                               own; only the first segment, which has none before it, sees itself. Where patches are \
                               standardised before they are compared, level and contrast are those of the image.";

/// The rows, in order.
///
/// # Errors
/// A prediction without the sides of its image, or a picture that cannot be encoded.
pub(crate) fn body(rows: &[Reconstruction]) -> Result<Markup> {
    let rows: Vec<Markup> = rows.iter().enumerate().map(|(at, row)| figure(at + 1, row)).collect::<Result<_>>()?;
    Ok(element("div", &[("class", "maps")], rows))
}

fn figure(number: usize, row: &Reconstruction) -> Result<Markup> {
    let sides = |picture: &Picture| (picture.width(), picture.height());
    let (image, predicted) = (sides(&row.image), sides(&row.predicted));
    if image != predicted {
        return Err(ReportError::Prediction { image, predicted });
    }
    let columns = [
        column(&row.image, &format!("Image {number}"), "image")?,
        column(&row.ranks, &format!("Order of the segments of image {number}"), "order")?,
        column(&row.predicted, &format!("Image {number} as predicted"), "prediction")?,
    ];
    let columns = element("div", &[("class", "map-row")], columns);
    Ok(element("figure", &[], [columns, optional("figcaption", "note", &row.note)]))
}

#[cfg(test)]
mod tests {
    use super::body;
    use crate::{Picture, Reconstruction, ReportError};

    fn picture(width: usize, height: usize) -> Picture {
        Picture::new(width, height, vec![7; 3 * width * height]).unwrap()
    }

    fn row(note: &str) -> Reconstruction {
        Reconstruction { image: picture(8, 4), ranks: picture(2, 1), predicted: picture(8, 4), note: note.into() }
    }

    #[test]
    fn a_row_is_image_order_and_prediction() {
        let html = body(&[row("a <b>"), row("")]).unwrap();
        let names: Vec<&str> = html.as_str().split("<p>").skip(1).map(|rest| rest.split_once('<').unwrap().0).collect();
        assert_eq!(names, ["image", "order", "prediction"].repeat(2));
        assert!(html.as_str().contains("a &lt;b&gt;") && html.as_str().matches("<figcaption").count() == 1);
    }

    #[test]
    fn a_prediction_of_another_size_is_refused() {
        let refused = body(&[row(""), Reconstruction { predicted: picture(4, 8), ..row("") }]).unwrap_err();
        assert!(matches!(refused, ReportError::Prediction { image: (8, 4), predicted: (4, 8) }));
        assert_eq!(refused.to_string(), "a prediction of 4 x 8 pixels for an image of 8 x 4");
    }
}
