//! Curves over a run, drawn as SVG that takes its ink from the page.

use crate::{ReportError, Result};
use plotters::prelude::*;
use std::ops::Range;

/// Drawn at twice the size it is shown: plotters places points on whole units.
const SIZE: (u32, u32) = (1040, 560);
/// Colours that read on white and on near-black.
const PALETTE: [RGBColor; 5] = [
    RGBColor(0x2b, 0x7d, 0xd4),
    RGBColor(0xdb, 0x6f, 0x26),
    RGBColor(0x2f, 0x9d, 0x68),
    RGBColor(0x8c, 0x64, 0xd0),
    RGBColor(0xc8, 0x4b, 0x6b),
];
const BASELINES: [RGBColor; 3] = [RGBColor(0x8a, 0x90, 0x9a), RGBColor(0xb0, 0x8a, 0x3c), RGBColor(0x5f, 0x9e, 0xa0)];
/// Stands for the page's own ink: the SVG's only use of this colour is replaced by `currentColor`.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_WRITTEN: &str = "#010203";
/// Points of a drawn line; longer curves are averaged in bins.
const MOST_POINTS: usize = 400;
/// A curve with at most this many points shows each of them.
const MOST_MARKS: usize = 40;

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What the line is.
    pub name: String,
    /// (x, y), x ascending. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// A named line.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points }
    }
}

/// A dashed level to compare with.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// What the level is.
    pub name: String,
    /// Where it is.
    pub value: f64,
}

/// One or more curves over the same axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What is drawn.
    pub title: String,
    /// Unit of the vertical axis.
    pub unit: String,
    /// What the horizontal axis counts.
    pub over: String,
    /// What one sees and how to read it, in a sentence or two.
    pub caption: String,
    /// The lines.
    pub curves: Vec<Curve>,
    /// Levels to compare with.
    pub baselines: Vec<Baseline>,
    /// Whether curves of many points are drawn thin, with their moving average on top.
    pub smooth: bool,
}

impl Chart {
    /// The training losses over steps, where clusters or classes are predicted (cross-entropy).
    #[must_use]
    pub fn losses(curves: Vec<Curve>) -> Self {
        Self {
            smooth: true,
            ..Self::new(
                "Prediction loss",
                "nats",
                "steps",
                "Cross-entropy between the clusters the teacher gives to hidden patches and the student's guess. It should \
                 fall and then flatten; the teacher improves along the way, so compare levels within a run only.",
                curves,
            )
        }
    }

    /// The training losses over steps, where features are predicted (smooth L1).
    #[must_use]
    pub fn feature_losses(curves: Vec<Curve>) -> Self {
        let caption = "Distance (smooth L1) between the teacher's features of hidden patches and the student's guess. The \
                       teacher moves along: a loss near 0 may also mean that all features have become alike.";
        Self { smooth: true, ..Self::new("Prediction loss", "", "steps", caption, curves) }
    }

    /// The losses of whole images and of patches over steps, where assignments to the words of a codebook are predicted.
    #[must_use]
    pub fn assignment_losses(curves: Vec<Curve>) -> Self {
        let caption = "How far the student's guess is from what the teacher makes of the other view of an image (image), and of \
                       the patches of the same view (local). The teacher, its words and the temperature move along, so the \
                       losses may rise while features improve.";
        Self { smooth: true, ..Self::new("Losses", "", "steps", caption, curves) }
    }

    /// The squared error of predicted pixels over steps.
    #[must_use]
    pub fn pixel_loss(points: Vec<(f64, f64)>) -> Self {
        let caption = "Mean squared error of predicted pixels. Where each patch is standardised, 1 is what a flat grey patch \
                       would get; below it something about the patch was predicted.";
        let curves = vec![Curve::new("pixels", points)];
        Self { smooth: true, ..Self::new("Prediction loss", "", "steps", caption, curves) }
    }

    /// The same, by the place of a segment in the order in which an image is predicted.
    #[must_use]
    pub fn losses_by_place(curves: Vec<Curve>) -> Self {
        let caption = "The first segment sees itself, so its task is to copy. Of the others, later ones have seen more of the \
                       image: their loss should lie below that of the early ones.";
        Self { smooth: true, ..Self::new("Loss by place in the order", "", "steps", caption, curves) }
    }

    /// How many blocks of the encoder a layer of the decoder reads, over steps; `blocks` is how many there are.
    #[must_use]
    pub fn skip_entropy(points: Vec<(f64, f64)>, blocks: Option<usize>) -> Self {
        let ceiling = blocks.map(|blocks| Baseline { name: "all alike".into(), value: (blocks as f64).ln() });
        let caption = "Entropy of the magnitudes of the skip weights, the mean over the decoder's layers: 0 where a layer reads \
                       one block of the encoder, the dashed line where it reads all alike.";
        let curves = vec![Curve::new("entropy of the skips", points)];
        let baselines = ceiling.into_iter().collect();
        Self { smooth: true, baselines, ..Self::new("Skip entropy", "nats", "steps", caption, curves) }
    }

    /// The clustering loss over steps.
    #[must_use]
    pub fn clustering_loss(points: Vec<(f64, f64)>) -> Self {
        Self {
            smooth: true,
            ..Self::new(
                "Clustering loss",
                "nats",
                "steps",
                "Cross-entropy between the prototypes' own guess and the balanced assignment of the same patches. It falls \
                 as prototypes settle on distinct groups of patches.",
                vec![Curve::new("clustering", points)],
            )
        }
    }

    /// Entropy of the targets over steps; `ceiling` is the entropy of no information, ln K.
    #[must_use]
    pub fn target_entropy(points: Vec<(f64, f64)>, ceiling: Option<f64>) -> Self {
        let ceiling = ceiling.map(|value| Baseline { name: "all alike, ln K".into(), value });
        Self {
            smooth: true,
            baselines: ceiling.into_iter().collect(),
            ..Self::new(
                "Target entropy",
                "nats",
                "steps",
                "Over how many clusters or words a target is spread: 0 means one, ln K means all alike. Near the ceiling targets \
                 say little; if clusters stay there, they are too many for the batch.",
                vec![Curve::new("entropy of a target", points)],
            )
        }
    }

    /// Learning rates over steps.
    #[must_use]
    pub fn learning_rates(curves: Vec<Curve>) -> Self {
        let caption = "The size of a step, as scheduled: it rises over the warm-up and falls along a truncated cosine.";
        Self::new("Learning rate", "", "steps", caption, curves)
    }

    /// k-NN accuracy (percent) over images seen, with the levels it has to beat.
    #[must_use]
    pub fn knn(points: Vec<(f64, f64)>, pixels: Option<f64>, random_weights: Option<f64>) -> Self {
        let level = |name: &str, value: Option<f64>| value.map(|value| Baseline { name: name.into(), value });
        let baselines = [level("random weights", random_weights), level("raw pixels", pixels)];
        Self {
            baselines: baselines.into_iter().flatten().collect(),
            ..Self::new(
                "k-NN accuracy",
                "%",
                "images seen",
                "Held-out images classified by their nearest training images in feature space; training itself uses no \
                 labels. What lies above the dashed lines was learned.",
                vec![Curve::new("learned features", points)],
            )
        }
    }

    /// A chart of these curves, without baselines.
    pub fn new(
        title: impl Into<String>,
        unit: impl Into<String>,
        over: impl Into<String>,
        caption: impl Into<String>,
        curves: Vec<Curve>,
    ) -> Self {
        Self {
            title: title.into(),
            unit: unit.into(),
            over: over.into(),
            caption: caption.into(),
            curves,
            baselines: Vec::new(),
            smooth: false,
        }
    }

    /// Names and colours of what is drawn: (name, `#rrggbb`, dashed).
    pub(crate) fn legend(&self) -> Vec<(&str, String, bool)> {
        let written = |RGBColor(r, g, b): RGBColor| format!("#{r:02x}{g:02x}{b:02x}");
        let curves = self.curves.iter().enumerate().map(|(i, c)| (c.name.as_str(), written(curve_color(i)), false));
        let baselines =
            self.baselines.iter().enumerate().map(|(i, b)| (b.name.as_str(), written(baseline_color(i)), true));
        curves.chain(baselines).collect()
    }

    /// The last value of each curve, for readers who do not see the drawing.
    pub(crate) fn spoken(&self) -> String {
        let ends = self.curves.iter().filter_map(|curve| {
            let points = finite(&curve.points);
            let ((_, first), (_, last)) = (points.first()?, points.last()?);
            Some(format!("{} from {} to {}", curve.name, short(*first), short(*last)))
        });
        format!("{} over {}: {}", self.title, self.over, ends.collect::<Vec<_>>().join("; "))
    }

    /// The drawing, or `None` where no curve has a finite point.
    pub(crate) fn svg(&self) -> Result<Option<String>> {
        let curves: Vec<Vec<(f64, f64)>> = self.curves.iter().map(|curve| finite(&curve.points)).collect();
        let Some((xs, ys)) = self.ranges(&curves) else { return Ok(None) };
        let mut svg = String::new();
        let failed = |error: &dyn std::fmt::Display| ReportError::Chart {
            chart: self.title.clone(),
            message: error.to_string(),
        };
        self.draw(&mut svg, &curves, xs, ys).map_err(|error| failed(&error))?;
        Ok(Some(inline(&svg)))
    }

    fn draw<'a>(
        &self,
        svg: &'a mut String,
        curves: &[Vec<(f64, f64)>],
        xs: Range<f64>,
        ys: Range<f64>,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(16)
            .margin_right(36)
            .x_label_area_size(84)
            .y_label_area_size(96)
            .build_cartesian_2d(xs.clone(), ys)?;
        let label = ("sans-serif", 26).into_font().color(&INK.mix(0.72));
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12).stroke_width(2))
            .axis_style(INK.mix(0.35).stroke_width(2))
            .label_style(label.clone())
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .x_desc(self.over.as_str())
            .axis_desc_style(label)
            .draw()?;
        for (index, Baseline { value, .. }) in self.baselines.iter().enumerate().filter(|(_, b)| b.value.is_finite()) {
            let style = baseline_color(index).stroke_width(4);
            chart.draw_series(DashedLineSeries::new([(xs.start, *value), (xs.end, *value)], 14, 9, style))?;
        }
        for (index, points) in curves.iter().enumerate() {
            let color = curve_color(index);
            if self.smooth && points.len() > MOST_MARKS {
                chart.draw_series(LineSeries::new(binned(points), color.mix(0.3).stroke_width(2)))?;
                chart.draw_series(LineSeries::new(binned(&averaged(points)), color.stroke_width(5)))?;
                continue;
            }
            chart.draw_series(LineSeries::new(binned(points), color.stroke_width(5)))?;
            if points.len() <= MOST_MARKS {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 7, color.filled())))?;
            }
        }
        root.present()
    }

    /// What the axes span: every point and baseline, with some air above and below.
    fn ranges(&self, curves: &[Vec<(f64, f64)>]) -> Option<(Range<f64>, Range<f64>)> {
        let points = || curves.iter().flatten();
        let (left, right) = span(points().map(|point| point.0))?;
        let levels = self.baselines.iter().map(|baseline| baseline.value).filter(|value| value.is_finite());
        let (low, high) = span(points().map(|point| point.1).chain(levels))?;
        // Halves, so that the distance of two extreme numbers does not overflow.
        let air = match high / 2.0 - low / 2.0 {
            half if half > 0.0 => half * 0.12,
            _ if low == 0.0 => 1.0,
            _ => low.abs() * 0.1,
        };
        let right = if right > left { right } else { left + left.abs().max(1.0) };
        let bottom = if low >= 0.0 { (low - air).max(0.0) } else { low - air };
        Some((left..right, bottom..high + air))
    }
}

fn curve_color(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

fn baseline_color(index: usize) -> RGBColor {
    BASELINES[index % BASELINES.len()]
}

/// Points an axis can hold: finite, and far enough from the largest number that ranges do not overflow.
fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|(x, y)| x.abs() < 1e300 && y.abs() < 1e300).collect()
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// At most [`MOST_POINTS`] points: the means of bins of neighbours.
fn binned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MOST_POINTS).max(1);
    points.chunks(size).map(mean).collect()
}

/// The mean of each point and its neighbours, a fortieth of the curve in all; shorter at the ends.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 80;
    (0..points.len())
        .map(|i| {
            let reach = half.min(i).min(points.len() - 1 - i);
            (points[i].0, mean(&points[i - reach..=i + reach]).1)
        })
        .collect()
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len().max(1) as f64;
    let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    (sum.0, sum.1)
}

/// A number in few characters: `12.5k`, `0.35`, `2e-4`.
fn short(value: f64) -> String {
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    let text = match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e9).contains(&size) => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
        size if size >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + "M",
        size if size >= 1e4 => trimmed(format!("{:.1}", value / 1e3)) + "k",
        size if size >= 100.0 => trimmed(format!("{value:.1}")),
        size if size >= 0.1 => trimmed(format!("{value:.2}")),
        _ => trimmed(format!("{value:.4}")),
    };
    text.replace('-', "\u{2212}")
}

/// The SVG as part of a page: sized by the page, in the page's ink, silent (the page describes it).
fn inline(svg: &str) -> String {
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    let (width, height) = SIZE;
    let body = body.replace(INK_WRITTEN, "currentColor").replace('\n', "");
    format!("<svg viewBox=\"0 0 {width} {height}\" aria-hidden=\"true\" focusable=\"false\">{body}")
}

#[cfg(test)]
mod tests {
    use super::{Chart, Curve, averaged, binned, short};

    #[test]
    fn numbers_are_short() {
        let values = [0.0, 0.35, 12.0, 71.25, 2500.0, 12_500.0, 3.2e6, 2e-4, -0.5, 1e12];
        let written = values.map(short);
        let expected = ["0", "0.35", "12", "71.25", "2500", "12.5k", "3.2M", "2e\u{2212}4", "\u{2212}0.5", "1e12"];
        assert_eq!(written, expected);
    }

    #[test]
    fn long_curves_are_thinned_without_moving_their_mean() {
        let points: Vec<(f64, f64)> = (0..4_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        let thin = binned(&points);
        assert_eq!(thin.len(), 400);
        let mean = |points: &[(f64, f64)]| points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        assert!((mean(&thin) - mean(&points)).abs() < 1e-9);
        let smooth = averaged(&points);
        assert_eq!((smooth[0], smooth[3_999]), (points[0], points[3_999]), "the ends stay");
        assert!(smooth[500..3_500].iter().all(|p| (p.1 - 3.0).abs() < 0.1));
    }

    #[test]
    fn a_chart_without_a_finite_point_is_not_drawn() {
        let chart = Chart::losses(vec![Curve::new("loss", vec![(0.0, f64::NAN), (1.0, f64::INFINITY)])]);
        assert_eq!(chart.svg().unwrap(), None);
    }

    #[test]
    fn a_loss_on_features_is_no_cross_entropy() {
        let chart = Chart::feature_losses(vec![Curve::new("loss", vec![(0.0, 1.0)])]);
        assert!(chart.unit.is_empty() && !chart.caption.contains("Cross-entropy"));
    }

    #[test]
    fn odd_ranges_are_drawn() {
        let odd: [&[(f64, f64)]; 6] = [
            &[(3.0, 2.0)],
            &[(0.0, 0.0), (1.0, 0.0)],
            &[(0.0, -5.0), (0.0, -5.0)],
            &[(0.0, 1e299), (1.0, -1e299)],
            &[(0.0, 1e-300), (1.0, 2e-300)],
            &[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
        ];
        for points in odd {
            let svg = Chart::knn(points.to_vec(), Some(f64::NAN), None).svg().unwrap().unwrap();
            assert!(svg.contains("<circle") && !svg.contains("NaN"), "{points:?}");
        }
    }

    #[test]
    fn ink_is_the_pages_own() {
        let svg = Chart::losses(vec![Curve::new("loss", vec![(0.0, 1.0), (1.0, 0.5)])]).svg().unwrap().unwrap();
        assert!(svg.contains("currentColor") && !svg.contains("#010203") && !svg.contains("xmlns"));
    }
}
