#![allow(clippy::all, missing_docs, clippy::unwrap_used, clippy::print_stdout)]
use candle_core::{DType, Tensor, Var};
use occlude_kernels::check::sample;
use occlude_kernels::*;
use std::time::Instant;
fn cpu() -> f64 {
    let mut ns = 0u64;
    for t in std::fs::read_dir("/proc/self/task").unwrap() {
        let s = std::fs::read_to_string(t.unwrap().path().join("schedstat")).unwrap_or_default();
        ns += s.split(' ').next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    }
    ns as f64 / 1e6
}
fn var(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    Var::from_tensor(&(sample(seed, shape).unwrap() * scale).unwrap().to_dtype(DType::F32).unwrap())
        .unwrap()
        .into_inner()
}
fn time(name: &str, f: &dyn Fn() -> Result<Tensor>) {
    f().unwrap();
    let filter = std::env::args().nth(2);
    if let Some(x) = filter {
        if !name.contains(&x) {
            return;
        }
    }
    for _ in 0..3 {
        backward(&f().unwrap().sum_all().unwrap()).unwrap();
    }
    let n = std::env::args().nth(3).and_then(|v| v.parse().ok()).unwrap_or(15);
    let mut fw = vec![];
    let mut bo = vec![];
    let mut wall = vec![];
    for _ in 0..n {
        let c = cpu();
        let y = f().unwrap();
        fw.push(cpu() - c);
        drop(y);
        let w = Instant::now();
        let c = cpu();
        let y = f().unwrap().sum_all().unwrap();
        let g = backward(&y).unwrap();
        bo.push(cpu() - c);
        wall.push(w.elapsed().as_secs_f64() * 1e3);
        drop(y);
        drop(g);
    }
    let med = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        (v[v.len() / 2], v[0])
    };
    let (f_, b_, w_) = (med(&mut fw), med(&mut bo), med(&mut wall));
    println!(
        "{name:28} fwd cpu {:7.3} (min {:7.3})  fwd+bwd cpu {:7.3} (min {:7.3}) wall {:7.3} (min {:7.3}) ms",
        f_.0, f_.1, b_.0, b_.1, w_.0, w_.1
    );
}
fn main() {
    let t: usize = std::env::args().nth(1).and_then(|v| v.parse().ok()).unwrap_or(1);
    threads::init(t).unwrap();
    let (b, n, d, h) = (256, 20, 128, 4);
    let x = var(1, &[b, n, d], 1.0);
    let wide = var(2, &[b, n, 4 * d], 1.0);
    let sq: Vec<Tensor> = (0..4).map(|i| var(10 + i, &[d, d], 0.1)).collect();
    let (up, down) = (var(20, &[4 * d, d], 0.1), var(21, &[d, 4 * d], 0.1));
    let nw = [var(22, &[d], 1.0), var(23, &[d], 1.0)];
    let coords = sample(11, (b, n, 2)).unwrap().to_dtype(DType::F32).unwrap();
    let table = Tensor::from_vec(frequency_table(d / h).unwrap(), (2, d / h), coords.device())
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let angles = Angles::new(&coords, &table).unwrap();
    time("angles", &|| Ok(Angles::new(&coords, &table)?.cos().clone()));
    time("linear 128x128", &|| linear(&x, &sq[0], None));
    time("linear 128x512", &|| linear(&x, &up, None));
    time("linear 512x128", &|| linear(&wide, &down, None));
    time("gelu 512", &|| gelu(&wide));
    time("rms_norm", &|| rms_norm(&x, Some(&nw[0]), 1e-5));
    time("add", &|| Ok((&x + &x)?));
    let (q, k) = (var(6, &[b, n, d], 1.0), var(7, &[b, n, d], 1.0));
    time("attention", &|| attention(&q, &k, &x, h, &Visibility::All));
    let m = |s| var(s, &[8, 200, 384], 1.0);
    let (qq, kk, vv) = (m(8), m(9), m(10));
    time("attention200", &|| attention(&qq, &kk, &vv, 6, &Visibility::All));
    time("encode", &|| position_encode(&x, &angles, h));
    time("block", &|| {
        let y = rms_norm(&x, Some(&nw[0]), 1e-5)?;
        let q = position_encode(&linear(&y, &sq[0], None)?, &angles, h)?;
        let k = position_encode(&linear(&y, &sq[1], None)?, &angles, h)?;
        let v = linear(&y, &sq[2], None)?;
        let x = (&x + linear(&attention(&q, &k, &v, h, &Visibility::All)?, &sq[3], None)?)?;
        let y = rms_norm(&x, Some(&nw[1]), 1e-5)?;
        Ok((&x + linear(&gelu(&linear(&y, &up, None)?)?, &down, None)?)?)
    });
}
