//! Eigenvectors of a real symmetric matrix: Householder reduction to three diagonals, then QL steps with implicit
//! shifts. Exact to rounding, no tolerance to choose; about 5 n^3 operations.

/// Eigenvalues in falling order and, row by row, their unit eigenvectors.
pub(crate) struct Eigen {
    /// Falling.
    pub(crate) values: Vec<f64>,
    /// Row `i` belongs to value `i`.  [n, n]
    pub(crate) vectors: Vec<f64>,
}

/// Decomposes `matrix`, [n, n] row-major and symmetric; only its values on and below the diagonal are trusted to agree
/// to rounding with those above.
pub(crate) fn symmetric(mut matrix: Vec<f64>, n: usize) -> Eigen {
    let reflectors = tridiagonal(&mut matrix, n);
    let mut diagonal: Vec<f64> = (0..n).map(|i| matrix[i * n + i]).collect();
    let mut beside: Vec<f64> = (1..n).map(|i| matrix[i * n + i - 1]).chain([0.0]).collect();
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    implicit_ql(&mut diagonal, &mut beside, &mut vectors, n);

    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
    let mut sorted = Vec::with_capacity(n * n);
    for &from in &order {
        let mut vector = vectors[from * n..(from + 1) * n].to_vec();
        // Back from the three-diagonal matrix: the reflections in reverse.
        for (column, reflector) in reflectors.iter().enumerate().rev() {
            reflect(&mut vector[column + 1..], reflector);
        }
        sorted.extend(vector);
    }
    Eigen { values: order.iter().map(|&from| diagonal[from]).collect(), vectors: sorted }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// x <- x - 2 v (v . x), for a unit or zero `v`.
fn reflect(x: &mut [f64], v: &[f64]) {
    let twice = 2.0 * dot(x, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= twice * v);
}

/// Reduces `a` in place; returns the unit vector of each reflection, which acts on the rows after its column.
fn tridiagonal(a: &mut [f64], n: usize) -> Vec<Vec<f64>> {
    let mut reflectors = Vec::new();
    for column in 0..n.saturating_sub(2) {
        let first = column + 1;
        let mut v: Vec<f64> = (first..n).map(|row| a[row * n + column]).collect();
        let length = dot(&v, &v).sqrt();
        // The sign that adds: no digits are lost in v[0].
        let image = if v[0] > 0.0 { -length } else { length };
        v[0] -= image;
        let norm = dot(&v, &v).sqrt();
        if norm > 0.0 {
            v.iter_mut().for_each(|x| *x /= norm);
        }
        a[first * n + column] = image;
        // The block that is left: A <- H A H = A - 2 (v w' + w v'), w = A v - (v . A v) v.
        let mut w: Vec<f64> = (first..n).map(|row| dot(&a[row * n + first..(row + 1) * n], &v)).collect();
        let inner = dot(&v, &w);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= inner * v);
        for (i, row) in (first..n).enumerate() {
            let (vi, wi) = (2.0 * v[i], 2.0 * w[i]);
            let line = &mut a[row * n + first..(row + 1) * n];
            line.iter_mut().zip(v.iter().zip(&w)).for_each(|(x, (v, w))| *x -= vi * w + wi * v);
        }
        reflectors.push(v);
    }
    reflectors
}

/// Diagonalises the three-diagonal matrix (`d` on, `e` beside the diagonal); rows of `z` turn along.
fn implicit_ql(d: &mut [f64], e: &mut [f64], z: &mut [f64], n: usize) {
    for l in 0..n {
        // A finite symmetric matrix needs two or three rounds a value; the bound only guards against NaN.
        for _ in 0..64 {
            let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let end = (l..n - 1).find(|&m| small(m)).unwrap_or(n - 1);
            if end == l {
                break;
            }
            ql_round(d, e, z, n, l, end);
        }
    }
}

/// One QL round with Wilkinson's shift on rows `l..=end`.
fn ql_round(d: &mut [f64], e: &mut [f64], z: &mut [f64], n: usize, l: usize, end: usize) {
    let slope = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let root = slope.hypot(1.0);
    let mut g = d[end] - d[l] + e[l] / (slope + root.copysign(slope));
    let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
    for i in (l..end).rev() {
        let (f, b) = (sine * e[i], cosine * e[i]);
        let radius = f.hypot(g);
        e[i + 1] = radius;
        if radius == 0.0 {
            // The matrix fell apart here: the next round takes the smaller part.
            d[i + 1] -= shift;
            e[end] = 0.0;
            return;
        }
        (sine, cosine) = (f / radius, g / radius);
        g = d[i + 1] - shift;
        let r = (d[i] - g) * sine + 2.0 * cosine * b;
        shift = sine * r;
        d[i + 1] = g + shift;
        g = cosine * r - b;
        let (upper, lower) = z[i * n..(i + 2) * n].split_at_mut(n);
        for (x, y) in upper.iter_mut().zip(lower) {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        }
    }
    d[l] -= shift;
    e[l] = g;
    e[end] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::{dot, symmetric};
    use occlude_random::Streams;
    use rand::Rng;

    fn random(n: usize, rank: usize) -> Vec<f64> {
        let mut stream = Streams::new(1).stream("test", n as u64, rank as u64);
        let rows: Vec<Vec<f64>> = (0..rank).map(|_| (0..n).map(|_| stream.random::<f64>() - 0.5).collect()).collect();
        (0..n * n).map(|place| rows.iter().map(|row| row[place / n] * row[place % n]).sum()).collect()
    }

    fn check(matrix: &[f64], n: usize) {
        let eigen = symmetric(matrix.to_vec(), n);
        let scale = eigen.values.iter().fold(1e-300_f64, |most, value| most.max(value.abs()));
        assert!(eigen.values.windows(2).all(|pair| pair[0] >= pair[1]));
        for i in 0..n {
            let vector = &eigen.vectors[i * n..(i + 1) * n];
            for row in 0..n {
                let residual = dot(&matrix[row * n..(row + 1) * n], vector) - eigen.values[i] * vector[row];
                assert!(residual.abs() < 1e-12 * scale * n as f64, "n = {n}, vector {i}: {residual}");
            }
            for other in 0..=i {
                let product = dot(vector, &eigen.vectors[other * n..(other + 1) * n]);
                let expected = f64::from(u8::from(other == i));
                assert!((product - expected).abs() < 1e-12 * n as f64, "n = {n}: {i} . {other} = {product}");
            }
        }
    }

    #[test]
    fn vectors_are_orthonormal_and_solve_the_equation() {
        for (n, rank) in [(1, 1), (2, 2), (3, 5), (8, 3), (17, 40), (60, 90), (61, 5)] {
            check(&random(n, rank), n);
        }
    }

    #[test]
    fn special_matrices_are_no_trouble() {
        let zeros = vec![0.0; 25];
        check(&zeros, 5);
        let mut diagonal = vec![0.0; 16];
        (0..4).for_each(|i| diagonal[i * 5] = [3.0, -1.0, 3.0, 0.0][i]);
        check(&diagonal, 4);
        check(&[1.0; 36], 6);
        // Eigenvalues 2 - 2 cos(k pi / (n + 1)).
        let mut chain = vec![0.0; 100];
        (0..10).for_each(|i| chain[i * 11] = 2.0);
        (0..9).for_each(|i| (chain[i * 10 + i + 1], chain[(i + 1) * 10 + i]) = (-1.0, -1.0));
        check(&chain, 10);
        let largest = symmetric(chain, 10).values[0];
        assert!((largest - (2.0 - 2.0 * (10.0 * std::f64::consts::PI / 11.0).cos())).abs() < 1e-14);
    }
}
