//! Published figures beside those of our runs: a table to print, a file for scripts.

use occlude_config::{Difference, Figure, Measure};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A study, as published and as run here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// `moca/T2e`.
    pub(crate) name: String,
    /// What it is about, and where it stands in the paper.
    pub(crate) title: String,
    /// What the paper's runs were made on.
    pub(crate) paper: String,
    /// The size of ours, in a sentence.
    pub(crate) here: String,
    /// The images of ours.
    pub(crate) images: String,
    /// How many runs a line asks for; each of another seed.
    pub(crate) seeds: u64,
    /// A line a row.
    pub(crate) lines: Vec<Line>,
    /// k-NN accuracy of the same models with random weights, one a run.
    pub(crate) random: Vec<f64>,
    /// k-NN accuracy of raw pixels, one a run.
    pub(crate) pixels: Vec<f64>,
    /// What the first line has otherwise than the paper.
    pub(crate) differences: Vec<Difference>,
}

/// A row, as published and as run here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) about: String,
    pub(crate) paper: BTreeMap<Measure, Figure>,
    /// One number a run.
    pub(crate) here: BTreeMap<Measure, Vec<f64>>,
}

/// Mean, and the deviation of several: with one number less than there are.
pub(crate) fn spread(values: &[f64]) -> Option<Figure> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    match values {
        [] => None,
        [alone] => Some(Figure::Alone(*alone)),
        _ => {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            Some(Figure::Spread([mean, (squares / (count - 1.0)).sqrt()]))
        }
    }
}

impl Comparison {
    /// What any line has a number of.
    fn measures(&self) -> Vec<Measure> {
        let measures = self.lines.iter().flat_map(|line| line.paper.keys().chain(line.here.keys()));
        measures.copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The table as cells: a heading, then the lines.
    fn cells(&self) -> Vec<Vec<String>> {
        let measures = self.measures();
        let columns = measures.iter().flat_map(|measure| [format!("{measure}: paper"), "here".to_owned()]);
        let heading = ["row".to_owned()].into_iter().chain(columns).chain([String::new()]).collect();
        let shown = |figure: Option<Figure>, measure| figure.map_or_else(|| "-".to_owned(), |f| f.written(measure));
        let cells = |line: &Line| {
            let numbers = measures.iter().flat_map(|measure| {
                let here = line.here.get(measure).and_then(|values| spread(values));
                [shown(line.paper.get(measure).copied(), *measure), shown(here, *measure)]
            });
            [line.id.clone()].into_iter().chain(numbers).chain([line.about.clone()]).collect()
        };
        [heading].into_iter().chain(self.lines.iter().map(cells)).collect()
    }

    /// Rows from best to worst by k-NN, as published and here; `None` where fewer than two have both.
    fn orders(&self) -> Option<(String, String)> {
        let both = self.lines.iter().filter_map(|line| {
            let here = spread(line.here.get(&Measure::Knn)?)?;
            Some((line.id.as_str(), line.paper.get(&Measure::Knn)?.mean(), here.mean()))
        });
        let mut both: Vec<(&str, f64, f64)> = both.collect();
        let order = |lines: &[(&str, f64, f64)]| lines.iter().map(|line| line.0).collect::<Vec<_>>().join(" > ");
        both.sort_by(|a, b| b.1.total_cmp(&a.1));
        let paper = order(&both);
        both.sort_by(|a, b| b.2.total_cmp(&a.2));
        (both.len() > 1).then(|| (paper, order(&both)))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.title)?;
        writeln!(f, "  paper: {}", self.paper)?;
        writeln!(f, "  here:  {}; {}\n", self.here, self.images)?;
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let last = cells[0].len() - 1;
        for row in &cells {
            let mut line = format!("  {:<1$}", row[0], width(0));
            for (column, cell) in row.iter().enumerate().take(last).skip(1) {
                line += &format!("  {cell:>0$}", width(column));
            }
            writeln!(f, "{}", format!("{line}   {}", row[last]).trim_end())?;
        }
        writeln!(f)?;
        if self.seeds > 1 {
            writeln!(f, "  here: mean ± deviation over {} seeds", self.seeds)?;
        }
        if let (Some(random), Some(pixels)) = (spread(&self.random), spread(&self.pixels)) {
            let written = |figure: Figure| Measure::Knn.written(figure.mean());
            writeln!(f, "  k-NN of random weights {}, of raw pixels {}", written(random), written(pixels))?;
        }
        if let Some((paper, here)) = self.orders() {
            writeln!(f, "  by k-NN, paper: {paper}\n           here:  {here}")?;
        }
        let Some(first) = self.lines.first().filter(|_| !self.differences.is_empty()) else { return Ok(()) };
        writeln!(f, "\n  settings of {} here, and in the paper:", first.id)?;
        for Difference { key, paper, here } in &self.differences {
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            writeln!(f, "    {key} = {} (paper: {})", shown(here), shown(paper))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Comparison, Line};
    use occlude_config::{Difference, Figure, Measure};
    use std::collections::BTreeMap;

    fn comparison(first: &[f64], second: &[f64]) -> Comparison {
        let line = |id: &str, about: &str, paper: f64, knn: &[f64]| Line {
            id: id.into(),
            about: about.into(),
            paper: BTreeMap::from([(Measure::Knn, Figure::Alone(paper))]),
            here: if knn.is_empty() {
                BTreeMap::new()
            } else {
                let linear = knn.iter().map(|value| value + 5.0).collect();
                BTreeMap::from([(Measure::Knn, knn.to_vec()), (Measure::Linear, linear)])
            },
        };
        Comparison {
            name: "moca/T2d".into(),
            title: "what stands for an image (MOCA, Table 2d)".into(),
            paper: "a hall of GPUs".into(),
            here: "tiny: small".into(),
            images: "50000 images".into(),
            seeds: first.len() as u64,
            lines: vec![line("T2d-1", "the class token", 60.2, first), line("T2d-2", "the mean", 71.8, second)],
            random: first.iter().map(|_| 30.0).collect(),
            pixels: first.iter().map(|_| 42.62).collect(),
            differences: vec![
                Difference { key: "data.crop.size".into(), paper: Some("224".into()), here: Some("32".into()) },
                Difference { key: "method.optimizer.lr".into(), paper: None, here: Some("0.001".into()) },
            ],
        }
    }

    #[test]
    fn figures_stand_beside_each_other() {
        let text = comparison(&[40.0, 41.0, 42.0], &[39.0, 39.5, 39.25]).to_string();
        let expected = "\
moca/T2d: what stands for an image (MOCA, Table 2d)
  paper: a hall of GPUs
  here:  tiny: small; 50000 images

  row    k-NN: paper        here  linear: paper        here
  T2d-1         60.2  41.0 ± 1.0              -  46.0 ± 1.0   the class token
  T2d-2         71.8  39.2 ± 0.2              -  44.2 ± 0.2   the mean

  here: mean ± deviation over 3 seeds
  k-NN of random weights 30.0, of raw pixels 42.6
  by k-NN, paper: T2d-2 > T2d-1
           here:  T2d-1 > T2d-2

  settings of T2d-1 here, and in the paper:
    data.crop.size = 32 (paper: 224)
    method.optimizer.lr = 0.001 (paper: -)
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_was_not_run_is_a_dash() {
        let text = comparison(&[40.0], &[]).to_string();
        assert!(text.contains("\n  T2d-2         71.8     -              -     -   the mean\n"), "{text}");
        assert!(!text.contains("deviation") && !text.contains("by k-NN"), "{text}");
    }

    #[test]
    fn scripts_get_every_number() {
        let json = serde_json::to_value(comparison(&[40.0, 41.0], &[39.0])).unwrap();
        assert_eq!(json["lines"][0]["here"]["knn"], serde_json::json!([40.0, 41.0]));
        assert_eq!(json["lines"][1]["paper"]["knn"], serde_json::json!(71.8));
        assert_eq!(json["differences"][0]["here"], "32");
    }
}
