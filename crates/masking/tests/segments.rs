//! Segments against the reference: assignments of given mixtures, groups, masks of every serialisation, and what many
//! draws look like.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use occlude_golden::{Tensors, set};
use occlude_masking::{
    Gaussian, Grid, SegmenterConfig, Segments, cell_points, centroids, likeliest, ranks, sees_content, sees_memory,
    shared_out,
};
use occlude_random::Streams;

/// The largest distance between recorded and drawn histograms, as total variation, and between mean counts.
const VARIATION: f64 = 0.04;
const COUNT: f64 = 0.05;

fn integers(tensors: &Tensors, name: &str) -> Vec<i64> {
    occlude_golden::integers(&tensors[name])
}

/// Ids up to the padding.
fn ids(values: &[i64]) -> Vec<u32> {
    values.iter().filter(|value| **value >= 0).map(|value| u32::try_from(*value).unwrap()).collect()
}

/// The mixtures of a tensor of means and one of deviations: [samples, k, 2], or [k, 2].
fn mixtures(tensors: &Tensors, mean: &str, deviation: &str) -> Vec<Vec<Gaussian>> {
    let rows = |name: &str| -> Vec<Vec<Vec<f64>>> {
        let tensor = &tensors[name];
        let tensor = if tensor.rank() == 2 { tensor.unsqueeze(0).unwrap() } else { tensor.clone() };
        tensor.to_vec3().unwrap()
    };
    let pair = |values: &Vec<f64>| [values[0], values[1]];
    let sample = |(means, deviations): (Vec<Vec<f64>>, Vec<Vec<f64>>)| {
        let both = means.iter().zip(&deviations);
        both.map(|(mean, deviation)| Gaussian { mean: pair(mean), deviation: pair(deviation) }).collect()
    };
    rows(mean).into_iter().zip(rows(deviation)).map(sample).collect()
}

/// The grid of a name such as `14x14.k5.mu`.
fn grid(name: &str) -> Option<Grid> {
    let (rows, cols) = name.split('.').next()?.split_once('x')?;
    Some(Grid::new(rows.parse().ok()?, cols.parse().ok()?))
}

#[test]
fn golden_randsac_blobs() {
    let Some(tensors) = set("randsac").tensors("blobs") else { return };
    let mut compared = 0;
    for name in tensors.keys() {
        let (Some(grid), Some((prefix, what))) = (grid(name), name.rsplit_once('.')) else { continue };
        let points = cell_points(grid);
        if what == "positions" {
            let expected: Vec<Vec<f64>> = tensors[name].to_vec2().unwrap();
            assert!(points.iter().zip(&expected).all(|(p, e)| (p[0] - e[0]).abs() + (p[1] - e[1]).abs() < 1e-12));
        }
        if what == "assignment" {
            let given = mixtures(&tensors, &format!("{prefix}.mu"), &format!("{prefix}.sigma"));
            let expected = integers(&tensors, name);
            for (mixture, expected) in given.iter().zip(expected.chunks_exact(points.len())) {
                assert_eq!(likeliest(mixture, &points), ids(expected), "{name}");
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
    // Of equal Gaussians the first takes all; the one that has nothing is left out.
    let tie = &mixtures(&tensors, "tie.mu", "tie.sigma")[0];
    let expected = ids(&integers(&tensors, "tie.assignment"));
    let side = (expected.len() as f64).sqrt() as usize;
    let points = cell_points(Grid::new(side, side));
    assert_eq!(likeliest(tie, &points), expected);
    assert_eq!(shared_out(tie, &points).0, ids(&integers(&tensors, "tie.compacted")));
}

#[test]
fn golden_randsac_hierarchy() {
    let Some(tensors) = set("randsac").tensors("hierarchy") else { return };
    let names: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".mu_level0")).collect();
    assert!(!names.is_empty());
    for name in names {
        let depth = (0..).take_while(|level| tensors.contains_key(&format!("{name}.mu_level{level}"))).count();
        let samples = tensors[&format!("{name}.mu_level0")].dims()[0];
        for sample in 0..samples {
            let row = |what: &str| {
                let all = integers(&tensors, &format!("{name}.{what}"));
                ids(&all[sample * all.len() / samples..][..all.len() / samples])
            };
            let mixture = |level: usize| {
                let of = |what: &str| format!("{name}.{what}_level{level}");
                mixtures(&tensors, &of("mu"), &of("sigma"))[sample].clone()
            };
            let cells = row("ids_level0");
            let side = (cells.len() as f64).sqrt() as usize;
            let points = cell_points(Grid::new(side, side));
            let (got, count) = shared_out(&mixture(0), &points);
            assert_eq!(got, cells, "{name}, sample {sample}");
            let recorded: Vec<Vec<f64>> =
                tensors[&format!("{name}.centroids_level0")].get(sample).unwrap().to_vec2().unwrap();
            for (got, expected) in centroids(&cells, count, &points).iter().zip(&recorded) {
                assert!((got[0] - expected[0]).abs() + (got[1] - expected[1]).abs() < 1e-12);
            }
            let (mut node_of, mut nodes, mut levels) = (cells.clone(), count, Vec::new());
            for level in 1..depth {
                let (groups, found) = shared_out(&mixture(level), &centroids(&node_of, nodes, &points));
                assert_eq!(groups, row(&format!("ids_level{level}")), "{name}, sample {sample}, level {level}");
                node_of.iter_mut().for_each(|node| *node = groups[*node as usize]);
                nodes = found;
                levels.push(groups);
            }
            assert!(Segments { cells, levels, order: row("order") }.keeps_groups_together(), "{name}");
        }
    }
}

#[test]
fn golden_randsac_ranks_and_masks() {
    let Some(tensors) = set("randsac").tensors("serialisations") else { return };
    let names: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".rank")).collect();
    assert!(names.len() > 3);
    for name in names {
        let rank = ids(&integers(&tensors, &format!("{name}.rank")));
        if let (true, true) =
            (tensors.contains_key(&format!("{name}.segment")), tensors.contains_key(&format!("{name}.order")))
        {
            let of = |what: &str| ids(&integers(&tensors, &format!("{name}.{what}")));
            assert_eq!(ranks(&of("segment"), &of("order")), rank, "{name}");
        }
        if name.contains("raster") {
            assert!(rank.iter().copied().eq(0..rank.len() as u32), "{name}");
        }
        for (what, rule) in [("source", sees_content as fn(u32, u32) -> bool), ("memory", sees_memory)] {
            let expected = integers(&tensors, &format!("{name}.{what}"));
            let got = rank.iter().flat_map(|query| rank.iter().map(|key| i64::from(rule(*query, *key))));
            assert!(got.eq(expected), "{name}.{what}");
        }
    }
}

/// Shares of a histogram.
fn shares(counts: &[i64]) -> Vec<f64> {
    let total = counts.iter().sum::<i64>() as f64;
    counts.iter().map(|count| *count as f64 / total).collect()
}

fn mean(counts: &[i64]) -> f64 {
    shares(counts).iter().enumerate().map(|(value, share)| value as f64 * share).sum()
}

fn assert_alike(name: &str, got: &[i64], expected: &[i64]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let apart: f64 = shares(got).iter().zip(shares(expected)).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0;
    assert!(apart < VARIATION, "{name}: {apart}");
}

#[test]
fn golden_randsac_statistics_of_many_draws() {
    let Some(tensors) = set("randsac").tensors("blob_stats") else { return };
    let recorded = |name: &str| integers(&tensors, name);
    let prefixes: std::collections::BTreeSet<&str> =
        tensors.keys().filter_map(|name| name.rsplit_once('.')).map(|(prefix, _)| prefix).collect();
    assert!(prefixes.len() > 3);
    for prefix in prefixes {
        let (grid, blobs) = (grid(prefix).unwrap(), prefix.split('.').nth(1).unwrap());
        let counts: Vec<usize> = blobs[1..].split('_').map(|count| count.parse().unwrap()).collect();
        let segmenter = SegmenterConfig { blobs: counts.clone(), ..SegmenterConfig::default() }.check(grid).unwrap();
        let mut sizes = vec![0; grid.count() + 1];
        let mut nodes: Vec<Vec<i64>> = counts.iter().map(|count| vec![0; count + 1]).collect();
        let mut group_sizes = vec![0; counts[0] + 1];
        for sample in 0..4000 {
            let drawn = segmenter.draw(&mut Streams::new(5).stream("segments", 0, sample));
            let found = |ids: &[u32]| *ids.iter().max().unwrap() as usize + 1;
            let size = |ids: &[u32], id: usize| ids.iter().filter(|of| **of as usize == id).count();
            (0..drawn.count()).for_each(|id| sizes[size(&drawn.cells, id)] += 1);
            sizes[0] += (counts[0] - drawn.count()) as i64;
            nodes[0][drawn.count()] += 1;
            for (level, groups) in drawn.levels.iter().enumerate() {
                nodes[level + 1][found(groups)] += 1;
            }
            if let Some(groups) = drawn.levels.first() {
                (0..found(groups)).for_each(|id| group_sizes[size(groups, id)] += 1);
            }
        }
        let near = |name: &str, got: &[i64]| {
            let expected = recorded(name);
            assert!((mean(got) - mean(&expected)).abs() < COUNT, "{name}: {} {}", mean(got), mean(&expected));
        };
        match counts.as_slice() {
            [_] => {
                near(&format!("{prefix}.nonempty_hist"), &nodes[0]);
                assert_alike(prefix, &sizes, &recorded(&format!("{prefix}.size_hist")));
            }
            levels => {
                (0..levels.len()).for_each(|l| near(&format!("{prefix}.nonempty_level{l}"), &nodes[l]));
                assert_alike(prefix, &group_sizes, &recorded(&format!("{prefix}.group_size_hist")));
            }
        }
    }
}
