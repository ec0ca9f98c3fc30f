//! Pictures of the order in which parts of an image are predicted, and of who sees whom, as SVG.

mod animation;
mod order;
mod sight;

pub use animation::animation;
pub use order::{OrderPicture, orders};
pub use sight::{SightPicture, sights};

use crate::markup::Markup;
use crate::{ReportError, Result};
use std::fmt::Write;

/// Side of a picture, and room for what is written under it, in units of the drawing.
const SIDE: f64 = 240.0;
const CAPTION: f64 = 28.0;
const GAP: f64 = 16.0;

/// The frame of several pictures, which `style` sheets may move; `draw` adds one at the origin and gives its title.
fn side_by_side(count: usize, style: &str, draw: impl Fn(usize, &mut String) -> Result<String>) -> Result<String> {
    if count == 0 {
        return Err(ReportError::NoPicture);
    }
    let (width, height) = (count as f64 * (SIDE + GAP) + GAP, SIDE + CAPTION + 2.0 * GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n{style}<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    for at in 0..count {
        let mut inside = String::new();
        let title = draw(at, &mut inside)?;
        let left = GAP + at as f64 * (SIDE + GAP);
        let caption = SIDE + 0.7 * CAPTION;
        add(&mut svg, format_args!("<g transform=\"translate({left} {GAP})\">\n{inside}"));
        add(&mut svg, format_args!("<text x=\"{}\" y=\"{caption}\" text-anchor=\"middle\">", SIDE / 2.0));
        add(&mut svg, format_args!("{}</text>\n</g>\n", Markup::text(title).as_str()));
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
