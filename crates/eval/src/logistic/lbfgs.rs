//! L-BFGS for smooth convex functions, in f64.

use crate::Result;
use std::collections::VecDeque;

const MEMORY: usize = 5;
/// Steps tried along one direction.
const TRIALS: usize = 50;

/// When the search ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// Steps, at most.
    pub(crate) iterations: usize,
    /// Largest number of the gradient.
    pub(crate) tolerance: f64,
}

impl Stop {
    /// As far as f64 tells.
    pub(crate) const EXACT: Self = Self { iterations: 1000, tolerance: 1e-12 };
}

/// Where a search ended.
pub(super) struct Found {
    pub(super) at: Vec<f64>,
    /// Whether the gradient is small enough, or no lower value can be told from rounding; not: out of steps.
    pub(super) converged: bool,
}

/// Where a function is, how large there, and its gradient.
struct Point {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Point {
    fn is_flat(&self, stop: Stop) -> bool {
        self.gradient.iter().all(|slope| slope.abs() <= stop.tolerance)
    }
}

/// A move and the change of the gradient along it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
}

/// The place where `function` (value and gradient) is smallest, as nearly as `stop` asks.
pub(super) fn minimise(
    start: Vec<f64>,
    stop: Stop,
    function: impl Fn(&[f64]) -> Result<(f64, Vec<f64>)>,
) -> Result<Found> {
    let evaluate = |at: Vec<f64>| function(&at).map(|(value, gradient)| Point { at, value, gradient });
    let mut point = evaluate(start)?;
    let mut pairs: VecDeque<Pair> = VecDeque::with_capacity(MEMORY + 1);
    for _ in 0..stop.iterations {
        if point.is_flat(stop) {
            break;
        }
        let direction = direction(&point.gradient, &pairs);
        let first = if pairs.is_empty() { 1.0 / dot(&point.gradient, &point.gradient).sqrt() } else { 1.0 };
        let Some(next) = search(&point, &direction, first, &evaluate)? else {
            return Ok(Found { at: point.at, converged: true });
        };
        let pair = Pair { step: less(&next.at, &point.at), change: less(&next.gradient, &point.gradient) };
        point = next;
        if dot(&pair.step, &pair.change) > 0.0 {
            pairs.push_back(pair);
            if pairs.len() > MEMORY {
                pairs.pop_front();
            }
        }
    }
    Ok(Found { converged: point.is_flat(stop), at: point.at })
}

/// Minus the gradient, times the inverse of the curvature seen along the last moves (the two loops of L-BFGS).
fn direction(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut shares = Vec::with_capacity(pairs.len());
    for Pair { step, change } in pairs.iter().rev() {
        let share = dot(step, &direction) / dot(step, change);
        add(&mut direction, -share, change);
        shares.push(share);
    }
    if let Some(Pair { step, change }) = pairs.back() {
        let scale = dot(step, change) / dot(change, change);
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for (Pair { step, change }, share) in pairs.iter().zip(shares.into_iter().rev()) {
        let back = dot(change, &direction) / dot(step, change);
        add(&mut direction, share - back, step);
    }
    direction
}

/// A point along `direction` that is low enough and flat enough (weak Wolfe conditions), by doubling and halving. `None`
/// where no lower one is found: the value is as low as its rounding lets it be.
fn search(
    from: &Point,
    direction: &[f64],
    first: f64,
    evaluate: &impl Fn(Vec<f64>) -> Result<Point>,
) -> Result<Option<Point>> {
    let slope = dot(&from.gradient, direction);
    let (mut low, mut high, mut length) = (0.0, f64::INFINITY, first);
    for _ in 0..TRIALS {
        let mut at = from.at.clone();
        add(&mut at, length, direction);
        let point = evaluate(at)?;
        // Written so that a value that is no number is too high.
        let low_enough = point.value < from.value && point.value <= from.value + 1e-4 * length * slope;
        if !low_enough {
            high = length;
        } else if dot(&point.gradient, direction) < 0.9 * slope {
            low = length;
        } else {
            return Ok(Some(point));
        }
        length = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * length };
    }
    Ok(None)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn add(to: &mut [f64], share: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += share * what);
}

#[cfg(test)]
mod tests {
    use super::{Stop, minimise};

    #[test]
    fn a_long_valley_is_followed_to_its_end() {
        // Curvatures of 1 to 10^4.
        let curvature = |i: usize| 10_f64.powf(i as f64 / 2.0);
        let valley = |at: &[f64]| {
            let terms = at.iter().enumerate().map(|(i, x)| (curvature(i), x - i as f64));
            let (values, gradient): (Vec<f64>, Vec<f64>) = terms.map(|(c, d)| (c * d * d / 2.0, c * d)).unzip();
            Ok((values.iter().sum(), gradient))
        };
        let found = minimise(vec![20.0; 9], Stop::EXACT, valley).unwrap();
        assert!(found.converged && found.at.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-9));
        let few = minimise(vec![20.0; 9], Stop { iterations: 3, ..Stop::EXACT }, valley).unwrap();
        assert!(!few.converged, "three steps do not lead through it: {:?}", few.at);
    }
}
