//! Fused matrices of attention: one below the other in a file (`attn.qkv.weight`, `self_attn.qkv.weight`,
//! `cross_attn.kv.weight`), each by itself in a method's state (`attn.q.weight`, `attn.k.weight`, ...).

use candle_core::Tensor;
use occlude_kernels::StateDict;
use std::collections::btree_map::Entry;

/// What is fused in an attention of each name: the name in a file, and its parts from top to bottom.
const FUSED: [(&str, &str, &[&str]); 3] =
    [("attn", "qkv", &["q", "k", "v"]), ("self_attn", "qkv", &["q", "k", "v"]), ("cross_attn", "kv", &["k", "v"])];

/// A part of a fused tensor, or the fused tensor: block and attention, what it is, `weight` or `bias`.
struct Name<'a> {
    attention: &'a str,
    what: &'a str,
    of: &'a str,
    fused: &'static str,
    parts: &'static [&'static str],
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, of) = name.rsplit_once('.')?;
        let (attention, what) = rest.rsplit_once('.')?;
        let module = attention.rsplit_once('.').map_or(attention, |(_, module)| module);
        let (_, fused, parts) = FUSED.iter().find(|(known, ..)| *known == module)?;
        Some(Self { attention, what, of, fused, parts })
    }

    fn with(&self, what: &str) -> String {
        format!("{}.{what}.{}", self.attention, self.of)
    }
}

/// The names of a file.
pub(super) fn joined(state: &StateDict) -> candle_core::Result<StateDict> {
    let mut official = StateDict::new();
    for (name, tensor) in state {
        let Some(part) = Name::of(name).filter(|name| name.parts.contains(&name.what)) else {
            official.insert(name.clone(), tensor.detach());
            continue;
        };
        let beside = |what: &&str| {
            let name = part.with(what);
            let found = state.get(&name).map(Tensor::detach);
            found.ok_or_else(|| candle_core::Error::Msg(format!("{name} is missing beside its fellows")))
        };
        if let Entry::Vacant(whole) = official.entry(part.with(part.fused)) {
            let parts = part.parts.iter().map(beside).collect::<candle_core::Result<Vec<_>>>()?; // [dim, ..] each
            whole.insert(Tensor::cat(&parts, 0)?); // [parts * dim, ..]
        }
    }
    Ok(official)
}

/// The names of a method's state: the inverse of [`joined`].
pub(super) fn split(official: &StateDict) -> candle_core::Result<StateDict> {
    let mut state = StateDict::new();
    for (name, tensor) in official {
        let Some(whole) = Name::of(name).filter(|name| name.what == name.fused) else {
            state.insert(name.clone(), tensor.clone());
            continue;
        };
        for (what, part) in whole.parts.iter().zip(tensor.chunk(whole.parts.len(), 0)?) {
            state.insert(whole.with(what), part);
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::{joined, split};
    use candle_core::{Device, Tensor};
    use occlude_kernels::StateDict;

    fn state() -> StateDict {
        let names =
            ["blocks.0.attn.q.weight", "blocks.0.attn.k.weight", "blocks.0.attn.v.weight", "blocks.0.attn.proj.bias"];
        let others = ["d.0.cross_attn.q.bias", "d.0.cross_attn.k.bias", "d.0.cross_attn.v.bias", "norm.weight"];
        let tensor = |(at, name): (usize, &str)| (name.to_owned(), Tensor::full(at as f32, 2, &Device::Cpu).unwrap());
        names.into_iter().chain(others).enumerate().map(tensor).collect()
    }

    #[test]
    fn what_is_fused_lies_in_its_order_and_comes_back() {
        let official = joined(&state()).unwrap();
        let values = |name: &str| official[name].to_vec1::<f32>().unwrap();
        assert_eq!(values("blocks.0.attn.qkv.weight"), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(values("d.0.cross_attn.kv.bias"), [5.0, 5.0, 6.0, 6.0]);
        assert_eq!(values("d.0.cross_attn.q.bias"), [4.0, 4.0]);
        assert_eq!(official.len(), 5);
        let back = split(&official).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), state().keys().collect::<Vec<_>>());
        for (name, tensor) in state() {
            assert_eq!(back[&name].to_vec1::<f32>().unwrap(), tensor.to_vec1::<f32>().unwrap(), "{name}");
        }
    }

    #[test]
    fn a_part_without_its_fellows_is_an_error() {
        let mut state = state();
        state.remove("blocks.0.attn.k.weight");
        assert!(joined(&state).unwrap_err().to_string().contains("blocks.0.attn.k.weight is missing"));
    }
}
