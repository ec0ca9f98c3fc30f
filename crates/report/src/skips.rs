//! Weights of trainable skip connections as heat maps, one scale for all.

use crate::colour::{Rgb, hex, ink_on, of_sign};
use crate::markup::{Markup, classed, element};
use crate::{ReportError, Result, SkipMatrix};
use std::fmt::Write;

/// What the section shows, and how to read it.
pub(crate) const LEAD: &str = "What the decoder reads. Each of its layers (a row) gets a weighted sum of what the \
                               encoder's blocks give (columns): red adds, blue subtracts, pale is near zero, and \
                               all maps share one scale. Rows that come to differ are layers that read different \
                               depths of the encoder.";

/// Maps of a page: the last is large, with numbers, those before it are small.
const MOST: usize = 7;
/// Room for the numbers of rows, for the name above them, and for the numbers and the name of columns.
const LEFT: f64 = 26.0;
const ABOVE: f64 = 20.0;
const BELOW: f64 = 38.0;
/// As wide as the name of an axis.
const LEAST_WIDTH: f64 = 124.0;
/// A weight that is no finite number.
const NO_NUMBER: Rgb = [138, 144, 154];
/// Steps of the scale.
const STEPS: u32 = 41;

/// How a map is drawn.
struct Look {
    class: &'static str,
    cell: (f64, f64),
    numbers: bool,
}

const SMALL: Look = Look { class: "heat", cell: (22.0, 22.0), numbers: false };
const LARGE: Look = Look { class: "heat last", cell: (50.0, 34.0), numbers: true };

/// The maps, in order, and their scale.
///
/// # Errors
/// A matrix without weights, or not one for each of its cells.
pub(crate) fn body(matrices: &[SkipMatrix]) -> Result<Markup> {
    matrices.iter().try_for_each(check)?;
    let shown = chosen(matrices);
    let largest = shown.iter().map(|matrix| largest(&matrix.weights)).fold(0.0, f64::max);
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let maps = shown.iter().enumerate().map(|(at, matrix)| {
        let look = if at + 1 == shown.len() { &LARGE } else { &SMALL };
        let title = element("h3", &[], matrix.label.as_str());
        let drawing = Markup::trusted(svg(matrix, scale, look));
        let drawing = element("div", &[("role", "img"), ("aria-label", &spoken(matrix))], drawing);
        element("figure", &[("class", look.class)], [title, drawing])
    });
    let maps = element("div", &[("class", "heats")], maps.collect::<Vec<_>>());
    Ok([maps, key(scale)].into())
}

fn check(matrix: &SkipMatrix) -> Result<()> {
    let SkipMatrix { ref label, rows, cols, ref weights } = *matrix;
    if weights.is_empty() || rows.checked_mul(cols) != Some(weights.len()) {
        return Err(ReportError::Skips { label: label.clone(), rows, cols, got: weights.len() });
    }
    Ok(())
}

/// The first, the last, and some between.
fn chosen(matrices: &[SkipMatrix]) -> Vec<&SkipMatrix> {
    let count = matrices.len().min(MOST);
    (0..count).map(|at| &matrices[at * (matrices.len() - 1) / (count - 1).max(1)]).collect()
}

fn largest(weights: &[f64]) -> f64 {
    weights.iter().filter(|weight| weight.is_finite()).fold(0.0, |largest, weight| weight.abs().max(largest))
}

fn colour(weight: f64, scale: f64) -> Rgb {
    if weight.is_finite() { of_sign(weight / scale) } else { NO_NUMBER }
}

/// The map; the page describes it to those who do not see it.
fn svg(matrix: &SkipMatrix, scale: f64, look: &Look) -> String {
    let (cell, (rows, cols)) = (look.cell, (matrix.rows as f64, matrix.cols as f64));
    let (right, bottom) = (LEFT + cols * cell.0, ABOVE + rows * cell.1);
    let (width, height) = (right.max(LEAST_WIDTH) + 2.0, bottom + BELOW);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-size=\"12\" \
         fill=\"currentColor\" aria-hidden=\"true\" focusable=\"false\">"
    );
    for (index, weight) in matrix.weights.iter().enumerate() {
        let (layer, block) = (index / matrix.cols, index % matrix.cols);
        let (x, y) = (LEFT + block as f64 * cell.0, ABOVE + layer as f64 * cell.1);
        let (fill, value) = (colour(*weight, scale), written(*weight));
        let name = format!("decoder layer {}, encoder block {}: {value}", layer + 1, block + 1);
        let (across, down) = (cell.0 - 1.0, cell.1 - 1.0);
        let place = format!("x=\"{x}\" y=\"{y}\" width=\"{across}\" height=\"{down}\"");
        add(&mut svg, format_args!("<rect {place} fill=\"{}\"><title>{name}</title></rect>", hex(fill)));
        if look.numbers {
            let (x, y) = (x + across / 2.0, y + down / 2.0 + 4.0);
            label(&mut svg, (x, y), "middle", ink_on(fill), &value);
        }
    }
    for layer in 0..matrix.rows {
        let middle = ABOVE + (layer as f64 + 0.5) * cell.1 + 4.0;
        label(&mut svg, (LEFT - 6.0, middle), "end", "currentColor", &(layer + 1).to_string());
    }
    for block in 0..matrix.cols {
        let middle = LEFT + (block as f64 + 0.5) * cell.0;
        label(&mut svg, (middle, bottom + 15.0), "middle", "currentColor", &(block + 1).to_string());
    }
    label(&mut svg, (0.0, 12.0), "start", "currentColor", "decoder layer");
    label(&mut svg, (LEFT, bottom + 32.0), "start", "currentColor", "encoder block");
    svg.push_str("</svg>");
    svg
}

fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, ink: &str, text: &str) {
    add(svg, format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{ink}\">{text}</text>"));
}

/// Writing to a string does not fail.
fn add(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text);
}

/// What colours mean.
fn key(scale: f64) -> Markup {
    let mut svg =
        format!("<svg viewBox=\"0 0 {} 12\" width=\"{}\" height=\"12\" aria-hidden=\"true\">", 4 * STEPS, 4 * STEPS);
    for step in 0..STEPS {
        let fill = hex(of_sign(2.0 * f64::from(step) / f64::from(STEPS - 1) - 1.0));
        add(&mut svg, format_args!("<rect x=\"{}\" y=\"0\" width=\"4\" height=\"12\" fill=\"{fill}\"/>", 4 * step));
    }
    svg.push_str("</svg>");
    let ends = [written(-scale), written(scale)].map(|end| classed("span", "number", &end));
    let [low, high] = ends;
    element("p", &[("class", "key")], [low, Markup::trusted(svg), high])
}

/// The block that each layer reads most, for readers who do not see the map.
fn spoken(matrix: &SkipMatrix) -> String {
    let layers = matrix.weights.chunks(matrix.cols).enumerate().map(|(layer, weights)| {
        let largest = largest(weights);
        let most = weights.iter().enumerate().find(|(_, weight)| weight.abs() == largest);
        match most {
            Some((block, weight)) if largest > 0.0 => {
                format!("decoder layer {} reads encoder block {} most ({})", layer + 1, block + 1, written(*weight))
            }
            _ => format!("decoder layer {} reads nothing", layer + 1),
        }
    });
    format!("Weights of skip connections, {}: {}", matrix.label, layers.collect::<Vec<_>>().join("; "))
}

/// A weight in at most five characters, or six where it is odd.
fn written(weight: f64) -> String {
    let text = match weight.abs() {
        size if size < 9.995 => format!("{weight:.2}"),
        size if size < 99.95 => format!("{weight:.1}"),
        size if size < 9999.5 => format!("{weight:.0}"),
        _ => format!("{weight:.0e}"),
    };
    // What rounds to zero has no sign.
    if text == "-0.00" { "0.00".into() } else { text.replace('-', "\u{2212}") }
}

#[cfg(test)]
mod tests {
    use super::{MOST, body, spoken, written};
    use crate::{ReportError, SkipMatrix};

    fn matrix(label: &str, rows: usize, weights: &[f64]) -> SkipMatrix {
        SkipMatrix { label: label.into(), rows, cols: weights.len() / rows, weights: weights.into() }
    }

    #[test]
    fn weights_are_short_and_zero_has_no_sign() {
        let values = [1.0, -0.126, -0.001, 12.34, -123.4, 1e7, -1e-300, f64::NAN, f64::NEG_INFINITY];
        let expected = ["1.00", "\u{2212}0.13", "0.00", "12.3", "\u{2212}123", "1e7", "0.00", "NaN", "\u{2212}inf"];
        assert_eq!(values.map(written), expected);
    }

    #[test]
    fn one_scale_holds_for_all_maps_and_the_last_has_numbers() {
        let html = body(&[matrix("first", 1, &[0.0, 1.0]), matrix("last", 1, &[-2.0, 1.0])]).unwrap();
        let (first, last) = html.as_str().split_once("heat last").unwrap();
        assert!(first.contains("#eeeeee") && first.contains("#f4a582"), "zero and half of the scale: {first}");
        let (last, key) = last.split_once("class=\"key\"").unwrap();
        assert!(last.contains("#2166ac") && last.contains("#f4a582"), "{last}");
        assert!(last.contains(">\u{2212}2.00</text>") && !first.contains(">1.00</text>"));
        assert!(key.contains(">\u{2212}2.00<") && key.contains(">2.00<"), "{key}");
        for axis in ["decoder layer", "encoder block"] {
            assert_eq!(html.as_str().matches(&format!(">{axis}</text>")).count(), 2, "{axis}");
        }
    }

    #[test]
    fn of_many_epochs_the_first_and_the_last_are_among_those_shown() {
        for count in [1, 2, MOST, MOST + 1, 100] {
            let all: Vec<SkipMatrix> = (0..count).map(|epoch| matrix(&format!("epoch {epoch}"), 1, &[0.5])).collect();
            let html = body(&all).unwrap();
            let titles: Vec<&str> =
                html.as_str().split("<h3>").skip(1).map(|rest| &rest[..rest.find('<').unwrap()]).collect();
            assert_eq!(titles.len(), count.min(MOST), "{titles:?}");
            assert_eq!((titles[0], *titles.last().unwrap()), ("epoch 0", format!("epoch {}", count - 1).as_str()));
            let mut distinct = titles.clone();
            distinct.dedup();
            assert_eq!(distinct, titles);
        }
    }

    #[test]
    fn odd_weights_are_drawn_and_leave_the_scale_alone() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.25];
        let html =
            body(&[matrix("odd", 2, &odd), matrix("zero", 1, &[0.0; 3]), matrix("nan", 1, &[f64::NAN])]).unwrap();
        let maps = html.as_str().split_once("class=\"key\"").unwrap().0;
        assert_eq!(maps.matches("#8a909a").count(), 4);
        assert_eq!(maps.matches("#b2182b").count(), 1, "a quarter is the end of the scale");
        let tiny = body(&[matrix("tiny", 1, &[1e-320, -1e-320])]).unwrap();
        assert_eq!(tiny.as_str().matches("#2166ac").count(), 2, "a cell and the scale");
        assert!(body(&[matrix("zero", 1, &[0.0; 3])]).unwrap().as_str().contains(">1.00<"), "some scale");
    }

    #[test]
    fn what_a_layer_reads_most_is_said() {
        let said = spoken(&matrix("epoch 9", 3, &[0.1, -0.8, 1.0, f64::NAN, 0.0, f64::NAN]));
        assert_eq!(
            said,
            "Weights of skip connections, epoch 9: decoder layer 1 reads encoder block 2 most (\u{2212}0.80); \
             decoder layer 2 reads encoder block 1 most (1.00); decoder layer 3 reads nothing"
        );
    }

    #[test]
    fn matrices_that_are_not_filled_are_refused() {
        let short = SkipMatrix { cols: 3, ..matrix("a", 1, &[1.0, 2.0]) };
        assert!(matches!(
            body(&[matrix("b", 1, &[1.0]), short]),
            Err(ReportError::Skips { rows: 1, cols: 3, got: 2, .. })
        ));
        let empty = SkipMatrix { label: String::new(), rows: 0, cols: 4, weights: Vec::new() };
        assert!(body(std::slice::from_ref(&empty)).is_err());
        assert!(body(&[SkipMatrix { rows: usize::MAX, cols: 2, weights: vec![1.0], ..empty }]).is_err());
    }
}
